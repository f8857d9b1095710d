//! Processes of the runtime, and those that the built-in one hands over.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, OnceLock};

use cooper_executor::{ExecError, process_ended};
use cooper_oci_runtime::{Event, Started, Status};
use cooper_sys::PidFd;

use crate::stdio::{Pumps, Terminal};
use crate::up::Up;

/// A child of this process, and the means to signal it that do not hit another.
#[derive(Debug)]
pub(crate) struct Spawned {
    pidfd: Arc<PidFd>,
    /// What the built-in runtime still has to tell of it.
    status: Option<Status>,
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
                pidfd: Arc::new(pidfd),
                status: None,
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

    /// A process that the built-in runtime has started.
    pub(crate) fn built_in(started: Started) -> Result<Self, ExecError> {
        let watched = started.status();
        let (pidfd, status) = watched.map_err(ExecError::process("watch a container"))?;
        Ok(Self {
            pidfd: Arc::new(pidfd),
            status: Some(status),
        })
    }

    /// Waits for the end, and passes on what happens before.
    ///
    /// # Cancel safety
    /// Nothing is lost; the process goes on.
    pub(crate) async fn wait(
        &mut self,
        up: &Up,
        pumps: &mut Pumps,
        terminal: &OnceLock<Terminal>,
    ) -> io::Result<ExitStatus> {
        // The last of it comes when the process runs its program, or ends.
        while let Some(status) = &mut self.status {
            match status.next().await? {
                Event::Terminal(outer) => {
                    let _ = terminal.set(pumps.attach(outer));
                }
                Event::Failed(message) => pumps.complain(&message),
                Event::Started => {
                    self.status = None;
                    up.tell();
                }
            }
        }
        process_ended(&self.pidfd).await?;
        self.pidfd.reap()
    }
}

/// The code that stands for how the process ended.
pub(crate) fn code(status: ExitStatus) -> u32 {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}
