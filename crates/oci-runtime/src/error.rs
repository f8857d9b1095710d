//! What can go wrong before a container's process is there, and with the helper.

use std::io;
use std::path::PathBuf;

/// A failure of the runtime. That a container's own process cannot be started is none: it is
/// told as an [`crate::Event`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The configuration asks for something that this runtime does not do.
    #[error("the built-in runtime does not support {what}")]
    Unsupported {
        /// What it is, in the specification's words.
        what: String,
    },
    /// The configuration lacks something.
    #[error("the configuration has no {what}")]
    Missing {
        /// What it lacks.
        what: &'static str,
    },
    /// The kernel lacks something that the runtime is built on.
    #[error("the built-in runtime needs Linux 5.12: the kernel has no {call}")]
    Kernel {
        /// The system call.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The process does not hand itself over to the helper when it is asked to.
    #[error("main does not begin with cooper_oci_runtime::enter_if_asked()")]
    NoHelper,
    /// The helper could not be started.
    #[error("start the runtime's helper")]
    Start {
        /// Why.
        source: io::Error,
    },
    /// The helper has gone away or does not answer; the next container gets a new one.
    #[error("the runtime's helper has ended unexpectedly")]
    Lost {
        /// How that showed.
        source: io::Error,
    },
    /// The helper could not do what it was asked for.
    #[error("{message}")]
    Helper {
        /// The helper's message.
        message: String,
    },
    /// A control group could not be made or set up.
    #[error("{attempt} {path}")]
    Group {
        /// What was tried.
        attempt: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl RuntimeError {
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }

    pub(crate) fn group(
        attempt: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Group {
            attempt,
            path,
            source,
        }
    }
}
