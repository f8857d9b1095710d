//! What one build has: its job in the solver, its sessions, its listeners, its references.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cooper_cache::{ImmutableRef, Work};
use cooper_exporter::ExportInput;
use cooper_frontend::{BuildOpts, FrontendResult, Reference};
use cooper_llb::Entitlements;
use cooper_ops::{Build as Domain, Env};
use cooper_progress::Sink;
use cooper_session::Group;
use cooper_solver::Job;
use futures::future::try_join_all;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::engine::Shared;
use crate::reference::LazyRef;
use crate::{EngineError, EvaluateError};

/// One build, shared by all that works for it. Its job ends with it.
pub(crate) struct Build {
    pub(crate) engine: Arc<Shared>,
    pub(crate) env: Arc<Env>,
    pub(crate) job: Job<Domain>,
    /// What the build looks at of images stays as long as it goes on.
    pub(crate) _work: Work,
    /// The client's session as it named it; empty when there is none.
    pub(crate) session_id: String,
    pub(crate) sessions: Group,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) entitlements: Entitlements,
    pub(crate) opts: BuildOpts,
    /// When the build ends: calls on its behalf end with it.
    pub(crate) ended: CancellationToken,
    /// The promised states by id. Who holds one keeps it.
    pub(crate) references: Mutex<HashMap<String, Weak<LazyRef>>>,
    /// Whether the frontend was asked last to describe a build, and not to make one.
    pub(crate) subrequest: AtomicBool,
    /// Places for frontends that run as containers: one may call others.
    pub(crate) image_frontends: Semaphore,
}

impl Build {
    /// A frontend is asked with these options; several may be, the last one makes the result.
    pub(crate) fn asked_with(&self, options: &BTreeMap<String, String>) {
        let subrequest = options.get("requestid").is_some_and(|id| !id.is_empty());
        self.subrequest.store(subrequest, Ordering::Relaxed);
    }

    /// Whether the result describes a build instead of being one.
    pub(crate) fn is_subrequest(&self) -> bool {
        self.subrequest.load(Ordering::Relaxed)
    }

    pub(crate) fn keep(&self, reference: &Arc<LazyRef>) {
        let mut references = self
            .references
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let id = reference.id().to_owned();
        references.insert(id, Arc::downgrade(reference));
    }

    /// The engine's own object behind a reference that a frontend gives back.
    fn find(&self, reference: &dyn Reference) -> Result<Arc<LazyRef>, EngineError> {
        let references = self
            .references
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = references.get(reference.id()).and_then(Weak::upgrade);
        found.ok_or_else(|| EngineError::NoReference {
            id: reference.id().to_owned(),
        })
    }

    pub(crate) async fn output(
        &self,
        reference: &Option<Arc<dyn Reference>>,
    ) -> Result<Option<ImmutableRef>, EngineError> {
        let Some(reference) = reference else {
            return Ok(None);
        };
        let reference = self.find(&**reference)?;
        // As its own error: the place in the user's text belongs to it.
        Ok(reference.located().await?)
    }

    /// Builds all that a result promises.
    pub(crate) async fn evaluate(
        &self,
        result: FrontendResult,
    ) -> Result<ExportInput, EngineError> {
        let all = result
            .references
            .iter()
            .map(|(platform, reference)| async move {
                let output = self.output(reference).await?;
                Ok::<_, EngineError>((platform.clone(), output))
            });
        let (reference, references) =
            futures::try_join!(self.output(&result.reference), try_join_all(all))?;
        Ok(ExportInput {
            reference,
            references: references.into_iter().collect::<BTreeMap<_, _>>(),
            metadata: result.metadata,
        })
    }

    /// Carries out a call on behalf of the build, which ends with it.
    pub(crate) async fn run<T>(
        &self,
        call: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        tokio::select! {
            result = call => result,
            () = self.ended.cancelled() => Err(EngineError::Cancelled),
        }
    }
}

impl From<EvaluateError> for cooper_frontend::FrontendError {
    fn from(error: EvaluateError) -> Self {
        if matches!(
            error,
            EvaluateError::Solve(cooper_solver::SolveError::Cancelled)
        ) {
            return Self::Cancelled;
        }
        Self::bridge(error.to_string(), error)
    }
}
