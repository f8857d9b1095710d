//! The one task that drives the core: it starts what the core asks for, and tells it how that
//! ended.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use cooper_progress::Sink;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::core::{
    ByName, ByNumber, CacheId, Command, Core, Errors, Name, Numbered, One, Outcome, RequestId,
    Spec, TaskId, VertexId, Work,
};
use crate::explain::{Journal, Miss, MissInput};
use crate::runner::{Runner, describe, failure};
use crate::shared::{Explained, JobId, Member, Shared};
use crate::starting::{Begun, Starting};
use crate::{
    CacheMap, CacheSource, Domain, Edge, OpContext, OpError, ResultStore, SolveError, SolverConfig,
    Vertex,
};

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
    Build {
        job: JobId,
        request: RequestId,
        vertices: Vec<Arc<Vertex<D>>>,
        edge: Edge,
        caches: Vec<Arc<dyn CacheSource<D>>>,
        reply: oneshot::Sender<Result<D::Output, SolveError>>,
    },
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

/// How many maps are computed at the same time, of vertices with inputs.
const MAPS: usize = 128;
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
    caches: HashMap<CacheId, Arc<dyn CacheSource<D>>>,
    cache_names: HashMap<String, CacheId>,
    next_cache: CacheId,
    replies: HashMap<RequestId, oneshot::Sender<Result<D::Output, SolveError>>>,
    tasks: JoinSet<(TaskId, Option<Begun>, Ended<D>)>,
    running: ByNumber<Running>,
    /// How many maps are computed now, of vertices with inputs.
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
    /// It computes a map, of a vertex with inputs.
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
        loop {
            tokio::select! {
                message = mailbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                Some(ended) = self.tasks.join_next() => self.ended(ended),
                () = starting.fewer() => {}
            }
            self.begin_waiting();
        }
    }

    fn handle(&mut self, message: Message<D>) {
        match message {
            Message::NewJob {
                id,
                job,
                sink,
                explained,
            } => {
                let member = Member {
                    id,
                    job,
                    sink,
                    explained,
                };
                self.jobs.insert(id, Arc::new(member));
            }
            Message::EndJob { id } => {
                let commands = self.core.end_job(id);
                self.carry_out(commands);
                self.jobs.remove(&id);
            }
            Message::Build {
                job,
                request,
                vertices,
                edge,
                caches,
                reply,
            } => match self.load(job, vertices, &edge, caches) {
                Ok(vertex) => {
                    self.replies.insert(request, reply);
                    let commands = self.core.request(job, request, vertex, edge.index);
                    self.carry_out(commands);
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Message::CancelRequest { request } => {
                self.replies.remove(&request);
                let commands = self.core.cancel_request(request);
                self.carry_out(commands);
            }
            Message::Load { reply } => {
                let _ = reply.send((
                    self.vertices.len(),
                    self.running.len() + self.unstarted.len(),
                ));
            }
        }
    }

    /// Tells the core of the vertices, inputs first as they come, and finds the one of `edge`.
    fn load(
        &mut self,
        job: JobId,
        vertices: Vec<Arc<Vertex<D>>>,
        edge: &Edge,
        caches: Vec<Arc<dyn CacheSource<D>>>,
    ) -> Result<VertexId, SolveError> {
        let caches: Vec<_> = caches.into_iter().map(|cache| self.cache(cache)).collect();
        let mut here: ByName<&str, VertexId> = ByName::default();
        here.reserve(vertices.len());
        for vertex in &vertices {
            let mut inputs = One::with_capacity(vertex.inputs.len());
            for input in &vertex.inputs {
                let id = here.get(input.vertex.as_ref());
                let id = id.ok_or_else(|| SolveError::MissingVertex {
                    digest: input.vertex.clone(),
                })?;
                inputs.push((*id, input.index));
            }
            let spec = Spec {
                name: Name::of(vertex.digest.as_ref()),
                inputs,
                ignore_cache: vertex.options.ignore_cache,
            };
            let id = self.core.add(job, spec, &caches);
            if !self.vertices.contains_key(&id) {
                let entry = Entry {
                    shared: Arc::new(Shared::new(vertex.clone())),
                    map: None,
                };
                self.vertices.insert(id, entry);
            }
            here.insert(vertex.digest.as_ref(), id);
            // At once: later it would have to be looked at again.
            let commands = self.core.commands();
            self.carry_out(commands);
        }
        let found = here.get(edge.vertex.as_ref());
        found.copied().ok_or_else(|| SolveError::MissingVertex {
            digest: edge.vertex.clone(),
        })
    }

    fn cache(&mut self, cache: Arc<dyn CacheSource<D>>) -> CacheId {
        if let Some(id) = self.cache_names.get(cache.name()) {
            return *id;
        }
        self.next_cache += 1;
        self.cache_names
            .insert(cache.name().to_owned(), self.next_cache);
        self.caches.insert(self.next_cache, cache);
        self.next_cache
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
                } => self.start(task, vertex, work, false),
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

    /// Begins tasks that wait. A graph asks for the maps of all its vertices at once, and may have
    /// as many that can be carried out, and a task takes more memory than a vertex. What has come
    /// to wait for something keeps nobody waiting but other maps; those of sources wait for
    /// nobody: they look far away.
    fn begin_waiting(&mut self) {
        while self.mapping < MAPS
            && let Some((task, vertex, index)) = self.unmapped.pop_front()
        {
            if self.core.runs(task) {
                self.start(task, vertex, Work::CacheMap { index }, true);
            }
        }
        while self.starting.count() < STARTING
            && let Some((task, vertex, work)) = self.unstarted.pop_front()
        {
            if self.core.runs(task) {
                self.start(task, vertex, work, false);
            }
        }
        if self.unmapped.is_empty() {
            self.unmapped = VecDeque::new();
        }
        if self.unstarted.is_empty() {
            self.unstarted = VecDeque::new();
        }
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

    /// `maps`: it computes a map, of a vertex with inputs.
    fn start(&mut self, task: TaskId, vertex: VertexId, work: Work<D::Output>, maps: bool) {
        let Some(entry) = self.vertices.get(&vertex) else {
            return;
        };
        let miss = match work {
            Work::Execute { .. } => self.miss(vertex, entry),
            _ => None,
        };
        let cache = match &work {
            Work::Load { cache, .. } => cache.and_then(|cache| self.caches.get(&cache).cloned()),
            _ => None,
        };
        let runner = Runner {
            cx: OpContext::new(entry.shared.clone()),
            map: entry.map.clone(),
            results: self.results.clone(),
            cache,
            journal: self.journal.clone(),
            miss,
        };
        let starting = self.starting.watch(runner.run(work));
        let handle = self.tasks.spawn(async move {
            let (begun, ended) = starting.await;
            (task, begun, ended)
        });
        let running = Running {
            handle,
            vertex: Some(vertex),
            maps,
        };
        self.mapping += usize::from(maps);
        self.running.insert(task, running);
    }

    /// What is to be explained of a vertex that has to be carried out, if somebody asks.
    fn miss(&self, vertex: VertexId, entry: &Entry<D>) -> Option<Box<Miss>> {
        self.journal.as_ref()?;
        let asking = entry.shared.who_asks();
        if asking.is_empty() {
            return None;
        }
        let description = entry.shared.vertex.describe()?;
        if description.volatile {
            return None;
        }
        let inputs = self.core.inputs(vertex).into_iter().map(|input| {
            let entry = self.vertices.get(&input.vertex);
            let map = entry.and_then(|entry| entry.map.as_ref());
            let shared = entry.map(|entry| &entry.shared);
            MissInput {
                name: shared.map_or_else(String::new, |shared| shared.vertex.name.clone()),
                digest: map.map(|map| map.digest.clone()),
                description: shared.and_then(|shared| shared.vertex.describe()),
                keys: input.keys,
                counts: input.counts,
                content: input.content,
                files: None,
                explanation: shared.and_then(|shared| shared.explanation()),
            }
        });
        let shared = &entry.shared.vertex;
        Some(Box::new(Miss {
            vertex: shared.digest.clone(),
            name: shared.name.clone(),
            digest: entry.map.as_ref()?.digest.clone(),
            description,
            anew: shared.options.ignore_cache,
            inputs: inputs.collect(),
            builds: asking
                .iter()
                .map(|(job, asks)| asks.operations(self.maps, || self.core.operations(*job)))
                .collect(),
        }))
    }

    fn open(&mut self, task: TaskId, cache: CacheId) {
        let Some(cache) = self.caches.get(&cache).cloned() else {
            return;
        };
        let handle = self.tasks.spawn(async move {
            let keys = cache.open().await;
            let keys = keys.inspect_err(|error| {
                let error = describe(error);
                tracing::warn!(cache = cache.name(), error, "a cache is not used");
            });
            (task, None, (Outcome::Opened(keys.ok()), None))
        });
        let running = Running {
            handle,
            vertex: None,
            maps: false,
        };
        self.running.insert(task, running);
    }

    fn ended(&mut self, ended: Result<(TaskId, Option<Begun>, Ended<D>), JoinError>) {
        let (task, outcome) = match ended {
            Ok((task, _, outcome)) => (task, Some(outcome)),
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                // One that panicked does not say which it is.
                let mut running = self.running.iter();
                let running = running.find(|(_, running)| running.handle.id() == error.id());
                let Some((task, _)) = running else {
                    return; // Aborted.
                };
                (*task, None)
            }
        };
        let Some(Running { vertex, maps, .. }) = self.running.remove(&task) else {
            return; // Aborted.
        };
        self.mapping -= usize::from(maps);
        let entry = vertex.and_then(|vertex| self.vertices.get_mut(&vertex));
        let (outcome, map) = match (outcome, &entry) {
            (Some(outcome), _) => outcome,
            (None, Some(entry)) => {
                let error: OpError = "the operation panicked, see the daemon's log".into();
                entry.shared.completed(Some(error.to_string()));
                (Outcome::Failed(failure(&entry.shared, error)), None)
            }
            (None, None) => (Outcome::Opened(None), None),
        };
        let journal = self.journal.is_some();
        let made = matches!(outcome, Outcome::Executed(..));
        let made = entry.and_then(|entry| {
            self.maps += u64::from(map.is_some());
            // The first one says how content is looked at.
            let needed = map.filter(|map| {
                let mut deps = map.deps.iter();
                journal || deps.any(|dep| dep.content.is_some())
            });
            entry.map = entry.map.take().or(needed);
            made.then(|| entry.shared.clone())
        });
        let commands = self.core.done(task, outcome);
        // Whoever is told that it is done finds it in the cache, also when this process dies now:
        // the result is kept, and the store was given its keys.
        if let Some(made) = made {
            made.completed(None);
        }
        self.carry_out(commands);
    }
}
