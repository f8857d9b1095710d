//! Containers through a containerd, 1.6 or later.
//!
//! [`Containerd`] is the connection, which comes back when containerd does; [`ContainerdExecutor`]
//! runs containers by it, [`ContainerdSnapshotter`] and [`ContainerdContentStore`] keep file
//! systems and blobs in it, [`ContainerdImageStore`] gives images names there and unpacks them.
//! Root file systems and mounts are put together in this process, as for every executor, so
//! containerd has to see the same file systems: it runs on this machine, and the executor's root
//! lies where both see what is mounted. Standard input and output are FIFOs in the container's
//! folder, which the runtime's shim opens.
//!
//! One task owns a container from the first request until nothing is left of it, whether
//! anybody is left who asked for it or not. When containerd goes away in the middle, what runs
//! is killed by its control group and ends with an error; what containerd still knows of it is
//! removed when it is back. What a process that was killed left is removed by the next one that
//! opens the same root.
//!
//! This crate refuses to know what a build is and how containerd is started.
//!
//! ```no_run
//! use cooper_executor::{ContainerSpec, Executor, Process};
//! use cooper_executor_containerd::{Containerd, ContainerdConfig, ContainerdExecutor};
//!
//! # async fn example(root: cooper_snapshot::Mount) -> Result<(), Box<dyn std::error::Error>> {
//! let containerd = Containerd::new("/run/containerd/containerd.sock", "buildkit")?;
//! let config = ContainerdConfig::new("/var/lib/cooper/containerd");
//! let executor = ContainerdExecutor::open(containerd, config).await?;
//! let container = ContainerSpec { root: vec![root], ..ContainerSpec::default() };
//! let running = executor.start(container, Process::new(["/bin/true"])).await?;
//! assert!(running.wait().await?.success());
//! executor.close().await;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod client;
mod collect;
mod config;
mod container;
mod content;
mod error;
mod exec;
mod executor;
mod images;
mod lease;
mod left;
mod snapshots;
mod stdio;
mod task;
#[cfg(feature = "testing")]
pub mod testing;

pub use client::Containerd;
pub use config::{ContainerdConfig, RuncOptions, Runtime, RuntimeOptions};
pub use content::ContainerdContentStore;
pub use error::ContainerdError;
pub use executor::ContainerdExecutor;
pub use images::ContainerdImageStore;
pub use snapshots::ContainerdSnapshotter;
