//! What can go wrong with the history.

use std::path::PathBuf;

use cooper_content::ContentError;
use cooper_store::StoreError;

/// A failure of the history.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// There is no record of this build. The wording is BuildKit's.
    #[error("failed to retrieve ref {reference}: file does not exist")]
    NotFound {
        /// The build.
        reference: String,
    },
    /// It is not known which boot of the machine this is.
    #[error("failed to open the history in {}", path.display())]
    Boot {
        /// Its folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The records cannot be read or written.
    #[error("the history of builds")]
    Store(#[from] StoreError),
    /// A blob cannot be read or written.
    #[error("a blob of the history of builds")]
    Content(#[from] ContentError),
    /// A log is not what was written.
    #[error("the log of build {reference} is damaged")]
    Log {
        /// The build.
        reference: String,
    },
    /// A file cannot be read.
    #[error("failed to read the log of build {reference}")]
    Read {
        /// The build.
        reference: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing is kept any more, or nothing is kept at all.
    #[error("the history of builds is closed")]
    Closed,
}
