//! The mounts of one process: what a build step's `Mount`s say, turned into what an executor
//! mounts, and afterwards into refs.
//!
//! A step writes into new refs, of which those that are outputs are kept; it uses caches that
//! outlive it ([`MountManager`] knows who has which), files in memory and sockets that end with
//! it. [`MountManager::prepare`] makes them, [`Prepared::commit`] keeps the outputs, and dropping
//! the [`Prepared`] gives everything back.
//!
//! This crate refuses to know what runs, how containers are made, and where clients are.
//!
//! ```
//! use cooper_cache::CacheManager;
//! use cooper_mount::{MountManager, Prepare};
//! use cooper_proto::pb;
//! use cooper_session::Group;
//!
//! # async fn example(cache: CacheManager) -> Result<(), cooper_mount::MountError> {
//! let manager = MountManager::new(cache, "/var/lib/cooper/mounts".into());
//! let root = pb::Mount { dest: "/".into(), input: -1, output: 0, ..pb::Mount::default() };
//! let prepared = manager
//!     .prepare(Prepare {
//!         mounts: &[root],
//!         inputs: &[],
//!         cwd: "/",
//!         description: "exec true",
//!         sessions: &Group::none(),
//!         progress: None,
//!     })
//!     .await?;
//! // An executor mounts `prepared.root` and `prepared.mounts`, and then:
//! let outputs = prepared.commit().await?;
//! assert_eq!(outputs.len(), 1);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod cachedir;
mod error;
mod manager;
mod prepare;
mod prepared;
mod secret;
mod ssh;

pub use error::MountError;
pub use manager::MountManager;
pub use prepare::Prepare;
pub use prepared::Prepared;
