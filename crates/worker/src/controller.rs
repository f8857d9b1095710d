//! The workers that there are.

use crate::{Context, Filter, Worker, WorkerError, WorkerInitializer, registered};

/// The workers, the default one first. There is at least one.
pub struct Controller {
    workers: Vec<Worker>,
}

impl Controller {
    /// Runs all registered initialisers in the order of their priorities.
    ///
    /// # Errors
    /// The first one that fails, and [`WorkerError::None`] when none made a worker.
    pub async fn start(cx: &Context) -> Result<Self, WorkerError> {
        Self::with(&registered(), cx).await
    }

    /// Runs the given initialisers, in the order of their priorities.
    pub async fn with(
        initializers: &[&WorkerInitializer],
        cx: &Context,
    ) -> Result<Self, WorkerError> {
        let mut ordered = initializers.to_vec();
        ordered.sort_by_key(|known| (known.priority, known.name));
        let mut workers = Vec::new();
        for known in &ordered {
            let made = (known.init)(cx).await?;
            for worker in &made {
                tracing::info!(
                    name = known.name,
                    id = worker.id,
                    labels = ?worker.labels,
                    "found worker"
                );
            }
            workers.extend(made);
        }
        if workers.is_empty() {
            let names: Vec<_> = ordered.iter().map(|known| known.name).collect();
            let known = match names.as_slice() {
                [] => "no initialiser is".to_owned(),
                names => format!("the initialisers {} are", names.join(", ")),
            };
            return Err(WorkerError::None { known });
        }
        Ok(Self { workers })
    }

    /// These workers and no others, the default one first: for a program that made them itself.
    ///
    /// # Errors
    /// [`WorkerError::None`] when there is none.
    pub fn of(workers: Vec<Worker>) -> Result<Self, WorkerError> {
        if workers.is_empty() {
            let known = "no initialiser is".to_owned();
            return Err(WorkerError::None { known });
        }
        Ok(Self { workers })
    }

    /// The worker that builds run on.
    pub fn default_worker(&self) -> &Worker {
        // `with` makes no controller without a worker.
        &self.workers[0]
    }

    /// The worker `id`.
    pub fn get(&self, id: &str) -> Result<&Worker, WorkerError> {
        let found = self.workers.iter().find(|worker| worker.id == id);
        found.ok_or_else(|| WorkerError::NotFound { id: id.to_owned() })
    }

    /// The workers that one of `filters` matches, the default one first; all without filters.
    pub fn list(&self, filters: &[Filter]) -> Vec<&Worker> {
        let matches = |worker: &&Worker| {
            filters.is_empty() || filters.iter().any(|filter| worker.matches(filter))
        };
        self.workers.iter().filter(matches).collect()
    }

    /// Ends all workers: processes are killed, what was promised is written.
    pub async fn close(&self) {
        for worker in &self.workers {
            worker.close().await;
        }
    }
}
