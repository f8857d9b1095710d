//! A typed client of BuildKit's API: calls of the Control service, and solves with the session
//! that they need beside them.
//!
//! A [`Solve`] says what to build and what the daemon may ask for meanwhile
//! ([`Services`](cooper_session::serve::Services)): directories, credentials
//! ([`DockerConfig`]), secrets ([`Secrets`]), where results go. Errors carry the details that
//! the daemon sent, among them the lines of source that are at fault ([`Source`]).
//!
//! This crate refuses to know what is shown to a user: progress is handed on as it comes.
//!
//! ```no_run
//! use cooper_client::{Client, Solve};
//! use cooper_session::Tree;
//!
//! # async fn build() -> Result<(), cooper_client::ClientError> {
//! let client = Client::connect("unix:///run/buildkit/buildkitd.sock").await?;
//! let mut solve = Solve::default();
//! solve.request.frontend = "dockerfile.v0".into();
//! for name in ["context", "dockerfile"] {
//!     solve.services.dirs.insert(name.into(), Tree::new(".").owned_by_root());
//! }
//! let response = client.solve(solve, &mut |status| println!("{status:?}")).await?;
//! println!("{:?}", response.exporter_response);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod authority;
mod client;
mod credentials;
mod error;
mod helper;
pub mod layout;
mod secrets;
mod solve;
mod source;
mod tls;
mod token;

pub use client::Client;
pub use credentials::{DockerConfig, RegistryTls};
pub use error::ClientError;
pub use secrets::{SecretSource, Secrets};
pub use solve::Solve;
pub use source::Source;
pub use tls::Tls;
