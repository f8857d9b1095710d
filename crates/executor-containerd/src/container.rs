//! A running container: its handle, and the task that owns it.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use cooper_executor::cni::Namespace;
use cooper_executor::{
    Bundle, ContainerSpec, Ended, ExecError, Exit, Group, Process, Running, Usage, unconfinable,
};
use cooper_sys::PidFd;
use oci_spec::runtime::Spec;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::ContainerdError;
use crate::exec;
use crate::executor::{Prepared, Shared, blocking};
use crate::left::OWNER;
use crate::stdio::{Paths, Pumps, Stdio, complain};
use crate::task::Task;

/// How long the last output is waited for when containerd is gone: its shim may be, too.
const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// How a process ended that the runtime could not start: as the runtime itself does.
pub(crate) const REFUSED: Exit = Exit {
    code: 1,
    oom: false,
};

/// What is known of a container while it runs.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) task: Task,
    pub(crate) group: Group,
    /// Its bundle's folder.
    pub(crate) dir: PathBuf,
    /// Its root file system on the host.
    pub(crate) root: PathBuf,
    /// Its configuration.
    pub(crate) config: Spec,
    /// Its first process, if that can be seen from here.
    pub(crate) process: Option<PidFd>,
    /// Processes besides the first one; the bundle stays until they have ended.
    pub(crate) execs: TaskTracker,
    pub(crate) next_exec: AtomicU64,
    pub(crate) ended: Ended,
    pub(crate) kill: CancellationToken,
    /// What it used, once it has ended.
    usage: OnceLock<Usage>,
}

impl Container {
    /// Sends SIGKILL to all in the container that can be seen from here, and has its owner ask
    /// containerd for the same. Does not wait.
    pub(crate) fn kill(&self) {
        self.kill.cancel();
        if let Some(process) = &self.process {
            let _ = process.signal(9);
        }
        self.group.kill();
    }

    pub(crate) fn stopped(&self) -> ExecError {
        let id = self.id.clone();
        ExecError::Stopped { id }
    }

    /// Whether its first process has ended, told already or not.
    pub(crate) fn has_ended(&self) -> bool {
        let process = self.process.as_ref().map(PidFd::ended);
        self.ended.is_told() || process.is_some_and(Result::unwrap_or_default)
    }
}

/// The process `pid`, if it is in the group: another one can have its number here.
pub(crate) fn open(pid: u32, group: &Group) -> Option<PidFd> {
    let process = PidFd::open(pid).ok()?;
    group.contains(pid).then_some(process)
}

