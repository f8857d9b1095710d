//! The cache as a whole, over real folders.

mod concurrency;
mod inherited;
mod ledger;
mod lifetimes;
mod machine;
mod pruning;
mod sources;
mod stacked;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use cooper_content::{ContentStore, Descriptor, Digest, MemoryContentStore, digest_of};
use cooper_snapshot::{Mount, NativeSnapshotter, OverlayOptions, OverlaySnapshotter, Snapshotter};
use cooper_store::Store;

use crate::record::{LEASES, RECORDS, Record, Stage};
use crate::{
    CacheConfig, CacheManager, Changes, Fill, FillError, ImmutableRef, Layer, LocalRef, MutableRef,
    RecordOptions, RefId,
};

/// Where a cache is, also after it was closed.
struct Place {
    dir: tempfile::TempDir,
    content: Arc<MemoryContentStore>,
    overlay: bool,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            content: Arc::default(),
            overlay: false,
        }
    }

    fn overlay() -> Self {
        Self {
            overlay: true,
            ..Self::new()
        }
    }

    async fn open(&self) -> CacheManager {
        self.open_in(&cooper_sys::boot_id().unwrap()).await
    }

    /// Opens it as the machine would in another boot.
    async fn open_in(&self, boot: &str) -> CacheManager {
        let (store, dropped) = Store::open(&self.dir.path().join("store.db"), boot).unwrap();
        self.open_with(store, dropped).await
    }

    async fn open_with(&self, store: Store, dropped: Vec<cooper_store::Dropped>) -> CacheManager {
        let root = self.dir.path().join("snapshots");
        std::fs::create_dir_all(&root).unwrap();
        let snapshotter: Arc<dyn Snapshotter> = if self.overlay {
            let options = OverlayOptions {
                volatile: true,
                ..OverlayOptions::default()
            };
            Arc::new(OverlaySnapshotter::open(&root, store.clone(), options).unwrap())
        } else {
            Arc::new(NativeSnapshotter::open(&root, store.clone()).unwrap())
        };
        let config = CacheConfig {
            store,
            dropped,
            snapshotter,
            content: self.content.clone(),
            mounts: self.mounts(),
        };
        CacheManager::open(config).await.unwrap()
    }

    fn mounts(&self) -> PathBuf {
        self.dir.path().join("mounts")
    }

    /// Nothing is mounted, and every snapshot and lease belongs to a record; in the end, because
    /// a blocking thread whose caller gave up goes on for a moment.
    async fn check(&self, cache: &CacheManager) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            cache.settle().await;
            match self.look(cache).await {
                Ok(()) => return,
                Err(error) if std::time::Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
            }
        }
    }

    async fn look(&self, cache: &CacheManager) -> Result<(), String> {
        fn same<T: PartialEq + std::fmt::Debug>(
            what: &str,
            one: T,
            other: T,
        ) -> Result<(), String> {
            let shown = format!("{what}: {one:?} {other:?}");
            if one == other { Ok(()) } else { Err(shown) }
        }
        let mounted = cooper_sys::MountPoint::below(self.dir.path()).unwrap();
        same("something stays mounted", mounted, Vec::new())?;
        let left = std::fs::read_dir(self.mounts()).unwrap().count();
        same("a folder for a mount stays", left, 0)?;
        let core = &cache.shared.core;
        let leases = core.store.read(|tx| tx.scan(&LEASES, "")).unwrap();
        same("a lease stays", leases, Vec::new())?;
        let records = core.store.read(|tx| tx.scan(&RECORDS, "")).unwrap();
        let mut owned: Vec<String> = Vec::new();
        for (_, record) in &records {
            match &record.state {
                Stage::Active { key } => owned.push(key.clone()),
                Stage::Committed { name, owner: None } => owned.push(name.clone()),
                _ => {}
            }
        }
        let there = cache.snapshotter().list().await.unwrap();
        let mut there: Vec<String> = there.iter().map(ToString::to_string).collect();
        owned.sort();
        there.sort();
        same("snapshots and records", owned, there)?;
        // The counters are those that the records give.
        let state = core.state();
        same("records", state.iter().count(), records.len())?;
        for (id, entry) in state.iter() {
            let stands = |other: &&(String, Record)| other.1.needs().any(|needed| needed == id);
            let children = records.iter().filter(stands).count();
            same(&format!("children of {id}"), entry.children, children)?;
        }
        Ok(())
    }
}

