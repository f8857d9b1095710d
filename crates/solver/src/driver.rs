//! The one task that drives the core: it starts what the core asks for, and tells it how that
//! ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use cooper_progress::{Sink, VertexProgress};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinSet};

use crate::core::{
    CacheId, Command, Core, Errors, MapInfo, Outcome, RequestId, Spec, TaskId, VertexId, Work,
};
use crate::explain::{self, Draft, Journal, Miss, MissInput};
use crate::keys::CacheResult;
use crate::shared::{Explained, Fan, JobId, Shared};
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

/// A job: what operations may ask it for, and who listens.
type Member<D> = (Arc<<D as Domain>::Job>, Arc<dyn Sink>, Arc<Explained>);
type CoreOf<D> = Core<<D as Domain>::Output, SolveError>;
type OutcomeOf<D> = Outcome<<D as Domain>::Output, SolveError>;

/// How a task ended, and the map that it computed.
type Ended<D> = (OutcomeOf<D>, Option<Arc<CacheMap<D>>>);

pub(crate) struct Driver<D: Domain> {
    core: CoreOf<D>,
    results: Arc<dyn ResultStore<D>>,
    journal: Option<Arc<dyn Journal>>,
    jobs: HashMap<JobId, Member<D>>,
    vertices: HashMap<VertexId, Entry<D>>,
    caches: HashMap<CacheId, Arc<dyn CacheSource<D>>>,
    cache_names: HashMap<String, CacheId>,
    next_cache: CacheId,
    replies: HashMap<RequestId, oneshot::Sender<Result<D::Output, SolveError>>>,
    tasks: JoinSet<Ended<D>>,
    running: HashMap<Id, TaskId>,
    handles: HashMap<TaskId, (AbortHandle, Option<VertexId>)>,
}

struct Entry<D: Domain> {
    shared: Arc<Shared<D>>,
    /// The first one, which says how content is looked at.
    map: Option<Arc<CacheMap<D>>>,
}

