//! Blobs by digest: a trait, a store in a folder and one in memory, and ingests that can be
//! resumed. And digests: with [`Plaintexts`] who computes one says what it was computed from.
//!
//! A blob is whole or not there: an ingest becomes a blob by one rename, after its size and its
//! digest were checked on the way. Nothing is synced here; who needs a blob to survive the death
//! of the machine syncs the file system once for many.
//!
//! This crate refuses to know what a blob holds, who refers to it, and where it comes from: a
//! [`Fetch`] is given by those who know registries and clients.
//!
//! ```
//! use cooper_content::{ContentStore, MemoryContentStore, digest_of};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let store = MemoryContentStore::default();
//! let mut ingest = store.ingest("greeting").await?;
//! ingest.write(b"hello").await?;
//! let digest = ingest.commit(Some(5), None).await?;
//! assert_eq!(digest, digest_of(b"hello"));
//! assert_eq!(&store.read_all(&digest, 1024).await?[..], b"hello");
//! # Ok::<_, cooper_content::ContentError>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod error;
mod fs;
mod memory;
mod plaintext;
mod store;
#[cfg(feature = "testsuite")]
pub mod testsuite;

pub use error::ContentError;
pub use fs::FsContentStore;
pub use memory::MemoryContentStore;
pub use oci_spec::image::{Descriptor, Digest};
pub use plaintext::{Frame, Plaintext, PlaintextKind, Plaintexts, digest_noted};
pub use store::{Blob, BlobReader, ContentStore, Fetch, ImageStore, Info, Ingest};

use sha2::Digest as _;

/// The sha256 digest of `bytes`, `sha256:…`.
pub fn digest_of(bytes: &[u8]) -> Digest {
    digest_from(sha2::Sha256::digest(bytes).as_slice())
}

/// The id of a layer on top of others, whose id is `parent` (OCI image-spec, config.md, "Layer
/// ChainID"): of diff ids for the files, of the blobs' digests for the blobs.
pub fn chain_id(parent: Option<&Digest>, own: &Digest) -> Digest {
    match parent {
        None => own.clone(),
        Some(parent) => digest_of(format!("{parent} {own}").as_bytes()),
    }
}

/// Wraps the 32 bytes that a sha256 gave.
pub fn digest_from(sha256: &[u8]) -> Digest {
    format!("sha256:{}", hex::encode(sha256))
        .parse()
        .expect("32 bytes in hex are a sha256 digest")
}
