//! How a result leaves the builder: as an image in the content store or a registry, as an image
//! in a tar, as files in the client's folder, as a tar of files.
//!
//! [`resolve`] makes an [`Exporter`] of a kind and its attributes; they have BuildKit's names and
//! meanings. [`Exporter::export`] takes an [`ExportInput`], a result with its metadata, and
//! answers with what the client is told: `containerimage.digest` and the like.
//!
//! Nothing is reported before its bytes are safe: an image that stays in the store is synced, a
//! registry has answered for every blob and manifest, a client has closed its end of the stream.
//!
//! This crate refuses to know how a result was built, which exporters a request named, and how
//! an error reaches the client.
//!
//! ```
//! use cooper_exporter::resolve;
//! use std::collections::BTreeMap;
//!
//! let attrs = BTreeMap::from([("name".to_owned(), "example.com/app:1".to_owned())]);
//! assert_eq!(resolve("image", attrs, 0)?.name(), "exporting to image");
//! let attrs = BTreeMap::from([("push".to_owned(), "maybe".to_owned())]);
//! assert!(resolve("image", attrs, 0).is_err());
//! # Ok::<_, cooper_exporter::ExportError>(())
//! ```
//!
//! Modules in reading order: `attrs`, `platforms` and `annotations` (what is asked for), `config`
//! and `wire` (the texts of an image), `manifest` (an image in the content store), `stream` and
//! `tree` (bytes to the client), then the exporters `image`, `archive` and `files`.
#![forbid(unsafe_code)]

mod annotations;
mod archive;
mod attrs;
mod config;
mod error;
mod files;
mod image;
mod manifest;
mod platforms;
mod stream;
mod tree;
mod verify;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use cooper_cache::{CacheManager, ImmutableRef};
use cooper_content::ImageStore;
use cooper_layer::FetchFor;
use cooper_progress::VertexProgress;
use cooper_registry::Registry;
use cooper_session::Group;

use archive::{ArchiveExporter, Variant};

pub use attrs::Attrs;
pub use error::ExportError;
pub use verify::verify;

/// What the client is told at the end: `containerimage.digest`, `image.name`, …
pub type Response = BTreeMap<String, String>;

/// A result to export, in the shape that frontends answer with.
#[derive(Clone, Default)]
pub struct ExportInput {
    /// The one state; `None` is an empty file system (or many states, below).
    pub reference: Option<ImmutableRef>,
    /// The states by platform id, such as `linux/amd64`. `None` is an empty file system.
    pub references: BTreeMap<String, Option<ImmutableRef>>,
    /// What goes with it: `containerimage.config`, `refs.platforms`, …
    pub metadata: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for ExportInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportInput")
            .field("single", &self.reference.is_some())
            .field("references", &self.references.keys())
            .field("metadata", &self.metadata.keys())
            .finish()
    }
}

impl ExportInput {
    /// The state for a platform; the one state stands for every platform.
    fn find(&self, platform: &str) -> Option<&ImmutableRef> {
        if self.references.is_empty() {
            return self.reference.as_ref();
        }
        self.references.get(platform).and_then(Option::as_ref)
    }
}

/// What an exporter works with.
#[derive(Clone)]
pub struct ExportContext {
    /// The states and the blobs.
    pub cache: CacheManager,
    /// Where images are pushed to.
    pub registry: Registry,
    /// The names of images, where there is a store of them beside the blobs.
    pub images: Option<Arc<dyn ImageStore>>,
    /// Where the blobs of layers come from that are not here.
    pub fetch: Arc<dyn FetchFor>,
    /// The client's sessions: the first one takes files, all may give credentials.
    pub sessions: Group,
    /// Speaks for the vertex of this export.
    pub progress: VertexProgress,
}

/// Takes a result out of the builder.
#[async_trait]
pub trait Exporter: Send + Sync {
    /// The name of the vertex that users see: `exporting to image`.
    fn name(&self) -> &'static str;

    /// The kind that it was made of: `image`, `oci`, …
    fn kind(&self) -> &'static str;

    /// Exports `input`, and answers when its bytes are safe.
    ///
    /// # Cancel safety
    /// Dropping the future ends transfers and removes mounts. What was written into the content
    /// store stays, as a cache.
    async fn export(&self, input: ExportInput, cx: &ExportContext)
    -> Result<Response, ExportError>;
}

/// The exporter of this kind with these attributes. `index` is its place among the exporters of
/// the request, by which the client tells their streams apart.
pub fn resolve(kind: &str, attrs: Attrs, index: usize) -> Result<Box<dyn Exporter>, ExportError> {
    Ok(match kind {
        "image" => Box::new(image::ImageExporter::new(attrs)?),
        "oci" => Box::new(ArchiveExporter::new(Variant::Oci, attrs, index)?),
        "docker" => Box::new(ArchiveExporter::new(Variant::Docker, attrs, index)?),
        "local" => Box::new(files::LocalExporter::new(attrs, index)?),
        "tar" => Box::new(files::TarExporter::new(attrs, index)?),
        _ => {
            return Err(ExportError::Unknown {
                kind: kind.to_owned(),
            });
        }
    })
}
