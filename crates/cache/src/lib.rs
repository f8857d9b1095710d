//! Refs: the states of file systems that a build makes and uses, kept for the next build.
//!
//! A [`MutableRef`] is being written; [`MutableRef::commit`] turns it into an [`ImmutableRef`].
//! An immutable ref may be lazy, known by its layer and not yet on disk: only after
//! [`ImmutableRef::localize`] there is a [`LocalRef`], which can be mounted and hashed.
//!
//! Three lifetimes, three owners. A *pin* says that a handle is in use: it is counted in memory.
//! A *lease* covers unfinished work: when its guard is dropped, its id goes to the mailbox of the
//! one task that removes what was begun, and what a dead process left is swept when the cache is
//! opened. A *record* is an entry of the cache and ends by pruning.
//!
//! This crate refuses to know what a build is, how a layer is packed and where it comes from
//! ([`Fill`] is given by those who know), and what the results of a solver are: it tells those
//! who ask ([`CacheManager::on_removed`]) that a ref is gone.
//!
//! ```
//! use std::sync::Arc;
//! use cooper_cache::{CacheConfig, CacheManager, RecordOptions};
//! use cooper_content::MemoryContentStore;
//! use cooper_snapshot::NativeSnapshotter;
//! use cooper_store::Store;
//!
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
//! let dir = tempfile::tempdir()?;
//! let store = Store::in_memory()?;
//! let cache = CacheManager::open(CacheConfig {
//!     snapshotter: Arc::new(NativeSnapshotter::open(dir.path(), store.clone())?),
//!     store,
//!     dropped: Vec::new(),
//!     content: Arc::new(MemoryContentStore::default()),
//!     mounts: dir.path().join("mounts"),
//! })
//! .await?;
//! let work = cache.new_mutable(None, RecordOptions::default()).await?;
//! std::fs::write(work.mount().await?.path().join("greeting"), "hello")?;
//! let done = work.commit().await?;
//! done.retain().await?;
//! assert_eq!(cache.get(done.id()).await?.id(), done.id());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod blobs;
mod collect;
mod contenthash;
mod core;
mod error;
mod id;
mod keeper;
mod lazy;
mod lease;
mod manager;
mod mutable;
mod open;
mod plan;
mod prune;
mod record;
mod refs;
mod remove;
mod seal;
mod shares;
mod stack;
mod state;
#[cfg(test)]
mod tests;
mod usage;
mod verify;
mod written;

pub use blobs::Work;
pub use collect::{CacheLimits, Collector};
pub use contenthash::{
    ChecksumOptions, EntryKind, FileHasher, FileStat, HashedChange, ListedFile, file_digest,
};
pub use cooper_content::{Descriptor, Digest};
pub use cooper_snapshot::Mount;
pub use error::CacheError;
pub use id::RefId;
pub use lazy::{Changes, Fill, FillError};
pub use manager::{CacheConfig, CacheManager};
pub use mutable::MutableRef;
pub use plan::{Plan, Stays, Why};
pub use prune::{PruneOptions, UsageFilter};
pub use record::{Layer, RecordOptions, RecordType};
pub use refs::{ImmutableRef, LocalRef, MountedDir};
pub use usage::UsageRecord;
pub use verify::{Difference, Verified};
pub use written::Written;
