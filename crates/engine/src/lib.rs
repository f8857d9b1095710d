//! One solve from a client's request to its response: jobs, the bridge that frontends build
//! through, and what users see of it.
//!
//! [`Engine::solve`] takes a definition, a frontend's name, or neither: then the client is the
//! frontend, and builds through a [`Gateway`] until it returns a result. The result is built,
//! exporters take it out, and nothing stays pinned. [`Engine::status`] shows a build to any
//! number of listeners, before it begins and for a while after its end, and
//! [`Engine::history`] has what is kept of it.
//!
//! All builds share one solver for each worker: what two of them need is made once.
//!
//! This crate refuses to know sockets, gRPC, and how anything is cached or run.
//!
//! ```no_run
//! use cooper_engine::{Engine, EngineConfig, SolveRequest};
//! use cooper_session::Manager;
//! use cooper_worker::{Context, Controller};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let workers = Controller::start(&Context::default()).await?;
//! let engine = Engine::new(EngineConfig::new(workers, Manager::new()));
//! let request = SolveRequest { id: "one".into(), ..SolveRequest::default() };
//! let response = engine.solve(request).await?;
//! println!("{:?}", response.exporter_response);
//! engine.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order: `engine`, `request`, `build` and `reference` (one build and what it
//! promises), `failure`
//! (a step that failed), `bridge` and `meta`, `gateway`, `container` and `process` (what runs for
//! a client), `image_frontend` (frontends that run as containers), `export`, `jobs` and `events` (who listens).
#![forbid(unsafe_code)]

mod bridge;
mod build;
pub mod caps;
mod container;
mod engine;
mod entitlements;
mod error;
mod events;
mod export;
mod failure;
mod files;
mod gateway;
mod image_frontend;
mod jobs;
mod meta;
mod process;
mod reference;
mod request;
mod sent;
mod shown;

pub use engine::{Engine, EngineConfig};
pub use error::{EngineError, EvaluateError};
pub use events::Events;
pub use failure::StepFailure;
pub use gateway::Gateway;
pub use image_frontend::{GatewayServer, GatewayStream, ImageFrontends};
pub use request::{CacheExport, ExporterRequest, SolveRequest, SolveResponse};
