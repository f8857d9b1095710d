//! The solver's results are the cache's refs.

use async_trait::async_trait;
use cooper_cache::{CacheManager, RefId};
use cooper_ops::{Build, Output};
use cooper_solver::{ResultStore, error_chain};

/// The name under which the empty file system is kept: it has no ref.
const SCRATCH: &str = "scratch";

/// Keeps results as refs of the cache; pruning takes them.
pub struct CachedResults {
    cache: CacheManager,
}

impl CachedResults {
    /// Keeps them in `cache`.
    pub fn new(cache: CacheManager) -> Self {
        Self { cache }
    }

    /// Whether `cache` has the result that is kept by this name.
    pub(crate) fn is_in(cache: &CacheManager, id: &str) -> bool {
        id == SCRATCH || id.parse().is_ok_and(|id: RefId| cache.has(&id))
    }
}

#[async_trait]
impl ResultStore<Build> for CachedResults {
    async fn save(&self, output: &Output) -> Option<String> {
        let Some(output) = output else {
            return Some(SCRATCH.to_owned());
        };
        match output.retain().await {
            Ok(()) => Some(output.id().to_string()),
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(id = %output.id(), error, "a result is not kept");
                None
            }
        }
    }

    async fn load(&self, id: &str) -> Option<Output> {
        if id == SCRATCH {
            return Some(None);
        }
        let id: RefId = id.parse().ok()?;
        match self.cache.get(&id).await {
            Ok(found) => Some(Some(found)),
            Err(error) if error.is_not_found() => None,
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(%id, error, "a kept result cannot be loaded");
                None
            }
        }
    }
}
