//! Making a process by clone3(2), from a process of one thread only.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::thread::UnshareFlags;

use crate::PidFd;

/// The C library's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How a new process relates to the one that makes it.
#[derive(Clone, Copy, Debug)]
pub struct Clone<'fd> {
    /// The namespaces that it begins.
    pub namespaces: UnshareFlags,
    /// Whether its parent is the parent of the process that makes it, and not that itself.
    pub sibling: bool,
    /// The control group (of version 2) that it is born in.
    pub cgroup: Option<BorrowedFd<'fd>>,
}

/// A process that was made.
#[derive(Debug)]
pub struct Cloned {
    /// Its number, as this process sees it.
    pub pid: u32,
    /// The process itself.
    pub pidfd: PidFd,
}

impl Clone<'_> {
    /// Makes a process that runs `child` and exits with what that returns (or 101, when it
    /// panics). It has a copy of all this process has.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] in a process of several threads: what another thread held
    /// locked would stay locked in the copy.
    pub fn spawn(self, child: impl FnOnce() -> u8) -> io::Result<Cloned> {
        if threads()? != 1 {
            let message = "a process of several threads cannot be copied";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let mut pidfd: libc::c_int = -1;
        // SAFETY: all zeroes is a value of this structure of numbers.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = u64::from(self.namespaces.bits()) | libc::CLONE_PIDFD as u64;
        args.pidfd = (&raw mut pidfd) as u64;
        if self.sibling {
            // The signal at its end is then the one that the end of this process gives.
            args.flags |= libc::CLONE_PARENT as u64;
        } else {
            args.exit_signal = libc::SIGCHLD as u64;
        }
        if let Some(cgroup) = self.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: without CLONE_VM the child gets a copy of the memory and goes on on the same
        // stack, as after fork(2). This is the only thread, so that nothing is locked in the
        // copy, and the child never returns from this function.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                std::mem::size_of::<libc::clone_args>(),
            )
        };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
                // SAFETY: ends the process; handlers that are registered for its end belong to
                // the process that was copied.
                unsafe { libc::_exit(i32::from(code)) }
            }
            pid => Ok(Cloned {
                pid: u32::try_from(pid).map_err(io::Error::other)?,
                // SAFETY: the kernel has put a new descriptor there, which nobody else owns.
                pidfd: PidFd::from(unsafe { OwnedFd::from_raw_fd(pidfd) }),
            }),
        }
    }
}

/// How many threads this process has: its task folder has a link for each, and two of its own.
fn threads() -> io::Result<u64> {
    let links = rustix::fs::stat("/proc/self/task")?.st_nlink as u64;
    Ok(links.saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_threads_is_not_copied() {
        // The test harness has more than this thread.
        let clone = Clone {
            namespaces: UnshareFlags::empty(),
            sibling: false,
            cgroup: None,
        };
        let error = clone.spawn(|| 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(threads().unwrap() > 1);
    }
}
