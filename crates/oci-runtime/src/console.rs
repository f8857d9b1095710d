//! The terminal of a process.

use std::io;
use std::os::fd::OwnedFd;

use oci_spec::runtime::Process;
use rustix::fs::{CWD, OFlags};
use rustix::process::Uid;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::devices;
use crate::mounts::{DEVPTS, magic};

/// Opens a terminal in the container's own devpts, makes it that of this process, and returns
/// its outer end. It is `/dev/console`, too.
pub(crate) fn open(root: &OwnedFd, process: &Process) -> Result<OwnedFd, String> {
    let open = || {
        let ptmx = devices::open(root, "dev/pts/ptmx", OFlags::RDWR)?;
        let (outer, inner) = take(ptmx, process)?;
        devices::bind(root, &inner, "/dev/console")?;
        Ok::<_, io::Error>(outer)
    };
    open().map_err(|error| format!("error setting up console: {error}"))
}

/// The same for another process in the container, which this process has entered.
pub(crate) fn open_inside(process: &Process) -> Result<OwnedFd, String> {
    let open = || {
        let ptmx = devices::open(CWD, "/dev/pts/ptmx", OFlags::RDWR)?;
        Ok::<_, io::Error>(take(ptmx, process)?.0)
    };
    open().map_err(|error| format!("error setting up console: {error}"))
}

fn take(outer: OwnedFd, process: &Process) -> io::Result<(OwnedFd, OwnedFd)> {
    // The image may have something else there.
    if magic(&outer)? != DEVPTS {
        return Err(io::Error::other("/dev/pts/ptmx is not in a devpts"));
    }
    rustix::pty::unlockpt(&outer)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let inner = rustix::pty::ioctl_tiocgptpeer(&outer, flags)?;
    if let Some(size) = process.console_size() {
        let size = Winsize {
            ws_row: u16::try_from(size.height()).unwrap_or(u16::MAX),
            ws_col: u16::try_from(size.width()).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&outer, size)?;
    }
    // Its group is that of terminals, as devpts has it.
    let user = Uid::from_raw(process.user().uid());
    rustix::fs::fchown(&inner, Some(user), None)?;
    rustix::process::ioctl_tiocsctty(&inner)?;
    nix::unistd::dup2_stdin(&inner)?;
    nix::unistd::dup2_stdout(&inner)?;
    nix::unistd::dup2_stderr(&inner)?;
    Ok((outer, inner))
}
