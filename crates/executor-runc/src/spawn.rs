//! Processes of the runtime, which die with this process.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use cooper_executor::ExecError;
use cooper_sys::PidFd;
use tokio::io::Interest;

/// The thread that spawns. The kernel ties the death of a child to the death of the thread that
/// made it, and the threads of an async runtime come and go.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: Mutex<mpsc::Sender<Job>>,
}

type Job = (Command, mpsc::SyncSender<io::Result<Spawned>>);

/// A process, and the means to signal it that do not hit another.
#[derive(Debug)]
pub(crate) struct Spawned {
    child: Child,
    pidfd: Arc<PidFd>,
}

impl Spawner {
    pub(crate) fn new() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("runtime-spawner".into())
            .spawn(move || {
                for (command, reply) in queue {
                    // Nobody waits any more: the process must not run.
                    if let Err(mpsc::SendError(Ok(mut spawned))) = reply.send(spawn(command)) {
                        let _ = spawned.child.kill();
                        let _ = spawned.child.wait();
                    }
                }
            })?;
        Ok(Self {
            jobs: Mutex::new(jobs),
        })
    }

    /// Spawns. Blocks for as long as fork and exec take.
    pub(crate) fn spawn(&self, command: Command) -> Result<Spawned, ExecError> {
        let name = command.get_program().display().to_string();
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = || io::Error::other("the spawning thread is gone");
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.send((command, reply)).map_err(|_| gone());
        drop(jobs);
        let spawned = sent.and_then(|()| answer.recv().map_err(|_| gone())?);
        spawned.map_err(ExecError::process(format!("start {name}")))
    }
}

// Takes the command: with it go this process's copies of the child's descriptors.
fn spawn(mut command: Command) -> io::Result<Spawned> {
    // Signals of a terminal that we are started from are for us.
    command.process_group(0);
    cooper_sys::die_with_parent(&mut command);
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

/// The code that stands for how the process ended.
pub(crate) fn code(status: ExitStatus) -> u32 {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}
