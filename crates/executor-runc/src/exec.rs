//! Further processes in a container.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use cooper_executor::{Ended, ExecError, Exit, Process, Running, TtySize, exec_process, find_user};
use cooper_sys::{PidFd, Root};
use oci_spec::runtime::Process as OciProcess;
use tokio::sync::Notify;

use crate::builtin::BuiltIn;
use crate::container::{Container, resize};
use crate::runtime::{Binary, Runtime, failed};
use crate::spawn::{self, Spawned};
use crate::stdio::{Ends, Stdio, Terminal};
use crate::up::Up;

/// What is known of a process while it runs.
struct Exec {
    container: Arc<Container>,
    config: Option<PathBuf>,
    up: Up,
    /// The process of the runtime; with the built-in one the process itself.
    runtime: Arc<PidFd>,
    terminal: OnceLock<Terminal>,
    ended: Ended,
    kill: Notify,
}

/// Its handle.
struct Handle {
    exec: Arc<Exec>,
}

/// Starts `process` in `container`, when that is up.
pub(crate) async fn exec(
    container: &Arc<Container>,
    process: Process,
) -> Result<Arc<dyn Running>, ExecError> {
    if process.args.is_empty() {
        return Err(ExecError::NoArgs);
    }
    // The container's files stay until this token is gone.
    let token = container.execs.token();
    container.up().await?;
    let container = container.clone();
    let runtime = tokio::runtime::Handle::current();
    let started = tokio::task::spawn_blocking(move || {
        let _token = token;
        start(container, process, &runtime)
    });
    let handle = started.await.map_err(|error| ExecError::Runtime {
        message: format!("start a process: {error}"),
    })??;
    Ok(Arc::new(handle))
}

fn start(
    container: Arc<Container>,
    mut process: Process,
    runtime: &tokio::runtime::Handle,
) -> Result<Handle, ExecError> {
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
    let started = match &container.shared.runtime {
        Runtime::Binary(binary) => run(binary, &container, &spec, &mut process)?,
        Runtime::BuiltIn(built_in) => enter(built_in, &container, &spec, &mut process)?,
    };
    let (spawned, stdio, up, config) = started;
    let exec = Arc::new(Exec {
        config,
        up,
        runtime: spawned.pidfd(),
        terminal: stdio.terminal().map_or_else(OnceLock::new, Into::into),
        ended: Ended::default(),
        kill: Notify::new(),
        container,
    });
    let owned = own(exec.clone(), spawned, stdio);
    exec.container.execs.spawn_on(owned, runtime);
    Ok(Handle { exec })
}

/// A process that was started, and the file of its configuration.
type Launched = (Spawned, Stdio, Up, Option<PathBuf>);

fn run(
    binary: &Binary,
    container: &Container,
    spec: &OciProcess,
    process: &mut Process,
) -> Result<Launched, ExecError> {
    let number = container.next_exec.fetch_add(1, Ordering::Relaxed);
    let config = container.dir.join(format!("exec-{number}.json"));
    let pid_file = container.dir.join(format!("exec-{number}.pid"));
    let text = serde_json::to_vec(spec).map_err(|error| error.into());
    text.and_then(|text| std::fs::write(&config, text))
        .map_err(ExecError::io("write", &config))?;
    let mut command = binary.exec(&container.id, &container.dir, &config, &pid_file);
    let (stdio, ends) = Stdio::connect(process)?;
    ends.give(&mut command);
    Ok((
        spawn::spawn(command)?,
        stdio,
        Up::File(pid_file),
        Some(config),
    ))
}

fn enter(
    built_in: &BuiltIn,
    container: &Container,
    spec: &OciProcess,
    process: &mut Process,
) -> Result<Launched, ExecError> {
    let stopped = || container.stopped();
    let group = container.built_in.as_ref().ok_or_else(stopped)?;
    let (stdio, ends) = Stdio::connect_later(process)?;
    let ends = ends.as_ref().map(Ends::lend);
    let runtime = built_in.runtime();
    let started = runtime.exec(&container.config, spec, &container.runtime, ends, group);
    let started = match started {
        // It ended while it was being entered.
        Err(_) if container.runtime.ended().unwrap_or_default() => return Err(stopped()),
        started => started.map_err(failed)?,
    };
    let spawned = Spawned::built_in(started)?;
    let up = Up::told(spawned.pidfd());
    Ok((spawned, stdio, up, None))
}

async fn own(exec: Arc<Exec>, mut spawned: Spawned, stdio: Stdio) {
    let mut pumps = stdio.pump();
    let (up, terminal) = (&exec.up, &exec.terminal);
    let status = tokio::select! {
        status = spawned.wait(up, &mut pumps, terminal) => status,
        () = exec.kill() => spawned.wait(up, &mut pumps, terminal).await,
    };
    pumps.drain().await;
    for file in exec.config.as_deref().into_iter().chain(exec.up.file()) {
        let _ = std::fs::remove_file(file);
    }
    let exit = status
        .map(|status| Exit {
            code: spawn::code(status),
            oom: false,
        })
        .map_err(|error| format!("wait for a process: {error}"));
    exec.ended.tell(exit);
}

impl Exec {
    /// Waits until it is to be killed, and does it.
    async fn kill(&self) {
        tokio::select! {
            () = self.kill.notified() => {}
            // With the container all in it has ended; a runtime that is about to put another
            // process in it has nothing to do any more.
            _ = self.container.ended.wait() => {
                let _ = self.runtime.signal(9);
                return;
            }
        }
        // A runtime must not be killed before it has said which process it is.
        let process = match &self.up {
            Up::Told(process, _) => Ok(process.clone()),
            up @ Up::File(_) => up.wait(&self.container.group).await,
        };
        if let Ok(process) = process {
            let _ = process.signal(9);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A permit is kept for the owner if it is not waiting yet.
        self.exec.kill.notify_one();
        if let Some(process) = self.exec.up.known(&self.exec.container.group) {
            let _ = process.signal(9);
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
        let exec = &self.exec;
        tokio::select! {
            biased;
            _ = exec.ended.wait() => Ok(()),
            found = exec.up.wait(&exec.container.group) => {
                found.map(drop).map_err(ExecError::process("wait for a process to be up"))
            }
        }
    }

    async fn exec(&self, process: Process) -> Result<Arc<dyn Running>, ExecError> {
        exec(&self.exec.container, process).await
    }

    async fn signal(&self, signal: i32) -> Result<(), ExecError> {
        let exec = &self.exec;
        tokio::select! {
            biased;
            _ = exec.ended.wait() => Ok(()),
            found = exec.up.wait(&exec.container.group) => found
                .and_then(|process| process.signal(signal))
                .map_err(ExecError::process("signal a process")),
        }
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<(), ExecError> {
        let exec = &self.exec;
        let size = TtySize { rows, columns };
        if matches!(exec.up, Up::File(_)) {
            return resize(exec.terminal.get(), Some(&exec.runtime), size);
        }
        tokio::select! {
            biased;
            _ = exec.ended.wait() => Ok(()),
            _ = exec.up.wait(&exec.container.group) => resize(exec.terminal.get(), None, size),
        }
    }
}
