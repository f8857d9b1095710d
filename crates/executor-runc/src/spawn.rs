//! Processes of the runtime.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;

use cooper_executor::ExecError;
use cooper_sys::PidFd;
use rustix::event::{PollFd, PollFlags};
use tokio::io::Interest;

/// A process of the runtime, and the means to signal it that do not hit another.
#[derive(Debug)]
pub(crate) struct Spawned {
    child: Child,
    pidfd: Arc<PidFd>,
}

/// Starts a process. Takes the command: with it go this process's copies of the child's
/// descriptors.
///
/// Nothing is asked for that the standard library must do between fork and exec: then it need
/// not fork, which for a process with a hundred megabytes takes as long as all the rest.
/// [`crate::sweep`] looks for the runtime's processes that outlive this one.
pub(crate) fn spawn(mut command: Command) -> Result<Spawned, ExecError> {
    let name = command.get_program().display().to_string();
    // Signals of a terminal that we are started from are for us.
    command.process_group(0);
    let mut spawn = || {
        let mut child = command.spawn()?;
        match PidFd::open(child.id()) {
            Ok(pidfd) => Ok(Spawned {
                child,
                pidfd: Arc::new(pidfd),
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    };
    spawn().map_err(ExecError::process(format!("start {name}")))
}

impl Spawned {
    /// For signals; valid after the end, too.
    pub(crate) fn pidfd(&self) -> Arc<PidFd> {
        self.pidfd.clone()
    }

    /// Waits for the end.
    ///
    /// # Cancel safety
    /// Nothing is lost; the process goes on.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        ended(&self.pidfd).await?;
        self.child.wait()
    }
}

/// Waits until the process has ended, whoever its parent is.
pub(crate) async fn ended(pidfd: &PidFd) -> io::Result<()> {
    let own = pidfd.as_fd().try_clone_to_owned()?;
    let ready = cooper_sys::watch(own, Interest::READABLE)?;
    ready.readable().await?.retain_ready();
    Ok(())
}

/// As [`ended`], on a thread that may block.
pub(crate) fn ended_blocking(pidfd: &PidFd) -> io::Result<()> {
    let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
    rustix::event::poll(&mut poll, None)?;
    Ok(())
}

/// The code that stands for how the process ended.
pub(crate) fn code(status: ExitStatus) -> u32 {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}
