//! The build daemon as a library: flags and configuration by BuildKit's names, and everything
//! put together. `cooperd` is a few lines around it, and `cooper build` without a daemon runs
//! the very same in its own process.
//!
//! ```no_run
//! use cooper_daemon::{Config, Daemon};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), cooper_daemon::DaemonError> {
//! let config = Config { root: "/tmp/cooper".into(), ..Config::default() };
//! let daemon = Daemon::assemble(&config).await?;
//! let (client, server) = tokio::io::duplex(64 << 10);
//! let connections = tokio_stream::once(Ok::<_, std::io::Error>(server));
//! daemon.serve(connections, CancellationToken::new()).await?;
//! daemon.close().await;
//! # drop(client);
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order: `flags`, `config`, `assemble`, `listen`, `debug` (what is shown to
//! people who look into the cache), `logging`, `notify`, `places` (where things are kept),
//! `workers` (the workers that register themselves).
//!
//! It refuses to know how anything is built and what goes over the wire.
#![forbid(unsafe_code)]

mod assemble;
pub mod config;
pub mod debug;
mod error;
mod flags;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod listen;
pub mod logging;
pub mod notify;
mod places;
mod workers;

pub use assemble::Daemon;
pub use config::Config;
pub use cooper_executor_runc::enter_if_asked;
pub use error::DaemonError;
pub use flags::Flags;
pub use places::Places;

/// The version as `--version` prints it: name, package, version and revision.
pub fn version() -> String {
    let version = assemble::version();
    let (package, number) = (version.package, version.version);
    format!("cooperd {package} {number} {}", version.revision)
}
