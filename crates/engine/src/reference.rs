//! A state that a solve promised. It is loaded and built when something needs it, once.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use async_trait::async_trait;
use cooper_cache::ImmutableRef;
use cooper_frontend::{FileRange, FrontendError, Reference, SourceLocation};
use cooper_llb::{LoadOptions, load};
use cooper_progress::{Digest, VertexProgress};
use cooper_proto::{fsutil, pb};
use cooper_solver::SolveError;
use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};

use crate::build::Build;
use crate::{EvaluateError, StepFailure, caps, files};

type Outcome = Result<Option<ImmutableRef>, EvaluateError>;

/// A promised state.
pub(crate) struct LazyRef {
    id: String,
    definition: pb::Definition,
    build: Arc<Build>,
    /// Set once; a failure too, unless it was the build that ended.
    outcome: OnceLock<Outcome>,
    /// What all those wait for who want it now. It is dropped with the last of them.
    solving: Mutex<Option<WeakShared<BoxFuture<'static, Outcome>>>>,
    me: Weak<Self>,
}

impl LazyRef {
    pub(crate) fn new(build: &Arc<Build>, definition: pb::Definition) -> Arc<Self> {
        Self::with(build, definition, OnceLock::new())
    }

    /// A state that is there already, such as a step that failed has left it.
    pub(crate) fn ready(build: &Arc<Build>, output: ImmutableRef) -> Arc<Self> {
        let definition = pb::Definition::default();
        Self::with(build, definition, OnceLock::from(Ok(Some(output))))
    }

    fn with(
        build: &Arc<Build>,
        definition: pb::Definition,
        outcome: OnceLock<Outcome>,
    ) -> Arc<Self> {
        let reference = Arc::new_cyclic(|me| Self {
            id: uuid::Uuid::new_v4().simple().to_string(),
            definition,
            build: build.clone(),
            outcome,
            solving: Mutex::default(),
            me: me.clone(),
        });
        build.keep(&reference);
        reference
    }

    /// The state; `None` is an empty file system.
    ///
    /// # Cancel safety
    /// What was begun goes on as long as somebody else waits for it.
    async fn output(&self) -> Outcome {
        if let Some(outcome) = self.outcome.get() {
            return outcome.clone();
        }
        let outcome = self.solving().await;
        match outcome {
            Err(EvaluateError::Solve(SolveError::Cancelled)) => outcome,
            outcome => self.outcome.get_or_init(|| outcome).clone(),
        }
    }

