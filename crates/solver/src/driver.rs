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
use crate::keys::CacheResult;
use crate::shared::{Fan, JobId, Shared};
use crate::{
    CacheMap, Domain, Edge, OpContext, OpError, ResultStore, SolveError, SolverConfig, Vertex,
};

pub(crate) enum Message<D: Domain> {
    NewJob {
        id: JobId,
        job: Arc<D::Job>,
        sink: Arc<dyn Sink>,
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
type Member<D> = (Arc<<D as Domain>::Job>, Arc<dyn Sink>);
type CoreOf<D> = Core<<D as Domain>::Output, SolveError>;
type OutcomeOf<D> = Outcome<<D as Domain>::Output, SolveError>;

pub(crate) struct Driver<D: Domain> {
    core: CoreOf<D>,
    results: Arc<dyn ResultStore<D>>,
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
            Message::NewJob { id, job, sink } => {
                self.jobs.insert(id, (job, sink));
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
                }
                Command::Joined { vertex, job } => {
                    if let (Some(entry), Some((data, sink))) =
                        (self.vertices.get(&vertex), self.jobs.get(&job))
                    {
                        entry.shared.join(job, data.clone(), sink.clone());
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
        };
        let handle = self.tasks.spawn(async move { runner.run(work).await });
        self.running.insert(handle.id(), (task, vertex));
        self.handles.insert(task, handle);
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
            entry.maps.extend(arrived);
        }
        let made = matches!(outcome, Outcome::Executed(_)).then(|| entry.shared.clone());
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

    async fn execute(self, inputs: Vec<D::Output>) -> Result<OutcomeOf<D>, OpError> {
        let vertex = self.cx.shared.vertex.clone();
        self.cx.shared.started(false);
        let result = vertex.op.execute(&self.cx, &inputs).await;
        if let Err(error) = &result {
            self.cx.shared.completed(Some(describe(error)));
        }
        let mut kept = Vec::new();
        for output in result? {
            let id = self.results.save(&output).await;
            let result = id.map(|id| CacheResult {
                id,
                created_at: SystemTime::now(),
            });
            kept.push((output, result));
        }
        Ok(Outcome::Executed(kept))
    }
}

/// The error with all that it came from, in the form that users of BuildKit know.
fn describe(error: &OpError) -> String {
    crate::error_chain(&**error.inner())
}
