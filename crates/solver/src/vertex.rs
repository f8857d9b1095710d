//! What is solved: vertices, and the operations that they carry out.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use cooper_progress::{ProgressGroup, VertexProgress};
use oci_spec::image::Digest;

use crate::{Description, FileList, OpError, shared::Shared};

/// What a user of the solver decides: what results are, and what a job brings along.
pub trait Domain: Send + Sync + Sized + 'static {
    /// One output of an operation.
    type Output: Clone + Send + Sync + 'static;
    /// What operations may ask of the jobs that they work for: sessions, rights.
    type Job: Send + Sync + 'static;
}

/// An output of a vertex.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The vertex.
    pub vertex: Digest,
    /// Which of its outputs.
    pub index: usize,
}

/// A node of the graph.
pub struct Vertex<D: Domain> {
    /// Its identity: vertices with one digest are one vertex, whichever job brings them.
    pub digest: Digest,
    /// What a user reads.
    pub name: String,
    /// Where its inputs come from.
    pub inputs: Vec<Edge>,
    /// What it does.
    pub op: Arc<dyn Op<D>>,
    /// How.
    pub options: VertexOptions,
}

impl<D: Domain> Vertex<D> {
    pub(crate) fn describe(&self) -> Option<Description> {
        self.op.describe(self)
    }
}

/// How a vertex is built, besides what it does.
#[derive(Clone, Debug, Default)]
pub struct VertexOptions {
    /// Carry it out although a result is known.
    pub ignore_cache: bool,
    /// Whether its results go into exported caches; `None` leaves it to the exporter.
    pub export_cache: Option<bool>,
    /// What the client wrote on it.
    pub description: BTreeMap<String, String>,
    /// The group under which clients show it.
    pub progress_group: Option<ProgressGroup>,
}

/// An operation.
///
/// # Cancel safety
///
/// The futures are dropped when no job needs the vertex any more. What they began ends with
/// them; nothing is left behind.
#[async_trait]
pub trait Op<D: Domain>: Send + Sync {
    /// What the operation is, for the cache, its inputs left out. Called with `index` 0, then 1
    /// and so on until a map says that it is the last one: each gives further keys.
    ///
    /// That of a vertex with inputs is polled by the solver's own task first: what takes long
    /// without waiting keeps all builds waiting, and belongs into a task of its own.
    async fn cache_map(&self, cx: &OpContext<D>, index: usize) -> Result<CacheMap<D>, OpError>;

    /// What the operation is, in parts that a user knows, to tell later why it was not found
    /// in the cache. Asked after [`cache_map`](Self::cache_map), and only when it is carried
    /// out. `None`: nobody is told.
    fn describe(&self, vertex: &Vertex<D>) -> Option<Description> {
        let _ = vertex;
        None
    }

    /// Carries it out: one output for each that the operation has.
    async fn execute(
        &self,
        cx: &OpContext<D>,
        inputs: &[D::Output],
    ) -> Result<Vec<D::Output>, OpError>;
}

/// One identity of an operation.
pub struct CacheMap<D: Domain> {
    /// What it does, its inputs left out.
    pub digest: Digest,
    /// How it looks at its inputs: one for each.
    pub deps: Vec<CacheDep<D>>,
    /// Whether there are no further maps.
    pub last: bool,
}

/// How an operation looks at one input.
pub struct CacheDep<D: Domain> {
    /// Which part of the input it looks at, if not all of it.
    pub selector: Option<Digest>,
    /// Computes a key from the input's content, when only content matters.
    pub content: Option<Arc<dyn ContentKey<D>>>,
}

impl<D: Domain> Default for CacheDep<D> {
    fn default() -> Self {
        Self {
            selector: None,
            content: None,
        }
    }
}

/// Computes a key from content: inputs with the same one are the same to the operation.
#[async_trait]
pub trait ContentKey<D: Domain>: Send + Sync {
    /// The digest of what the operation sees of `input`.
    async fn content_key(&self, cx: &OpContext<D>, input: &D::Output) -> Result<Digest, OpError>;

    /// The files behind that key, to tell later which of them changed. Asked after
    /// [`content_key`](Self::content_key), and only when the operation is carried out.
    async fn files(&self, cx: &OpContext<D>, input: &D::Output) -> Option<FileList> {
        let _ = (cx, input);
        None
    }
}

/// What an operation may know of the world while it runs.
pub struct OpContext<D: Domain> {
    pub(crate) shared: Arc<Shared<D>>,
    /// Made for the operations that say something.
    progress: OnceLock<VertexProgress>,
}

impl<D: Domain> OpContext<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>) -> Self {
        Self {
            shared,
            progress: OnceLock::new(),
        }
    }

    /// The vertex that the operation belongs to.
    pub fn vertex(&self) -> &Vertex<D> {
        &self.shared.vertex
    }

    /// Speaks to the users who wait for the vertex.
    pub fn progress(&self) -> &VertexProgress {
        self.progress.get_or_init(|| {
            let digest = self.shared.vertex.digest.clone();
            VertexProgress::new(digest, self.shared.clone())
        })
    }

    /// The jobs that need the vertex now. Others may come and these may go while it runs: ask
    /// again when one of them does not answer.
    pub fn jobs(&self) -> Vec<Arc<D::Job>> {
        self.shared.jobs()
    }
}

/// Keeps results over the end of the jobs that made them.
#[async_trait]
pub trait ResultStore<D: Domain>: Send + Sync {
    /// Keeps a result, which then stays until it is pruned; `None` if it cannot be kept.
    async fn save(&self, output: &D::Output) -> Option<String>;

    /// The result that was kept as `id`; `None` when it is gone.
    async fn load(&self, id: &str) -> Option<D::Output>;
}
