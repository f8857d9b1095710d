//! The engine: solves, and those who listen to them.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cooper_exporter::Exporter;
use cooper_frontend::{
    BuildOpts, Frontend, FrontendResult, SolveRequest as BridgeRequest, WorkerInfo,
};
use cooper_frontend_dockerfile::DockerfileFrontend;
use cooper_history::{Attachment, End, History, Record};
use cooper_llb::Entitlements;
use cooper_ops::JobContext;
use cooper_progress::Sink;
use cooper_proto::{control, rpc};
use cooper_session::{Group, Manager};
use cooper_solver::Explanation;
use cooper_worker::{Controller, Worker};
use futures::FutureExt as _;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::bridge::BuildBridge;
use crate::build::Build;
use crate::events::EventLog;
use crate::image_frontend::{ImageFrontends, MOST_AT_ONCE};
use crate::jobs::{Entered, Jobs, With};
use crate::{
    EngineError, Events, Gateway, SolveRequest, SolveResponse, caps, entitlements, export,
};

/// How long a listener waits for its build (BuildKit's value): clients ask before they solve.
const STATUS_WAIT: Duration = Duration::from_secs(6);
/// How long a call of a client that is its own frontend waits for its build (BuildKit's value).
const GATEWAY_WAIT: Duration = Duration::from_secs(3);
/// How long the end waits for the records of builds that were given up.
const RECORD_WAIT: Duration = Duration::from_secs(5);
/// Frontends that run as containers.
const GATEWAY: &str = "gateway.v0";

/// The frontend that a request asks for.
pub(crate) enum Chosen {
    BuiltIn(Arc<dyn Frontend>),
    /// It is run from an image.
    Image(ImageFrontends),
}

/// What an engine works with.
pub struct EngineConfig {
    /// The workers.
    pub workers: Controller,
    /// The clients' sessions.
    pub sessions: Manager,
    /// The frontends by name.
    pub frontends: Vec<Arc<dyn Frontend>>,
    /// How frontends run that are images; `None` when none do.
    pub images: Option<ImageFrontends>,
    /// The rights that clients may give to their builds.
    pub entitlements: Entitlements,
    /// What is kept of builds.
    pub history: History,
    /// What an error is in a record.
    pub describe: fn(&EngineError) -> rpc::Status,
}

impl EngineConfig {
    /// The built-in frontends alone, no rights, and no history.
    pub fn new(workers: Controller, sessions: Manager) -> Self {
        Self {
            workers,
            sessions,
            frontends: vec![Arc::new(DockerfileFrontend)],
            images: None,
            entitlements: Entitlements::default(),
            history: History::none(),
            describe: described,
        }
    }
}

/// An error of which nothing but its text is known (code `Unknown`).
fn described(error: &EngineError) -> rpc::Status {
    const UNKNOWN: i32 = 2;
    rpc::Status {
        code: UNKNOWN,
        message: cooper_solver::error_chain(error),
        details: Vec::new(),
    }
}

/// Solves. A clone is the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What all builds share.
pub(crate) struct Shared {
    workers: Controller,
    sessions: Manager,
    frontends: BTreeMap<String, Arc<dyn Frontend>>,
    images: Option<ImageFrontends>,
    entitlements: Entitlements,
    jobs: Jobs,
    closing: CancellationToken,
}

impl Shared {
    pub(crate) fn workers(&self) -> &Controller {
        &self.workers
    }

    /// The worker that builds run on.
    pub(crate) fn worker(&self) -> &Worker {
        self.workers.default_worker()
    }

