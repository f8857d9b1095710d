//! Finding out about sources without fetching them; users see it as a vertex.

use cooper_frontend::{
    FrontendError, ImageOptions, ResolvedHttp, ResolvedImage, ResolvedSource, SourceOptions,
};
use cooper_llb::platform;
use cooper_proto::gateway::checksum_request::ChecksumAlgo;
use cooper_proto::{gateway, pb};
use cooper_source::image::{Layout, OCI_LAYOUT};
use cooper_source::{
    ChecksumAlgorithm, ChecksumRequest, Identifier, ImageResolver, Metadata, MetadataRequest,
    ResolveMode, ResolvedConfig, SourceContext, SourceError,
};

use crate::EngineError;
use crate::build::Build;
use crate::shown::Shown;

/// Digest and configuration of an image.
pub(crate) async fn image_config(
    build: &Build,
    reference: &str,
    options: ImageOptions,
) -> Result<ResolvedImage, FrontendError> {
    let name = match options.log_name.as_str() {
        "" => format!("resolve image config for {reference}"),
        name => name.to_owned(),
    };
    let layout = options.oci_layout.map(|layout| Layout {
        session: layout.session_id,
        store: layout.store_id,
    });
    let look = Look {
        build,
        images: images(build, layout),
        reference,
        name: &name,
    };
    let found = look.config(options.platform.as_ref(), &options.resolve_mode);
    let found = found.await?;
    Ok(ResolvedImage {
        reference: reference.to_owned(),
        digest: Some(found.digest),
        config: found.config.to_vec(),
    })
}

fn images(build: &Build, layout: Option<Layout>) -> ImageResolver {
    let images = &build.engine.worker().images;
    match layout {
        Some(layout) => images.in_layout(layout),
        None => images.clone(),
    }
}

/// A look at an image.
struct Look<'a> {
    build: &'a Build,
    images: ImageResolver,
    reference: &'a str,
    /// What users read.
    name: &'a str,
}

impl Look<'_> {
    async fn config(
        &self,
        platform: Option<&pb::Platform>,
        mode: &str,
    ) -> Result<ResolvedConfig, FrontendError> {
        let (build, reference) = (self.build, self.reference);
        let mode = ResolveMode::parse(mode).map_err(FrontendError::invalid)?;
        let platform = platform.unwrap_or(&build.env.platform);
        let id = format!("{reference}{}", platform::format(platform));
        let shown = Shown::begin(build.sink.clone(), &id, self.name);
        let found = self
            .images
            .config(reference, platform, mode, &build.sessions);
        shown.end(found.await).map_err(source_error)
    }

    async fn image(&self, options: &SourceOptions) -> Result<ResolvedImageMeta, FrontendError> {
        let mut image = ResolvedImageMeta::default();
        if options.no_config {
            let build = self.build;
            let shown = Shown::begin(build.sink.clone(), self.reference, self.name);
            let found = self.images.digest(self.reference, &build.sessions).await;
            let found = shown.end(found).map_err(source_error)?;
            image.digest = found.digest().to_string();
        } else {
            let platform = options.platform.as_ref();
            let found = self.config(platform, &options.resolve_mode).await?;
            image.digest = found.digest.to_string();
            image.config = found.config.to_vec();
        }
        Ok(image)
    }
}

type ResolvedImageMeta = gateway::ResolveSourceImageResponse;

/// The place belongs to whoever asked; the text is the source's own.
fn source_error(error: SourceError) -> FrontendError {
    let error = EngineError::from(error);
    FrontendError::bridge(error.to_string(), error)
}

/// What is known of a source: of an image its digest and configuration, of a repository the
/// commit, of a download its digest. Of others nothing can be known beforehand, and they come
/// back as they were asked for.
pub(crate) async fn source_meta(
    build: &Build,
    source: &pb::SourceOp,
    options: SourceOptions,
) -> Result<ResolvedSource, FrontendError> {
    let mut resolved = ResolvedSource {
        source: source.clone(),
        ..ResolvedSource::default()
    };
    let name = match options.log_name.as_str() {
        "" => format!("resolve source metadata for {}", source.identifier),
        name => name.to_owned(),
    };
    let platform = options.platform.as_ref().unwrap_or(&build.env.platform);
    let id = Identifier::parse(&source.identifier, source.attrs.clone(), platform.clone());
    let id = id.map_err(source_error)?;
    let layout = match id.scheme.as_str() {
        cooper_source::image::IMAGE => None,
        OCI_LAYOUT => Some(cooper_source::image::layout(&id)),
        _ => {
            let sources = &build.env.sources;
            let instance = sources.open(source, platform).map_err(source_error)?;
            let request = MetadataRequest {
                objects: options.return_object,
                checksum: options.checksum.as_ref().map(checksum).transpose()?,
            };
            let shown = Shown::begin(build.sink.clone(), &source.identifier, &name);
            let cx = SourceContext {
                sessions: build.sessions.clone(),
                progress: shown.progress(),
                memories: vec![build.job.data().memory.clone()],
            };
            let found = shown.end(instance.metadata(&cx, &request).await);
            match found.map_err(source_error)? {
                Some(Metadata::Git(git)) => {
                    resolved.git = Some(gateway::ResolveSourceGitResponse {
                        checksum: git.checksum,
                        r#ref: git.reference,
                        commit_checksum: git.commit_checksum,
                        commit_object: git.commit_object,
                        tag_object: git.tag_object,
                    });
                }
                Some(Metadata::Http(http)) => {
                    resolved.http = Some(ResolvedHttp {
                        checksum: http.checksum,
                        filename: http.filename,
                        last_modified: http.last_modified,
                        requested: http.requested,
                    });
                }
                _ => {}
            }
            return Ok(resolved);
        }
    };
    let look = Look {
        build,
        images: images(build, layout),
        reference: &id.reference,
        name: &name,
    };
    resolved.image = Some(look.image(&options).await?);
    Ok(resolved)
}

fn checksum(request: &gateway::ChecksumRequest) -> Result<ChecksumRequest, FrontendError> {
    let algorithm = match request.algo() {
        ChecksumAlgo::Sha256 => ChecksumAlgorithm::Sha256,
        ChecksumAlgo::Sha384 => ChecksumAlgorithm::Sha384,
        ChecksumAlgo::Sha512 => ChecksumAlgorithm::Sha512,
    };
    if ChecksumAlgo::try_from(request.algo).is_err() {
        let message = format!("unsupported checksum algorithm {}", request.algo);
        return Err(FrontendError::invalid(message));
    }
    Ok(ChecksumRequest {
        algorithm,
        suffix: request.suffix.clone(),
    })
}
