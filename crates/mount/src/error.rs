//! What can go wrong with the mounts of a process. Wordings are BuildKit's.

use std::path::PathBuf;

use cooper_cache::CacheError;
use cooper_session::SessionError;

/// A failure to prepare the mounts of a process, or to keep what it wrote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The root file system cannot be a cache, a secret or the like.
    #[error("invalid mount type {kind} for {dest}")]
    RootType {
        /// The type.
        kind: &'static str,
        /// `/`.
        dest: String,
    },
    /// The type of a mount has a number without a meaning.
    #[error("mount type {kind} not implemented")]
    UnknownType {
        /// The number.
        kind: i32,
    },
    /// A mount names an input that the step does not have.
    #[error("missing input {input}")]
    MissingInput {
        /// Its index.
        input: i64,
    },
    /// There is nothing to mount.
    #[error("mount {dest} has no input")]
    NoInput {
        /// Where it was to be.
        dest: String,
    },
    /// No mount is the root file system.
    #[error("no root mount")]
    NoRoot,
    /// A cache mount does not say which cache.
    #[error("missing cache mount options")]
    NoCacheOptions,
    /// How a cache is shared has a number without a meaning.
    #[error("invalid cache sharing option: {sharing}")]
    Sharing {
        /// The number.
        sharing: i32,
    },
    /// A secret mount does not say which secret.
    #[error("invalid secret mount options")]
    NoSecretOptions,
    /// A secret mount has an empty id.
    #[error("secret ID missing from mount options")]
    NoSecretId,
    /// No client has the secret.
    #[error("secret {id}: not found")]
    SecretNotFound {
        /// Its id.
        id: String,
    },
    /// An ssh mount does not say which agent.
    #[error("invalid ssh mount options")]
    NoSshOptions,
    /// No client forwards an agent.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoSsh {
        /// The agent's id.
        id: String,
    },
    /// A client could not be asked.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A ref could not be made, mounted or committed.
    #[error("{attempt} {dest}")]
    Cache {
        /// What was tried.
        attempt: &'static str,
        /// Where the ref is mounted.
        dest: String,
        /// Why it failed.
        source: Box<CacheError>,
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
}

/// Adds what was tried and on which file to an error of the system.
pub(crate) fn io(
    attempt: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> MountError + use<> {
    let path = path.to_owned();
    move |source| MountError::Io {
        attempt,
        path,
        source,
    }
}

/// Adds what was tried and for which mount to an error of the cache.
pub(crate) fn cache(
    attempt: &'static str,
    dest: &str,
) -> impl FnOnce(CacheError) -> MountError + use<> {
    let dest = dest.to_owned();
    move |source| MountError::Cache {
        attempt,
        dest,
        source: Box::new(source),
    }
}
