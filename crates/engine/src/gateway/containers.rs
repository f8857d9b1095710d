//! What a client asks of its containers.

use std::sync::Arc;

use cooper_proto::{gateway as api, rpc};
use futures::Stream;
use tokio::sync::mpsc;

use super::Gateway;
use crate::container::{Container, NewContainer};
use crate::{EngineError, files, process};

impl Gateway {
    /// Makes a container of references. Nothing runs in it yet.
    pub async fn new_container(
        &self,
        request: api::NewContainerRequest,
    ) -> Result<api::NewContainerResponse, EngineError> {
        let mut mounts = Vec::new();
        for mount in &request.mounts {
            let id = &mount.result_id;
            let reference = self.returned(id).map_err(|error| {
                let dest = &mount.dest;
                EngineError::Invalid(format!(
                    "failed to find ref {id} for {dest:?} mount: {error}"
                ))
            })?;
            mounts.push((mount.clone(), reference));
        }
        let id = request.container_id.clone();
        let new = Container::new(&self.build, NewContainer { mounts, request });
        let container = self.build.run(new).await?;
        self.containers.add(&id, container)?;
        Ok(api::NewContainerResponse {})
    }

    /// Ends a container with all that runs in it.
    pub async fn release_container(
        &self,
        request: api::ReleaseContainerRequest,
    ) -> Result<api::ReleaseContainerResponse, EngineError> {
        self.containers.release(&request.container_id).await?;
        Ok(api::ReleaseContainerResponse {})
    }

    /// Ends all containers.
    pub(crate) async fn release_containers(&self) {
        self.containers.release_all().await;
    }

    /// Runs the processes that `incoming` asks for and talks about them through `outgoing`;
    /// `describe` puts their errors into messages.
    ///
    /// # Cancel safety
    /// Dropping the future kills what it started in containers that run already.
    pub async fn exec_process(
        &self,
        incoming: impl Stream<Item = api::ExecMessage> + Send,
        outgoing: mpsc::Sender<api::ExecMessage>,
        describe: fn(&EngineError) -> rpc::Status,
    ) -> Result<(), EngineError> {
        let serving = process::serve(&self.build, &self.containers, incoming, outgoing, describe);
        self.build.run(serving).await
    }

    fn container(&self, id: &str, mount: i32) -> Result<Arc<Container>, EngineError> {
        let id_and_mount = || EngineError::NoContainer {
            id: format!("{id}@{mount}"),
        };
        self.containers.get(id).ok_or_else(id_and_mount)
    }

    /// Reads a file of a container, whatever runs in it.
    pub async fn read_file_container(
        &self,
        request: api::ReadFileRequest,
    ) -> Result<api::ReadFileResponse, EngineError> {
        let index = request.mount_index;
        let container = self.container(&request.r#ref, index)?;
        let path = request.file_path;
        let read = container.look(index, move |root| files::read_file(Some(root), &path, None));
        Ok(api::ReadFileResponse { data: read.await? })
    }

    /// Lists a folder of a container.
    pub async fn read_dir_container(
        &self,
        request: api::ReadDirRequest,
    ) -> Result<api::ReadDirResponse, EngineError> {
        let index = request.mount_index;
        let container = self.container(&request.r#ref, index)?;
        let (path, include) = (request.dir_path, request.include_pattern);
        let read = container.look(index, move |root| {
            files::read_dir(Some(root), &path, &include)
        });
        Ok(api::ReadDirResponse {
            entries: read.await?,
        })
    }

    /// Looks at a file of a container.
    pub async fn stat_file_container(
        &self,
        request: api::StatFileRequest,
    ) -> Result<api::StatFileResponse, EngineError> {
        let index = request.mount_index;
        let container = self.container(&request.r#ref, index)?;
        let path = request.path;
        let stat = container.look(index, move |root| files::stat_file(Some(root), &path));
        Ok(api::StatFileResponse {
            stat: Some(stat.await?),
        })
    }
}
