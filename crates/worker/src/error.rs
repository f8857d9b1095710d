//! Why there is no worker.

use std::path::PathBuf;

/// A failure to make or to find a worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// No initialiser made one.
    #[error(
        "no worker found: {known} registered, and none of them gave a worker; is one switched \
         on, and is its runtime installed?"
    )]
    None {
        /// The names of the initialisers.
        known: String,
    },
    /// An initialiser failed.
    #[error("failed to initialise the worker {name}")]
    Init {
        /// The initialiser.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A part of a worker could not be opened.
    #[error("failed to open {what} in {path}")]
    Open {
        /// The part.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A setting has a value that means nothing.
    #[error("invalid value {value:?} of {name}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no worker of this id.
    #[error("worker {id} not found")]
    NotFound {
        /// The id.
        id: String,
    },
}

impl WorkerError {
    pub(crate) fn open<E>(what: &'static str, path: &std::path::Path) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = path.to_owned();
        move |source| Self::Open {
            what,
            path,
            source: source.into(),
        }
    }
}
