//! Sources as operations.

use std::sync::Arc;

use async_trait::async_trait;
use cooper_content::PlaintextKind;
use cooper_solver::{CacheMap, Description, Digest, Op, OpContext, OpError, Vertex};
use cooper_source::Instance;

use crate::env::{Env, Output, source_context};
use crate::{Build, OpsError};

/// BuildKit's tag for keys of sources.
const CACHE_TYPE: &str = "buildkit.source.v0";

pub(crate) struct SourceOp {
    pub(crate) env: Arc<Env>,
    pub(crate) instance: Arc<dyn Instance>,
}

/// The digest of a source's key. What cannot be known before it is there has a key of its own
/// that is good for one session and never exported.
fn cache_digest(key: &str, digest_of: impl FnOnce(&str) -> Digest) -> Digest {
    let digest = digest_of(&format!("{CACHE_TYPE}:{key}"));
    if key.starts_with("session:") {
        return format!("random:{}", digest.digest())
            .parse()
            .expect("a name and hexadecimal digits are a digest");
    }
    digest
}

#[async_trait]
impl Op<Build> for SourceOp {
    async fn cache_map(
        &self,
        cx: &OpContext<Build>,
        index: usize,
    ) -> Result<CacheMap<Build>, OpError> {
        let key = self.instance.cache_key(&source_context(cx), index).await;
        let key = key.map_err(|error| OpsError::CacheKey(Box::new(error)))?;
        Ok(CacheMap {
            digest: cache_digest(&key.key, |text| {
                self.env.key_digest(PlaintextKind::String, text.as_bytes())
            }),
            deps: Vec::new(),
            last: key.last,
        })
    }

    fn describe(&self, vertex: &Vertex<Build>) -> Option<Description> {
        let Some(facts) = self.instance.facts() else {
            let mut description = Description::new("source", &vertex.name);
            description.volatile = true;
            return Some(description);
        };
        let mut description = Description::new(facts.kind, &facts.subject);
        for (name, value) in &facts.facts {
            description.part(*name, value);
        }
        Some(description)
    }

    async fn execute(&self, cx: &OpContext<Build>, _: &[Output]) -> Result<Vec<Output>, OpError> {
        let _leave = self.env.acquire().await;
        Ok(vec![self.instance.snapshot(&source_context(cx)).await?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_content::digest_of;

    #[test]
    fn keys_of_sessions_are_random() {
        let cache_digest = |key| cache_digest(key, |text| digest_of(text.as_bytes()));
        let image = cache_digest("sha256:abc");
        assert_eq!(image, digest_of(b"buildkit.source.v0:sha256:abc"));
        let local = cache_digest("session:context:sha256:abc");
        assert!(local.as_ref().starts_with("random:"), "{local}");
    }
}
