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
//! A program that runs a command in a container (`examples/run-a-command` is one like it):
//!
//! ```no_run
//! use cooper_executor::{ContainerSpec, Executor, Process};
//! use cooper_executor_runc::{RuncConfig, RuncExecutor};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Before there are threads: the built-in runtime runs this program again, as its helper.
//!     cooper_executor_runc::enter_if_asked();
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let executor = RuncExecutor::new(RuncConfig::new("/run/example"))?;
//!         let process = Process::new(["/bin/echo", "hello"]).with_own_streams()?;
//!         let container = ContainerSpec::in_folder("/srv/rootfs");
//!         let running = executor.start(container, process).await?;
//!         assert!(running.wait().await?.success());
//!         executor.close().await;
//!         Ok(())
//!     })
//! }
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
