//! Further processes in a container.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use cooper_executor::{ExecError, Exit, Process, Running, TtySize, exec_process, find_user};
use cooper_sys::{PidFd, Root};
use tokio::sync::{Notify, watch};

use crate::container::{Container, Ended, ended, resize};
use crate::spawn::{self, Spawned};
use crate::stdio::{Stdio, Terminal};
use crate::up;

/// What is known of a process while it runs.
struct Exec {
    container: Arc<Container>,
    config: PathBuf,
    pid_file: PathBuf,
    runtime: Arc<PidFd>,
    terminal: Option<Terminal>,
    ended: watch::Sender<Ended>,
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
    let number = container.next_exec.fetch_add(1, Ordering::Relaxed);
    let config = container.dir.join(format!("exec-{number}.json"));
    let pid_file = container.dir.join(format!("exec-{number}.pid"));
    let spec = exec_process(&process, user.as_ref(), &container.init);
    let text = serde_json::to_vec(&spec).map_err(|error| error.into());
    text.and_then(|text| std::fs::write(&config, text))
        .map_err(ExecError::io("write", &config))?;
    let shared = &container.shared;
    let mut command = shared
        .runtime
        .exec(&container.id, &container.dir, &config, &pid_file);
    let stdio = Stdio::connect(&mut process, &mut command)?;
    let spawned = spawn::spawn(command)?;
    let exec = Arc::new(Exec {
        config,
        pid_file,
        runtime: spawned.pidfd(),
        terminal: stdio.terminal(),
        ended: watch::channel(None).0,
        kill: Notify::new(),
        container,
    });
    let owned = own(exec.clone(), spawned, stdio);
    exec.container.execs.spawn_on(owned, runtime);
    Ok(Handle { exec })
}

async fn own(exec: Arc<Exec>, mut spawned: Spawned, stdio: Stdio) {
    let pumps = stdio.pump();
    let status = tokio::select! {
        status = spawned.wait() => status,
        () = exec.kill() => spawned.wait().await,
    };
    pumps.drain().await;
    for file in [&exec.config, &exec.pid_file] {
        let _ = std::fs::remove_file(file);
    }
    let exit = status
        .map(|status| Exit {
            code: spawn::code(status),
            oom: false,
        })
        .map_err(|error| format!("wait for a process: {error}"));
    exec.ended.send_replace(Some(exit));
}

impl Exec {
    /// Waits until it is to be killed, and does it.
    async fn kill(&self) {
        tokio::select! {
            () = self.kill.notified() => {}
            // With the container all in it has ended; a runtime that is about to put another
            // process in it has nothing to do any more.
            _ = ended(&self.container.ended) => {
                let _ = self.runtime.signal(9);
                return;
            }
        }
        // The runtime must not be killed before it has said which process it is.
        if let Ok(process) = up::up(&self.pid_file, &self.container.group).await {
            let _ = process.signal(9);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A permit is kept for the owner if it is not waiting yet.
        self.exec.kill.notify_one();
        if let Some(process) = up::open(&self.exec.pid_file, &self.exec.container.group) {
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
        ended(&self.exec.ended).await
    }

    async fn started(&self) -> Result<(), ExecError> {
        let exec = &self.exec;
        tokio::select! {
            biased;
            _ = ended(&exec.ended) => Ok(()),
            found = up::up(&exec.pid_file, &exec.container.group) => {
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
            _ = ended(&exec.ended) => Ok(()),
            found = up::up(&exec.pid_file, &exec.container.group) => found
                .and_then(|process| process.signal(signal))
                .map_err(ExecError::process("signal a process")),
        }
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<(), ExecError> {
        let size = TtySize { rows, columns };
        resize(self.exec.terminal.as_ref(), &self.exec.runtime, size)
    }
}
