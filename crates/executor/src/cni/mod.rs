//! Networks of containers through plug-ins of the Container Network Interface
//! (containernetworking/cni, `SPEC.md`, version 1.0): a namespace is made here, plug-ins put
//! interfaces into it, and a runtime lets the container join it.

mod config;
mod lend;
mod plugin;
mod pool;

pub use config::CniConfig;
pub use lend::Networks;
pub use pool::{Namespace, NetworkPool};

/// A failure to set a network up or to take it down.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CniError {
    /// The list of plug-ins cannot be read.
    #[error("cannot read the network configuration {path}: {reason}")]
    Config {
        /// Its file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A plug-in is not there.
    #[error("the network plug-in {name} is not in {dir}")]
    NoPlugin {
        /// Its name.
        name: String,
        /// Where it was looked for.
        dir: String,
    },
    /// A plug-in could not do what it was asked for.
    #[error("network plug-in {name} failed to {command}: {message}")]
    Plugin {
        /// Its name.
        name: String,
        /// `ADD` or `DEL`.
        command: &'static str,
        /// What it says.
        message: String,
    },
    /// No more networks are made.
    #[error("the networks are closed")]
    Closed,
    /// A namespace could not be made, kept or removed.
    #[error("{attempt} {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl CniError {
    fn io(attempt: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io {
            attempt,
            path,
            source,
        }
    }
}
