//! The seam.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{ContainerSpec, ExecError, Exit, Process, Usage};

/// Runs containers.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Makes a container and starts its first process; when that ends, the container does.
    ///
    /// What the runtime itself complains about while it makes the container goes to the
    /// process's standard error and into its exit code, as with BuildKit.
    ///
    /// # Cancel safety
    /// When the future is dropped nothing is left running.
    async fn start(
        &self,
        container: ContainerSpec,
        init: Process,
    ) -> Result<Arc<dyn Running>, ExecError>;

    /// Kills every container, waits until all that belonged to them is gone, and from now on
    /// refuses to start others. A second call waits too.
    async fn close(&self);
}

/// A process in a container.
///
/// Dropping the last handle of a process kills it, and with a container's first process all of
/// the container: signals are sent at once, and what is left is tidied by the executor, which
/// [`Executor::close`] waits for.
#[async_trait]
pub trait Running: Send + Sync {
    /// The id of the container.
    fn id(&self) -> &str;

    /// Waits until the process runs, or has ended before anybody could see it run.
    ///
    /// # Cancel safety
    /// Dropping the future stops nothing.
    async fn started(&self) -> Result<(), ExecError>;

    /// Waits for the end of the process and of its output: when this returns, each
    /// [`crate::Output`] has had its last byte, and for a container's first process its file
    /// systems are not mounted any more. Can be called again and by several at once.
    ///
    /// # Errors
    /// When it cannot be told how the process ended. A code other than zero is no error.
    ///
    /// # Cancel safety
    /// Dropping the future stops nothing.
    async fn wait(&self) -> Result<Exit, ExecError>;

    /// What all processes of the container used, known when [`wait`](Self::wait) returns;
    /// `None` before, for processes besides the first one, and where nobody measures it.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Starts another process in the same container, waiting until the container is up.
    /// Empty `env`, `cwd` and `user` are those of the container's first process.
    ///
    /// # Errors
    /// [`ExecError::Stopped`] when the container has ended.
    ///
    /// # Cancel safety
    /// When the future is dropped the process is not started, or killed.
    async fn exec(&self, process: Process) -> Result<Arc<dyn Running>, ExecError>;

    /// Sends a signal to the process, waiting until it is up. One that has ended is no error.
    async fn signal(&self, signal: i32) -> Result<(), ExecError>;

    /// Tells the process the new size of its terminal; without a terminal nothing happens.
    async fn resize(&self, rows: u16, columns: u16) -> Result<(), ExecError>;
}
