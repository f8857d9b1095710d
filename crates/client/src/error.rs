//! What can go wrong between a client and a daemon.

use cooper_session::SessionError;
use tonic::{Code, Status};

use crate::Source;

/// A failure of a call to the daemon.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is none that this client can dial.
    #[error("invalid address {address:?}: want unix://PATH or tcp://HOST:PORT")]
    Address {
        /// The address.
        address: String,
    },
    /// Nobody answers there.
    #[error("failed to connect to {address}")]
    Connect {
        /// The address.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The daemon answered a call with an error.
    #[error("{attempt}: {}", text(status))]
    Call {
        /// What was tried, in BuildKit's words (`failed to solve`).
        attempt: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// The session could not be opened.
    #[error("failed to run the session")]
    Session(#[from] SessionError),
    /// The caller gave up.
    #[error("failed to solve: Canceled: context canceled")]
    Cancelled,
    /// The index of a layout that a result was written to cannot be written.
    #[error("failed to write {}", path.display())]
    Layout {
        /// The index.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A configuration file cannot be read.
    #[error("failed to read {path}")]
    Config {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl ClientError {
    /// The lines of source files that are at fault, as far as the daemon said.
    pub fn sources(&self) -> Vec<Source> {
        match self {
            Self::Call { status, .. } => crate::source::of(status),
            _ => Vec::new(),
        }
    }

    /// The daemon's status, if this is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Call { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether the build was given up, here or in the daemon.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Call { status, .. } => status.code() == Code::Cancelled,
            _ => false,
        }
    }

    pub(crate) fn call(attempt: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self::Call {
            attempt,
            status: Box::new(status),
        }
    }
}

/// As Go's clients print it: the code first, unless it says nothing.
fn text(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok | Code::Unknown => return status.message().to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("{code}: {}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_those_of_go() {
        let read = |status| ClientError::call("failed to solve")(status).to_string();
        let plain = read(Status::unknown("exit code: 1"));
        assert_eq!(plain, "failed to solve: exit code: 1");
        let coded = read(Status::cancelled("context canceled"));
        assert_eq!(coded, "failed to solve: Canceled: context canceled");
        let coded = read(Status::not_found("x"));
        assert_eq!(coded, "failed to solve: NotFound: x");
    }
}
