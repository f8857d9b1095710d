//! What an operation can fail with.

use std::path::PathBuf;

use cooper_cache::{CacheError, ImmutableRef};
use cooper_executor::{ExecError, Exit};
use cooper_layer::LayerError;
use cooper_mount::MountError;
use cooper_session::SessionError;
use cooper_source::SourceError;

/// A failure of an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpsError {
    /// A process ended with a code that is not wanted.
    #[error("{failure}")]
    Exec {
        /// What was run, and how it ended.
        failure: ExecFailure,
        /// The files that it had.
        files: Box<FailedFiles>,
    },
    /// A process could not be run at all.
    #[error("process {args:?} did not complete successfully")]
    Start {
        /// What was to be run.
        args: String,
        /// Why it was not.
        source: Box<ExecError>,
        /// The files that it would have had.
        files: Box<FailedFiles>,
    },
    /// An action on files failed.
    #[error(transparent)]
    File(#[from] FileActionError),
    /// A source could not be had.
    #[error(transparent)]
    Source(Box<SourceError>),
    /// It is not known what a source stands for now.
    #[error("failed to load cache key")]
    CacheKey(#[source] Box<SourceError>),
    /// The mounts of a process could not be prepared or kept.
    #[error(transparent)]
    Mount(Box<MountError>),
    /// The cache could not give or keep a state.
    #[error(transparent)]
    Cache(Box<CacheError>),
    /// A layer could not be made or brought.
    #[error(transparent)]
    Layer(Box<LayerError>),
    /// A client could not be asked.
    #[error(transparent)]
    Session(Box<SessionError>),
    /// The content of an input could not be looked at.
    #[error("failed to compute cache key: failed to calculate checksum of ref {id}")]
    Checksum {
        /// The input.
        id: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key of an input's content could not be had.
    #[error(transparent)]
    Content(Box<ContentError>),
    /// The operation asks for what there is not.
    #[error("{0}")]
    Invalid(String),
    /// Work on another thread broke off.
    #[error("{attempt} broke off")]
    Aborted {
        /// What was tried.
        attempt: &'static str,
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
}

macro_rules! from {
    ($($variant:ident($kind:ty)),*) => {$(
        impl From<$kind> for OpsError {
            fn from(error: $kind) -> Self {
                Self::$variant(Box::new(error))
            }
        }
    )*};
}

from!(
    Source(SourceError),
    Mount(MountError),
    Cache(CacheError),
    Layer(LayerError),
    Session(SessionError)
);

impl OpsError {
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}

/// The states that a step which failed had, to be looked at; `None` for what is no state. They
/// are held as long as the error is.
#[derive(Clone, Debug, Default)]
pub struct FailedFiles {
    /// As they were before: one for each mount of a process, or for each input of a file
    /// operation.
    pub inputs: Vec<Option<ImmutableRef>>,
    /// As they were left: one for each mount of a process, or for each action of a file operation.
    pub mounts: Vec<Option<ImmutableRef>>,
}

/// The key of an input's content could not be had. Reads as what happened.
#[derive(Debug)]
pub struct ContentError {
    /// Which input of the operation.
    pub index: usize,
    /// The input, held as long as the error is.
    pub input: Option<ImmutableRef>,
    pub(crate) source: OpsError,
}

impl std::fmt::Display for ContentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.source.fmt(f)
    }
}

impl std::error::Error for ContentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}

/// A process ended with a code that is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("process {args:?} did not complete successfully: {exit}")]
pub struct ExecFailure {
    /// What was run, its words joined by spaces.
    pub args: String,
    /// How it ended.
    pub exit: Exit,
}

impl ExecFailure {
    /// The process of `args` ended with `code`; `oom` when something in its container was
    /// killed for want of memory.
    pub fn new(args: &[String], code: u32, oom: bool) -> Self {
        Self {
            args: args.join(" "),
            exit: Exit { code, oom },
        }
    }
}

/// An action of a file operation failed. Reads as what it failed with.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FileActionError {
    /// The action's place in the operation.
    pub index: usize,
    /// What happened, in BuildKit's words.
    pub message: String,
    /// The files that the operation had.
    pub files: Box<FailedFiles>,
}
