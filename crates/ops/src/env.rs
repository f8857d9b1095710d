//! What operations work with, and the solver's domain.

use std::collections::HashMap;
use std::sync::Arc;

use cooper_cache::{CacheManager, ImmutableRef, LocalRef};
use cooper_content::{ContentStore, Fetch, ImageStore, PlaintextKind, digest_noted};
use cooper_executor::{Executor, Resources, Usage};
use cooper_layer::{FetchFor, Filler};
use cooper_mount::MountManager;
use cooper_progress::{Event, Limits, ProgressGroup, Vertex, VertexProgress};
use cooper_proto::pb;
use cooper_registry::Registry;
use cooper_session::Group;
use cooper_solver::{Digest, Domain, OpContext};
use cooper_source::{Memory, SourceContext, SourceRegistry};
use tokio::sync::Semaphore;

use crate::OpsError;
use crate::limits::{Steps, relaxed};

/// The solver's domain: results are states of a file system.
#[derive(Clone, Copy, Debug)]
pub struct Build;

/// A state of a file system; `None` is scratch.
pub type Output = Option<ImmutableRef>;

impl Domain for Build {
    type Output = Output;
    type Job = JobContext;
}

/// What a job brings along for the operations that work for it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobContext {
    /// The sessions of its client.
    pub sessions: Group,
    /// What its sources were found to be.
    pub memory: Memory,
    steps: Steps,
}

impl JobContext {
    /// A job of a client with these sessions.
    pub fn new(sessions: Group) -> Self {
        Self {
            sessions,
            memory: Memory::default(),
            steps: Steps::default(),
        }
    }

    /// Notes what the steps of `graph` may use of the machine. To be called before the graph
    /// is built: what is not noted has no limits.
    pub fn note_limits(&self, graph: &cooper_llb::Graph) {
        self.steps.add(graph);
    }

    /// What the steps that ran for this job used, by their vertices.
    pub fn usage(&self) -> HashMap<Digest, Usage> {
        self.steps.usage()
    }
}

/// The parts of a worker that operations work with.
pub struct Env {
    /// The states of file systems.
    pub cache: CacheManager,
    /// Blobs.
    pub content: Arc<dyn ContentStore>,
    /// Where lazy layers are fetched from.
    pub registry: Registry,
    /// Prepares the mounts of processes.
    pub mounts: MountManager,
    /// Runs processes.
    pub executor: Arc<dyn Executor>,
    /// The names of images, where there is a store of them beside the blobs.
    pub images: Option<Arc<dyn ImageStore>>,
    /// The sources by scheme.
    pub sources: SourceRegistry,
    /// How many operations are carried out at once; `None` is no bound. Waiting for inputs and
    /// looking into the cache do not count.
    pub parallelism: Option<Arc<Semaphore>>,
    /// The worker's own platform, for operations that say none.
    pub platform: pb::Platform,
    /// How much of a process's output is passed on.
    pub log_limits: Limits,
    /// Whether a process's output goes to the daemon's own as well.
    pub print_output: bool,
}

impl Env {
    /// The digest of `text`, which is part of a cache key: who wants to know what keys are made
    /// of is told.
    pub(crate) fn key_digest(&self, kind: PlaintextKind, text: &[u8]) -> Digest {
        digest_noted(self.cache.plaintexts(), kind, text)
    }

    /// Brings a result to disk: what is lazy is fetched with the credentials of `sessions`, and
    /// `progress` shows it.
    ///
    /// # Cancel safety
    /// What was begun is thrown away.
    pub async fn localize(
        &self,
        output: &ImmutableRef,
        sessions: &Group,
        progress: &VertexProgress,
    ) -> Result<LocalRef, OpsError> {
        if let Some(local) = output.local() {
            return Ok(local);
        }
        let filler = self.filler(sessions, progress);
        Ok(output.localize(&filler).await?)
    }

    /// Fetches and unpacks layers with the credentials of `sessions`; `progress` shows it.
    pub fn filler(&self, sessions: &Group, progress: &VertexProgress) -> Filler {
        Filler::new(self.content.clone(), self.fetch(sessions), progress.clone())
    }

    /// Says where the blobs of layers come from, with the credentials of `sessions`.
    pub fn fetch(&self, sessions: &Group) -> Arc<dyn FetchFor> {
        Arc::new(RegistryFetch {
            registry: self.registry.clone(),
            sessions: sessions.clone(),
        })
    }