    /// The one attempt that is going on, or a new one.
    fn solving(&self) -> Shared<BoxFuture<'static, Outcome>> {
        let solving = self.solving.lock();
        let mut solving = solving.unwrap_or_else(PoisonError::into_inner);
        let going_on = solving.as_ref().and_then(WeakShared::upgrade);
        going_on.unwrap_or_else(|| {
            let me = self.me.clone();
            let solve = async move {
                match me.upgrade() {
                    Some(me) => me.solve().await,
                    None => Err(SolveError::Cancelled.into()),
                }
            };
            let new = solve.boxed().shared();
            *solving = new.downgrade();
            new
        })
    }

    async fn solve(&self) -> Outcome {
        let build = &self.build;
        let advertised = caps::llb();
        let options = LoadOptions {
            caps: Some(&advertised),
            platform: Some(build.env.platform.clone()),
            entitlements: Some(build.entitlements),
            policy: None,
        };
        let graph = load(&self.definition, options);
        let graph = graph.map_err(|error| EvaluateError::Load(Arc::new(error)))?;
        let forgotten = cooper_ops::forget_caches(&graph, &build.env).await;
        forgotten.map_err(|error| EvaluateError::Operation(Arc::new(error)))?;
        build.job.data().note_limits(&graph);
        let (vertices, edge) = cooper_ops::vertices(&graph, &build.env)
            .map_err(|error| EvaluateError::Operation(Arc::new(error)))?;
        drop(graph);
        Ok(build.job.build(vertices, edge).await?)
    }

    /// [`output`](Self::output), with the places in the user's text that asked for what failed.
    pub(crate) async fn located(&self) -> Result<Option<ImmutableRef>, FrontendError> {
        self.output().await.map_err(|error| self.locate(error))
    }

    fn locate(&self, error: EvaluateError) -> FrontendError {
        let places = match &error {
            EvaluateError::Solve(SolveError::Op { vertex, .. }) => self.places(vertex),
            _ => Vec::new(),
        };
        let mut error = match &error {
            EvaluateError::Solve(SolveError::Op { vertex, .. }) => {
                let vertex = vertex.clone();
                let failure = StepFailure::new(&self.definition, &vertex, error);
                FrontendError::bridge(failure.to_string(), failure)
            }
            _ => FrontendError::from(error),
        };
        for place in places {
            if error.location().is_some() {
                error = FrontendError::bridge(error.to_string(), error);
            }
            error = error.at(place);
        }
        error
    }

    /// The places that a vertex comes from, in the order of the definition.
    fn places(&self, vertex: &Digest) -> Vec<SourceLocation> {
        let Some(source) = &self.definition.source else {
            return Vec::new();
        };
        let Some(locations) = source.locations.get(vertex.as_ref()) else {
            return Vec::new();
        };
        let place = |location: &pb::Location| {
            let info = usize::try_from(location.source_index).ok()?;
            Some(SourceLocation {
                info: Arc::new(source.infos.get(info)?.clone()),
                ranges: location.ranges.clone(),
            })
        };
        locations.locations.iter().filter_map(place).collect()
    }

    /// Does something with the files, on a thread that may block.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(Option<&Path>) -> Result<T, FrontendError> + Send + 'static,
    ) -> Result<T, FrontendError> {
        let Some(output) = self.located().await? else {
            return look(None);
        };
        let progress = self.progress();
        let local = self
            .build
            .env
            .localize(&output, &self.build.sessions, &progress);
        let local = local.await.map_err(failed("failed to fetch the result"))?;
        let dir = local.mount().await;
        let dir = dir.map_err(failed("failed to mount the result"))?;
        let looked = tokio::task::spawn_blocking(move || {
            let result = look(Some(dir.path()));
            dir.close()
                .map_err(failed("failed to unmount the result"))?;
            result
        });
        looked
            .await
            .map_err(failed("failed to look at the result"))?
    }

    /// Speaks for the vertex that the reference points at.
    fn progress(&self) -> VertexProgress {
        let pointer = self.definition.def.last();
        let pointer = pointer.and_then(|raw| <pb::Op as prost::Message>::decode(&**raw).ok());
        let target = pointer.and_then(|op| op.inputs.first()?.digest.parse().ok());
        match target {
            Some(digest) => VertexProgress::new(digest, self.build.sink.clone()),
            None => VertexProgress::discard(),
        }
    }
}

fn failed<E>(context: &'static str) -> impl FnOnce(E) -> FrontendError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| FrontendError::bridge(context, error)
}

#[async_trait]
impl Reference for LazyRef {
    fn id(&self) -> &str {
        &self.id
    }

    fn definition(&self) -> &pb::Definition {
        &self.definition
    }

    async fn evaluate(&self) -> Result<(), FrontendError> {
        self.located().await.map(drop)
    }

    async fn read_file(
        &self,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, FrontendError> {
        let path = path.to_owned();
        self.look(move |root| files::read_file(root, &path, range))
            .await
    }

    async fn read_dir(
        &self,
        path: &str,
        include: &str,
    ) -> Result<Vec<fsutil::Stat>, FrontendError> {
        let (path, include) = (path.to_owned(), include.to_owned());
        self.look(move |root| files::read_dir(root, &path, &include))
            .await
    }

    async fn stat_file(&self, path: &str) -> Result<fsutil::Stat, FrontendError> {
        let path = path.to_owned();
        self.look(move |root| files::stat_file(root, &path)).await
    }
}