    /// The frontend that a client names. One that would run an image may be told to take one
    /// of those that are built in.
    pub(crate) fn frontend(
        &self,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<Chosen, EngineError> {
        let name = name.to_owned();
        let built_in = match options.get("source") {
            Some(source) if name == GATEWAY => source,
            _ => &name,
        };
        match (self.frontends.get(built_in), &self.images) {
            (Some(frontend), _) => Ok(Chosen::BuiltIn(frontend.clone())),
            (None, Some(images)) if name == GATEWAY => Ok(Chosen::Image(images.clone())),
            (None, None) if name == GATEWAY => Err(EngineError::UnsupportedFrontend { name }),
            (None, _) => Err(EngineError::UnknownFrontend { name }),
        }
    }

    /// What a request asks of this daemon that can be refused before anything is built: its
    /// exporters, and the rights that it has.
    fn check(
        &self,
        request: &SolveRequest,
    ) -> Result<(Vec<Box<dyn Exporter>>, Entitlements), EngineError> {
        let exporters = export::resolve(&request.exporters, 0, &request.frontend_attrs)?;
        if let Some(export) = request.cache_exports.first() {
            let kind = export.kind.clone();
            return Err(EngineError::UnknownCacheExporter { kind });
        }
        let policy = request.source_policy.as_ref();
        if policy.is_some_and(|policy| !policy.rules.is_empty()) {
            return Err(EngineError::SourcePolicy);
        }
        let rights = entitlements::allowed(&request.entitlements, &self.entitlements)?;
        Ok((exporters, rights))
    }

    fn build_opts(&self, session_id: &str) -> BuildOpts {
        let info = |worker: &Worker| WorkerInfo {
            id: worker.id.clone(),
            labels: worker.labels.clone(),
            platforms: worker.platforms.clone(),
        };
        BuildOpts {
            workers: self.workers.list(&[]).into_iter().map(info).collect(),
            session_id: session_id.to_owned(),
            product: "cooper".to_owned(),
            llb_caps: caps::llb(),
            gateway_caps: caps::gateway(),
        }
    }
}

impl Engine {
    /// Starts one on the current runtime.
    pub fn new(config: EngineConfig) -> Self {
        let named = config.frontends.into_iter();
        let frontends = named.map(|frontend| (frontend.name().to_owned(), frontend));
        Self {
            shared: Arc::new(Shared {
                workers: config.workers,
                sessions: config.sessions,
                frontends: frontends.collect(),
                images: config.images,
                entitlements: config.entitlements,
                jobs: Jobs::new(config.history, config.describe),
                closing: CancellationToken::new(),
            }),
        }
    }

    /// The workers.
    pub fn workers(&self) -> &Controller {
        &self.shared.workers
    }

    /// The clients' sessions.
    pub fn sessions(&self) -> &Manager {
        &self.shared.sessions
    }

    /// Builds what is asked for and exports it.
    ///
    /// # Errors
    /// What went wrong first. A panic on the way is an error of this build alone.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the build: processes that only it needs are killed.
    pub async fn solve(&self, request: SolveRequest) -> Result<SolveResponse, EngineError> {
        let solving = AssertUnwindSafe(Box::pin(self.run(request))).catch_unwind();
        let closing = &self.shared.closing;
        tokio::select! {
            result = solving => result.unwrap_or(Err(EngineError::Panicked)),
            () = closing.cancelled() => Err(EngineError::Cancelled),
        }
    }

