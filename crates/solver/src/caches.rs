//! Caches from elsewhere: made by another builder, kept in a registry or a folder.

use std::sync::Arc;

use async_trait::async_trait;

use crate::keys::{CacheResult, KeyId, Link};
use crate::{Domain, OpError};

/// The keys of a cache from elsewhere, once they are there.
///
/// Keys without inputs have the same name everywhere ([`KeyId::root`]); other keys of a cache
/// have names that no other cache has.
pub trait CacheKeys: Send + Sync {
    /// The keys that `link` leads to from `from`.
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId>;

    /// The results that hang on `id`, in any order.
    fn results(&self, id: &KeyId) -> Vec<CacheResult>;
}

/// A cache from elsewhere that a build may take results of.
///
/// It is opened when first something is not found here, in the background. Of several that have
/// a result the one that is named first is taken; what is here comes before all of them. Which
/// one answers first makes no difference.
#[async_trait]
pub trait CacheSource<D: Domain>: Send + Sync {
    /// Names it: builds that name the same one share it as long as one of them needs it.
    fn name(&self) -> &str;

    /// Brings its keys. When it cannot, the build goes on without it; users hear why from the
    /// implementation, as in BuildKit's `importing cache manifest from …`.
    ///
    /// # Cancel safety
    /// The future is dropped when no job needs it any more.
    async fn open(&self) -> Result<Arc<dyn CacheKeys>, OpError>;

    /// A result of [`CacheKeys::results`], which may be a promise still; `None` when it is
    /// gone. It is then kept here, with its keys.
    async fn load(&self, id: &str) -> Option<D::Output>;
}
