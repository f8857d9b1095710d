//! A cache over real folders, and random choices that a seed repeats.
#![allow(clippy::unwrap_used, dead_code)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cooper_cache::{CacheConfig, CacheManager, Changes, Fill, FillError, Layer, Mount, RefId};
use cooper_content::FsContentStore;
use cooper_snapshot::{OverlaySnapshotter, Snapshotter};
use cooper_store::{Dropped, Store};

/// The number that `name` has in the environment, else `usual`.
pub(crate) fn number(name: &str, usual: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(usual, |text| text.parse().unwrap())
}

/// A seed from the environment, or a new one; it is shown.
pub(crate) fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number(
        "COOPER_SOAK_SEED",
        now.unwrap().as_nanos() as u64 % 1_000_000,
    );
    println!("seed {seed}");
    seed
}

/// Random numbers by SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// Opens the cache in `root`.
pub(crate) async fn open(root: &Path) -> CacheManager {
    let (store, dropped) = open_store(root);
    open_over(root, store, dropped).await
}

/// Opens the metadata of the cache in `root`.
pub(crate) fn open_store(root: &Path) -> (Store, Vec<Dropped>) {
    let boot = cooper_sys::boot_id().unwrap();
    Store::open(&root.join("metadata.db"), &boot).unwrap()
}

/// Opens the cache in `root` over its metadata.
pub(crate) async fn open_over(root: &Path, store: Store, dropped: Vec<Dropped>) -> CacheManager {
    let snapshots = root.join("snapshots");
    let options = OverlaySnapshotter::probe(&snapshots).unwrap();
    let snapshotter = OverlaySnapshotter::open(&snapshots, store.clone(), options).unwrap();
    let content = FsContentStore::open(&root.join("content")).unwrap();
    content.clear_ingests().unwrap();
    let snapshotter: Arc<dyn Snapshotter> = Arc::new(snapshotter);
    let opened = CacheManager::open(CacheConfig {
        store,
        dropped,
        snapshotter,
        content: Arc::new(content),
        mounts: root.join("mounts"),
    });
    opened.await.unwrap()
}

/// What the files below `root` take, in bytes, as du(1) counts.
pub(crate) fn taken(root: &Path) -> u64 {
    let mut bytes = 0;
    let mut seen = std::collections::HashSet::new();
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        if !seen.insert(meta.ino()) {
            continue;
        }
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

pub(crate) fn id(text: &str) -> RefId {
    text.parse().unwrap()
}

/// Gives the files of a state further names in another one, as merges do; of layers it knows
/// nothing.
pub(crate) struct Links;

#[async_trait]
impl Fill for Links {
    async fn fill(&self, _: &Layer, _: &[Mount]) -> Result<(), FillError> {
        Err("no layers here".into())
    }

    async fn repeat(&self, changes: &Changes, mounts: &[Mount]) -> Result<u64, FillError> {
        let upper = &changes.upper[0];
        let from = match upper.option("lowerdir") {
            Some(stack) => PathBuf::from(stack.split(':').next().unwrap_or_default()),
            None => upper.source.clone(),
        };
        let to = mounts[0].upper().ok_or("nothing to write to")?.to_owned();
        tokio::task::spawn_blocking(move || link_all(&from, &to)).await??;
        Ok(0)
    }
}

fn link_all(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            std::fs::create_dir(&target)?;
            link_all(&path, &target)?;
        } else if kind.is_file() {
            std::fs::hard_link(&path, &target)?;
        }
    }
    Ok(())
}
