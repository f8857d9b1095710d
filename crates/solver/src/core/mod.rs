//! The solver's pure core: told of events, it answers with commands. It starts nothing, waits
//! for nothing and knows no time but what it is told; all that may go wrong in scheduling can
//! be tried by permuting the order of events.
//!
//! A *vertex* is an operation, an *edge* one of its outputs that something needs. An edge asks
//! its inputs for ever more, only as far as it must:
//!
//! 1. [`Want::Fast`]: their keys as far as they follow from definitions;
//! 2. [`Want::Slow`]: all keys that they can have without being carried out themselves, which
//!    may mean to look at the content of *their* inputs;
//! 3. [`Want::Complete`]: their results, to compute keys from content, and to be carried out.
//!
//! As soon as one of the edge's keys has a result in the cache, it asks no further. Edges that
//! turn out to have the same key are one edge from then on (union-find on ids), so that two
//! jobs that build the same under different names build it once.

mod advance;
mod check;
mod jobs;
mod matching;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use oci_spec::image::Digest;

use crate::explain::Draft;
use crate::keys::{CacheResult, KeyId, KeyStore, Link};
use crate::shared::JobId;

pub(crate) type VertexId = u64;
pub(crate) type EdgeId = u64;
pub(crate) type TaskId = u64;
pub(crate) type RequestId = u64;

/// How much of an edge is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Want {
    Nothing,
    Fast,
    Slow,
    Complete,
}

/// What a driver has to do.
#[derive(Debug)]
pub(crate) enum Command<O, E> {
    /// Begin a task, and say how it ended.
    Start {
        task: TaskId,
        vertex: VertexId,
        work: Work<O>,
    },
    /// Nobody needs the task any more. A later end of it is ignored.
    Abort { task: TaskId },
    /// A request is answered.
    Reply {
        request: RequestId,
        result: Result<O, E>,
    },
    /// The users are to see that the vertex was found in the cache.
    Cached { vertex: VertexId },
    /// The job needs the vertex from now on.
    Joined { vertex: VertexId, job: JobId },
    /// The job does not need the vertex any more.
    Left { vertex: VertexId, job: JobId },
    /// Nothing refers to the vertex any more.
    Forget { vertex: VertexId },
}

/// A piece of work that takes time.
#[derive(Clone, Debug)]
pub(crate) enum Work<O> {
    CacheMap { index: usize },
    ContentKey { input: usize, output: O },
    Load { result: String },
    Execute { inputs: Vec<O> },
}

/// How a task ended.
#[derive(Debug)]
pub(crate) enum Outcome<O, E> {
    CacheMap(MapInfo),
    ContentKey(Digest),
    /// `None`: the result is gone.
    Loaded(Option<O>),
    /// Each output, with the name under which it was kept, and what it is made of.
    Executed(Vec<(O, Option<CacheResult>)>, Option<Box<Draft>>),
    Failed(E),
}

/// What the core needs of a [`crate::CacheMap`].
#[derive(Clone, Debug)]
pub(crate) struct MapInfo {
    pub(crate) digest: Digest,
    /// For each input: its selector, and whether its content gives a key.
    pub(crate) deps: Vec<(Option<Digest>, bool)>,
    pub(crate) last: bool,
}

/// What the core is told about a vertex.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) digest: Digest,
    pub(crate) inputs: Vec<(VertexId, usize)>,
    pub(crate) ignore_cache: bool,
}

impl Spec {
    /// Names the vertex: one that is to be built anew is another one.
    fn name(&self) -> String {
        if self.ignore_cache {
            format!("{} anew", self.digest)
        } else {
            self.digest.to_string()
        }
    }
}

pub(crate) struct VertexState<O, E> {
    spec: Spec,
    jobs: BTreeSet<JobId>,
    maps: Vec<MapInfo>,
    map_task: Option<TaskId>,
    /// For each input.
    content: Vec<Content>,
    exec: Exec<O>,
    error: Option<E>,
    /// By output.
    edges: BTreeMap<usize, EdgeId>,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Unknown,
    Running(TaskId),
    Known(KeyId),
}

enum Exec<O> {
    Idle,
    Running(TaskId),
    Done(Vec<(O, Option<CacheResult>)>),
}

pub(crate) struct EdgeState<O, E> {
    vertex: VertexId,
    index: usize,
    want: Want,
    reached: Want,
    deps: Vec<Dep>,
    /// For each map and each input: the keys that its keys lead to.
    matched: Vec<Vec<HashSet<KeyId>>>,
    /// The same for those keys of the input that count ([`EdgeState::valid`]).
    led: Vec<Vec<HashSet<KeyId>>>,
    /// Its keys in the order in which they were found; those of inputs grow too.
    ids: Vec<KeyId>,
    /// Those that were come to without an input that is built anew: results that others kept
    /// under them are this edge's. What comes of an input that is built anew is known by its
    /// content alone, and its other keys only name what is to be kept.
    valid: HashSet<KeyId>,
    /// For each map: a key of its own, when none was found.
    fresh: Vec<Option<KeyId>>,
    /// Results that were found and not tried, the newest last.
    records: Vec<CacheResult>,
    tried: HashSet<String>,
    loading: Option<TaskId>,
    result: Option<O>,
    error: Option<E>,
    /// Edges that take it as an input.
    dependents: BTreeSet<EdgeId>,
    requests: BTreeSet<RequestId>,
}