fn named(description: &str) -> RecordOptions {
    RecordOptions {
        description: description.into(),
        ..RecordOptions::default()
    }
}

fn retained(index: &str) -> RecordOptions {
    RecordOptions {
        retain: true,
        indexes: vec![index.into()],
        ..RecordOptions::default()
    }
}

async fn write(work: &MutableRef, name: &str, text: &str) {
    let dir = work.mount().await.unwrap();
    std::fs::write(dir.path().join(name), text).unwrap();
    dir.close().unwrap();
}

async fn read(local: &LocalRef, name: &str) -> Option<String> {
    let dir = local.mount().await.unwrap();
    let text = std::fs::read_to_string(dir.path().join(name)).ok();
    dir.close().unwrap();
    text
}

/// A committed ref with one file.
async fn commit(cache: &CacheManager, parent: Option<&ImmutableRef>, name: &str) -> ImmutableRef {
    let parent = parent.map(|parent| parent.local().unwrap());
    let work = cache
        .new_mutable(parent.as_ref(), named(name))
        .await
        .unwrap();
    write(&work, name, name).await;
    work.commit().await.unwrap()
}

fn layer(name: &str) -> Layer {
    let blob = digest_of(format!("blob {name}").as_bytes());
    layer_of(name, &blob)
}

fn layer_of(name: &str, blob: &Digest) -> Layer {
    Layer {
        descriptor: Descriptor::new(
            "application/vnd.oci.image.layer.v1.tar".into(),
            1u64,
            blob.clone(),
        ),
        diff_id: digest_of(name.as_bytes()),
        sources: vec![format!("example.com/{name}:latest")],
    }
}

/// Writes a file with the diff id as its name; counts.
#[derive(Default)]
struct FillOne {
    filled: AtomicUsize,
    ahead: AtomicUsize,
    repeated: AtomicUsize,
    /// Never gets done, after having written.
    hangs: bool,
    fails: bool,
    entered: tokio::sync::Notify,
}

#[async_trait]
impl Fill for FillOne {
    fn prefetch(&self, layers: &[Layer]) {
        self.ahead.fetch_add(layers.len(), Ordering::SeqCst);
    }

    async fn fill(&self, layer: &Layer, mounts: &[Mount]) -> Result<(), FillError> {
        let dir = tempfile::tempdir()?;
        let mounted = cooper_snapshot::MountedDir::mount(mounts, dir.path())?;
        std::fs::write(mounted.path().join(layer.diff_id.digest()), "filled")?;
        self.entered.notify_waiters();
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if self.fails {
            return Err("no such layer".into());
        }
        mounted.close()?;
        self.filled.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Gives the files at the top of both further names.
    async fn repeat(&self, changes: &Changes, mounts: &[Mount]) -> Result<u64, FillError> {
        let [upper] = changes.upper.as_slice() else {
            return Err("not one mount".into());
        };
        let from = match upper.option("lowerdir") {
            Some(stack) => Path::new(stack.split(':').next().unwrap_or_default()),
            None => &upper.source,
        };
        let to = mounts[0].upper().ok_or("nothing to write to")?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            std::fs::hard_link(entry.path(), to.join(entry.file_name()))?;
        }
        self.repeated.fetch_add(1, Ordering::SeqCst);
        Ok(0)
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

async fn is_there(cache: &CacheManager, id: &RefId) -> bool {
    cache.settle().await;
    cache.get(id).await.is_ok()
}
