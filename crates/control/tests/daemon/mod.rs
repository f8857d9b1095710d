//! A daemon in this process, on temporary folders, whose executor runs nothing.

use std::sync::Arc;

use async_trait::async_trait;
use cooper_control::{Version, serve};
use cooper_engine::{Engine, EngineConfig};
use cooper_executor::{ContainerSpec, ExecError, Executor, Process, Running};
use cooper_frontend::{Bridge, Frontend, FrontendError, FrontendResult, Inputs};
use cooper_history::{History, Limits};
use cooper_llb::build::{Constraints, Exec, FileAction, MarshalOptions, SourceMap, State};
use cooper_proto::control::control_client::ControlClient;
use cooper_proto::control::{self, SolveRequest, SolveResponse};
use cooper_proto::gateway::llb_bridge_client::LlbBridgeClient;
use cooper_proto::pb;
use cooper_session::Manager;
use cooper_worker::{Context, Controller, Parts, Worker, WorkerSettings};
use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// A daemon, and one connection to it.
pub(crate) struct Daemon {
    channel: Channel,
    engine: Arc<Engine>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    begins: mpsc::UnboundedReceiver<()>,
    ends: mpsc::UnboundedReceiver<()>,
    _root: tempfile::TempDir,
}

/// Steps begin, and go on until nobody wants them any more.
struct Forever {
    begins: mpsc::UnboundedSender<()>,
    ends: mpsc::UnboundedSender<()>,
}

struct Ends<'a>(&'a mpsc::UnboundedSender<()>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[async_trait]
impl Executor for Forever {
    async fn start(&self, _: ContainerSpec, _: Process) -> Result<Arc<dyn Running>, ExecError> {
        let _ends = Ends(&self.ends);
        self.begins.send(()).unwrap();
        std::future::pending().await
    }

    async fn close(&self) {}
}

struct Panics;

#[async_trait]
impl Frontend for Panics {
    fn name(&self) -> &str {
        "panics"
    }

    async fn solve(
        &self,
        _: Arc<dyn Bridge>,
        _: std::collections::BTreeMap<String, String>,
        _: Inputs,
    ) -> Result<FrontendResult, FrontendError> {
        panic!("on purpose");
    }
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let context = Context {
            root: root.path().to_owned(),
            ..Context::default()
        };
        let (begin, begins) = mpsc::unbounded_channel();
        let (end, ends) = mpsc::unbounded_channel();
        let parts = Parts {
            name: "fake",
            executor: Arc::new(Forever {
                begins: begin,
                ends: end,
            }),
            executor_name: "oci",
            network: "host".into(),
            storage: None,
            labels: Default::default(),
            settings: WorkerSettings::default(),
        };
        let worker = Box::pin(Worker::open(&context, parts)).await.unwrap();
        let workers = Controller::of(vec![worker]).unwrap();
        let mut config = EngineConfig::new(workers, Manager::new());
        config.frontends.push(Arc::new(Panics));
        let history = History::open(root.path(), Limits::default()).await;
        config.history = history.unwrap();
        config.describe = cooper_control::describe;
        let engine = Arc::new(Engine::new(config));
        let stop = CancellationToken::new();
        let (near, far) = tokio::io::duplex(1 << 20);
        // A stream that ends says that nothing more is to be served.
        let connections = stream::iter([Ok::<_, std::io::Error>(far)]).chain(stream::pending());
        let serving = serve(
            engine.clone(),
            Version::default(),
            connections,
            stop.clone(),
        );
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        let channel = channel(near).await;
        Self {
            channel,
            engine,
            stop,
            serving,
            begins,
            ends,
            _root: root,
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel())
    }

    pub(crate) fn bridge(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel())
    }

    /// A solve that goes on.
    pub(crate) fn solving(
        &self,
        request: SolveRequest,
    ) -> JoinHandle<Result<SolveResponse, Status>> {
        let mut control = self.control();
        tokio::spawn(async move { Ok(control.solve(request).await?.into_inner()) })
    }

    /// All vertices that are shown for a build.
    pub(crate) async fn statuses(&self, id: &str) -> Vec<control::Vertex> {
        let request = control::StatusRequest { r#ref: id.into() };
        let mut stream = self.control().status(request).await.unwrap().into_inner();
        let mut seen = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            seen.extend(message.vertexes);
        }
        seen
    }

    /// Waits until the build is shown the step that runs.
    pub(crate) async fn until_joined(&self, id: &str) {
        let request = control::StatusRequest { r#ref: id.into() };
        let mut stream = self.control().status(request).await.unwrap().into_inner();
        while let Some(message) = stream.message().await.unwrap() {
            if message
                .vertexes
                .iter()
                .any(|vertex| vertex.started.is_some())
            {
                return;
            }
        }
        panic!("the build ended");
    }

    /// Waits until the build has ended for all who listen.
    pub(crate) async fn until_ended(&self, id: &str) {
        let seen = self.statuses(id).await;
        assert_eq!(seen.last().unwrap().error, "context canceled");
    }

    pub(crate) async fn step_begins(&mut self) {
        self.begins.recv().await.unwrap();
    }

    pub(crate) async fn step_ends(&mut self) {
        self.ends.recv().await.unwrap();
    }

    pub(crate) fn step_ended(&mut self) -> bool {
        self.ends.try_recv().is_ok()
    }

    pub(crate) async fn stop(self) {
        drop(self.channel);
        self.stop.cancel();
        self.serving.await.unwrap();
        self.engine.close().await;
    }
}

