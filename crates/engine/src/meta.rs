//! Finding out about sources without fetching them; users see it as a vertex.

use cooper_frontend::{FrontendError, ImageOptions, ResolvedImage, ResolvedSource, SourceOptions};
use cooper_llb::platform;
use cooper_proto::{gateway, pb};
use cooper_source::{ResolveMode, ResolvedConfig};

use crate::EngineError;
use crate::build::Build;
use crate::shown::Shown;

const IMAGE: &str = "docker-image://";

/// Digest and configuration of an image.
pub(crate) async fn image_config(
    build: &Build,
    reference: &str,
    options: ImageOptions,
) -> Result<ResolvedImage, FrontendError> {
    if options.oci_layout.is_some() {
        let message = format!("oci-layout source {reference} is not supported by this builder");
        return Err(FrontendError::invalid(message));
    }
    let name = match options.log_name.as_str() {
        "" => format!("resolve image config for {reference}"),
        name => name.to_owned(),
    };
    let found = config(
        build,
        reference,
        options.platform.as_ref(),
        &options.resolve_mode,
        &name,
    );
    let found = found.await?;
    Ok(ResolvedImage {
        reference: reference.to_owned(),
        digest: Some(found.digest),
        config: found.config.to_vec(),
    })
}

async fn config(
    build: &Build,
    reference: &str,
    platform: Option<&pb::Platform>,
    mode: &str,
    name: &str,
) -> Result<ResolvedConfig, FrontendError> {
    let mode = ResolveMode::parse(mode).map_err(FrontendError::invalid)?;
    let platform = platform.unwrap_or(&build.env.platform);
    let id = format!("{reference}{}", platform::format(platform));
    let shown = Shown::begin(build.sink.clone(), &id, name);
    let images = &build.engine.worker().images;
    let found = images.config(reference, platform, mode, &build.sessions);
    shown.end(found.await).map_err(source_error)
}

/// The place belongs to whoever asked; the text is the source's own.
fn source_error(error: cooper_source::SourceError) -> FrontendError {
    let error = EngineError::from(error);
    FrontendError::bridge(error.to_string(), error)
}

/// What is known of a source: of an image its digest and configuration. Of others nothing can
/// be known beforehand, and they come back as they were asked for.
pub(crate) async fn source_meta(
    build: &Build,
    source: &pb::SourceOp,
    options: SourceOptions,
) -> Result<ResolvedSource, FrontendError> {
    let mut resolved = ResolvedSource {
        source: source.clone(),
        ..ResolvedSource::default()
    };
    if let Some(reference) = source.identifier.strip_prefix(IMAGE) {
        let name = match options.log_name.as_str() {
            "" => format!("resolve source metadata for {}", source.identifier),
            name => name.to_owned(),
        };
        let platform = options.platform.as_ref();
        let mut image = gateway::ResolveSourceImageResponse::default();
        if options.no_config {
            let shown = Shown::begin(build.sink.clone(), &source.identifier, &name);
            let images = &build.engine.worker().images;
            let found = images.digest(reference, &build.sessions).await;
            let found = shown.end(found).map_err(source_error)?;
            image.digest = found.digest().to_string();
        } else {
            let found = config(build, reference, platform, &options.resolve_mode, &name).await?;
            image.digest = found.digest.to_string();
            image.config = found.config.to_vec();
        }
        resolved.image = Some(image);
        return Ok(resolved);
    }
    let scheme = source
        .identifier
        .split_once("://")
        .map(|(scheme, _)| scheme);
    match scheme {
        // What a caller asks of these cannot be left out of the answer.
        Some("http" | "https" | "git") => Err(FrontendError::invalid(format!(
            "metadata of {} cannot be resolved by this builder",
            source.identifier
        ))),
        _ => Ok(resolved),
    }
}
