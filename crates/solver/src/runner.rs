//! One task: what the core asks for, carried out for a vertex.

use std::sync::Arc;
use std::time::SystemTime;

use crate::core::{MapInfo, Outcome, Work};
use crate::driver::{Ended, Failed, Failure, OutcomeOf};
use crate::explain::{self, Draft, Journal, Miss};
use crate::keys::CacheResult;
use crate::shared::Shared;
use crate::{CacheMap, CacheSource, Domain, OpContext, OpError, ResultStore, SolveError};

pub(crate) fn failure<D: Domain>(shared: &Shared<D>, error: OpError) -> Failure {
    Arc::new(Failed::Known(SolveError::Op {
        vertex: shared.vertex.digest.clone(),
        name: shared.vertex.name.clone(),
        source: error.inner().clone(),
    }))
}

/// One task.
pub(crate) struct Runner<D: Domain> {
    pub(crate) cx: OpContext<D>,
    pub(crate) map: Option<Arc<CacheMap<D>>>,
    pub(crate) results: Arc<dyn ResultStore<D>>,
    /// Where the result is that is to be loaded, if not here.
    pub(crate) cache: Option<Arc<dyn CacheSource<D>>>,
    pub(crate) journal: Option<Arc<dyn Journal>>,
    /// What is to be explained.
    pub(crate) miss: Option<Box<Miss>>,
}

impl<D: Domain> Runner<D> {
    pub(crate) async fn run(mut self, work: Work<D::Output>) -> Ended<D> {
        let result = match work {
            Work::CacheMap { index } => return self.run_map(index).await,
            Work::ContentKey { input, output } => self.content_key(input, output).await,
            Work::Load { cache, result } => Ok(self.load(cache.is_some(), &result).await),
            Work::Execute { inputs } => {
                let miss = self.miss.take();
                self.execute(&inputs, miss).await
            }
        };
        let outcome = result.unwrap_or_else(|error| self.failed(error));
        (outcome, None)
    }

    fn failed(&self, error: OpError) -> OutcomeOf<D> {
        Outcome::Failed(failure(&self.cx.shared, error))
    }

    /// The same as [`run`](Self::run) for a map; smaller, as there are many.
    pub(crate) async fn run_map(self, index: usize) -> Ended<D> {
        match self.cache_map(index).await {
            Ok((outcome, map)) => (outcome, Some(map)),
            Err(error) => (self.failed(error), None),
        }
    }

    /// What comes from elsewhere is kept here.
    async fn load(&self, elsewhere: bool, id: &str) -> OutcomeOf<D> {
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
            id: id.into(),
            created_at: SystemTime::now(),
        });
        Outcome::Loaded(Some((output, kept)))
    }

    /// Sources look things up far away to know what they are: users see that.
    async fn cache_map(&self, index: usize) -> Result<(OutcomeOf<D>, Arc<CacheMap<D>>), OpError> {
        let vertex = &self.cx.shared.vertex;
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
        let looks = map.deps.iter();
        let looks = looks.map(|dep| (dep.selector.clone(), dep.content.is_some()));
        let whole = looks.clone().all(|look| look == (None, false));
        let info = MapInfo {
            digest: map.digest.clone(),
            deps: if whole { Vec::new() } else { looks.collect() },
            last: map.last,
        };
        Ok((Outcome::CacheMap(info), map))
    }

    async fn content_key(&self, input: usize, output: D::Output) -> Result<OutcomeOf<D>, OpError> {
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

    async fn execute(
        &self,
        inputs: &[D::Output],
        miss: Option<Box<Miss>>,
    ) -> Result<OutcomeOf<D>, OpError> {
        let vertex = &self.cx.shared.vertex;
        self.cx.shared.started(false);
        let mut draft = None;
        if let Some(miss) = miss {
            draft = self.draft(inputs).await;
            Box::pin(self.explain(miss, draft.as_deref())).await;
        }
        let result = vertex.op.execute(&self.cx, inputs).await;
        if let Err(error) = &result {
            self.cx.shared.completed(Some(describe(error)));
        }
        let outputs = result?;
        if draft.is_none() {
            draft = self.draft(inputs).await;
        }
        let mut kept = Vec::with_capacity(outputs.len());
        for output in outputs {
            let id = self.results.save(&output).await;
            let result = id.map(|id| CacheResult {
                id: id.into(),
                created_at: SystemTime::now(),
            });
            kept.push((output, result));
        }
        Ok(Outcome::Executed(kept, draft))
    }

    /// What the operation is made of, to be kept with its result.
    async fn draft(&self, inputs: &[D::Output]) -> Option<Box<Draft>> {
        self.journal.as_ref()?;
        // Most of a task's memory is not taken for what few of them do.
        Box::pin(self.make_draft(inputs)).await
    }

    async fn make_draft(&self, inputs: &[D::Output]) -> Option<Box<Draft>> {
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
    async fn explain(&self, mut miss: Box<Miss>, draft: Option<&Draft>) {
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
pub(crate) fn describe(error: &OpError) -> String {
    crate::error_chain(&**error.inner())
}
