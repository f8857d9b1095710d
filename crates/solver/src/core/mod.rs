//! The solver's pure core: told of events, it answers with commands. It starts nothing, waits
//! for nothing and knows no time but what it is told; all that may go wrong in scheduling can
//! be tried by permuting the order of events.
//!
//! A *vertex* is an operation, an *edge* one of its outputs that something needs. An edge asks
//! its inputs for ever more, only as far as it must:
//!
//! 1. [`Want::Local`]: their keys as far as they follow from definitions and from what was kept
//!    here;
//! 2. [`Want::Fast`]: the same with the caches from elsewhere, which are opened for it;
//! 3. [`Want::Slow`]: all keys that they can have without being carried out themselves, which
//!    may mean to look at the content of *their* inputs;
//! 4. [`Want::Complete`]: their results, to compute keys from content, and to be carried out.
//!
//! As soon as one of the edge's keys has a result in a cache, it asks no further; its keys in
//! the caches from elsewhere it still looks up for those who need them.
//!
//! An edge goes through its [`Stage`]s in order, and looks at its inputs' keys only at the end
//! of each, when all of them are as far: all at once. So what it finds follows from the graph
//! and from what is kept, not from the order in which answers arrive, and an edge with ten
//! thousand inputs looks at them a few times and not for each of them.
//!
//! An edge that is about to be carried out while another one with one of its keys is, or was,
//! takes the other one's result: two jobs that build the same under different names build it
//! once. Nothing but the result is shared: each edge has its own keys, inputs and failures of
//! inputs, so no edge is ever replaced under those who know it.

mod advance;
mod caches;
mod check;
mod compact;
mod content;
mod demand;
mod jobs;
mod matching;
mod notes;
mod records;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use oci_spec::image::Digest;

use compact::Seldom;
pub(crate) use compact::{ByKey, ByName, ByNumber, Name, Numbered, One, push};

use crate::caches::CacheKeys;
use crate::explain::Draft;
use crate::keys::{CacheResult, KeyId, KeyStore, Link};
use crate::shared::JobId;

pub(crate) type VertexId = u64;
pub(crate) type EdgeId = u64;
pub(crate) type TaskId = u64;
pub(crate) type RequestId = u64;
/// A cache from elsewhere.
pub(crate) type CacheId = u64;

/// How much of an edge is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Want {
    Nothing,
    Local,
    Fast,
    Slow,
    Complete,
}

/// Those that an edge goes through one by one, the first two of them to get there.
const LEVELS: [Want; 4] = [Want::Local, Want::Fast, Want::Slow, Want::Complete];

/// What an edge does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Looks for keys that follow from definitions.
    Local,
    /// The same in the caches from elsewhere.
    Fast,
    /// Asks the operation for its further maps.
    Maps,
    /// Waits for all keys of its inputs.
    Slow,
    /// Looks at the content of those inputs that have no known key but that.
    Needed,
    /// Looks at the content of the others, too.
    Content,
    /// Is carried out.
    Last,
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
    /// Begin to open a cache from elsewhere, and say how that ended.
    Open { task: TaskId, cache: CacheId },
    /// Nobody needs the task any more. A later end of it is ignored.
    Abort { task: TaskId },
    /// What users saw begin at the vertex does not end: nobody needs it.
    GivenUp { vertex: VertexId },
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
    /// Nothing refers to the cache any more.
    Close { cache: CacheId },
}

/// A piece of work that takes time.
#[derive(Clone, Debug)]
pub(crate) enum Work<O> {
    CacheMap {
        index: usize,
    },
    ContentKey {
        input: usize,
        output: O,
    },
    Load {
        /// Where it is kept; `None` for here.
        cache: Option<CacheId>,
        result: Arc<str>,
    },
    Execute {
        inputs: Vec<O>,
    },
}

/// How a task ended.
pub(crate) enum Outcome<O, E> {
    CacheMap(MapInfo),
    ContentKey(Digest),
    /// `None`: the result is gone. With the name under which it is now kept here, if it came
    /// from elsewhere.
    Loaded(Option<(O, Option<CacheResult>)>),
    /// Each output, with the name under which it was kept, and what it is made of.
    Executed(Vec<(O, Option<CacheResult>)>, Option<Box<Draft>>),
    /// `None`: the cache cannot be opened, and has nothing.
    Opened(Option<Arc<dyn CacheKeys>>),
    Failed(E),
}

/// What the core needs of a [`crate::CacheMap`].
#[derive(Clone, Debug)]
pub(crate) struct MapInfo {
    pub(crate) digest: Digest,
    /// For each input: its selector, and whether its content gives a key. Inputs that are not
    /// there, which mostly are all of them, are looked at as a whole.
    pub(crate) deps: Vec<(Option<Digest>, bool)>,
    pub(crate) last: bool,
}

