//! Frontends that run as containers: the program of an image builds through a [`Gateway`], which
//! it reaches by its standard input and output (`frontend/gateway` in BuildKit).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cooper_executor::{Exit, Input, Output, Process};
use cooper_frontend::{
    Bridge as _, FrontendError, FrontendResult, ImageOptions, Inputs, SolveRequest, WorkerInfo,
};
use cooper_llb::build::{Constraints, Image, MarshalOptions, State};
use cooper_proto::gateway::NewContainerRequest;
use cooper_proto::pb;
use cooper_registry::Reference;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::net::unix::pipe;
use tokio_util::task::AbortOnDropHandle;

use crate::EngineError;
use crate::bridge::BuildBridge;
use crate::build::Build;
use crate::container::{Container, NewContainer};
use crate::engine::is_true;
use crate::gateway::Gateway;
use crate::process::{SIGKILL, no_pipe, output};

/// The program of an image that does not say which one it is (BuildKit's).
const PROGRAM: &str = "/run";
/// Says what a frontend can do.
const CAPS_LABEL: &str = "moby.buildkit.frontend.caps";
/// Says that a frontend needs no network.
const NO_NETWORK_LABEL: &str = "moby.buildkit.frontend.network.none";
const INPUTS_CAP: &str = "moby.buildkit.frontend.inputs";
/// So many of them run at the same time for one build: one that calls itself comes to an end.
pub(crate) const MOST_AT_ONCE: usize = 64;
/// So long may a program go on that does not speak with the builder any more.
const GOING: Duration = Duration::from_secs(5);
/// So much of what a frontend said last stands in the error when it fails.
const SAID: usize = 4 << 10;

/// What a frontend's program reads and writes.
pub type GatewayStream = tokio::io::Join<pipe::Receiver, pipe::Sender>;

/// Speaks the gateway's protocol with a frontend's program. The engine knows no protocol: who
/// makes it brings one.
pub trait GatewayServer: Send + Sync {
    /// Answers with `gateway` what comes on `stream`, until its end.
    ///
    /// # Cancel safety
    /// Dropping the future ends it at the latest with the program.
    fn serve(&self, gateway: Arc<Gateway>, stream: GatewayStream) -> BoxFuture<'static, ()>;
}

/// How images of frontends are run.
#[derive(Clone)]
pub struct ImageFrontends {
    /// Speaks with them.
    pub server: Arc<dyn GatewayServer>,
    /// The repositories that they may come from, such as `docker.io/docker/dockerfile`; empty for
    /// all.
    pub allowed: Vec<String>,
}

impl ImageFrontends {
    fn check(&self, source: &str, name: &Reference) -> Result<(), EngineError> {
        let allowed = self.allowed.iter();
        let mut allowed = allowed.filter_map(|allowed| Reference::parse_named(allowed).ok());
        if self.allowed.is_empty() || allowed.any(|allowed| allowed.name() == name.name()) {
            return Ok(());
        }
        let message = format!("'{source}' is not an allowed gateway source");
        Err(EngineError::Invalid(message))
    }

    /// Runs the image that `options` name, and gives what its program returns.
    ///
    /// # Cancel safety
    /// Dropping the future kills the program.
    pub(crate) async fn solve(
        &self,
        build: &Arc<Build>,
        options: &BTreeMap<String, String>,
        inputs: Inputs,
    ) -> Result<FrontendResult, EngineError> {
        let invalid = |message: &str| EngineError::Invalid(message.to_owned());
        if options.contains_key("gateway-devel") {
            return Err(invalid("development gateway is no longer supported"));
        }
        let source = options.get("source");
        let source = source.ok_or_else(|| invalid("no source specified for gateway"))?;
        let name = Reference::parse(source);
        let name = name.map_err(|error| FrontendError::bridge(error.to_string(), error))?;
        self.check(source, &name)?;
        let _place = build.image_frontends.try_acquire().map_err(|_| {
            let message = format!("more than {MOST_AT_ONCE} frontends run for one build");
            EngineError::Invalid(message)
        })?;
        let bridge = BuildBridge::new(build.clone());
        let program = Program::find(&bridge, &name).await?;
        program.check_caps(options, !inputs.is_empty())?;
        let container = program.container(build, &bridge).await?;
        let (gateway, mut outcome) = Gateway::new(build.clone(), bridge, inputs);
        let ended = self
            .run(build, &container, &gateway, program.process(build, options))
            .await;
        gateway.release_containers().await;
        container.end().await;
        // An error that it returned says more than how it ended, and that more than success (as in
        // BuildKit).
        match (outcome.try_recv().ok(), ended?) {
            (Some(Err(error)), _) => Err(error),
            (_, ended) if !ended.exit.success() => Err(ended.failure(source)),
            (Some(Ok(result)), _) => Ok(result),
            (None, _) => Err(invalid("no result for incomplete build")),
        }
    }