/// Sends a signal to a process; one that has ended is no error. Asking containerd for it starts
/// a process of the runtime.
pub(crate) async fn signal(
    task: &Task,
    process: Option<&PidFd>,
    signal: i32,
) -> Result<(), ExecError> {
    match (process, u32::try_from(signal)) {
        (Some(process), _) => process
            .signal(signal)
            .map_err(ExecError::process("signal a process")),
        (None, Ok(number)) => Ok(task.signal(number).await?),
        (None, Err(_)) => Err(ExecError::process("signal a process")(
            std::io::ErrorKind::InvalidInput.into(),
        )),
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
        // There is a handle only of what runs.
        Ok(())
    }

    fn usage(&self) -> Option<Usage> {
        self.container.usage.get().cloned()
    }

    async fn exec(&self, process: Process) -> Result<Arc<dyn Running>, ExecError> {
        exec::exec(&self.container, process).await
    }

    async fn signal(&self, number: i32) -> Result<(), ExecError> {
        let container = &self.container;
        if container.has_ended() {
            return Ok(());
        }
        signal(&container.task, container.process.as_ref(), number).await
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<(), ExecError> {
        resize(
            &self.container,
            &self.container.task,
            &self.container.config,
            rows,
            columns,
        )
        .await
    }
}

async fn resize(
    container: &Container,
    task: &Task,
    config: &Spec,
    rows: u16,
    columns: u16,
) -> Result<(), ExecError> {
    let process = config.process().as_ref();
    let terminal = process.and_then(oci_spec::runtime::Process::terminal);
    if terminal != Some(true) || container.has_ended() {
        return Ok(());
    }
    match task.resize(rows, columns).await {
        Err(_) if container.has_ended() => Ok(()),
        resized => Ok(resized?),
    }
}

/// Owns a container from the first request until nothing is left of it. `told` gets it when it
/// runs, or why it does not.
pub(crate) async fn own(
    shared: Arc<Shared>,
    spec: ContainerSpec,
    process: Process,
    kill: CancellationToken,
    told: oneshot::Sender<Result<Arc<Container>, ExecError>>,
) {
    if !shared.left.is_empty() {
        let shared = shared.clone();
        shared
            .tracker
            .clone()
            .spawn(async move { shared.left.remove().await });
    }
    let namespace = match shared.config.networks.lend(&spec, &shared.tracker).await {
        Ok(namespace) => namespace,
        Err(error) => {
            let _ = told.send(Err(error));
            return;
        }
    };
    let place = namespace.as_ref().map(Namespace::path).map(Into::into);
    let preparing = shared.clone();
    let prepared = blocking(move || preparing.prepare(&spec, process, place)).await;
    match prepared {
        Ok(prepared) => Box::pin(run(&shared, prepared, kill, told)).await,
        Err(error) => {
            let _ = told.send(Err(error));
        }
    }
    if let Some(namespace) = namespace {
        shared.config.networks.take_back(namespace).await;
    }
}

async fn run(
    shared: &Arc<Shared>,
    prepared: Prepared,
    kill: CancellationToken,
    told: oneshot::Sender<Result<Arc<Container>, ExecError>>,
) {
    let task = Task::new(&shared.containerd, &prepared.id);
    let Prepared {
        id,
        bundle,
        root,
        config,
        group,
        spec,
        stdio,
    } = prepared;
    let paths = stdio.paths.clone();
    let begun = match begin(shared, &task, spec, &paths, &kill).await {
        Ok(()) => task.start().await.map_err(Failed::Containerd),
        Err(failed) => Err(failed),
    };
    let (pid, failed) = match begun {
        Ok(pid) => (Some(pid), None),
        Err(failed) => (None, Some(failed)),
    };
    let container = Arc::new(Container {
        process: pid.and_then(|pid| open(pid, &group)),
        id,
        task,
        group,
        dir: bundle.dir().to_owned(),
        root,
        config,
        execs: TaskTracker::new(),
        next_exec: AtomicU64::new(0),
        ended: Ended::default(),
        kill,
        usage: OnceLock::new(),
    });
    // Another's container is not ours to remove.
    let foreign = matches!(failed, Some(Failed::Exists));
    let bundle = match failed {
        Some(failed) => fail(&container, failed, stdio, bundle, told).await,
        None => {
            let unwanted = CancellationToken::new();
            let pumps = stdio.pump(&container.task, &unwanted);
            if told.send(Ok(container.clone())).is_err() {
                container.kill();
            }
            let status = wait(&container, &unwanted).await;
            finish(&container, status, pumps, bundle).await
        }
    };
    container.execs.close();
    container.execs.wait().await;
    if !foreign {
        clean_up(shared, &container, bundle).await;
    }
}

/// Why a container does not run.
enum Failed {
    /// It is another's.
    Exists,
    /// Nobody wants it any more.
    Unwanted,
    Containerd(ContainerdError),
}

/// Tells that the container does not run, when nothing of it is mounted any more. What the
/// runtime complains about is told by the process's error output and its code.
async fn fail(
    container: &Arc<Container>,
    failed: Failed,
    stdio: Stdio,
    bundle: Bundle,
    told: oneshot::Sender<Result<Arc<Container>, ExecError>>,
) -> Option<Bundle> {
    let bundle = unmount(bundle).await;
    let error = match failed {
        Failed::Exists => {
            let id = container.id.clone();
            ExecError::Exists { id }
        }
        Failed::Unwanted => ExecError::Closed,
        Failed::Containerd(error) => match error.complaint() {
            Some(complaint) => {
                let complaints = stdio.complaints();
                drop(stdio);
                complain(complaints, complaint).await;
                let why = unconfinable(&container.config);
                container.ended.tell(why.map_or(Ok(REFUSED), Err));
                let _ = told.send(Ok(container.clone()));
                return bundle;
            }
            None => error.into(),
        },
    };
    drop(stdio);
    container.ended.tell(Err(error.to_string()));
    let _ = told.send(Err(error));
    bundle
}

/// Has containerd make the container.
async fn begin(
    shared: &Shared,
    task: &Task,
    spec: Vec<u8>,
    paths: &Paths,
    kill: &CancellationToken,
) -> Result<(), Failed> {
    let label = (OWNER.to_owned(), shared.owner.clone());
    let runtime = &shared.config.runtime;
    match task.record(spec, runtime, [label]).await {
        Err(error) if error.code() == Some(tonic::Code::AlreadyExists) => {
            return Err(Failed::Exists);
        }
        recorded => recorded.map_err(Failed::Containerd)?,
    }
    if kill.is_cancelled() {
        return Err(Failed::Unwanted);
    }
    let created = task.create(paths, runtime).await;
    created.map_err(Failed::Containerd)?;
    match kill.is_cancelled() {
        true => Err(Failed::Unwanted),
        false => Ok(()),
    }
}

/// Waits for the end of the container, and brings it about when it is to be killed.
async fn wait(container: &Container, unwanted: &CancellationToken) -> Result<u32, ContainerdError> {
    let mut waited = Box::pin(container.task.wait());
    tokio::select! {
        status = &mut waited => return status,
        () = container.kill.cancelled() => {}
        () = unwanted.cancelled() => container.kill(),
    }
    container.kill();
    if let Err(error) = container.task.signal(9).await {
        tracing::debug!(id = container.id, %error, "cannot ask for the end of a container");
    }
    waited.await
}

/// Says how the container ended, and unmounts it.
async fn finish(
    container: &Arc<Container>,
    status: Result<u32, ContainerdError>,
    mut pumps: Pumps,
    mut bundle: Bundle,
) -> Option<Bundle> {
    let status = match status {
        Ok(code) => {
            if container.kill.is_cancelled() {
                container.group.empty().await;
            }
            pumps.drain().await;
            Ok(code)
        }
        Err(error) => {
            // Nobody can tell any more how it ends: it must not go on.
            container.kill();
            container.group.empty().await;
            let _ = tokio::time::timeout(LAST_OUTPUT, pumps.drain()).await;
            Err(error)
        }
    };
    drop(pumps);
    let ending = container.clone();
    let ended = tokio::task::spawn_blocking(move || {
        let group = &ending.group;
        if let Some(usage) = group.usage() {
            let _ = ending.usage.set(usage);
        }
        let ended = status.map(|code| Exit {
            code,
            oom: code != 0 && group.out_of_memory(),
        });
        bundle.unmount();
        (ended.map_err(|error| error.to_string()), bundle)
    });
    let (ended, bundle) = match ended.await {
        Ok((ended, bundle)) => (ended, Some(bundle)),
        Err(error) => (Err(format!("unmount a container: {error}")), None),
    };
    container.ended.tell(ended);
    bundle
}

async fn unmount(mut bundle: Bundle) -> Option<Bundle> {
    let unmounted = tokio::task::spawn_blocking(move || {
        bundle.unmount();
        bundle
    });
    unmounted.await.ok()
}

/// Removes what is left, when nobody waits any more.
async fn clean_up(shared: &Shared, container: &Container, bundle: Option<Bundle>) {
    let task = &container.task;
    let mut removed = task.delete().await;
    if removed.is_ok() {
        removed = task.forget().await;
    }
    if let Err(error) = removed {
        tracing::debug!(%error, ?task, "a container has to be killed to be removed");
        if let Err(error) = task.remove().await {
            tracing::warn!(%error, ?task, "cannot remove a container now");
            shared.left.add(task.clone());
        }
    }
    container.group.empty().await;
    let group = container.group.clone();
    let removed = tokio::task::spawn_blocking(move || {
        let removed = group.remove();
        // Last the bundle: by it the rest is found after a crash.
        drop(bundle);
        removed
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(%error, "cannot remove a control group");
    }
}
