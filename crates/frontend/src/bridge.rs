//! What a frontend may ask of the engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use cooper_llb::CapSet;
use cooper_proto::{gateway, pb, sourcepolicy};
use oci_spec::image::Digest;

use crate::{FrontendError, FrontendResult};

/// Graphs that are given to a frontend by name.
pub type Inputs = BTreeMap<String, pb::Definition>;

/// What a frontend may ask of the engine that runs it.
///
/// # Cancel safety
///
/// Dropping the future of a method gives up what it waited for and nothing else.
#[async_trait]
pub trait Bridge: Send + Sync {
    /// Builds a graph, or runs another frontend. The result is lazy unless
    /// [`SolveRequest::evaluate`] is set: its references are built when something reads them.
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError>;

    /// Finds the digest and the configuration of the image `reference` (a full name such as
    /// `docker.io/library/alpine:latest`).
    async fn resolve_image_config(
        &self,
        reference: &str,
        options: ImageOptions,
    ) -> Result<ResolvedImage, FrontendError>;

    /// Finds out about a source without fetching it. The policies of the build may have changed
    /// the source: the answer carries the one to use.
    async fn resolve_source_meta(
        &self,
        source: &pb::SourceOp,
        options: SourceOptions,
    ) -> Result<ResolvedSource, FrontendError>;

    /// Shows the user a warning about the vertex `vertex` (of a definition that a result was
    /// made from).
    async fn warn(&self, vertex: &Digest, warning: Warning) -> Result<(), FrontendError>;

    /// What the builder is and can do.
    fn build_opts(&self) -> &BuildOpts;
}

/// What the builder is and can do.
#[derive(Clone, Debug, Default)]
pub struct BuildOpts {
    /// The workers, the default one first.
    pub workers: Vec<WorkerInfo>,
    /// The session of the client; empty when there is none.
    pub session_id: String,
    /// What the exporters make, such as `docker` or `oci`; empty when unknown.
    pub product: String,
    /// What graphs may use.
    pub llb_caps: CapSet,
    /// What frontends may ask of the bridge.
    pub gateway_caps: CapSet,
}

/// A worker as a frontend sees it.
#[derive(Clone, Debug, Default)]
pub struct WorkerInfo {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The platforms that it runs, the native one first.
    pub platforms: Vec<pb::Platform>,
}

/// What to build: a definition, or another frontend. Neither gives an empty result.
#[derive(Clone, Debug, Default)]
pub struct SolveRequest {
    /// The graph.
    pub definition: Option<pb::Definition>,
    /// The frontend to run; empty for none.
    pub frontend: String,
    /// The frontend's options.
    pub frontend_opts: BTreeMap<String, String>,
    /// The frontend's inputs.
    pub frontend_inputs: Inputs,
    /// Build before answering.
    pub evaluate: bool,
    /// Caches to look into as well.
    pub cache_imports: Vec<CacheImport>,
    /// Policies over the sources of this graph, besides those of the build.
    pub source_policies: Vec<sourcepolicy::Policy>,
}

/// A cache to look into, for example type `registry` with the attribute `ref`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheImport {
    /// The kind of the cache.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// How to look for an image.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// The vertex's name, such as `[internal] load metadata for docker.io/library/alpine:latest`.
    pub log_name: String,
    /// The platform; the builder's own when there is none.
    pub platform: Option<pb::Platform>,
    /// `default`, `pull` or `local`; empty means `default`.
    pub resolve_mode: String,
    /// Set for an OCI layout that a session serves; then `reference` names a manifest in it.
    pub oci_layout: Option<OciLayout>,
    /// Policies over the source, besides those of the build.
    pub source_policies: Vec<sourcepolicy::Policy>,
}

/// An OCI layout that a session serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OciLayout {
    /// The session; empty for that of the build.
    pub session_id: String,
    /// The store within the session.
    pub store_id: String,
}

/// What is known of an image.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The name to use from now on: a policy may have changed it.
    pub reference: String,
    /// Digest of the manifest or the index.
    pub digest: Option<Digest>,
    /// The configuration for the platform that was asked for: JSON.
    pub config: Vec<u8>,
}

/// How to find out about a source.
#[derive(Clone, Debug, Default)]
pub struct SourceOptions {
    /// The vertex's name.
    pub log_name: String,
    /// The platform, for images.
    pub platform: Option<pb::Platform>,
    /// `default`, `pull` or `local`, for images.
    pub resolve_mode: String,
    /// Images: do not load the configuration.
    pub no_config: bool,
    /// Git: also return the commit and the tag object.
    pub return_object: bool,
    /// HTTP: also compute this checksum.
    pub checksum: Option<gateway::ChecksumRequest>,
    /// Policies over the source, besides those of the build.
    pub source_policies: Vec<sourcepolicy::Policy>,
}

/// What is known of a source.
#[derive(Clone, Debug, Default)]
pub struct ResolvedSource {
    /// The source to use from now on: a policy may have changed it.
    pub source: pb::SourceOp,
    /// Set for images.
    pub image: Option<gateway::ResolveSourceImageResponse>,
    /// Set for git repositories.
    pub git: Option<gateway::ResolveSourceGitResponse>,
    /// Set for downloads.
    pub http: Option<ResolvedHttp>,
}

/// What is known of a download.
#[derive(Clone, Debug)]
pub struct ResolvedHttp {
    /// Digest of the content.
    pub checksum: Digest,
    /// The name that it would be saved under.
    pub filename: String,
    /// When the server says that it was changed.
    pub last_modified: Option<SystemTime>,
    /// The further digest that was asked for, `sha512:…`.
    pub requested: Option<String>,
}

/// A warning that a frontend shows.
#[derive(Clone, Debug, Default)]
pub struct Warning {
    /// Clients hide warnings above the level that the user asked for.
    pub level: i32,
    /// One line.
    pub short: String,
    /// Further lines.
    pub detail: Vec<String>,
    /// Where more is said.
    pub url: String,
    /// The file that it is about.
    pub source: Option<Arc<pb::SourceInfo>>,
    /// The lines that it is about.
    pub ranges: Vec<pb::Range>,
}

/// A part of a file, in bytes. A length of 0 means up to the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}