    /// Waits for leave to carry something out.
    pub(crate) async fn acquire(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let semaphore = self.parallelism.clone()?;
        // Nobody closes it; if somebody did, there would be no bound.
        semaphore.acquire_owned().await.ok()
    }
}

/// Fetches the blobs of images from their registries.
struct RegistryFetch {
    registry: Registry,
    sessions: Group,
}

impl FetchFor for RegistryFetch {
    fn fetch_for(&self, layer: &cooper_cache::Layer) -> Vec<Arc<dyn Fetch>> {
        cooper_source::image::fetchers(&self.registry, &self.sessions, layer)
    }
}

/// The sessions of all jobs that need the vertex now.
pub(crate) fn sessions(cx: &OpContext<Build>) -> Group {
    let jobs = cx.jobs();
    let Some(first) = jobs.first() else {
        return Group::none();
    };
    let ids = jobs
        .iter()
        .flat_map(|job| job.sessions.ids().iter().cloned());
    Group::new(first.sessions.manager().clone(), ids)
}

/// What the vertex may use of the machine: all that any of its jobs allows.
pub(crate) fn limits(cx: &OpContext<Build>) -> Resources {
    let digest = &cx.vertex().digest;
    let jobs = cx.jobs();
    let limits = jobs.iter().map(|job| job.steps.limits(digest));
    limits.reduce(relaxed).unwrap_or_default()
}

/// Notes what the vertex used, for all that need it.
pub(crate) fn note_usage(cx: &OpContext<Build>, usage: &Usage) {
    for job in cx.jobs() {
        job.steps.used(&cx.vertex().digest, usage.clone());
    }
}

/// Whom a source may ask and tell, for a vertex.
pub(crate) fn source_context(cx: &OpContext<Build>) -> SourceContext {
    SourceContext {
        sessions: sessions(cx),
        progress: cx.progress().clone(),
        memories: cx.jobs().iter().map(|job| job.memory.clone()).collect(),
    }
}

/// A vertex that an operation takes an input from, as far as it is shown while the input is
/// brought to disk.
#[derive(Clone, Debug)]
pub(crate) struct InputVertex {
    pub(crate) digest: Digest,
    pub(crate) name: String,
    pub(crate) inputs: Vec<Digest>,
    pub(crate) progress_group: Option<ProgressGroup>,
}

/// The inputs of an operation, one for each number that it may name.
pub(crate) type InputVertices = Arc<[InputVertex]>;

/// Brings input number `index` to disk. Fetching is shown on the vertex that it comes from, as
/// users expect the download of an image below its `FROM`.
pub(crate) async fn localize(
    env: &Env,
    cx: &OpContext<Build>,
    vertices: &InputVertices,
    index: usize,
    input: &Output,
) -> Result<Option<LocalRef>, OpsError> {
    let Some(input) = input else {
        return Ok(None);
    };
    let shown = match vertices.get(index) {
        Some(vertex) if !input.is_local() => Some(Shown::begin(cx, vertex)),
        _ => None,
    };
    let progress = shown
        .as_ref()
        .map_or(cx.progress(), |shown| &shown.progress);
    let local = env.localize(input, &sessions(cx), progress).await;
    if let Some(shown) = shown {
        shown.end(local.as_ref().err());
    }
    Ok(Some(local?))
}

/// A vertex that is shown at work once more. It ends when it is told so or dropped.
struct Shown {
    progress: VertexProgress,
    vertex: Vertex,
}

impl Shown {
    fn begin(cx: &OpContext<Build>, input: &InputVertex) -> Self {
        let sink = cx.progress().sink().clone();
        let vertex = Vertex {
            digest: input.digest.clone(),
            inputs: input.inputs.clone(),
            name: input.name.clone(),
            cached: false,
            started: Some(std::time::SystemTime::now()),
            completed: None,
            error: String::new(),
            progress_group: input.progress_group.clone(),
        };
        sink.emit(Event::Vertex(vertex.clone()));
        Self {
            progress: VertexProgress::new(input.digest.clone(), sink),
            vertex,
        }
    }

    fn end(mut self, error: Option<&OpsError>) {
        self.vertex.error = error
            .map(|error| cooper_solver::error_chain(error))
            .unwrap_or_default();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.vertex.completed = Some(std::time::SystemTime::now());
        let sink = self.progress.sink();
        sink.emit(Event::Vertex(self.vertex.clone()));
    }
}
