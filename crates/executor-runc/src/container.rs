//! A running container: its handle, and the task that owns it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use cooper_executor::cni::Namespace;
use cooper_executor::{
    Bundle, Ended, ExecError, Exit, Group, Process, Running, TtySize, Usage, unconfinable,
};
use cooper_sys::PidFd;
use oci_spec::runtime::Spec;
use std::os::unix::process::ExitStatusExt;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug_span};

use crate::exec;
use crate::executor::Shared;
use crate::runtime::{Runtime, remove_state};
use crate::spawn::{self, Spawned};
use crate::stdio::{Stdio, Terminal};
use crate::up::Up;

/// What is known of a container while it runs.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) group: Group,
    /// Its bundle's folder.
    pub(crate) dir: PathBuf,
    /// Its root file system on the host.
    pub(crate) root: PathBuf,
    /// Its configuration.
    pub(crate) config: Spec,
    /// Processes besides the first one; the bundle stays until they have ended.
    pub(crate) execs: TaskTracker,
    pub(crate) next_exec: AtomicU64,
    pub(crate) up: Up,
    /// The process of the runtime; with the built-in one the first process of the container.
    pub(crate) runtime: Arc<PidFd>,
    /// What the built-in runtime has put it in.
    pub(crate) built_in: Option<cooper_oci_runtime::Group>,
    pub(crate) terminal: OnceLock<Terminal>,
    pub(crate) ended: Ended,
    pub(crate) killed: AtomicBool,
    /// What it used, once it has ended.
    pub(crate) usage: OnceLock<Usage>,
}

impl Container {
    /// Sends SIGKILL to the runtime and to all in the container. Does not wait.
    ///
    /// The runtime first: while it makes a container, what it has begun ends with it.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        let _ = self.runtime.signal(9);
        // With the first process of a process namespace the kernel ends all others.
        if self.built_in.is_none() {
            self.group.kill();
        }
    }

    /// Waits until the first process is up.
    pub(crate) async fn up(&self) -> Result<Arc<PidFd>, ExecError> {
        tokio::select! {
            biased;
            _ = self.ended.wait() => Err(self.stopped()),
            found = self.up.wait(&self.group) => {
                found.map_err(ExecError::process("wait for a container to be up"))
            }
        }
    }

    /// The runtime that says that a process ended well which it has not started: one that is
    /// none. What goes wrong in one it says itself, with another code.
    fn never_started(&self, code: u32) -> Option<&Path> {
        let Runtime::Binary(binary) = &self.shared.runtime else {
            return None;
        };
        let file = self.up.file()?;
        (code == 0 && !file.exists()).then(|| binary.path())
    }

    /// Why a container that ended with this code could not be started, where that can be said
    /// better than the runtime has.
    fn not_startable(&self, code: u32) -> Option<String> {
        (code != 0 && !self.up.was()).then(|| unconfinable(&self.config))?
    }

    pub(crate) fn stopped(&self) -> ExecError {
        let id = self.id.clone();
        ExecError::Stopped { id }
    }
}

/// The handle of a container's first process.
pub(crate) struct Handle {
    container: Arc<Container>,
}

impl Handle {
    pub(crate) fn new(container: Arc<Container>) -> Self {
        Self { container }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.container.ended.is_told() {
            self.container.kill();
        }
    }
}

#[async_trait]
impl Running for Handle {
    fn id(&self) -> &str {
        &self.container.id
    }

    async fn wait(&self) -> Result<Exit, ExecError> {
        self.container.ended.wait().await
    }

