//! Knowing when a process of a container is up: a runtime then writes its number to a file, and
//! the built-in one says so.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_executor::Group;
use cooper_sys::PidFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How it is known that a process is up.
pub(crate) enum Up {
    /// By the file of its number.
    File(PathBuf),
    /// By being told; the process is known.
    Told(Arc<PidFd>, watch::Sender<bool>),
}

impl Up {
    /// That the process is up will be told.
    pub(crate) fn told(process: Arc<PidFd>) -> Self {
        Self::Told(process, watch::channel(false).0)
    }

    /// Tells it.
    pub(crate) fn tell(&self) {
        if let Self::Told(_, sender) = self {
            sender.send_replace(true);
        }
    }

    /// Waits until the process is up.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn wait(&self, group: &Group) -> io::Result<Arc<PidFd>> {
        match self {
            Self::File(file) => up(file, group).await,
            Self::Told(process, sender) => {
                // The sender is borrowed and thus there.
                let _ = sender.subscribe().wait_for(|up| *up).await;
                Ok(process.clone())
            }
        }
    }

    /// The process as far as it is known by now.
    pub(crate) fn known(&self, group: &Group) -> Option<Arc<PidFd>> {
        match self {
            Self::File(file) => open(file, group),
            Self::Told(process, _) => Some(process.clone()),
        }
    }

    /// Whether the process has been up.
    pub(crate) fn was(&self) -> bool {
        match self {
            Self::File(file) => file.exists(),
            Self::Told(_, sender) => *sender.borrow(),
        }
    }

    /// The file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Told(..) => None,
        }
    }
}

/// Waits until the runtime has written `pid_file`, and opens the process that it names.
///
/// The file is watched for only here, so that a container nobody asks this of costs nothing.
///
/// # Cancel safety
/// Nothing is lost.
async fn up(pid_file: &Path, group: &Group) -> io::Result<Arc<PidFd>> {
    if let Some(pidfd) = open(pid_file, group) {
        return Ok(pidfd);
    }
    let watch = watch_for(pid_file)?;
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

fn watch_for(pid_file: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let dir = pid_file.parent().unwrap_or(Path::new("/"));
    // Runtimes either rename a finished file or write it in place.
    inotify::add_watch(&fd, dir, WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE)?;
    cooper_sys::watch(fd, Interest::READABLE)
}

/// The process of the file, unless it has ended: its number may be another's then, and so it
/// must be in the container's control group.
fn open(pid_file: &Path, group: &Group) -> Option<Arc<PidFd>> {
    let text = std::fs::read(pid_file).ok()?;
    let pid = OsStr::to_str(std::os::unix::ffi::OsStrExt::from_bytes(text.trim_ascii()))?;
    let pid: u32 = pid.parse().ok()?;
    let pidfd = PidFd::open(pid).ok()?;
    group.contains(pid).then(|| Arc::new(pidfd))
}
