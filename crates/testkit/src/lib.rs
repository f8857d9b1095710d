//! The real parts that end-to-end tests are made of: a daemon, a registry, buildx, base images.
//!
//! Everything here panics with a message when something is wrong: it is test code, and a
//! test that cannot be set up has failed. Every value cleans up after itself when it is
//! dropped, and [`leak::Watch`] shows whether it did.
//!
//! It refuses to know Cooper's crates: it sees the daemon as a user does, through its
//! command line, its socket and what it leaves on the machine.
//!
//! ```no_run
//! use cooper_testkit::{Buildx, Context, Daemon, leak};
//!
//! let watch = leak::Watch::begin();
//! let daemon = Daemon::start();
//! let buildx = Buildx::new(&daemon);
//! let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
//! buildx.build(&context, &["--output=type=cacheonly"]).success();
//! drop((buildx, daemon));
//! watch.check();
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod boots;
mod broken;
mod buildx;
mod certificates;
mod client;
mod containerd;
mod context;
mod daemon;
mod disk;
mod engine;
mod image;
pub mod leak;
pub mod memory;
pub mod peer;
mod pulled;
mod registry;
mod run;
mod seeds;

pub use broken::{BrokenRegistry, Fault, PAUSE, PIECE};
pub use buildx::Buildx;
pub use certificates::Certificates;
pub use client::Client;
pub use containerd::Containerd;
pub use context::Context;
pub use daemon::{Daemon, by_containerd};
pub use disk::SmallDisk;
pub use engine::{Engine, Store};
pub use image::{push_busybox, push_debian};
pub use pulled::Pulled;
pub use registry::Registry;
pub use run::{Ran, Started, bin, cooper, run, wait_until};
pub use seeds::seeds;
