//! Further processes in a container.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use cooper_executor::{Ended, ExecError, Exit, Process, Running, exec_process, find_user};
use cooper_sys::{PidFd, Root};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::ContainerdError;
use crate::container::{Container, REFUSED, open, signal};
use crate::executor::blocking;
use crate::stdio::{Pumps, Stdio, complain};
use crate::task::Task;

/// What is known of a process while it runs.
struct Exec {
    container: Arc<Container>,
    task: Task,
    process: Option<PidFd>,
    terminal: bool,
    ended: Ended,
    kill: CancellationToken,
}

/// Its handle.
struct Handle {
    exec: Arc<Exec>,
}

/// A process that is put together on this side.
struct Prepared {
    name: String,
    spec: Vec<u8>,
    stdio: Stdio,
}

/// Starts `process` in `container`.
pub(crate) async fn exec(
    container: &Arc<Container>,
    process: Process,
) -> Result<Arc<dyn Running>, ExecError> {
    if process.args.is_empty() {
        return Err(ExecError::NoArgs);
    }
    // The container's files stay until this token is gone.
    let token = container.execs.token();
    if container.has_ended() {
        return Err(container.stopped());
    }
    let kill = container.kill.child_token();
    let (told, started) = oneshot::channel();
    let owned = own(container.clone(), process, kill.clone(), told);
    container.execs.spawn(owned);
    drop(token);
    // Whoever does not wait for the start does not want it.
    let unwanted = kill.drop_guard();
    let exec = match started.await {
        Ok(Ok(exec)) => exec,
        // It ended while it was being entered.
        Ok(Err(ExecError::Runtime { .. })) if container.has_ended() => {
            return Err(container.stopped());
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(container.stopped()),
    };
    unwanted.disarm();
    Ok(Arc::new(Handle { exec }))
}

fn prepare(container: &Container, mut process: Process) -> Result<Prepared, ExecError> {
    let user = match process.user.as_str() {
        "" => None,
        user => {
            let root = Root::open(&container.root);
            let root = root.map_err(ExecError::io("open", &container.root))?;
            Some(find_user(&root, user)?)
        }
    };
    let init = container.config.process().clone().unwrap_or_default();
    let spec = exec_process(&process, user.as_ref(), &init);
    let number = container.next_exec.fetch_add(1, Ordering::Relaxed);
    let name = format!("exec-{number}");
    let spec = serde_json::to_vec(&spec)
        .map_err(|error| ExecError::io("encode", container.dir.join(&name))(error.into()))?;
    Ok(Prepared {
        spec,
        stdio: Stdio::make(&container.dir, &name, &mut process)?,
        name,
    })
}

/// Owns the process from the first request until nothing is left of it. `told` gets it when it
/// runs, or why it does not.
async fn own(
    container: Arc<Container>,
    process: Process,
    kill: CancellationToken,
    told: oneshot::Sender<Result<Arc<Exec>, ExecError>>,
) {
    let within = container.clone();
    let prepared = blocking(move || prepare(&within, process)).await;
    let Prepared { name, spec, stdio } = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = told.send(Err(error));
            return;
        }
    };
    let task = container.task.other(&name);
    let paths = stdio.paths.clone();
    if let Err(error) = task.enter(&paths, spec).await {
        let _ = told.send(Err(error.into()));
        return;
    }
    let started = match kill.is_cancelled() {
        true => Err(None),
        false => task.start().await.map_err(Some),
    };
    let pid = match &started {
        Ok(pid) => Some(*pid),
        Err(_) => None,
    };
    let exec = Arc::new(Exec {
        process: pid.and_then(|pid| open(pid, &container.group)),
        container,
        task,
        terminal: paths.terminal,
        ended: Ended::default(),
        kill,
    });
    match started {
        Ok(_) => {
            let unwanted = CancellationToken::new();
            let pumps = stdio.pump(&exec.task, &unwanted);
            if told.send(Ok(exec.clone())).is_err() {
                exec.kill();
            }
            end(&exec, pumps, &unwanted).await;
        }
        Err(error) => {
            // One that the container's end was in the way of has nothing to complain about.
            let complaint = error.as_ref().and_then(ContainerdError::complaint);
            let told_what = match (complaint, error.as_ref()) {
                (Some(complaint), _) if !exec.container.has_ended() => {
                    complain(stdio.complaints(), complaint).await;
                    exec.ended.tell(Ok(REFUSED));
                    Ok(exec.clone())
                }
                (_, Some(error)) => Err(ExecError::Runtime {
                    message: error.to_string(),
                }),
                (_, None) => Err(exec.container.stopped()),
            };
            drop(stdio);
            let _ = told.send(told_what);
        }
    }
    delete(&exec.task).await;
}

/// Waits for the end and tells it.
async fn end(exec: &Exec, mut pumps: Pumps, unwanted: &CancellationToken) {
    let mut waited = Box::pin(exec.task.wait());
    let status = tokio::select! {
        status = &mut waited => status,
        () = async {
            tokio::select! {
                () = exec.kill.cancelled() => {}
                () = unwanted.cancelled() => {}
            }
        } => {
            exec.kill();
            if let Err(error) = exec.task.signal(9).await {
                tracing::debug!(%error, "cannot ask for the end of a process");
            }
            waited.await
        }
    };
    if status.is_err() {
        // The container is killed as well: then nobody holds the output any more.
        exec.container.kill();
    }
    pumps.drain().await;
    drop(pumps);
    let told = match status {
        Ok(code) => Ok(Exit { code, oom: false }),
        Err(error) => Err(error.to_string()),
    };
    exec.ended.tell(told);
}

async fn delete(task: &Task) {
    if let Err(error) = task.delete().await {
        // It goes with the container.
        tracing::debug!(%error, ?task, "cannot remove a process");
    }
}

impl Exec {
    /// Sends SIGKILL, and has the owner ask containerd for the same. Does not wait.
    fn kill(&self) {
        self.kill.cancel();
        if let Some(process) = &self.process {
            let _ = process.signal(9);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.exec.ended.is_told() {
            self.exec.kill();
        }
    }
}

#[async_trait]
impl Running for Handle {
    fn id(&self) -> &str {
        &self.exec.container.id
    }

    async fn wait(&self) -> Result<Exit, ExecError> {
        self.exec.ended.wait().await
    }

    async fn started(&self) -> Result<(), ExecError> {
        // There is a handle only of what runs.
        Ok(())
    }

    async fn exec(&self, process: Process) -> Result<Arc<dyn Running>, ExecError> {
        exec(&self.exec.container, process).await
    }

    async fn signal(&self, number: i32) -> Result<(), ExecError> {
        if self.exec.ended.is_told() {
            return Ok(());
        }
        signal(&self.exec.task, self.exec.process.as_ref(), number).await
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<(), ExecError> {
        let exec = &self.exec;
        if !exec.terminal || exec.ended.is_told() {
            return Ok(());
        }
        match exec.task.resize(rows, columns).await {
            Err(_)
                if exec
                    .process
                    .as_ref()
                    .is_some_and(|process| process.ended().unwrap_or_default()) =>
            {
                Ok(())
            }
            resized => Ok(resized?),
        }
    }
}