impl MapInfo {
    /// Which part of an input is looked at, if not all of it.
    fn selector(&self, place: usize) -> Option<&Digest> {
        self.deps.get(place)?.0.as_ref()
    }

    /// Whether the content of an input gives a key.
    fn by_content(&self, place: usize) -> bool {
        self.deps
            .get(place)
            .is_some_and(|(_, by_content)| *by_content)
    }
}

/// What the core is told about a vertex.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: Name,
    pub(crate) inputs: One<(VertexId, usize)>,
    pub(crate) ignore_cache: bool,
}

struct VertexState<O, E> {
    spec: Spec,
    /// Ordered.
    jobs: One<JobId>,
    /// Caches from elsewhere that may have it, the first one preferred.
    caches: Vec<CacheId>,
    maps: One<MapInfo>,
    map_task: Option<TaskId>,
    /// For each input; empty as long as that of none was asked for.
    content: Vec<Content>,
    exec: Exec<O>,
    error: Option<E>,
    /// By output, ordered.
    edges: One<(usize, EdgeId)>,
}

impl<O, E> VertexState<O, E> {
    fn content(&self, place: usize) -> &Content {
        self.content.get(place).unwrap_or(&Content::Unknown)
    }

    fn set_content(&mut self, place: usize, content: Content) {
        let count = self.spec.inputs.len();
        if self.content.is_empty() {
            self.content = vec![Content::Unknown; count];
        }
        self.content[place] = content;
    }
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

struct EdgeState<O, E> {
    vertex: VertexId,
    index: usize,
    want: Want,
    /// How far its keys are needed by those who take it.
    keys_wanted: Want,
    /// How far its inputs were asked for.
    asked: Want,
    /// How far its keys are.
    reached: Want,
    stage: Stage,
    queued: bool,
    /// An input whose keys are all known leads nowhere: nothing will be found.
    hopeless: bool,
    /// Users saw it as found in the cache.
    shown: bool,
    /// How many of its vertex's caches from elsewhere it asked for.
    caches_asked: usize,
    /// Whether the content of all inputs is asked for of which it matters.
    contents_asked: bool,
    /// How many inputs are as far as each of [`LEVELS`].
    ready: [u32; 4],
    /// Inputs whose content it waits for: those that it needs first, and all.
    needed: u32,
    contents: u32,
    deps: One<Dep>,
    /// Inputs that got further since they were looked at, from [`Stage::Slow`] on.
    changed: Vec<u32>,
    /// An input that failed before it gave what it was asked for.
    doomed: Option<u32>,
    /// Its keys in the order in which they were found.
    ids: One<Key>,
    /// How many of them each of the first three of [`LEVELS`] has, once it is reached.
    ends: [u32; 3],
    /// What its keys were looked up from; they are looked up again when there is more.
    weight: u64,
    /// For each map: the key that its inputs' keys are made to lead to.
    own: One<Option<KeyId>>,
    /// Results that were found and not tried, the best last.
    records: Vec<Record>,
    loading: Option<TaskId>,
    /// The edge whose result it takes.
    follows: Option<EdgeId>,
    result: Option<O>,
    /// The name under which the result is kept.
    kept: Option<CacheResult>,
    /// Whether it was made, or brought here, since the edge is there.
    made: bool,
    error: Option<E>,
    /// Edges that take it as an input, and as which; some may be gone.
    dependents: One<(EdgeId, u32)>,
    /// How many of those are gone.
    gone: usize,
    rare: Seldom,
}

/// A key of an edge.
#[derive(Clone, Debug)]
struct Key {
    id: KeyId,
    /// Whether it was come to without an input that is built anew: results that others kept
    /// under it are this edge's. What comes of an input that is built anew is known by its
    /// content alone, and its other keys only name what is to be kept.
    valid: bool,
}

/// An input of an edge.
struct Dep {
    edge: EdgeId,
    /// How far its keys were when it last said so, and whether it had its result.
    seen: Want,
    complete: bool,
    /// No key that it has, its content left out, leads anywhere.
    nowhere: bool,
    /// Its content is asked for; it was looked at.
    content_asked: bool,
    content_seen: bool,
    /// It is one of those whose content is looked at first.
    needed: bool,
}

impl Dep {
    /// Whether it is that far.
    fn is(&self, want: Want) -> bool {
        match want {
            Want::Complete => self.complete,
            want => self.seen >= want,
        }
    }
}

/// A result that was found.
struct Record {
    /// Where; `None` for here.
    cache: Option<CacheId>,
    /// 0 for here, then the caches in their order.
    rank: usize,
    result: CacheResult,
}

/// A key that edges have now.
#[derive(Default)]
struct KeyState {
    holders: u32,
    /// Nothing that is kept here led to it.
    foreign: bool,
    /// What leads to it and is not kept.
    links: Vec<(KeyId, Link)>,
    /// The edge that is or was carried out, or was loaded, and has it.
    claim: Option<EdgeId>,
}

enum Task {
    CacheMap(VertexId),
    ContentKey(VertexId, usize),
    Load(EdgeId, Box<Record>),
    Execute(VertexId),
    Open(CacheId),
}

#[derive(Default)]
struct JobState {
    vertices: Vec<VertexId>,
    requests: HashSet<RequestId>,
}

/// A cache from elsewhere.
struct CacheState {
    /// Vertices that may be in it.
    users: usize,
    task: Option<TaskId>,
    /// `Some(None)`: it cannot be opened.
    open: Option<Option<Arc<dyn CacheKeys>>>,
    waiting: Vec<EdgeId>,
}

/// What to say of what the core finds out by itself.
pub(crate) struct Errors<E> {
    /// A vertex does not have an output: which one, and how many it has.
    pub(crate) missing: fn(VertexId, usize, usize) -> E,
    /// Somebody waits and nothing runs; with all that is known.
    pub(crate) stuck: fn(String) -> E,
}

pub(crate) struct Core<O, E> {
    keys: Arc<dyn KeyStore>,
    vertices: Numbered<VertexState<O, E>>,
    by_name: ByName<Name, VertexId>,
    /// Those that are to be built anew are others.
    by_name_anew: ByName<Name, VertexId>,
    edges: Numbered<EdgeState<O, E>>,
    known: ByKey<KeyId, KeyState>,
    /// Links that are not kept, of [`KeyState::links`].
    pending: ByKey<(KeyId, Link), One<KeyId>>,
    caches: HashMap<CacheId, CacheState>,
    /// Results that edges made, and how many of these there are still.
    made: ByName<Arc<str>, usize>,
    tasks: ByNumber<Task>,
    jobs: HashMap<JobId, JobState>,
    requests: BTreeMap<RequestId, (JobId, EdgeId)>,
    queue: VecDeque<EdgeId>,
    commands: Vec<Command<O, E>>,
    last_task: TaskId,
    /// How many vertices and edges have failed and were not forgiven.
    failures: usize,
    /// Something may be needed less than before.
    released: bool,
    errors: Errors<E>,
    /// What the vertex is made of that was carried out just now: kept with its keys, and not
    /// held any longer.
    draft: Option<(VertexId, Box<Draft>)>,
}

/// What is known of an input of a vertex.
pub(crate) struct InputState {
    pub(crate) vertex: VertexId,
    pub(crate) keys: Vec<KeyId>,
    /// Whether any of the keys counts ([`Key::valid`]).
    pub(crate) counts: bool,
    pub(crate) content: Option<KeyId>,
}

impl<O: Clone, E: Clone> Core<O, E> {
    pub(crate) fn new(keys: Arc<dyn KeyStore>, errors: Errors<E>) -> Self {
        Self {
            keys,
            vertices: Numbered::default(),
            by_name: ByName::default(),
            by_name_anew: ByName::default(),
            edges: Numbered::default(),
            known: ByKey::default(),
            pending: ByKey::default(),
            caches: HashMap::new(),
            made: ByName::default(),
            tasks: ByNumber::default(),
            jobs: HashMap::new(),
            requests: BTreeMap::new(),
            queue: VecDeque::new(),
            commands: Vec::new(),
            last_task: 0,
            failures: 0,
            released: false,
            errors,
            draft: None,
        }
    }

