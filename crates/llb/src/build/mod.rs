//! Writing a graph in Rust: [`State`]s that operations are added to, and the [`Definition`]
//! that a builder takes.
//!
//! The operations come out as BuildKit's own client library writes them, field for field, so
//! that their cache keys are the same: a working directory is resolved here, mounts are sorted,
//! equal inputs are one.
//!
//! ```
//! use cooper_llb::build::{Constraints, Exec, Image, MarshalOptions, State};
//!
//! let image = State::image("docker.io/library/alpine:latest", Image::default(), Constraints::default());
//! let built = image.dir("/src").run(Exec {
//!     args: ["sh", "-c", "echo hello > /x"].map(String::from).to_vec(),
//!     ..Exec::default()
//! });
//! let definition = built.marshal(&MarshalOptions::default());
//! let graph = cooper_llb::load(&definition, Default::default())?;
//! let names: Vec<_> = graph.vertices().iter().map(|vertex| vertex.name.as_str()).collect();
//! assert_eq!(names, ["docker-image://docker.io/library/alpine:latest", "sh -c echo hello > /x"]);
//! # Ok::<_, cooper_llb::LlbError>(())
//! ```
//!
//! [`Definition`]: cooper_proto::pb::Definition

mod constraints;
mod env;
mod exec;
mod file;
mod marshal;
mod node;
mod source;
mod state;

pub use constraints::{Constraints, SourceMap};
pub use env::EnvList;
pub use exec::{DEFAULT_PATH, Exec, MountKind, MountSpec, SecretSpec, SshSpec, default_path};
pub use file::{ChmodSpec, CopySpec, FileAction, Owner, join, normalize};
pub use marshal::MarshalOptions;
pub use node::{Deferred, Output};
pub use source::{Git, Http, Image, Local, OciLayout};
pub use state::State;

#[cfg(test)]
mod tests;
