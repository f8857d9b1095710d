//! The end of many records, and how long others wait for the metadata meanwhile:
//! `cargo bench -p cooper-cache --bench prune -- [RECORDS]`.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cooper_cache::{CacheManager, Descriptor, Layer, LocalRef, PruneOptions, RecordOptions};
use cooper_content::digest_of;

use support::open;

/// Records that stand on each other.
const CHAIN: usize = 8;

/// What a step leaves: some files, and for every third a blob.
async fn step(cache: &CacheManager, below: Option<&LocalRef>, number: usize) -> LocalRef {
    let work = cache
        .new_mutable(below, RecordOptions::default())
        .await
        .unwrap();
    let mounted = work.mount().await.unwrap();
    let folder = mounted.path().join(format!("d{number}"));
    std::fs::create_dir(&folder).unwrap();
    for file in 0..4 {
        std::fs::write(folder.join(format!("f{file}")), vec![1; 2000 * file]).unwrap();
    }
    mounted.close().unwrap();
    let made = work.commit().await.unwrap();
    if number.is_multiple_of(3) {
        let bytes = number.to_le_bytes().repeat(500);
        let blob = cache.content().write_all(&bytes).await.unwrap();
        let layer = Layer {
            descriptor: Descriptor::new("x/layer".into(), bytes.len() as u64, blob),
            diff_id: digest_of(&bytes),
            sources: Vec::new(),
        };
        made.set_layer(layer).await.unwrap();
    }
    made.retain().await.unwrap();
    made.local().unwrap()
}

/// How long a step waits for its record, again and again, at most and in the 99th percentile.
async fn waits(cache: CacheManager, end: Arc<AtomicBool>) -> (Duration, Duration) {
    let mut waits = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let began = Instant::now();
        let options = RecordOptions {
            retain: true,
            ..RecordOptions::default()
        };
        let work = cache.new_mutable(None, options).await.unwrap();
        waits.push(began.elapsed());
        drop(work);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    waits.sort();
    (*waits.last().unwrap(), waits[waits.len() * 99 / 100])
}

fn log_of(root: &Path) -> u64 {
    let log = root.join("metadata.db-wal").metadata();
    log.map_or(0, |log| log.len() >> 10)
}

#[tokio::main]
async fn main() {
    let given = std::env::args().find_map(|arg| arg.parse().ok());
    let count: usize = given.unwrap_or(2400);
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path()).await;
    let began = Instant::now();
    let mut below = None;
    for number in 0..count {
        if number.is_multiple_of(CHAIN) {
            below = None;
        }
        below = Some(step(&cache, below.as_ref(), number).await);
    }
    drop(below);
    println!("{count} records made in {:.2?}", began.elapsed());
    // As after a night: all are durable.
    cache.close().await;
    let end = Arc::new(AtomicBool::new(false));
    let waiting = tokio::spawn(waits(cache.clone(), end.clone()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    let pruned = cache.prune(PruneOptions::default()).await.unwrap();
    let took = began.elapsed();
    end.store(true, Ordering::Relaxed);
    let (most, usual) = waiting.await.unwrap();
    println!(
        "{} records pruned in {took:.2?}; meanwhile a new one waited {most:.2?} at most, {usual:.2?} \
         in the 99th percentile; the log of the metadata has {} KiB",
        pruned.len(),
        log_of(dir.path()),
    );
    assert!(pruned.len() >= count, "{}", pruned.len());
    let found = cache.verify().await.unwrap();
    assert_eq!(found.differences, [], "{found:?}");
}
