//! The seam between what turns a user's text into a build graph (a [`Frontend`]) and the engine
//! that builds graphs (behind a [`Bridge`]).
//!
//! A frontend gets options and inputs, asks the bridge for solves, for image configurations and
//! for files of results, and answers with a [`FrontendResult`]: one reference, or one for each
//! platform, and metadata such as the image configuration.
//!
//! This crate refuses to know any frontend, and how anything is built.
//!
//! ```
//! use std::{collections::BTreeMap, sync::Arc};
//! use cooper_frontend::{Bridge, Frontend, FrontendError, FrontendResult, Inputs, SolveRequest};
//!
//! /// Builds the definition that it is given as its input `main`.
//! struct Echo;
//!
//! #[async_trait::async_trait]
//! impl Frontend for Echo {
//!     fn name(&self) -> &str {
//!         "echo"
//!     }
//!     async fn solve(
//!         &self,
//!         bridge: Arc<dyn Bridge>,
//!         _opts: BTreeMap<String, String>,
//!         mut inputs: Inputs,
//!     ) -> Result<FrontendResult, FrontendError> {
//!         let main = inputs.remove("main");
//!         bridge.solve(SolveRequest { definition: main, ..Default::default() }).await
//!     }
//! }
//! assert_eq!(Echo.name(), "echo");
//! ```
#![forbid(unsafe_code)]

mod bridge;
mod error;
mod result;

pub use bridge::{
    Bridge, BuildOpts, CacheImport, FileRange, ImageOptions, Inputs, OciLayout, ResolvedHttp,
    ResolvedImage, ResolvedSource, SolveRequest, SourceOptions, Warning, WorkerInfo,
};
pub use error::{FrontendError, SourceLocation};
pub use result::{Attestation, AttestationKind, FrontendResult, Reference, Subject, SubjectKind};

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

/// Something that makes builds out of a user's text.
#[async_trait]
pub trait Frontend: Send + Sync {
    /// The name by which clients ask for it, such as `dockerfile.v0`.
    fn name(&self) -> &str;

    /// Runs the frontend.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the solves that it waits for.
    async fn solve(
        &self,
        bridge: Arc<dyn Bridge>,
        opts: BTreeMap<String, String>,
        inputs: Inputs,
    ) -> Result<FrontendResult, FrontendError>;
}
