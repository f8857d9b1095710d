//! What can go wrong between the two ends of a session.

use std::path::PathBuf;

use tonic::{Code, Status};

/// A failure of a session or of something asked over it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The client did not come in time, or left.
    #[error("no active session for {id}: context deadline exceeded")]
    NoSession {
        /// The session's id.
        id: String,
    },
    /// The group names no session at all.
    #[error("no active sessions")]
    NoSessions,
    /// A client brings the id of a session that is open.
    #[error("session {id} already exists")]
    Exists {
        /// The session's id.
        id: String,
    },
    /// The headers that open a session lack its id.
    #[error("session has no id")]
    NoId,
    /// The client did not say that it offers this method.
    #[error("method {method} not supported by the client")]
    Unsupported {
        /// The method, `/service/Method`.
        method: String,
    },
    /// The client offers no folders.
    #[error("no local sources enabled")]
    NoLocalSources,
    /// The connection could not be made.
    #[error("failed to create grpc client")]
    Connect {
        /// Why.
        source: tonic::transport::Error,
    },
    /// The other end answered with an error; the message is the other end's.
    #[error("{}", status.message())]
    Call {
        /// The method, `/service/Method`.
        method: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// The other end broke the protocol, or asked for what it must not.
    #[error("{0}")]
    Protocol(String),
    /// A pattern cannot be understood.
    #[error("{pattern}: syntax error in pattern")]
    Pattern {
        /// The pattern.
        pattern: String,
    },
    /// The connection was lost while something went over it.
    #[error("session closed")]
    Closed,
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

impl SessionError {
    /// Whether the client answered that it has no such thing.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// Whether the client answered that it has what was sent already, and wants no more of it.
    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }

    /// Whether the client answered that it does not know the method, or never offered it.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Unsupported { .. }) || self.code() == Some(Code::Unimplemented)
    }

    /// The client's status, if this is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Call { status, .. } => Some(status),
            _ => None,
        }
    }

    fn code(&self) -> Option<Code> {
        self.status().map(Status::code)
    }

    pub(crate) fn call(method: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self::Call {
            method,
            status: Box::new(status),
        }
    }

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
}
