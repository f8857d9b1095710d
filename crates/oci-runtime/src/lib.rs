//! The built-in OCI runtime: from a configuration to a running container, in about a hundred
//! system calls.
//!
//! Containers are made by a helper, a process of one thread that is started once by running
//! this program again, because a process with threads must not be copied. Each container's
//! first process is cloned there so that it is a child of the program itself, which waits for it
//! by its descriptor. With control groups of version 2 it is born in its group; with version 1 it
//! is cloned from a process that was moved there before.
//!
//! Everything that is asked for is done, or refused by name ([`RuntimeError::Unsupported`]).
//! This crate refuses to know what containers are for, where their files come from, and how
//! bytes get from and to them. It keeps no state and has no command line.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::os::fd::AsFd;
//! use cooper_oci_runtime::{Event, Group, Runtime};
//! use cooper_sys::cgroup::Hierarchies;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     cooper_oci_runtime::enter_if_asked();
//!     let runtime = Runtime::of_this_program()?;
//!     let spec = oci_spec::runtime::Spec::load("config.json")?;
//!     let group = Group::create(Arc::new(Hierarchies::detect()?), "/example")?;
//!     let (input, output) = (std::io::stdin(), std::io::stdout());
//!     let stdio = [input.as_fd(), output.as_fd(), output.as_fd()];
//!     let started = runtime.create(&spec, Some(stdio), runtime.prepare(group)?)?;
//!     println!("{}", started.process.reap()?);
//!     Ok(())
//! }
//! ```
#![forbid(unsafe_code)]

mod client;
mod error;
mod group;
mod helper;
mod request;
mod wire;

mod init;
mod join;

mod capabilities;
mod console;
mod devices;
mod loopback;
mod mask;
mod mounts;
mod options;
mod process;
mod reach;
mod sealed;
mod seccomp;
mod status;
mod user;

pub use client::{Prepared, Runtime, Started};
pub use error::RuntimeError;
pub use group::Group;
pub use helper::enter_if_asked;
pub use seccomp::Filter;
pub use status::{Event, Status};
