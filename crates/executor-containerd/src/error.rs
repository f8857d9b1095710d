//! What can go wrong between this process and containerd.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use cooper_executor::ExecError;
use tonic::{Code, Status};

/// A request to containerd that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerdError {
    /// The name cannot be a namespace of containerd.
    #[error("invalid containerd namespace {namespace:?}")]
    Namespace {
        /// The name.
        namespace: String,
    },
    /// Nobody answers, or the connection broke.
    #[error("containerd at {address} is unavailable: {message}")]
    Unavailable {
        /// Its socket.
        address: PathBuf,
        /// What happened, with its causes.
        message: String,
    },
    /// It answered that it cannot.
    #[error("{message}")]
    Refused {
        /// In what way.
        code: Code,
        /// Its message.
        message: String,
    },
}

impl ContainerdError {
    /// What `status` means, asked of the containerd at `address`.
    pub(crate) fn new(address: &Path, status: Status) -> Self {
        // An error that has a cause was made on this side.
        if status.code() == Code::Unavailable || status.source().is_some() {
            let mut message = status.message().to_owned();
            let mut cause = status.source();
            while let Some(source) = cause {
                let text = source.to_string();
                if !message.ends_with(&text) {
                    message = format!("{message}: {text}");
                }
                cause = source.source();
            }
            return Self::Unavailable {
                address: address.to_owned(),
                message,
            };
        }
        Self::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }

    /// Whether containerd knows no such thing.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// What the OCI runtime itself complained about: then it was asked and could not.
    pub(crate) fn complaint(&self) -> Option<&str> {
        let Self::Refused { message, .. } = self else {
            return None;
        };
        let (_, complaint) = message.split_once("OCI runtime ")?;
        let (_, complaint) = complaint.split_once(" failed: ")?;
        // Go's name of the code that it did not give.
        Some(complaint.strip_suffix(": unknown").unwrap_or(complaint))
    }

    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl From<ContainerdError> for ExecError {
    fn from(error: ContainerdError) -> Self {
        Self::Runtime {
            message: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_of_the_runtime_is_told_apart() {
        let refused = |message: &str| ContainerdError::Refused {
            code: Code::Unknown,
            message: message.into(),
        };
        let error = refused(
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to \
             start container process: exec: \"/x\": stat /x: no such file or directory: unknown",
        );
        assert_eq!(
            error.complaint(),
            Some(
                "runc create failed: unable to start container process: exec: \"/x\": stat /x: no \
                 such file or directory"
            )
        );
        assert_eq!(refused("failed to start shim: not found").complaint(), None);
    }
}
