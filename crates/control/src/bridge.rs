//! The gateway: on the daemon's socket, where a client names its build in the metadata of each
//! call, and for a frontend's program, which has one build.

use std::sync::Arc;

use cooper_engine::{Engine, EngineError, Gateway};
use cooper_llb::CapSet;
use cooper_proto::gateway::llb_bridge_server::LlbBridge;
use cooper_proto::{apicaps, gateway};
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::convert;
use crate::service::{Answers, Version};
use crate::status;

/// Messages of processes that wait for the client.
const MESSAGES: usize = 8;
/// The metadata that names the build.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

pub(crate) struct BridgeService {
    builds: Builds,
    version: Version,
}

/// Which build a call is about.
pub(crate) enum Builds {
    /// The one that its metadata names.
    Named(Arc<Engine>),
    /// This one.
    One(Arc<Gateway>),
}

impl BridgeService {
    pub(crate) fn new(builds: Builds, version: Version) -> Self {
        Self { builds, version }
    }

    /// The build that the call is about, and what it asks.
    async fn open<T>(&self, request: Request<T>) -> Result<(Arc<Gateway>, T), Status> {
        let found = match &self.builds {
            Builds::Named(engine) => {
                let id = request.metadata().get(BUILD_ID);
                let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
                let found = engine.gateway(id).await;
                found.map_err(|error| status::of(&error))?
            }
            Builds::One(build) => build.clone(),
        };
        Ok((found, request.into_inner()))
    }
}

fn answer<T>(result: Result<T, EngineError>) -> Result<Response<T>, Status> {
    result
        .map(Response::new)
        .map_err(|error| status::of(&error))
}

#[tonic::async_trait]
impl LlbBridge for BridgeService {
    type ExecProcessStream = Answers<gateway::ExecMessage>;

    async fn ping(
        &self,
        request: Request<gateway::PingRequest>,
    ) -> Result<Response<gateway::PongResponse>, Status> {
        let (build, _) = self.open(request).await?;
        let version = self.version.to_wire();
        let workers = build.workers().list(&[]).into_iter();
        let opts = build.build_opts();
        Ok(Response::new(gateway::PongResponse {
            frontend_api_caps: list(&opts.gateway_caps),
            llb_caps: list(&opts.llb_caps),
            workers: workers
                .map(|worker| convert::worker(worker, &version))
                .collect(),
        }))
    }

    async fn solve(
        &self,
        request: Request<gateway::SolveRequest>,
    ) -> Result<Response<gateway::SolveResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.solve(request).await)
    }

    async fn r#return(
        &self,
        request: Request<gateway::ReturnRequest>,
    ) -> Result<Response<gateway::ReturnResponse>, Status> {
        let (build, request) = self.open(request).await?;
        let returned = build.return_result(request);
        answer(returned.map(|()| gateway::ReturnResponse {}))
    }

    async fn resolve_image_config(
        &self,
        request: Request<gateway::ResolveImageConfigRequest>,
    ) -> Result<Response<gateway::ResolveImageConfigResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.resolve_image_config(request).await)
    }

    async fn resolve_source_meta(
        &self,
        request: Request<gateway::ResolveSourceMetaRequest>,
    ) -> Result<Response<gateway::ResolveSourceMetaResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.resolve_source_meta(request).await)
    }

    async fn read_file(
        &self,
        request: Request<gateway::ReadFileRequest>,
    ) -> Result<Response<gateway::ReadFileResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.read_file(request).await)
    }

    async fn read_dir(
        &self,
        request: Request<gateway::ReadDirRequest>,
    ) -> Result<Response<gateway::ReadDirResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.read_dir(request).await)
    }

    async fn stat_file(
        &self,
        request: Request<gateway::StatFileRequest>,
    ) -> Result<Response<gateway::StatFileResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.stat_file(request).await)
    }

    async fn evaluate(
        &self,
        request: Request<gateway::EvaluateRequest>,
    ) -> Result<Response<gateway::EvaluateResponse>, Status> {
        let (build, request) = self.open(request).await?;
        let evaluated = build.evaluate(request).await;
        answer(evaluated.map(|()| gateway::EvaluateResponse {}))
    }

    async fn inputs(
        &self,
        request: Request<gateway::InputsRequest>,
    ) -> Result<Response<gateway::InputsResponse>, Status> {
        let (build, _) = self.open(request).await?;
        Ok(Response::new(build.inputs()))
    }

    async fn warn(
        &self,
        request: Request<gateway::WarnRequest>,
    ) -> Result<Response<gateway::WarnResponse>, Status> {
        let (build, request) = self.open(request).await?;
        let warned = build.warn(request).await;
        answer(warned.map(|()| gateway::WarnResponse {}))
    }

    async fn new_container(
        &self,
        request: Request<gateway::NewContainerRequest>,
    ) -> Result<Response<gateway::NewContainerResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.new_container(request).await)
    }

    async fn release_container(
        &self,
        request: Request<gateway::ReleaseContainerRequest>,
    ) -> Result<Response<gateway::ReleaseContainerResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.release_container(request).await)
    }

    async fn exec_process(
        &self,
        request: Request<Streaming<gateway::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let (build, incoming) = self.open(request).await?;
        let (outgoing, messages) = mpsc::channel(MESSAGES);
        // A client that breaks off has no more to say.
        let incoming = incoming
            .take_while(|message| std::future::ready(message.is_ok()))
            .filter_map(|message| std::future::ready(message.ok()));
        let work = async move {
            let served = build.exec_process(incoming, outgoing, status::describe);
            served.await.map_err(|error| status::of(&error))
        };
        let work = stream::once(work).filter_map(|ended| async { ended.err().map(Err) });
        let messages = ReceiverStream::new(messages).map(Ok);
        // What was said before an error comes before it.
        let first = |_: &mut ()| stream::PollNext::Left;
        let answers = stream::select_with_strategy(messages, Box::pin(work), first);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read_file_container(
        &self,
        request: Request<gateway::ReadFileRequest>,
    ) -> Result<Response<gateway::ReadFileResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.read_file_container(request).await)
    }

    async fn read_dir_container(
        &self,
        request: Request<gateway::ReadDirRequest>,
    ) -> Result<Response<gateway::ReadDirResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.read_dir_container(request).await)
    }

    async fn stat_file_container(
        &self,
        request: Request<gateway::StatFileRequest>,
    ) -> Result<Response<gateway::StatFileResponse>, Status> {
        let (build, request) = self.open(request).await?;
        answer(build.stat_file_container(request).await)
    }
}

fn list(caps: &CapSet) -> Vec<apicaps::ApiCap> {
    caps.iter()
        .map(|id| apicaps::ApiCap {
            id: id.to_owned(),
            enabled: true,
            ..apicaps::ApiCap::default()
        })
        .collect()
}