async fn channel(io: tokio::io::DuplexStream) -> Channel {
    let io = std::sync::Mutex::new(Some(io));
    let connect = tower::service_fn(move |_| {
        let io = io.lock().unwrap().take().map(TokioIo::new);
        async move { io.ok_or_else(|| std::io::Error::other("the connection is closed")) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connect).await.unwrap()
}

/// A call on behalf of a build.
pub(crate) fn in_build<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let id = id.parse().unwrap();
    request
        .metadata_mut()
        .insert("buildkit-controlapi-buildid", id);
    request
}

/// A graph that makes one file.
pub(crate) fn file(path: &str, data: &str) -> pb::Definition {
    let mut actions = Vec::new();
    if let Some((dir, _)) = path.rsplit_once('/') {
        actions.push(FileAction::Mkdir {
            path: dir.into(),
            mode: 0o755,
            make_parents: true,
            owner: None,
            created: None,
        });
    }
    actions.push(FileAction::Mkfile {
        path: path.into(),
        mode: 0o644,
        data: data.into(),
        owner: None,
        created: None,
    });
    let named = Constraints::named(format!("mkfile {path}"));
    State::scratch()
        .file(actions, named)
        .marshal(&MarshalOptions::default())
}

/// A graph that fails, from the second line of a file.
pub(crate) fn remove_nothing() -> pb::Definition {
    let map = SourceMap {
        info: Arc::new(pb::SourceInfo {
            filename: "Buildfile".into(),
            data: b"begin\nremove nothing\n".to_vec(),
            ..pb::SourceInfo::default()
        }),
    };
    let line = |line| Some(pb::Position { line, character: 0 });
    let range = pb::Range {
        start: line(2),
        end: line(2),
    };
    let action = FileAction::Rm {
        path: "/nothing".into(),
        allow_not_found: false,
        allow_wildcard: false,
    };
    let constraints = Constraints::named("remove").location(&map, vec![range]);
    State::scratch()
        .file(vec![action], constraints)
        .marshal(&MarshalOptions::default())
}

/// A graph with a step that goes on for ever.
pub(crate) fn forever() -> pb::Definition {
    let exec = Exec {
        args: vec!["/forever".into()],
        ..Exec::default()
    };
    State::scratch()
        .run(exec)
        .marshal(&MarshalOptions::default())
}
