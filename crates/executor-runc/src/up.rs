//! Knowing when a process of a container is up: the runtime then writes its number to a file.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use cooper_sys::PidFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::group::Group;

/// Waits until the runtime has written `pid_file`, and opens the process that it names.
///
/// The file is watched for only here, so that a container nobody asks this of costs nothing.
///
/// # Cancel safety
/// Nothing is lost.
pub(crate) async fn up(pid_file: &Path, group: &Group) -> io::Result<Arc<PidFd>> {
    if let Some(pidfd) = open(pid_file, group) {
        return Ok(pidfd);
    }
    let watch = watch(pid_file)?;
    loop {
        // After the watch is there: what comes between is an event.
        if let Some(pidfd) = open(pid_file, group) {
            return Ok(pidfd);
        }
        let mut ready = watch.readable().await?;
        let mut buffer = [0; 4096];
        while rustix::io::read(&watch, &mut buffer).is_ok() {}
        ready.clear_ready();
    }
}

fn watch(pid_file: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let dir = pid_file.parent().unwrap_or(Path::new("/"));
    // Runtimes either rename a finished file or write it in place.
    inotify::add_watch(&fd, dir, WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE)?;
    cooper_sys::watch(fd, Interest::READABLE)
}

/// The process of the file, unless it has ended: its number may be another's then, and so it
/// must be in the container's control group.
pub(crate) fn open(pid_file: &Path, group: &Group) -> Option<Arc<PidFd>> {
    let text = std::fs::read(pid_file).ok()?;
    let pid = OsStr::to_str(std::os::unix::ffi::OsStrExt::from_bytes(text.trim_ascii()))?;
    let pid: u32 = pid.parse().ok()?;
    let pidfd = PidFd::open(pid).ok()?;
    group.contains(pid).then(|| Arc::new(pidfd))
}
