//! What can go wrong with a blob.

use std::path::PathBuf;

use oci_spec::image::Digest;

/// A failure of a content store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// There is no such blob.
    #[error("{digest}: not found")]
    NotFound {
        /// The digest.
        digest: Digest,
    },
    /// Somebody else is writing an ingest of this name.
    #[error("ingest {reference} is being written")]
    Busy {
        /// The name of the ingest.
        reference: String,
    },
    /// The bytes are not those that were promised.
    #[error("unexpected digest of ingest {reference}: got {found}, expected {expected}")]
    DigestMismatch {
        /// The name of the ingest.
        reference: String,
        /// The digest of what was written.
        found: Digest,
        /// The digest that was promised.
        expected: Digest,
    },
    /// There are more or fewer bytes than were promised.
    #[error("unexpected size of ingest {reference}: got {found} bytes, expected {expected}")]
    SizeMismatch {
        /// The name of the ingest.
        reference: String,
        /// How many bytes were written.
        found: u64,
        /// How many were promised.
        expected: u64,
    },
    /// The blob is larger than the reader takes.
    #[error("{digest} has {size} bytes, at most {limit} are read")]
    TooLarge {
        /// The digest.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// A digest of an algorithm that is not sha256.
    #[error("{digest}: only sha256 is supported")]
    Algorithm {
        /// The digest.
        digest: Digest,
    },
    /// A file could not be read or written.
    #[error("{attempt} {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another kind of store failed, or a source of blobs.
    #[error("{attempt}")]
    Backend {
        /// What was tried.
        attempt: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