/// An input of an edge, and how far its keys were looked at.
struct Dep {
    edge: EdgeId,
    /// For each map: the edge that the keys are of, and how many of them were looked at, of
    /// all and of those that count.
    seen: Vec<(EdgeId, usize, usize)>,
    /// For each map: whether the key from content was looked at.
    content_seen: Vec<bool>,
}

enum Task {
    CacheMap(VertexId),
    ContentKey(VertexId, usize),
    Load(EdgeId, CacheResult),
    Execute(VertexId),
}

pub(crate) struct Core<O, E> {
    keys: Arc<dyn KeyStore>,
    vertices: BTreeMap<VertexId, VertexState<O, E>>,
    by_digest: HashMap<String, VertexId>,
    edges: BTreeMap<EdgeId, EdgeState<O, E>>,
    /// Where a merged edge went.
    merged: HashMap<EdgeId, EdgeId>,
    by_key: HashMap<KeyId, EdgeId>,
    /// Links to keys that nothing was kept under yet.
    pending: HashMap<(KeyId, Link), BTreeSet<KeyId>>,
    pending_of: HashMap<KeyId, Links>,
    tasks: BTreeMap<TaskId, Task>,
    requests: BTreeMap<RequestId, (JobId, EdgeId)>,
    queue: VecDeque<EdgeId>,
    queued: HashSet<EdgeId>,
    commands: Vec<Command<O, E>>,
    next: u64,
    /// What to say of an output that a vertex does not have.
    missing: Missing<E>,
    /// What the vertex is made of that was carried out just now: kept with its keys, and not
    /// held any longer.
    draft: Option<(VertexId, Box<Draft>)>,
}

/// What is known of an input of a vertex.
pub(crate) struct InputState {
    pub(crate) vertex: VertexId,
    pub(crate) keys: Vec<KeyId>,
    /// Whether any of the keys counts ([`EdgeState::valid`]).
    pub(crate) counts: bool,
    pub(crate) content: Option<KeyId>,
}

pub(crate) type Missing<E> = Box<dyn Fn(&Digest, usize, usize) -> E + Send>;
type Links = Vec<(KeyId, Link)>;

impl<O: Clone, E: Clone> Core<O, E> {
    pub(crate) fn new(keys: Arc<dyn KeyStore>, missing: Missing<E>) -> Self {
        Self {
            keys,
            vertices: BTreeMap::new(),
            by_digest: HashMap::new(),
            edges: BTreeMap::new(),
            merged: HashMap::new(),
            by_key: HashMap::new(),
            pending: HashMap::new(),
            pending_of: HashMap::new(),
            tasks: BTreeMap::new(),
            requests: BTreeMap::new(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            commands: Vec::new(),
            next: 1,
            missing,
            draft: None,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The edge that `edge` is now.
    fn find(&self, mut edge: EdgeId) -> EdgeId {
        while let Some(next) = self.merged.get(&edge) {
            edge = *next;
        }
        edge
    }

    fn edge(&self, id: EdgeId) -> &EdgeState<O, E> {
        self.edges
            .get(&id)
            .expect("edges live as long as what refers to them")
    }

    fn edge_mut(&mut self, id: EdgeId) -> &mut EdgeState<O, E> {
        self.edges
            .get_mut(&id)
            .expect("edges live as long as what refers to them")
    }

    fn vertex(&self, id: VertexId) -> &VertexState<O, E> {
        self.vertices
            .get(&id)
            .expect("vertices live as long as their edges")
    }

    fn vertex_mut(&mut self, id: VertexId) -> &mut VertexState<O, E> {
        self.vertices
            .get_mut(&id)
            .expect("vertices live as long as their edges")
    }

    fn enqueue(&mut self, edge: EdgeId) {
        if self.queued.insert(edge) {
            self.queue.push_back(edge);
        }
    }

    fn enqueue_dependents(&mut self, edge: EdgeId) {
        let dependents: Vec<_> = self.edge(edge).dependents.iter().copied().collect();
        for dependent in dependents {
            let dependent = self.find(dependent);
            self.enqueue(dependent);
        }
    }

    fn enqueue_vertex(&mut self, vertex: VertexId) {
        let edges: Vec<_> = self.vertex(vertex).edges.values().copied().collect();
        for edge in edges {
            let edge = self.find(edge);
            self.enqueue(edge);
        }
    }

    fn start(&mut self, vertex: VertexId, task: Task, work: Work<O>) -> TaskId {
        let id = self.number();
        self.tasks.insert(id, task);
        self.commands.push(Command::Start {
            task: id,
            vertex,
            work,
        });
        id
    }

    fn abort(&mut self, task: TaskId) {
        if self.tasks.remove(&task).is_some() {
            self.commands.push(Command::Abort { task });
        }
    }

    /// Does all that can be done now, and returns what the driver has to do.
    fn settle(&mut self) -> Vec<Command<O, E>> {
        while let Some(edge) = self.queue.pop_front() {
            self.queued.remove(&edge);
            if self.edges.contains_key(&edge) && !self.merged.contains_key(&edge) {
                self.advance(edge);
            }
        }
        self.check();
        std::mem::take(&mut self.commands)
    }
}
