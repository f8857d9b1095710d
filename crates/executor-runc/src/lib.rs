//! Containers through an OCI runtime: the built-in one, or the command line of runc or another
//! that takes the same commands.
//!
//! A container is a folder below the executor's root, its bundle, and one `run` of the runtime,
//! which stays as its parent; with the built-in one its first process is a child of this
//! process. One task owns both: it waits for the runtime, drains the output,
//! unmounts, tells who waits, and then removes control group, bundle and the runtime's state,
//! whether anybody is left who asked for the container or not. What a process that was killed
//! left is removed when the next one opens the same root.
//!
//! This crate refuses to know what a build is and where file systems come from.
//!
//! ```no_run
//! use cooper_executor::{ContainerSpec, Executor, Process};
//! use cooper_executor_runc::{RuncConfig, RuncExecutor};
//!
//! # async fn example(root: cooper_snapshot::Mount) -> Result<(), cooper_executor::ExecError> {
//! let executor = RuncExecutor::new(RuncConfig::new("/var/lib/cooper/executor"))?;
//! let container = ContainerSpec { root: vec![root], ..ContainerSpec::default() };
//! let running = executor.start(container, Process::new(["/bin/true"])).await?;
//! assert!(running.wait().await?.success());
//! executor.close().await;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod builtin;
mod config;
mod container;
mod exec;
mod executor;
mod runtime;
mod spawn;
mod stdio;
mod sweep;
mod up;

pub use config::RuncConfig;
pub use cooper_oci_runtime::enter_if_asked;
pub use executor::RuncExecutor;
