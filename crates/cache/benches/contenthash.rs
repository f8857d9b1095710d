//! The content hash of many files beside reading and hashing them plainly, on as many threads:
//! `cargo bench -p cooper-cache --bench contenthash -- [FILES] [ROUNDS]`.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cooper_cache::{ChecksumOptions, LocalRef, RecordOptions};
use sha2::{Digest, Sha256};

use support::{open_over, open_store};

/// Files of one folder.
const EACH: usize = 100;

/// Forgets what is known of hashes.
fn forget(root: &Path) {
    std::fs::remove_dir_all(root.join("hashes")).unwrap();
}

/// What a file of the number holds: from 200 bytes to 16 KiB.
fn content(number: usize) -> Vec<u8> {
    let length = [200, 1000, 2000, 4000, 16 << 10][number % 5] + number % 97;
    number.to_le_bytes().repeat(length / 8 + 1)
}

/// Reads and hashes all files, and nothing more.
fn plainly(root: &Path) -> usize {
    let mut files = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut sums = 0_u8;
                while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let bytes = std::fs::read(path).unwrap();
                    sums ^= Sha256::digest(&bytes)[0];
                }
                std::hint::black_box(sums)
            });
        }
    });
    files.len()
}

/// Bytes that this process has read so far, by read(2) and the like.
fn read_so_far() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

async fn hash(local: &LocalRef) -> (Duration, u64) {
    let (began, before) = (Instant::now(), read_so_far());
    let digest = local
        .checksum(Path::new("/"), &ChecksumOptions::default())
        .await;
    std::hint::black_box(digest.unwrap());
    (began.elapsed(), read_so_far() - before)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn write_all(root: &Path, count: usize) {
    for number in 0..count {
        let folder: PathBuf = root.join(format!("d{:04}", number / EACH));
        if number % EACH == 0 {
            std::fs::create_dir(&folder).unwrap();
        }
        std::fs::write(folder.join(format!("f{number:06}")), content(number)).unwrap();
    }
}

#[tokio::main]
async fn main() {
    let numbers: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let count = numbers.first().copied().unwrap_or(100_000);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let dir = tempfile::tempdir().unwrap();
    // One store for all: the last cache of another may still be writing when the next begins.
    let (store, _) = open_store(dir.path());
    let open = || open_over(dir.path(), store.clone(), Vec::new());
    let cache = open().await;
    let work = cache
        .new_mutable(None, RecordOptions::default())
        .await
        .unwrap();
    let mounted = work.mount().await.unwrap();
    write_all(mounted.path(), count);
    mounted.close().unwrap();
    let base = work.commit().await.unwrap();
    base.retain().await.unwrap();
    // On top of it, as the files of a step are: an overlay, which both read through.
    let below = base.local();
    let over = cache.new_mutable(below.as_ref(), RecordOptions::default());
    let made = over.await.unwrap().commit().await.unwrap();
    made.retain().await.unwrap();
    let (base_id, id) = (base.id().clone(), made.id().clone());
    cache.close().await;
    drop((base, below, made, cache));

    let (mut plain, mut first, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        forget(dir.path());
        let cache = open().await;
        let local = cache.get(&id).await.unwrap().local().unwrap();
        let mounted = local.mount().await.unwrap();
        let take_plain = || {
            let began = Instant::now();
            assert_eq!(plainly(mounted.path()), count);
            began.elapsed()
        };
        // Each comes first in turn; the first round warms the page cache.
        let (one, other) = if round % 2 == 0 {
            let plain = take_plain();
            (plain, hash(&local).await.0)
        } else {
            let hashed = hash(&local).await.0;
            (take_plain(), hashed)
        };
        if round > 0 {
            plain.push(one);
            first.push(other);
        }
        again.push(hash(&local).await.0);
        mounted.close().unwrap();
        cache.close().await;
    }
    let (plain, first) = (median(plain), median(first));
    println!("{count} files, medians of {rounds} rounds:");
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!("  read and hashed plainly   {:8.1} ms", ms(plain));
    println!(
        "  content hash, first time  {:8.1} ms, {:.2} times that",
        ms(first),
        first.as_secs_f64() / plain.as_secs_f64()
    );
    println!("  asked again               {:8.1} ms", ms(median(again)));

    // After a restart, with one file changed on top.
    forget(dir.path());
    let cache = open().await;
    let base = cache.get(&base_id).await.unwrap().local().unwrap();
    let (_, all) = hash(&base).await;
    cache.close().await;
    drop((base, cache));
    let cache = open().await;
    let base = cache.get(&base_id).await.unwrap().local().unwrap();
    let work = cache
        .new_mutable(Some(&base), RecordOptions::default())
        .await
        .unwrap();
    let mounted = work.mount().await.unwrap();
    std::fs::write(mounted.path().join("d0000/f000001"), vec![7; 5000]).unwrap();
    mounted.close().unwrap();
    let changed = work.commit().await.unwrap().local().unwrap();
    let (time, read) = hash(&changed).await;
    println!(
        "  one file changed          {:8.1} ms, {read} bytes read of {all}",
        ms(time)
    );
}
