//! What can go wrong with a source.

use std::sync::Arc;

use cooper_cache::CacheError;
use cooper_content::{ContentError, Digest};
use cooper_registry::{Reference, ReferenceError, RegistryError};
use cooper_session::SessionError;

use crate::git::GitFailure;

/// A failure of a source. Cheap to clone: several builds may wait for one answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// An identifier has no scheme.
    #[error("failed to parse {identifier}: invalid")]
    Identifier {
        /// The identifier.
        identifier: String,
    },
    /// Nobody answers to a scheme.
    #[error("unknown schema {scheme}: not found")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// An attribute has a value of no use.
    #[error("invalid value {value:?} for {name}: {reason}")]
    Attribute {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A reference cannot be understood.
    #[error("failed to parse source reference {reference}")]
    Reference {
        /// The reference.
        reference: String,
        /// What is wrong with it.
        source: Arc<ReferenceError>,
    },
    /// An image of a layout is named without a digest.
    #[error("oci-layout reference {reference} does not have a digest")]
    NoDigest {
        /// The reference.
        reference: String,
    },
    /// A registry did not give what was asked of it.
    #[error(transparent)]
    Registry(Arc<RegistryError>),
    /// An index has no image for the platform.
    #[error("no match for platform in manifest {digest}: not found")]
    NoPlatform {
        /// The index.
        digest: Digest,
        /// The platform, `os/arch`.
        platform: String,
    },
    /// A manifest or a configuration cannot be understood.
    #[error("invalid {what} {digest}: {reason}")]
    Malformed {
        /// `manifest`, `index`, `image config`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// The manifest is not the one that was pinned.
    #[error("image digest {found} for {reference} does not match expected checksum {expected}")]
    ImageChecksum {
        /// The image.
        reference: String,
        /// The digest that it has.
        found: Box<Digest>,
        /// The digest that it should have.
        expected: Box<Digest>,
    },
    /// More layers are asked for than the image has.
    #[error("layer limit {limit} is greater than the number of layers in the image {count}")]
    LayerLimit {
        /// How many are asked for.
        limit: usize,
        /// How many there are.
        count: usize,
    },
    /// Files of the client are wanted and there is no client.
    #[error("could not access local files without session")]
    NoSession,
    /// The client could not be asked.
    #[error(transparent)]
    Session(Arc<SessionError>),
    /// The cache could not keep or give it.
    #[error(transparent)]
    Cache(Arc<CacheError>),
    /// A blob could not be read or stored.
    #[error(transparent)]
    Content(Arc<ContentError>),
    /// A server could not be reached or broke off.
    #[error("{attempt} {url}")]
    Http {
        /// What was tried.
        attempt: &'static str,
        /// The address, without credentials.
        url: String,
        /// Why it failed.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The client has no secret of the name that a download asks for.
    #[error("failed to retrieve HTTP auth secret {id}: not found")]
    Secret {
        /// The name.
        id: String,
    },
    /// A server did not give what was asked of it.
    #[error("invalid response status {status}")]
    HttpStatus {
        /// The address, without credentials.
        url: String,
        /// The status.
        status: u16,
    },
    /// A download is not the one that was pinned.
    #[error("digest mismatch for {url}: {found} (expected: {expected})")]
    HttpChecksum {
        /// The address, without credentials.
        url: String,
        /// The digest that it has.
        found: Box<Digest>,
        /// The digest that it should have.
        expected: Box<Digest>,
    },
    /// git did not do what it was asked.
    #[error("{attempt}")]
    Git {
        /// What was tried, with the address without credentials.
        attempt: String,
        /// What git said.
        source: Arc<GitFailure>,
    },
    /// A repository has no branch that a clone would check out.
    #[error("could not find default branch for repository: {url}")]
    GitNoBranch {
        /// The address, without credentials.
        url: String,
    },
    /// A repository has no branch, tag or commit of a name.
    #[error("repository does not contain ref {reference}, output: {output:?}")]
    GitNoReference {
        /// The name.
        reference: String,
        /// What the server said of it.
        output: String,
    },
    /// A server named something that is not a commit.
    #[error("invalid commit sha {object:?}")]
    GitNoCommit {
        /// What it named.
        object: String,
    },
    /// A pin is not the beginning of the name of a commit.
    #[error("invalid checksum {checksum} for Git URL, expected hex commit hash")]
    GitChecksum {
        /// The pin.
        checksum: String,
    },
    /// A commit is not the one that was pinned.
    #[error("expected checksum to match {expected}, got {found}")]
    GitMismatch {
        /// What it should begin with.
        expected: String,
        /// What there is.
        found: String,
    },
    /// A name stands for another commit than a moment ago, and that one is gone.
    #[error(
        "fetched ref {reference} does not match expected commit {commit} and commit can not be found in the repository"
    )]
    GitMoved {
        /// The name.
        reference: String,
        /// The commit that it stood for.
        commit: String,
    },
    /// A commit does not have the folder that is wanted of it.
    #[error("invalid subdir /{subdir}")]
    GitSubdir {
        /// The folder.
        subdir: String,
        /// Why it cannot be had.
        source: Arc<std::io::Error>,
    },
    /// The client forwards no ssh agent.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoSsh {
        /// The name of the agent.
        id: String,
    },
    /// A file could not be read or written.
    #[error("{attempt} {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why it failed.
        source: Arc<std::io::Error>,
    },
}

macro_rules! from {
    ($($variant:ident($kind:ty)),*) => {$(
        impl From<$kind> for SourceError {
            fn from(error: $kind) -> Self {
                Self::$variant(Arc::new(error))
            }
        }
    )*};
}

from!(
    Registry(RegistryError),
    Session(SessionError),
    Cache(CacheError),
    Content(ContentError)
);

impl SourceError {
    /// Reads the name of an image.
    pub(crate) fn reference(text: &str) -> Result<Reference, Self> {
        Reference::parse(text).map_err(|source| Self::Reference {
            reference: text.to_owned(),
            source: Arc::new(source),
        })
    }

    /// Whether what was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NoPlatform { .. } | Self::UnknownScheme { .. } | Self::GitNoReference { .. } => {
                true
            }
            Self::Registry(error) => error.is_not_found(),
            Self::Session(error) => error.is_not_found(),
            _ => false,
        }
    }
}