    async fn started(&self) -> Result<(), ExecError> {
        match self.container.up().await {
            Ok(_) | Err(ExecError::Stopped { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn usage(&self) -> Option<Usage> {
        self.container.usage.get().cloned()
    }

    async fn exec(&self, process: Process) -> Result<Arc<dyn Running>, ExecError> {
        exec::exec(&self.container, process).await
    }

    async fn signal(&self, signal: i32) -> Result<(), ExecError> {
        match self.container.up().await {
            Ok(init) => init
                .signal(signal)
                .map_err(ExecError::process("signal a container")),
            Err(ExecError::Stopped { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<(), ExecError> {
        let container = &self.container;
        let size = TtySize { rows, columns };
        if container.built_in.is_some() {
            // Its terminal is there before it is up.
            match container.up().await {
                Ok(_) => return resize(container.terminal.get(), None, size),
                Err(ExecError::Stopped { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        resize(container.terminal.get(), Some(&container.runtime), size)
    }
}

/// Resizes the outer terminal and tells the runtime, which resizes the inner one. That of the
/// built-in runtime is the container's own: the kernel tells the process.
pub(crate) fn resize(
    terminal: Option<&Terminal>,
    runtime: Option<&PidFd>,
    size: TtySize,
) -> Result<(), ExecError> {
    const SIGWINCH: i32 = 28;
    let Some(terminal) = terminal else {
        return Ok(());
    };
    let resized = terminal.resize(size).and_then(|()| match runtime {
        Some(runtime) => runtime.signal(SIGWINCH),
        None => Ok(()),
    });
    resized.map_err(ExecError::process("resize a terminal"))
}

/// Kills the container when its owner is dropped before the end: then the runtime of this
/// program is shut down.
struct Guard(Option<Arc<Container>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(container) = self.0.take() {
            container.kill();
        }
    }
}

/// Owns a container from its start until nothing is left of it.
pub(crate) async fn own(
    container: Arc<Container>,
    mut spawned: Spawned,
    stdio: Stdio,
    bundle: Bundle,
    namespace: Option<Namespace>,
) {
    let mut guard = Guard(Some(container.clone()));
    let mut pumps = stdio.pump();
    let closing = &container.shared.closing;
    let (up, terminal) = (&container.up, &container.terminal);
    let status = tokio::select! {
        status = spawned.wait(up, &mut pumps, terminal) => status,
        () = closing.cancelled() => {
            container.kill();
            spawned.wait(up, &mut pumps, terminal).await
        }
    };
    // A runtime that ends by itself has seen the first process end, and with the first process
    // of a process namespace the kernel ends all others.
    let died = match &status {
        Ok(status) => status.signal().is_some(),
        Err(_) => true,
    };
    let built_in = container.built_in.is_some();
    if !built_in && (died || container.killed.load(Ordering::Relaxed)) {
        let _ = container.runtime.signal(9);
        container.group.empty().await;
    }
    guard.0.take();
    pumps.drain().await;
    let finished = finish(&container, status, bundle);
    let (ended, bundle) = finished.instrument(debug_span!("unmount")).await;
    container.ended.tell(ended);
    container.execs.close();
    container.execs.wait().await;
    let removed = remove(&container, bundle);
    removed.instrument(debug_span!("remove")).await;
    if let Some(namespace) = namespace {
        container.shared.config.networks.take_back(namespace).await;
    }
}

/// Says how the container ended, and unmounts it.
async fn finish(
    container: &Arc<Container>,
    status: io::Result<ExitStatus>,
    mut bundle: Bundle,
) -> (Result<Exit, String>, Option<Bundle>) {
    let container = container.clone();
    let unmounted = tokio::task::spawn_blocking(move || {
        let group = &container.group;
        if let Some(usage) = group.usage() {
            let _ = container.usage.set(usage);
        }
        let ended = status.map(spawn::code).map(|code| Exit {
            code,
            oom: code != 0 && group.out_of_memory(),
        });
        bundle.unmount();
        let ended = ended.map_err(|error| format!("wait for a container: {error}"));
        let ended = ended.and_then(|exit| {
            if let Some(runtime) = container.never_started(exit.code) {
                return Err(format!("{} ended and started nothing", runtime.display()));
            }
            container.not_startable(exit.code).map_or(Ok(exit), Err)
        });
        (ended, bundle)
    });
    match unmounted.await {
        Ok((ended, bundle)) => (ended, Some(bundle)),
        Err(error) => (Err(format!("unmount a container: {error}")), None),
    }
}

/// Removes what is left, when nobody waits any more.
async fn remove(container: &Container, bundle: Option<Bundle>) {
    if blocking_remove(container).await.is_err() {
        // Somebody is still in it; at the end of a container that nobody killed, an orphan.
        container.group.empty().await;
        if let Err(error) = blocking_remove(container).await {
            tracing::warn!(id = container.id, %error, "cannot remove a control group");
        }
    }
    let state = match &container.shared.runtime {
        Runtime::Binary(binary) => Some(binary.state(&container.id)),
        Runtime::BuiltIn(_) => None,
    };
    let removed = tokio::task::spawn_blocking(move || {
        // Last the bundle: by it the rest is found after a crash.
        let result = state.map_or(Ok(()), |dir| remove_state(&dir));
        drop(bundle);
        result
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(id = container.id, %error, "cannot remove a runtime's state");
    }
}

async fn blocking_remove(container: &Container) -> io::Result<()> {
    let group = container.group.clone();
    let removed = tokio::task::spawn_blocking(move || group.remove());
    removed
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
