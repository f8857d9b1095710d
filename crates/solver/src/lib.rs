//! Edges, cache keys and scheduling: what of a graph is found in the cache and what is carried
//! out, in which order, for how many jobs at once.
//!
//! The decisions are made by a pure core that is told of events and answers with commands; one
//! task drives it. Results stay as small as the user of the crate makes them: a [`Domain`] says
//! what an output is.
//!
//! This crate refuses to know what operations do, what results hold and where keys are kept.
//!
//! ```
//! use std::sync::Arc;
//! use cooper_solver::*;
//!
//! struct Numbers;
//! impl Domain for Numbers {
//!     type Output = u64;
//!     type Job = ();
//! }
//!
//! struct Seven;
//! #[async_trait::async_trait]
//! impl Op<Numbers> for Seven {
//!     async fn cache_map(&self, cx: &OpContext<Numbers>, _: usize) -> Result<CacheMap<Numbers>, OpError> {
//!         Ok(CacheMap { digest: cx.vertex().digest.clone(), deps: vec![], last: true })
//!     }
//!     async fn execute(&self, _: &OpContext<Numbers>, _: &[u64]) -> Result<Vec<u64>, OpError> {
//!         Ok(vec![7])
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let solver = Solver::new(SolverConfig::in_memory());
//! let job = solver.job((), Arc::new(cooper_progress::Discard));
//! let digest: Digest = format!("sha256:{}", "7".repeat(64)).parse().unwrap();
//! let vertex = Vertex {
//!     digest: digest.clone(),
//!     name: "seven".into(),
//!     inputs: vec![],
//!     op: Arc::new(Seven),
//!     options: VertexOptions::default(),
//! };
//! let edge = Edge { vertex: digest, index: 0 };
//! assert_eq!(job.build(vec![Arc::new(vertex)], edge).await.unwrap(), 7);
//! # });
//! ```
#![forbid(unsafe_code)]

mod caches;
mod core;
mod driver;
mod error;
mod explain;
mod job;
mod keys;
mod memory;
mod once;
mod runner;
mod shared;
mod starting;
mod vertex;

pub use caches::{CacheKeys, CacheSource};
pub use error::{OpError, SolveError, error_chain};
pub use explain::{
    Cause, Description, Explanation, FileChange, FileChangeKind, FileEntry, FileList, Journal,
    MAX_FILES, MemoryJournal, Note, NoteInput, Noted, Part, Pruned, Recent, without_position,
};
pub use job::{Job, MemoryResults, Solver, SolverConfig};
pub use keys::{CacheResult, KeyEntry, KeyId, KeyStore, Link, LinkParts};
pub use memory::{Forgotten, KeyGraph, MemoryKeyStore};
pub use oci_spec::image::Digest;
pub use vertex::{
    CacheDep, CacheMap, ContentKey, Domain, Edge, Op, OpContext, ResultStore, Vertex, VertexOptions,
};