    async fn run(
        &self,
        build: &Build,
        container: &Container,
        gateway: &Arc<Gateway>,
        mut process: Process,
    ) -> Result<Ended, EngineError> {
        let stream = connect(&mut process)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let hear = said.clone();
        process.stderr = Output::call(move |piece: Bytes| {
            tracing::debug!(text = %String::from_utf8_lossy(&piece), "a frontend says");
            let mut said = hear.lock().unwrap_or_else(PoisonError::into_inner);
            said.extend_from_slice(&piece);
            let over = said.len().saturating_sub(SAID);
            said.drain(..over);
        });
        let started = container.start(build, pb::SecurityMode::Sandbox, true, process);
        let running = started.await?;
        let serving = tokio::spawn(self.server.serve(gateway.clone(), stream));
        let mut serving = AbortOnDropHandle::new(serving);
        let mut closed = false;
        let exit = tokio::select! {
            exit = running.wait() => exit,
            _ = &mut serving => match tokio::time::timeout(GOING, running.wait()).await {
                Ok(exit) => exit,
                // It can say nothing more.
                Err(_) => {
                    closed = true;
                    // It may end just now.
                    let _ = running.signal(SIGKILL).await;
                    running.wait().await
                }
            },
        };
        let said = said.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Ended {
            exit: exit?,
            closed,
            said: String::from_utf8_lossy(&said).trim().to_owned(),
        })
    }
}

/// How a frontend's program ended.
struct Ended {
    exit: Exit,
    /// It was ended, since it did not speak with the builder any more.
    closed: bool,
    /// The last of its standard error.
    said: String,
}

impl Ended {
    fn failure(self, source: &str) -> EngineError {
        EngineError::FrontendExit {
            image: source.to_owned(),
            how: match self.closed {
                true => "frontend grpc server closed unexpectedly".to_owned(),
                false => self.exit.to_string(),
            },
            said: self.said,
        }
    }
}

/// Gives a process a standard input and output, of which this is the other end.
fn connect(process: &mut Process) -> Result<GatewayStream, EngineError> {
    let from_program = output(&mut process.stdout)?;
    let (to_program, input) = pipe::pipe().map_err(no_pipe)?;
    process.stdin = Input::Fd(input.into_blocking_fd().map_err(no_pipe)?);
    Ok(tokio::io::join(from_program, to_program))
}

/// The program of an image.
struct Program {
    /// With the digest.
    reference: String,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    labels: BTreeMap<String, String>,
}

impl Program {
    async fn find(bridge: &Arc<BuildBridge>, name: &Reference) -> Result<Self, EngineError> {
        let options = ImageOptions {
            log_name: format!("resolve image config for docker-image://{name}"),
            ..ImageOptions::default()
        };
        let text = name.to_string();
        let found = bridge.resolve_image_config(&text, options).await?;
        let image: Value = serde_json::from_slice(&found.config).map_err(|error| {
            FrontendError::bridge(format!("failed to parse the image config of {name}"), error)
        })?;
        let config = &image["config"];
        let list = |name: &str| -> Option<Vec<String>> {
            let list = config[name].as_array()?.iter();
            Some(list.filter_map(Value::as_str).map(str::to_owned).collect())
        };
        let labels = config["Labels"].as_object().into_iter().flatten();
        let labels = labels.map(|(name, value)| {
            let value = value.as_str().unwrap_or_default();
            (name.clone(), value.to_owned())
        });
        let reference = match &found.digest {
            Some(digest) if !found.reference.contains('@') => {
                format!("{}@{digest}", found.reference)
            }
            _ => found.reference,
        };
        let cwd = config["WorkingDir"].as_str().unwrap_or_default();
        Ok(Self {
            reference,
            args: list("Entrypoint").unwrap_or_else(|| vec![PROGRAM.to_owned()]),
            env: list("Env").unwrap_or_default(),
            cwd: if cwd.is_empty() { "/" } else { cwd }.to_owned(),
            labels: labels.collect(),
        })
    }

