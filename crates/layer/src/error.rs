//! What can go wrong with a layer.

use std::io;
use std::path::{Path, PathBuf};

use cooper_cache::CacheError;
use cooper_content::{ContentError, Digest};
use cooper_snapshot::SnapshotError;

/// A failure to make, fetch or apply a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The tar is not well-formed, or asks for what is refused.
    #[error("invalid layer archive: {problem}")]
    Archive {
        /// What is wrong with it.
        problem: String,
    },
    /// The layer is larger than is taken.
    #[error("layer has more than {limit} {unit}")]
    Limit {
        /// The bound.
        limit: u64,
        /// Of what: `entries`, `bytes`.
        unit: &'static str,
    },
    /// An entry of a layer could not be written.
    #[error("failed to extract {path}")]
    Entry {
        /// The entry.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The compressed bytes or the stream that brings them could not be read.
    #[error("failed to read the layer")]
    Read {
        /// Why it failed.
        source: io::Error,
    },
    /// A file that goes into a layer could not be read.
    #[error("{attempt} {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The layer holds something else than the image's configuration says.
    #[error("wrong diff id calculated on extraction {found}, expected {expected}")]
    DiffId {
        /// The digest of the tar.
        found: Digest,
        /// What it should be.
        expected: Digest,
    },
    /// Mounts of a kind that a layer cannot be applied to.
    #[error("cannot apply a layer to {mounts}")]
    Target {
        /// The mounts.
        mounts: String,
    },
    /// The layer is not here, and nobody knows where it is.
    #[error("no place to fetch layer {digest} from")]
    NoSource {
        /// The blob.
        digest: Digest,
    },
    /// The layer could not be fetched from anywhere; the source is the first place's.
    #[error("failed to copy {digest}")]
    Fetch {
        /// The blob.
        digest: Digest,
        /// Why it failed.
        source: ContentError,
    },
    /// The content store failed, or the bytes are not those that were promised.
    #[error("failed to store the layer")]
    Content(#[from] ContentError),
    /// A snapshot could not be mounted.
    #[error("failed to mount the files of the layer")]
    Mount(#[from] SnapshotError),
    /// The cache failed.
    #[error("failed to get the files of the layer")]
    Cache(#[from] CacheError),
    /// Nobody wants the layer any more.
    #[error("canceled")]
    Canceled,
    /// The thread that did the work ended early.
    #[error("work on a layer")]
    Thread(#[from] tokio::task::JoinError),
}

impl LayerError {
    pub(crate) fn archive(problem: impl Into<String>) -> Self {
        Self::Archive {
            problem: problem.into(),
        }
    }

    pub(crate) fn entry(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Entry { path, source }
    }

    pub(crate) fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            attempt,
            path,
            source,
        }
    }

    /// An error of a reader or a writer that carries one of ours inside.
    pub(crate) fn from_io(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(source) => Self::Read { source },
        }
    }
}
