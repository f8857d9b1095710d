//! States of a file system: a trait in the manner of containerd's snapshotters, an
//! implementation on overlayfs and one that copies.
//!
//! A snapshot is *active* while it is written, under a key, and *committed* when it is not any
//! more, under a name; a committed one can be the parent of others. A snapshotter mounts
//! nothing: it says which [`Mount`]s show a snapshot.
//!
//! [`diff`] names the changes from one state to another.
//!
//! This crate refuses to know what a snapshot is for, who uses it and when it may go.
//!
//! ```
//! use cooper_snapshot::{ActiveKey, MountedDir, NativeSnapshotter, SnapshotName, Snapshotter};
//! use cooper_store::Store;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let dir = tempfile::tempdir()?;
//! let snapshots = NativeSnapshotter::open(dir.path(), Store::in_memory()?)?;
//! let (key, name) = (ActiveKey::new("work"), SnapshotName::new("done"));
//! snapshots.prepare(&key, None).await?;
//! assert_eq!(snapshots.mounts(&key).await?[0].kind, "bind");
//! snapshots.commit(&key, &name).await?;
//! // The folder of the snapshot, and in it the root.
//! assert_eq!(snapshots.usage(&name).await?.inodes, 2);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod auto;
pub mod diff;
mod error;
mod index;
mod mounted;
mod native;
mod overlay;
mod project;
mod snapshotter;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod tree;

pub use auto::{Kind, open};
pub use error::SnapshotError;
pub use mounted::MountedDir;
pub use native::NativeSnapshotter;
pub use overlay::{OverlayOptions, OverlaySnapshotter};
pub use snapshotter::{ActiveKey, Mount, SharedFile, SnapshotId, SnapshotName, Snapshotter, Usage};
