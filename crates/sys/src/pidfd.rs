//! Processes by file descriptor: a number can be reused, a descriptor cannot.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

/// A process (pidfd_open(2)). It becomes readable when the process has ended.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has the number `pid` now.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        // Not blocking, so that an async runtime can wait for it.
        Ok(Self(rustix::process::pidfd_open(
            pid,
            PidfdFlags::NONBLOCK,
        )?))
    }

    /// Sends a signal; an ended process is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        match rustix::process::pidfd_send_signal(&self.0, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Waits until the process has ended and takes its status; afterwards its number is free.
    ///
    /// # Errors
    /// `ECHILD` for a process that is not a child of this one or whose status was taken.
    pub fn reap(&self) -> io::Result<ExitStatus> {
        loop {
            let mut poll = [rustix::event::PollFd::new(
                &self.0,
                rustix::event::PollFlags::IN,
            )];
            // The descriptor does not block: waitid would return at once.
            match rustix::event::poll(&mut poll, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            let id = WaitId::PidFd(self.0.as_fd());
            match rustix::process::waitid(id, WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) | Ok(None) => {}
                Err(error) => return Err(error.into()),
                Ok(Some(status)) => {
                    // In the form of wait(2).
                    let code = status.exit_status().map(|code| (code & 0xff) << 8);
                    let raw = code.or(status.terminating_signal()).unwrap_or_default();
                    return Ok(ExitStatus::from_raw(raw));
                }
            }
        }
    }

    /// Whether the process has ended.
    pub fn ended(&self) -> io::Result<bool> {
        let mut poll = [rustix::event::PollFd::new(
            &self.0,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        Ok(rustix::event::poll(&mut poll, Some(&now))? > 0)
    }
}

/// A descriptor of a process that another call has returned.
impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for PidFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_ends_and_a_second_signal_is_no_error() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert!(!pidfd.ended().unwrap());
        pidfd.signal(9).unwrap();
        assert_eq!(pidfd.reap().unwrap().signal(), Some(9));
        assert!(child.wait().is_err());
        assert!(pidfd.ended().unwrap());
        pidfd.signal(9).unwrap();
    }
}
