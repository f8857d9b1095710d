//! The one task that drives the core: it starts what the core asks for, and tells it how that
//! ended.

mod requests;
mod tasks;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use cooper_progress::Sink;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

pub(crate) use requests::Request;

use crate::core::{
    ByNumber, CacheId, Command, Core, Errors, Numbered, Outcome, RequestId, TaskId, VertexId, Work,
};
use crate::explain::Journal;
use crate::shared::{Explained, JobId, Member, Shared};
use crate::starting::{Begun, Starting};
use crate::{CacheMap, CacheSource, Domain, ResultStore, SolveError, SolverConfig};

pub(crate) enum Message<D: Domain> {
    NewJob {
        id: JobId,
        job: Arc<D::Job>,
        sink: Arc<dyn Sink>,
        explained: Arc<Explained>,
    },
    EndJob {
        id: JobId,
    },
    Build(Request<D>),
    CancelRequest {
        request: RequestId,
    },
    /// How many vertices and tasks there are.
    Load {
        reply: oneshot::Sender<(usize, usize)>,
    },
}

/// Failures are shared, not copied.
pub(crate) type Failure = Arc<Failed>;

pub(crate) enum Failed {
    Known(SolveError),
    /// The core knows vertices by their numbers, users by their names.
    NoOutput {
        vertex: VertexId,
        index: usize,
        count: usize,
    },
}
type CoreOf<D> = Core<<D as Domain>::Output, Failure>;
pub(crate) type OutcomeOf<D> = Outcome<<D as Domain>::Output, Failure>;

/// How a task ended, and the map that it computed.
pub(crate) type Ended<D> = (OutcomeOf<D>, Option<Arc<CacheMap<D>>>);

/// How many maps are waited for at the same time, of vertices with inputs.
const MAPS: usize = 128;
/// How many of them are begun before others are heard.
const MAPS_AT_ONCE: usize = 32;
/// A graph is taken although there are maps to begin when this many times others were begun.
const PATIENCE: usize = 16;
/// How many tasks are begun at the same time that have not come to wait for something.
const STARTING: usize = 128;

pub(crate) struct Driver<D: Domain> {
    core: CoreOf<D>,
    results: Arc<dyn ResultStore<D>>,
    journal: Option<Arc<dyn Journal>>,
    /// How many cache maps have arrived.
    maps: u64,
    jobs: HashMap<JobId, Arc<Member<D>>>,
    vertices: Numbered<Entry<D>>,
    /// Graphs that were asked for and not looked at.
    asked: VecDeque<Request<D>>,
    caches: HashMap<CacheId, Arc<dyn CacheSource<D>>>,
    cache_names: HashMap<String, CacheId>,
    next_cache: CacheId,
    replies: HashMap<RequestId, oneshot::Sender<Result<D::Output, SolveError>>>,
    tasks: JoinSet<(TaskId, Option<Begun>, Ended<D>)>,
    running: ByNumber<Running>,
    /// How many maps are waited for, of vertices with inputs.
    mapping: usize,
    /// Those that wait until there are fewer; some may be given up.
    unmapped: VecDeque<(TaskId, VertexId, usize)>,
    /// Tasks that were begun and have not come to wait for anything.
    starting: Arc<Starting>,
    /// Those that wait until there are fewer; some may be given up.
    unstarted: VecDeque<(TaskId, VertexId, Work<D::Output>)>,
}

/// A task that was begun.
struct Running {
    handle: AbortHandle,
    vertex: Option<VertexId>,
    /// A map is waited for, of a vertex with inputs.
    maps: bool,
}

struct Entry<D: Domain> {
    shared: Arc<Shared<D>>,
    /// The first one, which says how content is looked at; only when it is needed.
    map: Option<Arc<CacheMap<D>>>,
}

