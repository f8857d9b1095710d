//! Why something was not built.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use oci_spec::image::Digest;

type BoxError = Box<dyn StdError + Send + Sync>;

/// What an operation failed with.
#[derive(Debug)]
pub struct OpError(Arc<dyn StdError + Send + Sync>);

impl OpError {
    /// Wraps any error.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// The error.
    pub fn inner(&self) -> &Arc<dyn StdError + Send + Sync> {
        &self.0
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: Into<BoxError>> From<E> for OpError {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// Why a result could not be had. Cheap to clone: several jobs may wait for one vertex.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// An operation failed. It reads as what the operation failed with: users know the vertex
    /// by its place in their text.
    #[error("{source}")]
    Op {
        /// The vertex.
        vertex: Digest,
        /// What a user reads.
        name: String,
        /// Why.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// An operation has fewer outputs than something takes from it.
    #[error("{name} has {count} outputs, number {index} was asked for")]
    NoOutput {
        /// What a user reads.
        name: String,
        /// The output that was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A vertex takes an input that the graph does not have.
    #[error("the graph has no vertex {digest}")]
    MissingVertex {
        /// The vertex that is not there.
        digest: Digest,
    },
    /// The solver lost its way; a mistake of this crate. Its state is in the daemon's log.
    #[error("the solver waits for nothing")]
    Stuck,
    /// The job ended, or the solver did.
    #[error("build was canceled")]
    Cancelled,
}

/// An error with all that it came from: `a: b: c`, as Go programs write it.
pub fn error_chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let inner = error.to_string();
        // Errors that print what they came from do not get it twice.
        if !text.ends_with(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        next = error.source();
    }
    text
}
