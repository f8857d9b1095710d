//! The solver as its users see it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cooper_progress::Sink;
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Driver, Message, Request};
use crate::shared::{Explained, JobId};
use crate::{
    CacheSource, Domain, Edge, Explanation, KeyStore, MemoryKeyStore, ResultStore, SolveError,
    Vertex,
};

/// What a solver needs.
pub struct SolverConfig<D: Domain> {
    /// Where keys are kept.
    pub keys: Arc<dyn KeyStore>,
    /// Where results are kept.
    pub results: Arc<dyn ResultStore<D>>,
}

impl<D: Domain> SolverConfig<D> {
    /// Everything is kept in memory.
    pub fn in_memory() -> Self {
        Self {
            keys: Arc::new(MemoryKeyStore::default()),
            results: Arc::new(MemoryResults::default()),
        }
    }
}

/// Keeps results in memory, for ever.
pub struct MemoryResults<D: Domain> {
    /// Each is named by its place.
    results: Mutex<Vec<D::Output>>,
}

impl<D: Domain> Default for MemoryResults<D> {
    fn default() -> Self {
        Self {
            results: Mutex::new(Vec::new()),
        }
    }
}

#[async_trait]
impl<D: Domain> ResultStore<D> for MemoryResults<D> {
    async fn save(&self, output: &D::Output) -> Option<String> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let id = results.len().to_string();
        results.push(output.clone());
        Some(id)
    }

    async fn load(&self, id: &str) -> Option<D::Output> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.get(id.parse::<usize>().ok()?).cloned()
    }
}

/// Solves graphs for any number of jobs, each vertex once. Clones share it; its task ends with
/// the last clone and the last job.
pub struct Solver<D: Domain> {
    mailbox: mpsc::UnboundedSender<Message<D>>,
    next: Arc<AtomicU64>,
}

impl<D: Domain> Clone for Solver<D> {
    fn clone(&self) -> Self {
        Self {
            mailbox: self.mailbox.clone(),
            next: self.next.clone(),
        }
    }
}

impl<D: Domain> Solver<D> {
    /// Starts the solver's task on the current runtime.
    pub fn new(config: SolverConfig<D>) -> Self {
        let (mailbox, receiver) = mpsc::unbounded_channel();
        let driver = Driver::new(config);
        // The task is owned by the mailbox: it ends when the last sender goes.
        tokio::spawn(driver.run(receiver));
        Self {
            mailbox,
            next: Arc::default(),
        }
    }

    /// Begins a job. `data` is what operations may ask it for, `sink` is told of the progress
    /// of everything that the job needs.
    pub fn job(&self, data: D::Job, sink: Arc<dyn Sink>) -> Job<D> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let data = Arc::new(data);
        let explained = Arc::<Explained>::default();
        let _ = self.mailbox.send(Message::NewJob {
            id,
            job: data.clone(),
            sink,
            explained: explained.clone(),
        });
        Job {
            id,
            data,
            explained,
            solver: self.clone(),
        }
    }

    /// How many vertices are needed by jobs, and how many tasks run now.
    pub async fn load(&self) -> (usize, usize) {
        let (reply, receiver) = oneshot::channel();
        let _ = self.mailbox.send(Message::Load { reply });
        receiver.await.unwrap_or_default()
    }
}

/// Something that somebody wants built, for example one client's request. Dropping it gives up
/// what only it needed, and forgets what was not kept.
pub struct Job<D: Domain> {
    id: JobId,
    data: Arc<D::Job>,
    explained: Arc<Explained>,
    solver: Solver<D>,
}

impl<D: Domain> Job<D> {
    /// What operations may ask the job for.
    pub fn data(&self) -> &Arc<D::Job> {
        &self.data
    }

    /// From now on the job wants to know why what it needs is not found in the cache: it sees
    /// it as a part of the vertex's progress, and [`explanations`](Self::explanations) has it.
    /// It costs nothing for what is found.
    pub fn explain(&self) {
        self.explained.wanted.store(true, Ordering::Relaxed);
    }

    /// Why vertices were carried out since the job [asked](Self::explain), in the order in
    /// which they were begun.
    pub fn explanations(&self) -> Vec<Arc<Explanation>> {
        let told = self.explained.told.lock();
        told.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Builds `edge` of the graph `vertices`, in which inputs come before those who take them.
    ///
    /// # Errors
    /// The first failure among what it needs; a vertex that failed is tried again when it is
    /// asked for again.
    ///
    /// # Cancel safety
    /// Dropping the future gives up what was begun and nobody else waits for; whatever is complete
    /// by then stays as long as the job.
    pub async fn build(
        &self,
        vertices: Vec<Arc<Vertex<D>>>,
        edge: Edge,
    ) -> Result<D::Output, SolveError> {
        self.build_with(vertices, edge, Vec::new()).await
    }

    /// Builds `edge` as [`build`](Self::build) does; what is not in the cache here may come from
    /// `caches`, the first one preferred.
    ///
    /// # Errors
    /// As [`build`](Self::build). A cache that cannot be opened is none.
    ///
    /// # Cancel safety
    /// Dropping the future gives up what was begun and nobody else waits for; whatever is complete
    /// by then stays as long as the job.
    pub async fn build_with(
        &self,
        vertices: Vec<Arc<Vertex<D>>>,
        edge: Edge,
        caches: Vec<Arc<dyn CacheSource<D>>>,
    ) -> Result<D::Output, SolveError> {
        let request = self.solver.next.fetch_add(1, Ordering::Relaxed);
        let (reply, receiver) = oneshot::channel();
        let asked = Request::new(self.id, request, vertices, edge, caches, reply);
        let message = Message::Build(asked);
        let sent = self.solver.mailbox.send(message);
        sent.map_err(|_| SolveError::Cancelled)?;
        let waiting = Waiting {
            solver: &self.solver,
            request,
        };
        let result = receiver.await;
        std::mem::forget(waiting);
        result.map_err(|_| SolveError::Cancelled)?
    }
}

impl<D: Domain> Drop for Job<D> {
    fn drop(&mut self) {
        let _ = self.solver.mailbox.send(Message::EndJob { id: self.id });
    }
}

/// A request that is waited for.
struct Waiting<'a, D: Domain> {
    solver: &'a Solver<D>,
    request: u64,
}

impl<D: Domain> Drop for Waiting<'_, D> {
    fn drop(&mut self) {
        let _ = self.solver.mailbox.send(Message::CancelRequest {
            request: self.request,
        });
    }
}
