//! Layers: from the files of a ref to a compressed tar in the content store, and back.
//!
//! [`pack`](mod@pack) makes a layer: the changes between two states become a tar, its digest (the diff id),
//! compressed blocks, and the digest of those, all in one pass and with the same bytes on any
//! number of threads. [`unpack`](mod@unpack) applies a tar to a snapshot as containerd does, inside its root
//! whatever the tar says. [`Filler`] brings a lazy ref of the cache to disk: fetched, verified,
//! decompressed and unpacked while it arrives, and kept in the content store. [`export`] gives
//! the layers of a whole chain of refs.
//!
//! This crate refuses to know registries and sessions (they are [`FetchFor`]), image
//! configurations, and what a layer is made for.
//!
//! ```
//! use cooper_layer::{Compression, CompressionOptions, pack, unpack};
//! use cooper_content::{ContentStore, MemoryContentStore};
//! use cooper_snapshot::Mount;
//! use std::sync::Arc;
//!
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
//! let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! std::fs::write(from.path().join("greeting"), "hello")?;
//! let content: Arc<dyn ContentStore> = Arc::new(MemoryContentStore::default());
//!
//! let upper = vec![Mount::bind(from.path(), true)];
//! let layer = pack::pack(&content, "greeting", vec![], upper, &CompressionOptions::default()).await?;
//!
//! let blob = content.open(layer.descriptor.digest()).await?;
//! let mounts = vec![Mount::bind(to.path(), false)];
//! unpack::unpack(cooper_content::BlobReader::new(&*blob), &mounts, &unpack::Limits::default())?;
//! assert_eq!(std::fs::read_to_string(to.path().join("greeting"))?, "hello");
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod archive;
mod blob;
mod compress;
mod decompress;
mod error;
mod export;
mod filler;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod link;
mod media;
pub mod pack;
mod parents;
mod rewrite;
pub mod unpack;

pub use cooper_cache::Layer;
pub use error::LayerError;
pub use export::{ExportContext, ensure_blob, export};
pub use filler::{FetchFor, Filler};
pub use media::{Compression, CompressionOptions, docker_type, is_layer, oci_type};
pub use pack::{EMPTY_DIFF_ID, EMPTY_GZIP};
pub use rewrite::rewrite_times;
