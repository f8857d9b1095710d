//! The one task that drives the core: it starts what the core asks for, and tells it how that
//! ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use cooper_progress::{Sink, VertexProgress};
use oci_spec::image::Digest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinSet};

use crate::core::{Command, Core, MapInfo, Outcome, RequestId, Spec, TaskId, VertexId, Work};
use crate::explain::{self, Draft, Journal, Miss, MissInput};
use crate::keys::CacheResult;
use crate::shared::{Explained, Fan, JobId, Shared};
use crate::{
    CacheMap, Domain, Edge, OpContext, OpError, ResultStore, SolveError, SolverConfig, Vertex,
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

pub(crate) struct Driver<D: Domain> {
    core: CoreOf<D>,
    results: Arc<dyn ResultStore<D>>,
    journal: Option<Arc<dyn Journal>>,
    jobs: HashMap<JobId, Member<D>>,
    vertices: HashMap<VertexId, Entry<D>>,
    replies: HashMap<RequestId, oneshot::Sender<Result<D::Output, SolveError>>>,
    tasks: JoinSet<OutcomeOf<D>>,
    running: HashMap<Id, (TaskId, VertexId)>,
    handles: HashMap<TaskId, AbortHandle>,
}

struct Entry<D: Domain> {
    shared: Arc<Shared<D>>,
    /// By index; the first one says how content is looked at.
    maps: Vec<Arc<CacheMap<D>>>,
    /// A map that was computed and not yet told.
    arriving: Arc<std::sync::Mutex<Option<Arc<CacheMap<D>>>>>,
}

impl<D: Domain> Driver<D> {
    pub(crate) fn new(config: SolverConfig<D>) -> Self {
        let missing = |digest: &Digest, index: usize, count: usize| SolveError::NoOutput {
            name: digest.to_string(),
            index,
            count,
        };
        Self {
            journal: config.keys.journal(),
            core: Core::new(config.keys, Box::new(missing)),
            results: config.results,
            jobs: HashMap::new(),
            vertices: HashMap::new(),
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
                reply,
            } => match self.load(job, vertices, &edge) {
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
    ) -> Result<VertexId, SolveError> {
        let mut here: HashMap<String, VertexId> = HashMap::with_capacity(vertices.len());
        for vertex in vertices {
            let mut inputs = Vec::with_capacity(vertex.inputs.len());
            for input in &vertex.inputs {
                let id = here.get(input.vertex.as_ref());
                let id = id.ok_or_else(|| SolveError::MissingVertex {
                    digest: input.vertex.clone(),
                })?;
                inputs.push((*id, input.index));
            }
            let spec = Spec {
                digest: vertex.digest.clone(),
                inputs,
                ignore_cache: vertex.options.ignore_cache,
            };
            let digest = vertex.digest.to_string();
            let id = self.core.add(job, spec);
            self.vertices.entry(id).or_insert_with(|| Entry {
                shared: Arc::new(Shared::new(vertex)),
                maps: Vec::new(),
                arriving: Arc::default(),
            });
            here.insert(digest, id);
        }
        let found = here.get(edge.vertex.as_ref());
        found.copied().ok_or_else(|| SolveError::MissingVertex {
            digest: edge.vertex.clone(),
        })
    }

    fn carry_out(&mut self, commands: Vec<Command<D::Output, SolveError>>) {
        for command in commands {
            match command {
                Command::Start { task, vertex, work } => self.start(task, vertex, work),
                Command::Abort { task } => {
                    if let Some(handle) = self.handles.remove(&task) {
                        handle.abort();
                    }
                }
                Command::Reply { request, result } => {
                    if let Some(reply) = self.replies.remove(&request) {
                        let _ = reply.send(result);
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
                        explained.note_operations(entry.maps.iter().map(|map| &map.digest));
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

    fn start(&mut self, task: TaskId, vertex: VertexId, work: Work<D::Output>) {
        let Some(entry) = self.vertices.get(&vertex) else {
            return;
        };
        let miss = match work {
            Work::Execute { .. } => self.miss(vertex, entry),
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
            map: entry.maps.first().cloned(),
            arriving: entry.arriving.clone(),
            results: self.results.clone(),
            journal: self.journal.clone(),
            miss,
        };
        let handle = self.tasks.spawn(async move { runner.run(work).await });
        self.running.insert(handle.id(), (task, vertex));
        self.handles.insert(task, handle);
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
            let map = entry.and_then(|entry| entry.maps.first());
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
            digest: entry.maps.first()?.digest.clone(),
            description,
            anew: shared.options.ignore_cache,
            inputs: inputs.collect(),
            build,
        })
    }

    fn ended(&mut self, ended: Result<(Id, OutcomeOf<D>), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        let Some((task, vertex)) = self.running.remove(&id) else {
            return;
        };
        if self.handles.remove(&task).is_none() {
            return; // Aborted.
        }
        let Some(entry) = self.vertices.get_mut(&vertex) else {
            return;
        };
        let outcome = outcome.unwrap_or_else(|| {
            let error: OpError = "the operation panicked, see the daemon's log".into();
            entry.shared.completed(Some(error.to_string()));
            Outcome::Failed(failure(&entry.shared, error))
        });
        if matches!(outcome, Outcome::CacheMap(_)) {
            let arrived = entry.arriving.lock();
            let arrived = arrived
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take();
            if let Some(map) = &arrived {
                entry.shared.note_operation(&map.digest);
            }
            entry.maps.extend(arrived);
        }
        let made = matches!(outcome, Outcome::Executed(..)).then(|| entry.shared.clone());
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
    arriving: Arc<std::sync::Mutex<Option<Arc<CacheMap<D>>>>>,
    results: Arc<dyn ResultStore<D>>,
    journal: Option<Arc<dyn Journal>>,
    /// What is to be explained before it is carried out.
    miss: Option<Miss>,
}

impl<D: Domain> Runner<D> {
    async fn run(self, work: Work<D::Output>) -> OutcomeOf<D> {
        let shared = self.cx.shared.clone();
        let result = match work {
            Work::CacheMap { index } => self.cache_map(index).await,
            Work::ContentKey { input, output } => self.content_key(input, output).await,
            Work::Load { result } => {
                return Outcome::Loaded(self.results.load(&result).await);
            }
            Work::Execute { inputs } => self.execute(inputs).await,
        };
        result.unwrap_or_else(|error| Outcome::Failed(failure(&shared, error)))
    }

    /// Sources look things up far away to know what they are: users see that.
    async fn cache_map(self, index: usize) -> Result<OutcomeOf<D>, OpError> {
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
        let mut arriving = self
            .arriving
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *arriving = Some(map);
        Ok(Outcome::CacheMap(info))
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
