//! The parts of one machine put together: a [`Worker`] is a struct of them. Workers are made at
//! start by initialisers that registered themselves, and a [`Controller`] keeps those that were
//! made, ordered by priority: the first is the default.
//!
//! Another crate adds a worker by submitting an initialiser; nothing else has to know it, but
//! the program has to name the crate somewhere, or the linker leaves it out.
//!
//! ```
//! use cooper_worker::{Context, Worker, WorkerError, WorkerInitializer, WorkersFuture};
//! use cooper_worker::inventory;
//!
//! fn init(cx: &Context) -> WorkersFuture<'_> {
//!     Box::pin(async move {
//!         let Some(settings) = cx.settings("mine") else {
//!             return Ok(Vec::new()); // Switched off: no worker, and no error.
//!         };
//! #       let _ = settings;
//!         // Worker::open(cx, parts).await puts one together around an executor.
//!         Ok(Vec::<Worker>::new())
//!     })
//! }
//!
//! inventory::submit! { WorkerInitializer { name: "mine", priority: 5, init } }
//!
//! let names: Vec<_> = cooper_worker::registered().iter().map(|known| known.name).collect();
//! assert_eq!(names, ["mine"]);
//! # let _: Option<WorkerError> = None;
//! ```
//!
//! This crate refuses to know any executor, the daemon's configuration file, and what clients
//! ask for.
#![forbid(unsafe_code)]

mod controller;
mod error;
mod filter;
mod gc;
mod id;
mod journal;
mod keys;
mod plaintexts;
mod platforms;
mod register;
mod results;
mod settings;
mod worker;

pub use controller::Controller;
pub use error::WorkerError;
pub use filter::{Filter, FilterError};
pub use gc::{GcPolicy, usage_filter};
/// For `inventory::submit!` in other crates.
pub use inventory;
pub use keys::StoredKeys;
pub use plaintexts::StoredPlaintexts;
pub use platforms::host_platforms;
pub use register::{WorkerInitializer, WorkersFuture, registered};
pub use results::CachedResults;
pub use settings::{Context, WorkerSettings};
pub use worker::{Parts, Storage, Worker, worker_id};

/// Labels that say what a worker is like; the names are BuildKit's (`worker/label`).
pub mod label {
    /// `oci` or `containerd`.
    pub const EXECUTOR: &str = "org.mobyproject.buildkit.worker.executor";
    /// The snapshotter's name.
    pub const SNAPSHOTTER: &str = "org.mobyproject.buildkit.worker.snapshotter";
    /// The machine's name.
    pub const HOSTNAME: &str = "org.mobyproject.buildkit.worker.hostname";
    /// How steps reach the network.
    pub const NETWORK: &str = "org.mobyproject.buildkit.worker.network";
    /// Whether steps have process namespaces of their own: `sandbox` or `no-sandbox`.
    pub const OCI_PROCESS_MODE: &str = "org.mobyproject.buildkit.worker.oci.process-mode";
    /// The profile that AppArmor confines steps with.
    pub const APPARMOR_PROFILE: &str = "org.mobyproject.buildkit.worker.apparmor.profile";
    /// The id of the containerd that it works through.
    pub const CONTAINERD_UUID: &str = "org.mobyproject.buildkit.worker.containerd.uuid";
    /// The namespace that it uses there.
    pub const CONTAINERD_NAMESPACE: &str = "org.mobyproject.buildkit.worker.containerd.namespace";
    /// Whether SELinux confines steps.
    pub const SELINUX_ENABLED: &str = "org.mobyproject.buildkit.worker.selinux.enabled";
}
