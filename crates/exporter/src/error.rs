//! What can go wrong while a result leaves the builder.

use std::path::PathBuf;

use cooper_cache::CacheError;
use cooper_content::ContentError;
use cooper_layer::LayerError;
use cooper_registry::{ReferenceError, RegistryError};
use cooper_session::SessionError;

/// A failure of an exporter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// There is no exporter of this kind.
    #[error("exporter {kind:?} could not be found")]
    Unknown {
        /// The kind.
        kind: String,
    },
    /// An attribute should be true or false.
    #[error(
        "non-bool value specified for {key}: strconv.ParseBool: parsing {value:?}: invalid syntax"
    )]
    NotBool {
        /// The attribute.
        key: String,
        /// Its value.
        value: String,
    },
    /// An attribute should be a number.
    #[error("non-integer value {value} specified for {key}")]
    NotInteger {
        /// The attribute.
        key: String,
        /// Its value.
        value: String,
    },
    /// Layers cannot be compressed this way.
    #[error("unsupported compression type {kind}")]
    Compression {
        /// The name of the compression.
        kind: String,
    },
    /// Two attributes cannot be had together.
    #[error("exporter option {first:?} conflicts with {second:?}")]
    Conflict {
        /// The one.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// Files are to be put into the client's folder in a way that is not known.
    #[error("invalid local exporter mode {mode:?}")]
    Mode {
        /// The way.
        mode: String,
    },
    /// The time of SOURCE_DATE_EPOCH is not a number of seconds.
    #[error("invalid SOURCE_DATE_EPOCH: {value:?}")]
    Epoch {
        /// The value.
        value: String,
    },
    /// An annotation cannot be used as it is.
    #[error("{reason}")]
    Annotation {
        /// Why, in BuildKit's words.
        reason: String,
    },
    /// The result and its metadata do not fit each other, or do not fit the exporter.
    #[error("{reason}")]
    Result {
        /// Why, in BuildKit's words.
        reason: String,
    },
    /// The image's configuration cannot be read.
    #[error("invalid image config for export: {reason}")]
    Config {
        /// Why.
        reason: String,
    },
    /// A name is not an image's.
    #[error("failed to parse {name}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: ReferenceError,
    },
    /// A push by digest names a tag.
    #[error("can't push tagged ref {name} by digest")]
    TaggedByDigest {
        /// The name.
        name: String,
    },
    /// A push has no name to go to.
    #[error("cannot push the image: it has no name")]
    NoName,
    /// The image did not reach the registry.
    #[error("failed to push {name}")]
    Push {
        /// The name.
        name: String,
        /// Why.
        source: Box<RegistryError>,
    },
    /// The layers of a state could not be made.
    #[error("failed to export layers")]
    Layers(#[source] Box<LayerError>),
    /// A layer of the image could not be fetched.
    #[error("failed to fetch layer {digest}")]
    Fetch {
        /// The layer's blob.
        digest: String,
        /// Why.
        source: Box<LayerError>,
    },
    /// A state of the cache could not be used.
    #[error("failed to read the result")]
    Cache(#[source] Box<CacheError>),
    /// A blob could not be read or written.
    #[error("{attempt}")]
    Content {
        /// What was tried.
        attempt: String,
        /// Why it failed.
        source: Box<ContentError>,
    },
    /// The client could not take what was sent to it.
    #[error("failed to send to the client")]
    Session(#[source] Box<SessionError>),
    /// Two platforms have the same file, and both go into one folder.
    #[error(
        "cannot overwrite {path} from {first} with {second} when split option is disabled",
        path = path.display()
    )]
    Overwrite {
        /// The file.
        path: PathBuf,
        /// The platform that has it first.
        first: String,
        /// The platform that has it as well.
        second: String,
    },
    /// A file could not be read or written.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The work on a blocking thread did not come to its end.
    #[error("{attempt} was interrupted")]
    Interrupted {
        /// What was under way.
        attempt: &'static str,
    },
}

impl ExportError {
    pub(crate) fn io(
        attempt: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            attempt,
            path,
            source,
        }
    }

    pub(crate) fn content(attempt: impl Into<String>) -> impl FnOnce(ContentError) -> Self {
        let attempt = attempt.into();
        move |source| Self::Content {
            attempt,
            source: Box::new(source),
        }
    }

    pub(crate) fn cache(source: CacheError) -> Self {
        Self::Cache(Box::new(source))
    }

    pub(crate) fn session(source: SessionError) -> Self {
        Self::Session(Box::new(source))
    }

    pub(crate) fn layers(source: LayerError) -> Self {
        Self::Layers(Box::new(source))
    }

    pub(crate) fn result(reason: impl Into<String>) -> Self {
        Self::Result {
            reason: reason.into(),
        }
    }
}