    fn task_number(&mut self) -> TaskId {
        self.last_task += 1;
        self.last_task
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

    fn enqueue(&mut self, id: EdgeId) {
        if let Some(edge) = self.edges.get_mut(&id)
            && !edge.queued
        {
            edge.queued = true;
            self.queue.push_back(id);
        }
    }

    fn enqueue_vertex(&mut self, vertex: VertexId) {
        for place in 0..self.vertex(vertex).edges.len() {
            let (_, edge) = self.vertex(vertex).edges[place];
            self.enqueue(edge);
        }
    }

    fn start(&mut self, vertex: VertexId, task: Task, work: Work<O>) -> TaskId {
        let id = self.task_number();
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

    /// What the driver has to do by now; more follows when something is asked for.
    pub(crate) fn commands(&mut self) -> Vec<Command<O, E>> {
        std::mem::take(&mut self.commands)
    }

    /// Does all that can be done now, and returns what the driver has to do.
    fn settle(&mut self) -> Vec<Command<O, E>> {
        loop {
            while let Some(id) = self.queue.pop_front() {
                // One that was forgotten meanwhile is not there.
                if let Some(edge) = self.edges.get_mut(&id) {
                    edge.queued = false;
                    self.advance(id);
                }
            }
            self.give_up_unneeded();
            if self.queue.is_empty() {
                break;
            }
        }
        self.release_stuck();
        std::mem::take(&mut self.commands)
    }
}
