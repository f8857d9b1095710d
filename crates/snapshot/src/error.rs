//! What can go wrong with a snapshot.

use std::path::PathBuf;

use cooper_store::StoreError;

/// A failure of a snapshotter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There is no such snapshot.
    #[error("snapshot {id}: not found")]
    NotFound {
        /// Its key or name.
        id: String,
    },
    /// A snapshot of this key or name is there.
    #[error("snapshot {id}: already exists")]
    Exists {
        /// Its key or name.
        id: String,
    },
    /// Other snapshots stand on it.
    #[error("snapshot {id}: cannot be removed, it is the parent of {child}")]
    HasChildren {
        /// Its name.
        id: String,
        /// One of those that stand on it.
        child: String,
    },
    /// A view cannot be committed.
    #[error("snapshot {id}: is read-only")]
    ReadOnly {
        /// Its key.
        id: String,
    },
    /// A file could not be made, read or removed.
    #[error("{attempt} {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The metadata could not be read or written.
    #[error("read or write the metadata of snapshots")]
    Store(#[from] StoreError),
    /// Another kind of snapshotter failed.
    #[error("{attempt}")]
    Backend {
        /// What was tried.
        attempt: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Adds what was tried and where to an error of the system.
pub(crate) fn io(
    attempt: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |source| SnapshotError::Io {
        attempt,
        path,
        source,
    }
}
