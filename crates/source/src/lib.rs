//! Where files come from: images in registries and in the client's layouts, folders of the
//! client, downloads, repositories. Each kind is a [`Source`], found by the scheme of an
//! identifier such as `docker-image://docker.io/library/alpine`.
//!
//! A source says what an identifier stands for now ([`Instance::cache_key`]) and brings it
//! ([`Instance::snapshot`]). Images come lazily: their layers are known by their blobs and are
//! fetched when somebody reads them.
//!
//! This crate refuses to know the graph, the solver and how layers are unpacked.
//!
//! ```
//! use cooper_source::Identifier;
//!
//! let id = Identifier::parse("local://context", Default::default(), Default::default())?;
//! assert_eq!((id.scheme.as_str(), id.reference.as_str()), ("local", "context"));
//! # Ok::<_, cooper_source::SourceError>(())
//! ```
#![forbid(unsafe_code)]

mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod git;
pub mod http;
pub mod image;
pub mod local;
mod memory;
mod source;
#[cfg(test)]
mod testing;

pub use error::SourceError;
pub use git::GitSource;
pub use http::HttpSource;
pub use image::{ImageResolver, ImageSource, ResolveMode, ResolvedConfig};
pub use local::LocalSource;
pub use memory::Memory;
pub use source::{
    CacheKey, ChecksumAlgorithm, ChecksumRequest, Facts, GitMetadata, HttpMetadata, Identifier,
    Instance, Metadata, MetadataRequest, Source, SourceContext, SourceRegistry,
};
