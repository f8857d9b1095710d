//! Where the blobs of a lazy layer are fetched from.

use std::sync::Arc;

use cooper_cache::Layer;
use cooper_content::Fetch;
use cooper_registry::{Reference, Registry};
use cooper_session::Group;

use super::Layout;

/// One fetcher for each image that `layer` is known to be part of, in their order, with the
/// credentials and the layouts of `sessions`.
pub fn fetchers(registry: &Registry, sessions: &Group, layer: &Layer) -> Vec<Arc<dyn Fetch>> {
    let mut found: Vec<Arc<dyn Fetch>> = Vec::new();
    for source in &layer.sources {
        if let Some(layout) = Layout::of_source(source) {
            found.push(Arc::new(layout.fetcher(sessions)));
            continue;
        }
        match Reference::parse(source) {
            Ok(reference) => found.push(Arc::new(registry.fetcher(&reference, sessions))),
            Err(error) => tracing::warn!(source, %error, "a layer's source is no reference"),
        }
    }
    found
}
