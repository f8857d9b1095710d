//! The gRPC services of the daemon: `Control`, the gateway (`LLBBridge`) on the same socket, and
//! health. The one place where errors become statuses, with the typed details that BuildKit's
//! clients read.
//!
//! [`serve`] takes connections of any kind, and answers on them until it is told to stop.
//!
//! This crate refuses to know how anything is built, and where connections come from.
//!
//! ```no_run
//! # async fn example(engine: std::sync::Arc<cooper_engine::Engine>) -> Result<(), cooper_control::ServeError> {
//! use cooper_control::{Version, serve};
//! use tokio_util::sync::CancellationToken;
//!
//! let (client, server) = tokio::io::duplex(64 << 10);
//! let connections = tokio_stream::once(Ok::<_, std::io::Error>(server));
//! serve(engine, Version::default(), connections, CancellationToken::new()).await?;
//! # drop(client);
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order: `serve`, `service` (Control), `session`, `bridge` (LLBBridge),
//! `history`, `disk`, `content` (blobs), `convert` (to the wire and from it), `status` (errors).
#![forbid(unsafe_code)]

mod bridge;
mod content;
mod convert;
mod disk;
mod history;
mod serve;
mod service;
mod session;
mod status;

pub use serve::{GatewayOverStdio, ServeError, serve};
pub use service::Version;
pub use status::describe;
