//! Taking a result out of the builder.

use std::collections::BTreeMap;
use std::sync::Arc;

use cooper_cache::Layer;
use cooper_content::Fetch;
use cooper_exporter::{ExportContext, ExportInput, Exporter, Response};
use cooper_layer::FetchFor;
use cooper_registry::Registry;
use cooper_session::Group;
use futures::future::try_join_all;

use crate::build::Build;
use crate::shown::Shown;
use crate::{EngineError, ExporterRequest};

/// The build argument that fixes the times in a result.
const EPOCH_ARG: &str = "build-arg:SOURCE_DATE_EPOCH";
/// The exporters' attribute that it becomes.
const EPOCH_ATTR: &str = "source-date-epoch";

/// The exporters of a request, made before anything is built: a mistake is named at once.
pub(crate) fn resolve(
    requests: &[ExporterRequest],
    frontend_attrs: &BTreeMap<String, String>,
) -> Result<Vec<Box<dyn Exporter>>, EngineError> {
    let epoch = frontend_attrs.get(EPOCH_ARG);
    let resolve = |(index, request): (usize, &ExporterRequest)| {
        let mut attrs = request.attrs.clone();
        if let Some(epoch) = epoch {
            attrs
                .entry(EPOCH_ATTR.to_owned())
                .or_insert_with(|| epoch.clone());
        }
        Ok(cooper_exporter::resolve(&request.kind, attrs, index)?)
    };
    requests.iter().enumerate().map(resolve).collect()
}

/// Runs the exporters side by side, each shown as a vertex.
///
/// # Cancel safety
/// As [`Exporter::export`].
pub(crate) async fn export(
    build: &Build,
    exporters: &[Box<dyn Exporter>],
    input: &ExportInput,
) -> Result<Response, EngineError> {
    let fetch: Arc<dyn FetchFor> = Arc::new(RegistryFetch {
        registry: build.env.registry.clone(),
        sessions: build.sessions.clone(),
    });
    let runs = exporters.iter().enumerate().map(|(index, exporter)| {
        let fetch = fetch.clone();
        async move {
            let id = format!("{}-export-{index}", build.session_id);
            let shown = Shown::begin(build.sink.clone(), &id, exporter.name());
            let cx = ExportContext {
                cache: build.env.cache.clone(),
                registry: build.env.registry.clone(),
                images: build.env.images.clone(),
                fetch,
                sessions: build.sessions.clone(),
                progress: shown.progress(),
            };
            shown.end(exporter.export(input.clone(), &cx).await)
        }
    });
    let responses = try_join_all(runs).await?;
    let mut response = Response::new();
    for (name, value) in &input.metadata {
        // What a frontend wants its client to be told.
        if name.starts_with("frontend.") {
            response.insert(name.clone(), String::from_utf8_lossy(value).into_owned());
        }
    }
    response.extend(responses.into_iter().flatten());
    Ok(response)
}

/// Fetches the blobs of images from their registries.
struct RegistryFetch {
    registry: Registry,
    sessions: Group,
}

impl FetchFor for RegistryFetch {
    fn fetch_for(&self, layer: &Layer) -> Vec<Arc<dyn Fetch>> {
        cooper_source::image::fetchers(&self.registry, &self.sessions, layer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn exporters_are_resolved_in_order_and_mistakes_are_named() {
        let request = |kind: &str| ExporterRequest {
            kind: kind.into(),
            attrs: BTreeMap::new(),
        };
        let none = BTreeMap::new();
        let both = resolve(&[request("local"), request("oci")], &none).unwrap();
        let kinds: Vec<_> = both.iter().map(|exporter| exporter.kind()).collect();
        assert_eq!(kinds, ["local", "oci"]);
        let error = resolve(&[request("moby")], &none).err().unwrap();
        assert_eq!(error.to_string(), "exporter \"moby\" could not be found");
        let epoch = BTreeMap::from([(EPOCH_ARG.to_owned(), "yesterday".to_owned())]);
        assert!(resolve(&[request("oci")], &epoch).is_err());
    }
}