impl<D: Domain> Driver<D> {
    pub(crate) fn new(config: SolverConfig<D>) -> Self {
        let errors = Errors {
            missing: |vertex, index, count| {
                Arc::new(Failed::NoOutput {
                    vertex,
                    index,
                    count,
                })
            },
            stuck: |state| {
                tracing::error!(state, "a build waits for nothing");
                Arc::new(Failed::Known(SolveError::Stuck))
            },
        };
        Self {
            journal: config.keys.journal(),
            maps: 1,
            core: Core::new(config.keys, errors),
            results: config.results,
            jobs: HashMap::new(),
            vertices: Numbered::default(),
            asked: VecDeque::new(),
            caches: HashMap::new(),
            cache_names: HashMap::new(),
            next_cache: 0,
            replies: HashMap::new(),
            tasks: JoinSet::new(),
            running: ByNumber::default(),
            mapping: 0,
            unmapped: VecDeque::new(),
            starting: Arc::default(),
            unstarted: VecDeque::new(),
        }
    }

    /// Runs until nobody can send any more.
    pub(crate) async fn run(mut self, mut mailbox: mpsc::UnboundedReceiver<Message<D>>) {
        let starting = self.starting.clone();
        let mut waited = 0;
        loop {
            tokio::select! {
                message = mailbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                Some(ended) = self.tasks.join_next() => self.ended(ended),
                () = starting.fewer() => {}
                () = tokio::task::yield_now(), if self.has_maps() || !self.asked.is_empty() => {}
            }
            // Who leaves is heard before who comes, and what was begun goes before what is new:
            // with many builds at once few of them are in the processor's cache, and in memory.
            while let Ok(message) = mailbox.try_recv() {
                self.handle(message);
            }
            waited += 1;
            if !self.has_maps() || waited >= PATIENCE {
                waited = 0;
                self.take_request();
            }
            self.begin_maps();
            self.begin_waiting();
        }
    }

    fn carry_out(&mut self, commands: Vec<Command<D::Output, Failure>>) {
        for command in commands {
            match command {
                Command::Start {
                    task,
                    vertex,
                    work: Work::CacheMap { index },
                } if self.has_inputs(vertex) => self.unmapped.push_back((task, vertex, index)),
                Command::Start {
                    task,
                    vertex,
                    work: work @ Work::CacheMap { .. },
                } => self.start(task, vertex, work),
                Command::Start { task, vertex, work } => {
                    self.unstarted.push_back((task, vertex, work));
                }
                Command::Abort { task } => {
                    if let Some(running) = self.running.remove(&task) {
                        running.handle.abort();
                        self.mapping -= usize::from(running.maps);
                    }
                }
                Command::GivenUp { vertex } => {
                    if let Some(entry) = self.vertices.get(&vertex) {
                        entry.shared.given_up();
                    }
                }
                Command::Open { task, cache } => self.open(task, cache),
                Command::Close { cache } => {
                    if let Some(cache) = self.caches.remove(&cache) {
                        self.cache_names.remove(cache.name());
                    }
                }
                Command::Reply { request, result } => {
                    if let Some(reply) = self.replies.remove(&request) {
                        let _ = reply.send(result.map_err(|error| self.named(&error)));
                    }
                }
                Command::Cached { vertex } => {
                    if let Some(entry) = self.vertices.get(&vertex) {
                        entry.shared.cached();
                    }
                    if let Some(journal) = &self.journal {
                        self.core.keys_of(vertex).for_each(|key| journal.used(key));
                    }
                }
                Command::Joined { vertex, job } => {
                    if let (Some(entry), Some(member)) =
                        (self.vertices.get(&vertex), self.jobs.get(&job))
                    {
                        entry.shared.join(member.clone());
                    }
                }
                Command::Left { vertex, job } => {
                    if let Some(entry) = self.vertices.get(&vertex) {
                        entry.shared.leave(job);
                    }
                }
                Command::Forget { vertex } => {
                    self.vertices.remove(&vertex);
                }
            }
        }
    }

    fn has_inputs(&self, vertex: VertexId) -> bool {
        let entry = self.vertices.get(&vertex);
        entry.is_some_and(|entry| !entry.shared.vertex.inputs.is_empty())
    }

    fn named(&self, error: &Failed) -> SolveError {
        let (vertex, index, count) = match error {
            Failed::Known(error) => return error.clone(),
            Failed::NoOutput {
                vertex,
                index,
                count,
            } => (vertex, *index, *count),
        };
        // Whoever takes an output needs the vertex, so it is there.
        let entry = self.vertices.get(vertex);
        let name = entry.map_or_else(String::new, |entry| entry.shared.vertex.name.clone());
        SolveError::NoOutput { name, index, count }
    }
}
