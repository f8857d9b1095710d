//! Requests about a container and its processes.

use std::sync::Arc;

use cooper_proto::containerd::services::containers::v1 as containers;
use cooper_proto::containerd::services::tasks::v1 as tasks;
use prost_types::Any;

use crate::stdio::Paths;
use crate::{Containerd, ContainerdError, Runtime};

/// How containerd marks what is JSON of the OCI runtime specification.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A process of a container, as containerd names it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    containerd: Containerd,
    container: Arc<str>,
    /// Empty for the first process.
    exec: Arc<str>,
}

impl Task {
    /// The first process of the container `id`.
    pub(crate) fn new(containerd: &Containerd, id: &str) -> Self {
        Self {
            containerd: containerd.clone(),
            container: id.into(),
            exec: "".into(),
        }
    }

    /// Another one.
    pub(crate) fn other(&self, exec: &str) -> Self {
        Self {
            exec: exec.into(),
            ..self.clone()
        }
    }

    /// Tells containerd of the container; `spec` is JSON.
    pub(crate) async fn record(
        &self,
        spec: Vec<u8>,
        runtime: &Runtime,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ContainerdError> {
        let container = containers::Container {
            id: self.container.to_string(),
            labels: labels.into_iter().collect(),
            runtime: Some(containers::container::Runtime {
                name: runtime.name.clone(),
                options: runtime.options.clone(),
            }),
            spec: Some(Any {
                type_url: SPEC.into(),
                value: spec,
            }),
            ..Default::default()
        };
        let container = Some(container);
        let request = containers::CreateContainerRequest { container };
        let answer = self.containerd.containers().create(request).await;
        answer.map(drop).map_err(self.containerd.failed())
    }

    /// Removes that again.
    pub(crate) async fn forget(&self) -> Result<(), ContainerdError> {
        let id = self.container.to_string();
        let request = containers::DeleteContainerRequest { id };
        let answer = self.containerd.containers().delete(request).await;
        self.gone(answer.map(drop))
    }

    /// Makes the container; its first process waits to be started.
    pub(crate) async fn create(
        &self,
        stdio: &Paths,
        runtime: &Runtime,
    ) -> Result<(), ContainerdError> {
        let request = tasks::CreateTaskRequest {
            container_id: self.container.to_string(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            options: runtime.options.clone(),
            runtime_path: runtime.path.clone(),
            ..Default::default()
        };
        let answer = self.containerd.tasks().create(request).await;
        answer.map(drop).map_err(self.containerd.failed())
    }

    /// Makes another process, which waits to be started; `spec` is JSON.
    pub(crate) async fn enter(&self, stdio: &Paths, spec: Vec<u8>) -> Result<(), ContainerdError> {
        let request = tasks::ExecProcessRequest {
            container_id: self.container.to_string(),
            exec_id: self.exec.to_string(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            spec: Some(Any {
                type_url: PROCESS.into(),
                value: spec,
            }),
        };
        let answer = self.containerd.tasks().exec(request).await;
        answer.map(drop).map_err(self.containerd.failed())
    }

    /// Starts the process and returns its number.
    pub(crate) async fn start(&self) -> Result<u32, ContainerdError> {
        let request = tasks::StartRequest {
            container_id: self.container.to_string(),
            exec_id: self.exec.to_string(),
        };
        let answer = self.containerd.tasks().start(request).await;
        Ok(answer.map_err(self.containerd.failed())?.into_inner().pid)
    }

    /// Waits for the end of the process and returns its code.
    pub(crate) async fn wait(&self) -> Result<u32, ContainerdError> {
        let request = tasks::WaitRequest {
            container_id: self.container.to_string(),
            exec_id: self.exec.to_string(),
        };
        let answer = self.containerd.tasks().wait(request).await;
        let answer = answer.map_err(self.containerd.failed())?;
        Ok(answer.into_inner().exit_status)
    }

    /// Sends a signal. A process that has ended is no error.
    pub(crate) async fn signal(&self, signal: u32) -> Result<(), ContainerdError> {
        let request = tasks::KillRequest {
            container_id: self.container.to_string(),
            exec_id: self.exec.to_string(),
            signal,
            all: false,
        };
        let answer = self.containerd.tasks().kill(request).await;
        self.gone(answer.map(drop))
    }

    /// Says that no more input comes. It is only told: a process that has ended takes none.
    pub(crate) async fn close_input(&self) {
        let request = tasks::CloseIoRequest {
            container_id: self.container.to_string(),
            exec_id: self.exec.to_string(),
            stdin: true,
        };
        if let Err(error) = self.containerd.tasks().close_io(request).await {
            tracing::debug!(%error, "cannot close the input of a process");
        }
    }

    /// Tells the new size of the terminal. A process that has ended is no error.
    pub(crate) async fn resize(&self, rows: u16, columns: u16) -> Result<(), ContainerdError> {
        let request = tasks::ResizePtyRequest {
            container_id: self.container.to_string(),
            exec_id: self.exec.to_string(),
            width: columns.into(),
            height: rows.into(),
        };
        let answer = self.containerd.tasks().resize_pty(request).await;
        self.gone(answer.map(drop))
    }

    /// Removes a process that has ended; with the first one all that containerd made for the
    /// container.
    pub(crate) async fn delete(&self) -> Result<(), ContainerdError> {
        let container_id = self.container.to_string();
        let answer = if self.exec.is_empty() {
            let request = tasks::DeleteTaskRequest { container_id };
            self.containerd.tasks().delete(request).await
        } else {
            let request = tasks::DeleteProcessRequest {
                container_id,
                exec_id: self.exec.to_string(),
            };
            self.containerd.tasks().delete_process(request).await
        };
        self.gone(answer.map(drop))
    }

    /// Kills whatever there is of the container and removes it.
    pub(crate) async fn remove(&self) -> Result<(), ContainerdError> {
        self.signal(9).await?;
        match self.wait().await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.delete().await?;
        self.forget().await
    }

    /// What is not there any more needs nothing.
    fn gone(&self, answer: Result<(), tonic::Status>) -> Result<(), ContainerdError> {
        match answer.map_err(self.containerd.failed()) {
            Err(error) if error.is_not_found() => Ok(()),
            answer => answer,
        }
    }
}
