//! Why the daemon does not start.

use std::path::PathBuf;

use cooper_worker::WorkerError;

/// A failure to start or to serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The configuration file cannot be read.
    #[error("failed to read the configuration file {path}")]
    ReadConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file says what nobody understands.
    #[error("failed to parse the configuration file {path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        reason: String,
    },
    /// A flag has a value that means nothing.
    #[error("invalid value {value:?} for --{flag}: {reason}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// Why.
        reason: String,
    },
    /// A setting that cannot be left without effect.
    #[error("{setting} is not supported: {reason}")]
    Unsupported {
        /// The setting.
        setting: String,
        /// What would be wrong if it were ignored.
        reason: String,
    },
    /// A right that there is not.
    #[error("invalid entitlement : {name}")]
    Entitlement {
        /// Its name.
        name: String,
    },
    /// Another daemon works on the same root.
    #[error("could not lock {path}, another instance running?")]
    Locked {
        /// The lock.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The root folder cannot be used.
    #[error("failed to create {path}")]
    Root {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("failed to listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// An address is of no form that is known.
    #[error("invalid address {address}: {reason}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificates of the server cannot be used.
    #[error("{attempt}: {path}")]
    Tls {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// There is no worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Serving ended with an error.
    #[error("failed to serve")]
    Serve {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
