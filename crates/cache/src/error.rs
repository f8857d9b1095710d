//! What can go wrong with the cache.

use std::path::PathBuf;

use cooper_content::ContentError;
use cooper_snapshot::SnapshotError;
use cooper_store::StoreError;

use crate::{FillError, RefId};

/// A failure of the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// There is no such ref.
    #[error("{id}: not found")]
    NotFound {
        /// Its id.
        id: RefId,
    },
    /// Somebody has the mutable ref.
    #[error("{id} is locked")]
    Locked {
        /// Its id.
        id: RefId,
    },
    /// The ref is not one that can be written, or was not made to be got again.
    #[error("{id}: is not a mutable ref that is kept")]
    NotMutable {
        /// Its id.
        id: RefId,
    },
    /// A text that is no id of a ref.
    #[error("{text:?}: is not an id of a ref")]
    Id {
        /// The text, or its begin.
        text: String,
    },
    /// The ref is lazy and has no layer to be brought from.
    #[error("{id}: has no layer")]
    NoLayer {
        /// Its id.
        id: RefId,
    },
    /// A chain of refs is longer than the cache takes.
    #[error("{id}: has more than {limit} refs below it")]
    Depth {
        /// The ref on top.
        id: RefId,
        /// How many are taken.
        limit: usize,
    },
    /// A layer could not be brought to disk.
    #[error("bring the layer of {id} to disk")]
    Fill {
        /// The ref.
        id: RefId,
        /// Why it failed.
        source: FillError,
    },
    /// A path is not there. The wording is BuildKit's: users match on it.
    #[error("{path:?}: not found")]
    PathNotFound {
        /// The path, absolute, as seen from the root of the ref.
        path: String,
    },
    /// A file of a ref was written while it was read. No digest of it was kept.
    #[error("{path:?}: changed while it was read")]
    Changed {
        /// The path, absolute, as seen from the root of the ref.
        path: String,
    },
    /// A path leads through too many symbolic links.
    #[error("too many links")]
    TooManyLinks {
        /// The path that was asked for.
        path: String,
    },
    /// A pattern for paths that cannot be read.
    #[error("invalid {kind} {pattern:?}: {detail}")]
    Pattern {
        /// `wildcard`, `includepatterns`, `excludepatterns`.
        kind: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A file of a ref could not be read.
    #[error("{attempt} {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The snapshotter failed.
    #[error("{attempt} of {id}")]
    Snapshot {
        /// What was tried: `make the snapshot`, …
        attempt: &'static str,
        /// The ref.
        id: String,
        /// Why it failed.
        source: SnapshotError,
    },
    /// The content store failed.
    #[error("access the blobs of the cache")]
    Content(#[from] ContentError),
    /// The metadata could not be read or written.
    #[error("access the records of the cache")]
    Store(#[from] StoreError),
    /// A thread that did blocking work has ended early.
    #[error("work on the files of {id}")]
    Thread {
        /// The ref.
        id: String,
        /// Why.
        source: tokio::task::JoinError,
    },
    /// A step has written more than one may.
    #[error(
        "the step has written {written} bytes, more than the limit of {most} bytes that \
         maxStepBytes sets"
    )]
    Outgrown {
        /// What it has written, in bytes.
        written: u64,
        /// The limit, in bytes.
        most: u64,
    },
    /// The task that owns the clean-up has ended.
    #[error("the cache is closed")]
    Closed,
}

impl CacheError {
    /// Whether what was asked for is not there (a ref or a path).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::PathNotFound { .. })
    }
}

/// Adds what was tried and for which ref to an error of the snapshotter.
pub(crate) fn snapshot(
    attempt: &'static str,
    id: &dyn std::fmt::Display,
) -> impl FnOnce(SnapshotError) -> CacheError + use<> {
    let id = id.to_string();
    move |source| CacheError::Snapshot {
        attempt,
        id,
        source,
    }
}

/// Adds what was tried and where to an error of the system.
pub(crate) fn io(
    attempt: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> CacheError + use<> {
    let path = path.to_owned();
    move |source| CacheError::Io {
        attempt,
        path,
        source,
    }
}
