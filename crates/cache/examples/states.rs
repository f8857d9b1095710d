//! States of a file system that are made once: the cache without a build.
//!
//! `cargo run -p cooper-cache --example states [FOLDER]`, as root, who may mount.
//!
//! A base is made unless the cache in FOLDER has it from an earlier run, two states are made on
//! top of it, and each is asked for a part of its content. Then all is shown that is kept, with
//! what it takes, and what nobody retained is gone. Without a folder it works in a temporary one,
//! opens the cache there twice, and removes it.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use cooper_cache::{
    CacheConfig, CacheManager, ChecksumOptions, Digest, ImmutableRef, LocalRef, PruneOptions,
    RecordOptions,
};
use cooper_content::FsContentStore;
use cooper_snapshot::NativeSnapshotter;
use cooper_store::Store;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the base is found by.
const BASE: &str = "base of the example";

/// Opens the cache in a folder: its records, its files, and its blobs, of which there are none.
async fn open(folder: &Path) -> Result<CacheManager> {
    std::fs::create_dir_all(folder)?;
    let boot = cooper_sys::boot_id()?;
    let (store, dropped) = Store::open(&folder.join("metadata.db"), &boot)?;
    let snapshots = NativeSnapshotter::open(&folder.join("snapshots"), store.clone())?;
    let cache = CacheManager::open(CacheConfig {
        store,
        dropped,
        snapshotter: Arc::new(snapshots),
        content: Arc::new(FsContentStore::open(&folder.join("content"))?),
        mounts: folder.join("mounts"),
    });
    Ok(cache.await?)
}

/// A state on top of `below` or of nothing, with `text` in its file `path`.
async fn write(
    cache: &CacheManager,
    below: Option<&LocalRef>,
    path: &str,
    text: &str,
) -> Result<ImmutableRef> {
    let options = RecordOptions {
        description: format!("{path} says {text}"),
        ..RecordOptions::default()
    };
    let work = cache.new_mutable(below, options).await?;
    let mounted = work.mount().await?;
    let file = mounted.path().join(path);
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(file, text)?;
    mounted.close()?;
    Ok(work.commit().await?)
}

fn local(state: &ImmutableRef) -> Result<LocalRef> {
    let local = state.local();
    Ok(local.ok_or("what was written here is on disk")?)
}

async fn digest_of(state: &ImmutableRef, path: &str) -> Result<Digest> {
    let options = ChecksumOptions::default();
    let digest = local(state)?.checksum(Path::new(path), &options).await?;
    println!("  {path} of \"{}\": {digest}", state.description());
    Ok(digest)
}

/// The base, and whether it was there.
async fn base(cache: &CacheManager) -> Result<(ImmutableRef, bool)> {
    if let Some(id) = cache.search(BASE)?.first() {
        return Ok((cache.get(id).await?, true));
    }
    let base = write(cache, None, "lib/words", "oak, iron").await?;
    base.add_index(BASE).await?;
    // It stays when its handle is dropped, until it is pruned.
    base.retain().await?;
    Ok((base, false))
}

/// Says whether the base was there.
async fn run(folder: &Path) -> Result<bool> {
    let cache = open(folder).await?;
    let (base, found) = base(&cache).await?;
    println!("the base was {}", if found { "found" } else { "made" });

    let below = local(&base)?;
    let one = write(&cache, Some(&below), "bin/count", "two").await?;
    let other = write(&cache, Some(&below), "bin/count", "three").await?;
    let lib = [
        digest_of(&one, "/lib").await?,
        digest_of(&other, "/lib").await?,
    ];
    assert_eq!(lib[0], lib[1], "both have what is below them");
    let bin = [
        digest_of(&one, "/bin").await?,
        digest_of(&other, "/bin").await?,
    ];
    assert_ne!(bin[0], bin[1], "they differ in what was written");

    one.retain().await?;
    drop((one, other, below, base));
    cache.settle().await;
    let kept = cache.disk_usage().await?;
    for record in &kept {
        println!("kept: \"{}\", {} bytes", record.description, record.size);
    }
    assert!(
        kept.iter()
            .all(|record| !record.description.contains("three"))
    );

    // The base has an index, and may be wanted again; what was made of it is not.
    let options = PruneOptions {
        filter: Some(Arc::new(|record| !record.parents.is_empty())),
        ..PruneOptions::default()
    };
    for record in cache.prune(options).await? {
        println!("pruned: \"{}\"", record.description);
    }
    cache.close().await;
    Ok(found)
}

#[tokio::main]
async fn main() -> Result<()> {
    if let Some(folder) = std::env::args_os().nth(1) {
        run(Path::new(&folder)).await?;
        return Ok(());
    }
    let name = format!("cooper-cache-states-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    let both = async { Ok::<_, Box<dyn Error>>([run(&folder).await?, run(&folder).await?]) };
    let both = both.await;
    std::fs::remove_dir_all(&folder)?;
    assert_eq!(
        both?,
        [false, true],
        "the second run finds what the first one kept"
    );
    Ok(())
}
