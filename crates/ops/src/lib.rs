//! What the vertices of a build graph do: sources, processes in containers and changes to files,
//! each as an operation of the solver.
//!
//! [`vertices`] turns a graph into the solver's; an [`Env`] holds the parts of the worker that
//! operations work with. Digests in cache keys are BuildKit's, byte for byte
//! (`solver/llbsolver/ops`), so that caches can be shared.
//!
//! This crate refuses to know the scheduling, the frontends and the exporters.
//!
//! ```
//! use cooper_ops::ExecFailure;
//!
//! let failure = ExecFailure::new(&["/bin/sh".into(), "-c".into(), "false".into()], 1, false);
//! assert_eq!(
//!     failure.to_string(),
//!     r#"process "/bin/sh -c false" did not complete successfully: exit code: 1"#
//! );
//! ```
#![forbid(unsafe_code)]

mod content;
mod describe;
mod env;
mod error;
mod exec;
mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod graph;
mod limits;
mod merge;
mod numbers;
mod passthrough;
mod source;
#[cfg(test)]
mod tests;

pub use content::Selector;
pub use env::{Build, Env, JobContext, Output};
pub use error::{ContentError, ExecFailure, FailedFiles, FileActionError, OpsError};
pub use exec::secret_variables;
pub use graph::{Vertices, forget_caches, vertices};