    async fn run(&self, request: SolveRequest) -> Result<SolveResponse, EngineError> {
        let shared = &self.shared;
        // What is refused is refused by a build that has begun: whoever listens hears its end
        // at once, and does not wait for a build that never comes.
        let (checked, entitlements) = match shared.check(&request) {
            Ok((exporters, entitlements)) => (Ok(exporters), entitlements),
            Err(error) => (Err(error), Entitlements::default()),
        };
        let log = Arc::new(EventLog::default());
        let sink: Arc<dyn Sink> = log.clone();
        let sessions = Group::new(shared.sessions.clone(), [request.session.as_str()]);
        let worker = shared.worker();
        let ended = shared.closing.child_token();
        let end = ended.clone().drop_guard();
        let build = Arc::new(Build {
            engine: shared.clone(),
            env: worker.env.clone(),
            _work: worker.cache.work(),
            job: worker
                .solver
                .job(JobContext::new(sessions.clone()), sink.clone()),
            session_id: request.session.clone(),
            sessions,
            sink,
            entitlements,
            opts: shared.build_opts(&request.session),
            ended,
            references: Mutex::default(),
            subrequest: AtomicBool::default(),
            image_frontends: Semaphore::new(MOST_AT_ONCE),
        });
        build.asked_with(&request.frontend_attrs);
        if is_explained(&request.frontend_attrs) {
            build.job.explain();
        }
        let bridge = BuildBridge::new(build.clone());
        let own = request.definition.is_none() && request.frontend.is_empty();
        let (gateway, outcome) = match own {
            true => {
                let inputs = request.frontend_inputs.clone();
                let (gateway, outcome) = Gateway::new(build.clone(), bridge.clone(), inputs);
                (Some(gateway), Some(outcome))
            }
            false => (None, None),
        };
        // What is refused does not become a build that others hear of.
        let recorded = !request.internal && checked.is_ok();
        let record = recorded.then(|| record(&request));
        let (attrs, asks) = (request.frontend_attrs.clone(), request.session_exporters);
        let wanted = attrs.get("platform").cloned();
        let with = With {
            log,
            solver: worker.solver.clone(),
            content: worker.content.clone(),
        };
        let id = request.id.clone();
        let entered = shared.jobs.enter(id, record, gateway.clone(), with)?;
        let mut running = Running {
            _end: end,
            bridge,
            build,
            entered,
        };

        let mut end = End::default();
        let built = async {
            let mut exporters = checked?;
            let result = match outcome {
                // The gateway is gone only when the build is.
                Some(outcome) => outcome.await.map_err(|_| EngineError::Cancelled)??,
                None => solve_request(&running.bridge, request).await?,
            };
            let input = running.build.evaluate(result.clone()).await?;
            end.exporter_response = texts(&input.metadata);
            if asks {
                export::ask(&running.build, &result, &attrs, &mut exporters).await?;
            }
            // What describes a build has no platforms.
            let warnings = match running.build.is_subrequest() {
                true => Vec::new(),
                false => cooper_exporter::verify(&input, wanted.as_deref())?,
            };
            let exported = export::export(&running.build, &exporters, &input, &warnings).await?;
            let (response, images) = exported;
            end.results = images;
            if asks {
                export::tell(&running.build, &response).await?;
            }
            Ok::<_, EngineError>(response)
        };
        let mut result = built.await;
        let explanations = running.build.job.explanations();
        if !explanations.is_empty() {
            let json = explanations_json(&explanations);
            if let Ok(response) = &mut result {
                // As BuildKit has what is not one word: clients unpack it.
                response.insert(EXPLANATIONS.to_owned(), BASE64_STANDARD.encode(&json));
            }
            end.attachments.push(Attachment {
                media_type: EXPLAINED,
                content: json.into_bytes(),
            });
        }
        if let Some(gateway) = gateway {
            gateway.release_containers().await;
        }
        match &result {
            Ok(response) => end.exporter_response.extend(response.clone()),
            Err(error) => end.error = running.entered.failed(error).error,
        }
        running.entered.end = Some(end);
        drop(running);
        Ok(SolveResponse {
            exporter_response: result?,
        })
    }

    /// What is seen of the build `id`: from its begin, which need not have come yet, to its end.
    ///
    /// # Errors
    /// [`EngineError::NoJob`] when it did not come within six seconds.
    pub async fn status(&self, id: &str) -> Result<Events, EngineError> {
        let jobs = &self.shared.jobs;
        let log = jobs.wait(id, STATUS_WAIT, |entry| Some(entry.log.clone()));
        Ok(Events::new(log.await?))
    }

    /// What is seen of the build `id`, if it runs or has ended a while ago.
    pub fn watch(&self, id: &str) -> Option<Events> {
        let log = self.shared.jobs.find(id, |entry| Some(entry.log.clone()));
        log.map(Events::new)
    }

