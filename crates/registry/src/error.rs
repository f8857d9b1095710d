//! What can go wrong with a registry.

use std::error::Error;
use std::path::PathBuf;

use cooper_content::ContentError;
use oci_spec::image::Digest;

/// A failure of something asked of a registry. URLs in it carry no secrets.
///
/// The wordings are those of containerd's resolver, which users of BuildKit know; `Display` does
/// not print the source, so a whole message is the chain joined by `: `.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry has no such image.
    #[error("{reference}: not found")]
    NotFound {
        /// The image.
        reference: String,
    },
    /// The registry has no such blob or manifest.
    #[error("could not fetch content descriptor {digest} ({media_type}) from remote: not found")]
    ContentNotFound {
        /// The image that names it.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The registry does not let this user read the image, or it does not exist: registries do
    /// not tell.
    #[error("pull access denied, repository does not exist or may require authorization")]
    PullDenied {
        /// The image.
        reference: String,
        /// What the registry said.
        source: Box<RegistryError>,
    },
    /// The registry does not let this user write the image.
    #[error("push access denied, repository does not exist or may require authorization")]
    PushDenied {
        /// The image.
        reference: String,
        /// What the registry said.
        source: Box<RegistryError>,
    },
    /// The registry did not take the credentials or the token.
    #[error("server message: {message}: authorization failed")]
    Unauthorized {
        /// The registry's host.
        host: String,
        /// The registry's word for it: `insufficient_scope`, `invalid_token`.
        message: String,
    },
    /// No token or credentials could be got for a host.
    #[error("failed to authorize")]
    Authorize {
        /// The registry's host.
        host: String,
        /// Why.
        source: Box<RegistryError>,
    },
    /// The token server refused, or could not be asked.
    #[error("failed to fetch {kind} token")]
    Token {
        /// `anonymous` or `oauth`, as BuildKit says.
        kind: &'static str,
        /// Why.
        source: Box<RegistryError>,
    },
    /// The client's session was asked for a token or credentials and could not answer; the
    /// message is the client's.
    #[error(transparent)]
    Session(#[from] cooper_session::SessionError),
    /// The server answered with a status that is no answer to the question.
    #[error("unexpected status from {method} request to {url}: {status}{detail}")]
    Status {
        /// The method.
        method: String,
        /// Where the request went, without secrets.
        url: String,
        /// The status, `500 Internal Server Error`.
        status: http::StatusCode,
        /// What the server's body says of it, `: code: message`, or nothing.
        detail: String,
    },
    /// The request did not reach the server, or the connection was lost.
    #[error("failed to do request: {method} \"{url}\"")]
    Request {
        /// The method, as Go writes it: `Head`.
        method: String,
        /// Where the request went, without secrets.
        url: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server answered with something that is not what the specification asks for.
    #[error("invalid answer from {url}: {problem}")]
    Answer {
        /// Where the request went, without secrets.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server sent other bytes than the digest names.
    #[error(
        "unexpected commit digest {found}, expected {expected}: failed precondition \
         (content of {reference} from {host})"
    )]
    WrongDigest {
        /// The image.
        reference: String,
        /// The host that sent the bytes.
        host: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The server ended a body before its end, and did so again.
    #[error("{digest} of {reference}: got {found} bytes, expected {expected}: unexpected EOF")]
    Truncated {
        /// The image.
        reference: String,
        /// What was fetched.
        digest: Digest,
        /// How many bytes came.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// A manifest is larger than is taken.
    #[error("rejecting {size} byte manifest for {reference}")]
    TooLarge {
        /// The image.
        reference: String,
        /// Its size in bytes, as far as it is known.
        size: u64,
    },
    /// A file of the configuration of TLS could not be read or understood.
    #[error("failed to read {path} for the registry {host}")]
    Tls {
        /// The registry's host.
        host: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// No HTTP client could be made.
    #[error("failed to set up TLS for the registry {host}")]
    Client {
        /// The registry's host.
        host: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The blob that was to be pushed could not be read.
    #[error("read {digest} to push it")]
    Content {
        /// The blob.
        digest: Digest,
        /// Why.
        source: ContentError,
    },
}

impl RegistryError {
    /// Whether the registry said that the image or the blob is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::ContentNotFound { .. })
    }

    /// Whether the registry refused for want of credentials.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::PullDenied { .. } | Self::PushDenied { .. } | Self::Unauthorized { .. } => true,
            Self::Status { status, .. } => {
                *status == http::StatusCode::UNAUTHORIZED || *status == http::StatusCode::FORBIDDEN
            }
            Self::Authorize { source, .. } | Self::Token { source, .. } => source.is_denied(),
            _ => false,
        }
    }

    /// The whole chain in one line, as clients show it.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}