impl<D: Domain> Driver<D> {
    pub(crate) fn new(config: SolverConfig<D>) -> Self {
        let errors = Errors {
            missing: |digest, index, count| SolveError::NoOutput {
                name: digest.to_owned(),
                index,
                count,
            },
            stuck: |state| {
                tracing::error!(state, "a build waits for nothing");
                SolveError::Stuck
            },
        };
        Self {
            journal: config.keys.journal(),
            core: Core::new(config.keys, errors),
            results: config.results,
            jobs: HashMap::new(),
            vertices: HashMap::new(),
            caches: HashMap::new(),
            cache_names: HashMap::new(),
            next_cache: 0,
            replies: HashMap::new(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            handles: HashMap::new(),
        }
    }

    /// Runs until nobody can send any more.
    pub(crate) async fn run(mut self, mut mailbox: mpsc::UnboundedReceiver<Message<D>>) {
        loop {
            tokio::select! {
                message = mailbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            }
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
                self.jobs.insert(id, (job, sink, explained));
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
                self.core.cancel_request(request);
            }
            Message::Load { reply } => {
                let _ = reply.send((self.vertices.len(), self.handles.len()));
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
        let mut here: HashMap<Arc<str>, VertexId> = HashMap::with_capacity(vertices.len());
        for vertex in vertices {
            let mut inputs = Vec::with_capacity(vertex.inputs.len());
            for input in &vertex.inputs {
                let id = here.get(input.vertex.as_ref());
                let id = id.ok_or_else(|| SolveError::MissingVertex {
                    digest: input.vertex.clone(),
                })?;
                inputs.push((*id, input.index));
            }
            let digest: Arc<str> = vertex.digest.as_ref().into();
            let spec = Spec {
                digest: digest.clone(),
                inputs,
                ignore_cache: vertex.options.ignore_cache,
            };
            let id = self.core.add(job, spec, &caches);
            self.vertices.entry(id).or_insert_with(|| Entry {
                shared: Arc::new(Shared::new(vertex)),
                map: None,
            });
            here.insert(digest, id);
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

    fn carry_out(&mut self, commands: Vec<Command<D::Output, SolveError>>) {
        for command in commands {
            match command {
                Command::Start { task, vertex, work } => self.start(task, vertex, work),
                Command::Abort { task } => {
                    if let Some((handle, _)) = self.handles.remove(&task) {
                        handle.abort();
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
                        let _ = reply.send(result.map_err(|error| self.named(error)));
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
                    if let (Some(entry), Some((data, sink, explained))) =
                        (self.vertices.get(&vertex), self.jobs.get(&job))
                    {
                        explained.note_operations(entry.map.iter().map(|map| &map.digest));
                        entry
                            .shared
                            .join(job, data.clone(), sink.clone(), explained.clone());
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

    /// The core knows a vertex by its digest, users by its name.
    fn named(&self, error: SolveError) -> SolveError {
        let SolveError::NoOutput { name, index, count } = error else {
            return error;
        };
        let vertices = self.vertices.values().map(|entry| &entry.shared.vertex);
        let mut named = vertices.filter(|vertex| vertex.digest.as_ref() == name);
        let name = named.next().map_or(name, |vertex| vertex.name.clone());
        SolveError::NoOutput { name, index, count }
    }

    fn start(&mut self, task: TaskId, vertex: VertexId, work: Work<D::Output>) {
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
            cx: OpContext {
                progress: VertexProgress::new(
                    entry.shared.vertex.digest.clone(),
                    Arc::new(Fan(entry.shared.clone())),
                ),
                shared: entry.shared.clone(),
            },
            map: entry.map.clone(),
            results: self.results.clone(),
            cache,
            journal: self.journal.clone(),
            miss,
        };
        let handle = self.tasks.spawn(runner.run(work));
        self.running.insert(handle.id(), task);
        self.handles.insert(task, (handle, Some(vertex)));
    }

    /// What is to be explained of a vertex that has to be carried out, if somebody asks.
    fn miss(&self, vertex: VertexId, entry: &Entry<D>) -> Option<Miss> {
        self.journal.as_ref()?;
        let build = entry.shared.operations()?;
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
        Some(Miss {
            vertex: shared.digest.clone(),
            name: shared.name.clone(),
            digest: entry.map.as_ref()?.digest.clone(),
            description,
            anew: shared.options.ignore_cache,
            inputs: inputs.collect(),
            build,
        })
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
            (Outcome::Opened(keys.ok()), None)
        });
        self.running.insert(handle.id(), task);
        self.handles.insert(task, (handle, None));
    }

    fn ended(&mut self, ended: Result<(Id, Ended<D>), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        let Some(task) = self.running.remove(&id) else {
            return;
        };
        let Some((_, vertex)) = self.handles.remove(&task) else {
            return; // Aborted.
        };
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
        let made = matches!(outcome, Outcome::Executed(..));
        let made = entry.and_then(|entry| {
            if let Some(map) = &map {
                entry.shared.note_operation(&map.digest);
            }
            // The first one says how content is looked at.
            entry.map = entry.map.take().or(map);
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

fn failure<D: Domain>(shared: &Shared<D>, error: OpError) -> SolveError {
    SolveError::Op {
        vertex: shared.vertex.digest.clone(),
        name: shared.vertex.name.clone(),
        source: error.inner().clone(),
    }
}

/// One task.
struct Runner<D: Domain> {
    cx: OpContext<D>,
    map: Option<Arc<CacheMap<D>>>,
    results: Arc<dyn ResultStore<D>>,
    /// Where the result is that is to be loaded, if not here.
    cache: Option<Arc<dyn CacheSource<D>>>,
    journal: Option<Arc<dyn Journal>>,
    /// What is to be explained.
    miss: Option<Miss>,
}

impl<D: Domain> Runner<D> {
    async fn run(self, work: Work<D::Output>) -> Ended<D> {
        let shared = self.cx.shared.clone();
        let result = match work {
            Work::CacheMap { index } => match self.cache_map(index).await {
                Ok((outcome, map)) => return (outcome, Some(map)),
                Err(error) => Err(error),
            },
            Work::ContentKey { input, output } => self.content_key(input, output).await,
            Work::Load { cache, result } => Ok(self.load(cache.is_some(), &result).await),
            Work::Execute { inputs } => self.execute(inputs).await,
        };
        let outcome = result.unwrap_or_else(|error| Outcome::Failed(failure(&shared, error)));
        (outcome, None)
    }

    /// What comes from elsewhere is kept here.
    async fn load(self, elsewhere: bool, id: &str) -> OutcomeOf<D> {
        if !elsewhere {
            let found = self.results.load(id).await;
            return Outcome::Loaded(found.map(|output| (output, None)));
        }
        let Some(cache) = &self.cache else {
            return Outcome::Loaded(None);
        };
        let Some(output) = cache.load(id).await else {
            return Outcome::Loaded(None);
        };
        let kept = self.results.save(&output).await;
        let kept = kept.map(|id| CacheResult {
            id,
            created_at: SystemTime::now(),
        });
        Outcome::Loaded(Some((output, kept)))
    }

    /// Sources look things up far away to know what they are: users see that.
    async fn cache_map(self, index: usize) -> Result<(OutcomeOf<D>, Arc<CacheMap<D>>), OpError> {
        let vertex = self.cx.shared.vertex.clone();
        let shown = vertex.inputs.is_empty();
        if shown {
            self.cx.shared.started(false);
        }
        let result = vertex.op.cache_map(&self.cx, index).await;
        if shown || result.is_err() {
            let error = result.as_ref().err().map(describe);
            self.cx.shared.completed(error);
        }
        let map = Arc::new(result?);
        let info = MapInfo {
            digest: map.digest.clone(),
            deps: map
                .deps
                .iter()
                .map(|dep| (dep.selector.clone(), dep.content.is_some()))
                .collect(),
            last: map.last,
        };
        Ok((Outcome::CacheMap(info), map))
    }

    async fn content_key(self, input: usize, output: D::Output) -> Result<OutcomeOf<D>, OpError> {
        let dep = self.map.as_ref().and_then(|map| map.deps.get(input));
        let content = dep.and_then(|dep| dep.content.clone());
        let content = content.ok_or("the input has no key from content")?;
        let result = content.content_key(&self.cx, &output).await;
        if let Err(error) = &result {
            self.cx.shared.started(false);
            self.cx.shared.completed(Some(describe(error)));
        }
        Ok(Outcome::ContentKey(result?))
    }

    async fn execute(mut self, inputs: Vec<D::Output>) -> Result<OutcomeOf<D>, OpError> {
        let vertex = self.cx.shared.vertex.clone();
        self.cx.shared.started(false);
        let mut draft = None;
        if let Some(miss) = self.miss.take() {
            draft = self.draft(&inputs).await;
            self.explain(miss, draft.as_deref()).await;
        }
        let result = vertex.op.execute(&self.cx, &inputs).await;
        if let Err(error) = &result {
            self.cx.shared.completed(Some(describe(error)));
        }
        let outputs = result?;
        if draft.is_none() {
            draft = self.draft(&inputs).await;
        }
        let mut kept = Vec::new();
        for output in outputs {
            let id = self.results.save(&output).await;
            let result = id.map(|id| CacheResult {
                id,
                created_at: SystemTime::now(),
            });
            kept.push((output, result));
        }
        Ok(Outcome::Executed(kept, draft))
    }

    /// What the operation is made of, to be kept with its result.
    async fn draft(&self, inputs: &[D::Output]) -> Option<Box<Draft>> {
        self.journal.as_ref()?;
        let (vertex, map) = (&self.cx.shared.vertex, self.map.as_ref()?);
        let description = vertex.describe()?;
        if description.volatile {
            return None;
        }
        let mut files = Vec::new();
        for (index, (dep, input)) in map.deps.iter().zip(inputs).enumerate() {
            if let Some(content) = &dep.content
                && let Some(list) = content.files(&self.cx, input).await
            {
                files.push((index, list));
            }
        }
        Some(Box::new(Draft {
            name: vertex.name.clone(),
            digest: map.digest.clone(),
            description,
            files,
        }))
    }

    /// Tells those who asked why the vertex has to be carried out.
    async fn explain(&self, mut miss: Miss, draft: Option<&Draft>) {
        let Some(journal) = self.journal.clone() else {
            return;
        };
        for (index, files) in draft.into_iter().flat_map(|draft| &draft.files) {
            if let Some(input) = miss.inputs.get_mut(*index) {
                input.files = Some(files.clone());
            }
        }
        let explaining = move || explain::explain(&*journal, &miss);
        match tokio::task::spawn_blocking(explaining).await {
            Ok(explanation) => self.cx.shared.explain(explanation),
            Err(error) => tracing::warn!(%error, "no explanation was found"),
        }
    }
}

/// The error with all that it came from, in the form that users of BuildKit know.
fn describe(error: &OpError) -> String {
    crate::error_chain(&**error.inner())
}
