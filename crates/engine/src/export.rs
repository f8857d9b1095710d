//! Taking a result out of the builder.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cooper_cache::Layer;
use cooper_content::Fetch;
use cooper_exporter::{ExportContext, ExportInput, Exporter, Response};
use cooper_frontend::FrontendResult;
use cooper_layer::FetchFor;
use cooper_progress::{VertexProgress, VertexWarning};
use cooper_proto::control::Descriptor;
use cooper_registry::Registry;
use cooper_session::Group;
use cooper_source::SourceError;
use futures::future::try_join_all;

use crate::build::Build;
use crate::shown::Shown;
use crate::{EngineError, ExporterRequest};

/// The build argument that fixes the times in a result.
const EPOCH_ARG: &str = "build-arg:SOURCE_DATE_EPOCH";
/// The exporters' attribute that it becomes.
const EPOCH_ATTR: &str = "source-date-epoch";

/// The exporters of a request, made before anything is built: a mistake is named at once. There
/// are `first` others before them.
pub(crate) fn resolve(
    requests: &[ExporterRequest],
    first: usize,
    frontend_attrs: &BTreeMap<String, String>,
) -> Result<Vec<Box<dyn Exporter>>, EngineError> {
    // What is no number is for the frontend to understand; its result says what it found.
    let epoch = frontend_attrs.get(EPOCH_ARG);
    let epoch = epoch.filter(|text| text.is_empty() || text.parse::<i64>().is_ok());
    let resolve = |(index, request): (usize, &ExporterRequest)| {
        let index = first + index;
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

/// Asks the client what else it wants to have done with the result.
pub(crate) async fn ask(
    build: &Build,
    result: &FrontendResult,
    frontend_attrs: &BTreeMap<String, String>,
    exporters: &mut Vec<Box<dyn Exporter>>,
) -> Result<(), EngineError> {
    let mut references = Vec::new();
    for reference in result.references.values().chain([&result.reference]) {
        references.extend(reference.as_ref().map(|found| found.id().to_owned()));
    }
    let session = build.sessions.first(cooper_session::WAIT).await;
    let session = session.map_err(SourceError::from)?;
    let metadata = result.metadata.clone();
    let found = cooper_session::exporters::find(&session, metadata, references).await;
    let found = found.map_err(SourceError::from)?;
    let found = found.into_iter().map(|found| ExporterRequest {
        kind: found.r#type,
        attrs: found.attrs.into_iter().collect(),
    });
    let found: Vec<_> = found.collect();
    exporters.extend(resolve(&found, exporters.len(), frontend_attrs)?);
    Ok(())
}

/// Tells the client, if it was asked for exporters, what all of them answered.
pub(crate) async fn tell(build: &Build, response: &Response) -> Result<(), EngineError> {
    let session = build.sessions.first(cooper_session::WAIT).await;
    let session = session.map_err(SourceError::from)?;
    let told = cooper_session::exporters::finalize(&session, response).await;
    Ok(told.map_err(SourceError::from)?)
}

/// Runs the exporters side by side, each shown as a vertex. The first one says the `warnings`,
/// which are about the result; where there is none it is said all the same. Gives what the client
/// is told, and the images that were made, by the numbers of their exporters.
///
/// # Cancel safety
/// As [`Exporter::export`].
pub(crate) async fn export(
    build: &Build,
    exporters: &[Box<dyn Exporter>],
    input: &ExportInput,
    warnings: &[String],
) -> Result<(Response, BTreeMap<i64, Descriptor>), EngineError> {
    if exporters.is_empty() && !warnings.is_empty() {
        let id = format!("{}-verify", build.session_id);
        let shown = Shown::begin(build.sink.clone(), &id, "verifying build result");
        say(warnings, &shown.progress());
        shown.end(Ok::<_, EngineError>(()))?;
    }
    let fetch: Arc<dyn FetchFor> = Arc::new(RegistryFetch {
        registry: build.env.registry.clone(),
        sessions: build.sessions.clone(),
    });
    let runs = exporters.iter().enumerate().map(|(index, exporter)| {
        let fetch = fetch.clone();
        async move {
            let id = format!("{}-export-{index}", build.session_id);
            let shown = Shown::begin(build.sink.clone(), &id, exporter.name());
            if index == 0 {
                say(warnings, &shown.progress());
            }
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
    let images = (0..).zip(&responses);
    let images = images.filter_map(|(index, response)| Some((index, image(response)?)));
    let images = images.collect();
    response.extend(responses.into_iter().flatten());
    Ok((response, images))
}

/// The image that an exporter says it made.
fn image(response: &Response) -> Option<Descriptor> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Told {
        media_type: String,
        digest: String,
        size: i64,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let told = BASE64_STANDARD.decode(response.get("containerimage.descriptor")?);
    let told: Told = serde_json::from_slice(&told.ok()?).ok()?;
    Some(Descriptor {
        media_type: told.media_type,
        digest: told.digest,
        size: told.size,
        annotations: told.annotations,
    })
}

fn say(warnings: &[String], progress: &VertexProgress) {
    for warning in warnings {
        progress.warn(VertexWarning {
            vertex: progress.digest().clone(),
            level: 0,
            short: warning.clone().into(),
            detail: Vec::new(),
            url: String::new(),
            info: None,
            ranges: Vec::new(),
        });
    }
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
        let both = resolve(&[request("local"), request("oci")], 0, &none).unwrap();
        let kinds: Vec<_> = both.iter().map(|exporter| exporter.kind()).collect();
        assert_eq!(kinds, ["local", "oci"]);
        let error = resolve(&[request("moby")], 0, &none).err().unwrap();
        assert_eq!(error.to_string(), "exporter \"moby\" could not be found");
        let epoch = |text: &str| BTreeMap::from([(EPOCH_ARG.to_owned(), text.to_owned())]);
        assert!(resolve(&[request("oci")], 0, &epoch(&i64::MAX.to_string())).is_err());
        assert!(resolve(&[request("oci")], 0, &epoch("context")).is_ok());
    }
}