    /// Refuses what the client needs and this frontend lacks.
    fn check_caps(
        &self,
        options: &BTreeMap<String, String>,
        inputs: bool,
    ) -> Result<(), EngineError> {
        let has = caps(self.labels.get(CAPS_LABEL));
        let needs = caps(options.get("frontend.caps"));
        let needs = needs.into_iter().chain(inputs.then_some(INPUTS_CAP));
        match needs.into_iter().find(|cap| !has.contains(cap)) {
            None => Ok(()),
            Some(cap) => {
                let name = cap.to_owned();
                Err(FrontendError::UnsupportedCapability { name }.into())
            }
        }
    }

    /// The image's files, on which what it writes is thrown away.
    async fn container(
        &self,
        build: &Build,
        bridge: &Arc<BuildBridge>,
    ) -> Result<Container, EngineError> {
        let image = Image {
            record_type: "frontend".to_owned(),
            ..Image::default()
        };
        let state = State::image(&self.reference, image, Constraints::default());
        let request = SolveRequest {
            definition: Some(state.marshal(&MarshalOptions::default())),
            ..SolveRequest::default()
        };
        let root = BuildBridge::solve(bridge, request).await?.reference;
        let mount = pb::Mount {
            dest: "/".to_owned(),
            output: -1,
            ..pb::Mount::default()
        };
        let network = match is_true(self.labels.get(NO_NETWORK_LABEL)) {
            true => pb::NetMode::None,
            false => pb::NetMode::Unset,
        };
        let new = NewContainer {
            mounts: vec![(mount, root)],
            request: NewContainerRequest {
                container_id: format!("of frontend {}", self.reference),
                network: network as i32,
                ..NewContainerRequest::default()
            },
        };
        Container::new(build, new).await
    }

    fn process(&self, build: &Build, options: &BTreeMap<String, String>) -> Process {
        let numbered = options.iter().enumerate();
        let options =
            numbered.map(|(n, (name, value))| format!("BUILDKIT_FRONTEND_OPT_{n}={name}={value}"));
        let opts = &build.opts;
        let workers: Vec<_> = opts.workers.iter().map(worker).collect();
        let own = [
            format!("BUILDKIT_SESSION_ID={}", opts.session_id),
            format!("BUILDKIT_WORKERS={}", Value::from(workers)),
            format!("BUILDKIT_EXPORTEDPRODUCT={}", opts.product),
        ];
        Process {
            args: self.args.clone(),
            env: self.env.iter().cloned().chain(options).chain(own).collect(),
            cwd: self.cwd.clone(),
            ..Process::default()
        }
    }
}

/// A worker as BuildKit's clients read it.
fn worker(worker: &WorkerInfo) -> Value {
    let platform = |platform: &pb::Platform| {
        let mut said = json!({ "architecture": platform.architecture, "os": platform.os });
        if !platform.variant.is_empty() {
            said["variant"] = Value::from(platform.variant.clone());
        }
        said
    };
    json!({
        "ID": worker.id,
        "Labels": worker.labels,
        "Platforms": worker.platforms.iter().map(platform).collect::<Vec<_>>(),
    })
}

/// Names of capabilities in a list; what stands behind a `+` is how the client wants it.
fn caps(list: Option<&String>) -> BTreeSet<&str> {
    let all = list.map_or("", String::as_str).split(',');
    let names = all.map(|cap| cap.split_once('+').map_or(cap, |(name, _)| name));
    names.filter(|name| !name.is_empty()).collect()
}
