//! Why a frontend failed.

use std::error::Error as StdError;
use std::sync::Arc;

use cooper_proto::pb;

type BoxError = Box<dyn StdError + Send + Sync>;

/// A place in a source file that an error is about.
#[derive(Clone, Debug)]
pub struct SourceLocation {
    /// The file.
    pub info: Arc<pb::SourceInfo>,
    /// The lines; empty when the whole file is meant.
    pub ranges: Vec<pb::Range>,
}

/// Why a frontend failed. `control` turns the variants into the typed details that clients know
/// (`errdefs.Source`, `errdefs.Subrequest`, `errdefs.FrontendCap`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// A sentence for the user: the input is at fault.
    #[error("{message}")]
    Invalid {
        /// What a user reads.
        message: String,
        /// The place in the user's text.
        location: Option<Box<SourceLocation>>,
        /// What it came from.
        #[source]
        source: Option<BoxError>,
    },
    /// A solve or a look-up by the bridge failed.
    #[error("{context}")]
    Bridge {
        /// What was attempted.
        context: String,
        /// The place in the user's text that asked for it.
        location: Option<Box<SourceLocation>>,
        /// The engine's error.
        #[source]
        source: BoxError,
    },
    /// The client asked for a request that this frontend does not answer.
    #[error("unsupported request {name}")]
    UnsupportedSubrequest {
        /// The request.
        name: String,
    },
    /// The client or the input needs a feature that this frontend lacks.
    #[error("unsupported frontend capability {name}")]
    UnsupportedCapability {
        /// The capability.
        name: String,
    },
    /// The path is not in the reference.
    #[error("open {path}: no such file or directory")]
    NotFound {
        /// The path that was asked for.
        path: String,
    },
    /// The build was given up.
    #[error("build was canceled")]
    Cancelled,
}

impl FrontendError {
    /// An [`FrontendError::Invalid`] without a place.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
            location: None,
            source: None,
        }
    }

    /// A [`FrontendError::Bridge`] without a place.
    pub fn bridge(context: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Bridge {
            context: context.into(),
            location: None,
            source: source.into(),
        }
    }

    /// The place in the user's text, if one is known.
    pub fn location(&self) -> Option<&SourceLocation> {
        match self {
            Self::Invalid { location, .. } | Self::Bridge { location, .. } => location.as_deref(),
            _ => None,
        }
    }

    /// Adds the place in the user's text, unless a more precise one is known already.
    #[must_use]
    pub fn at(mut self, place: SourceLocation) -> Self {
        match &mut self {
            Self::Invalid { location, .. } | Self::Bridge { location, .. } => {
                location.get_or_insert_with(|| Box::new(place));
            }
            _ => {}
        }
        self
    }
}