    /// The build `id` whose client is its own frontend; it need not have come yet.
    ///
    /// # Errors
    /// [`EngineError::NoJob`] when it did not come within three seconds.
    pub async fn gateway(&self, id: &str) -> Result<Arc<Gateway>, EngineError> {
        if id.is_empty() {
            return Err(EngineError::NoBuildId);
        }
        let jobs = &self.shared.jobs;
        jobs.wait(id, GATEWAY_WAIT, |entry| entry.gateway.clone())
            .await
    }

    /// The builds that run, and what is kept of those that ended. A build that has ended is there
    /// for whoever waits until it is [settled](History::settled).
    pub fn history(&self) -> &History {
        self.shared.jobs.history()
    }

    /// Gives up all builds: their clients are told so. Nothing is built after it.
    pub fn cancel(&self) {
        self.shared.closing.cancel();
    }

    /// Gives up all builds, ends what runs, and waits until what was promised is written.
    pub async fn close(&self) {
        self.cancel();
        let history = self.history();
        let settled = tokio::time::timeout(RECORD_WAIT, history.settled("")).await;
        if settled.is_err() {
            tracing::warn!("builds that were given up are not in the history");
        }
        // Both wait for the disk.
        tokio::join!(self.shared.workers.close(), history.close());
    }
}

/// The build argument by which a client asks why steps are not cached: any client can send it,
/// and it belongs to no step.
const EXPLAIN: &str = "build-arg:COOPER_EXPLAIN";
/// Under which name the answer has them, as JSON in base64.
const EXPLANATIONS: &str = "cooper.explain";
/// What they are among the attestations of a record, as JSON.
const EXPLAINED: &str = "application/vnd.cooper.explain.v0+json";

/// Whether the options of a frontend ask for explanations.
pub(crate) fn is_explained(options: &BTreeMap<String, String>) -> bool {
    is_true(options.get(EXPLAIN))
}

/// Whether a value is one of those that Go's programs read as true.
pub(crate) fn is_true(value: Option<&String>) -> bool {
    let value = value.map(String::as_str);
    matches!(value, Some("1" | "t" | "T" | "true" | "True" | "TRUE"))
}

fn explanations_json(explanations: &[Arc<Explanation>]) -> String {
    let one = |explanation: &Arc<Explanation>| {
        serde_json::json!({
            "vertex": explanation.vertex.to_string(),
            "name": explanation.name,
            "kind": explanation.cause.kind(),
            "root": explanation.cause.root().kind(),
            "cause": explanation.cause.to_string(),
        })
    };
    let all = serde_json::json!({ "steps": explanations.iter().map(one).collect::<Vec<_>>() });
    all.to_string()
}

/// What a build is asked for, as its record has it.
fn record(request: &SolveRequest) -> Record {
    let exporters = request.exporters.iter().map(|exporter| control::Exporter {
        r#type: exporter.kind.clone(),
        attrs: exporter.attrs.clone(),
    });
    Record {
        r#ref: request.id.clone(),
        frontend: request.frontend.clone(),
        frontend_attrs: request.frontend_attrs.clone(),
        exporters: exporters.collect(),
        ..Record::default()
    }
}

/// What a frontend says of its result, which BuildKit's records have as the exporters' answer.
fn texts(metadata: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, String> {
    let metadata = metadata.iter();
    metadata
        .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
        .collect()
}

/// A build that goes on. The order of the fields is that in which they go: the job ends before
/// its listeners do, so that they hear what it still has to say.
struct Running {
    _end: DropGuard,
    bridge: Arc<BuildBridge>,
    build: Arc<Build>,
    entered: Entered,
}

async fn solve_request(
    bridge: &Arc<BuildBridge>,
    request: SolveRequest,
) -> Result<FrontendResult, EngineError> {
    let request = BridgeRequest {
        definition: request.definition,
        frontend: request.frontend,
        frontend_opts: request.frontend_attrs,
        frontend_inputs: request.frontend_inputs,
        evaluate: false,
        cache_imports: request.cache_imports,
        source_policies: Vec::new(),
    };
    bridge.solve(request).await
}
