//! Builds, prunes and restarts by chance: the ledger and the file system agree, and what nobody
//! uses stays within its limit at every look.
//!
//! The short form is a test of each run of the tests; `cargo xtask soak disk` makes 1,000 cycles
//! under a limit of 1 GiB.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cooper_cache::{
    CacheLimits, CacheManager, Descriptor, ImmutableRef, Layer, MutableRef, PruneOptions,
    RecordOptions, RefId,
};
use cooper_content::digest_of;

use support::{Links, Random, number, open, seed, taken};

struct Scale {
    cycles: u64,
    limit: u64,
    every: Duration,
}

/// What the looks at the cache have found.
#[derive(Default)]
struct Looks {
    count: AtomicU64,
    most_free: AtomicU64,
    /// The most that was free although steps held more than all may take.
    most_pushed: AtomicU64,
    end: AtomicBool,
}

#[test]
fn the_ledger_is_right_and_limits_hold() {
    let full = std::env::var_os("COOPER_SOAK").is_some();
    let scale = Scale {
        cycles: number("COOPER_CYCLES", if full { 1000 } else { 12 }),
        limit: if full { 1 << 30 } else { 48 << 20 },
        every: Duration::from_millis(if full { 200 } else { 50 }),
    };
    let mut random = Random(seed());
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let looks = Arc::new(Looks::default());
    let (mut worst, mut written) = (0.0_f64, 0);
    for cycle in 0..scale.cycles {
        // A runtime for each: its end is that of a process.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let off = runtime.block_on(async {
            let cache = open(dir.path()).await;
            let collector = cache.collect(CacheLimits {
                policies: vec![PruneOptions {
                    max_used_space: scale.limit,
                    ..PruneOptions::default()
                }],
                most_of_step: 0,
            });
            looks.end.store(false, Ordering::SeqCst);
            let looking =
                tokio::spawn(look(cache.clone(), looks.clone(), scale.limit, scale.every));
            written += build(&cache, &mut random, scale.limit).await;
            if random.below(4) == 0 {
                prune(&cache, &mut random, scale.limit).await;
            }
            looks.end.store(true, Ordering::SeqCst);
            looking.await.unwrap();
            drop(collector);
            let off = compare(&cache, dir.path()).await;
            if random.below(2) == 0 {
                cache.close().await;
            }
            off
        });
        // Half of them without a word.
        runtime.shutdown_timeout(Duration::from_secs(10));
        if cycle % 100 == 99 {
            println!(
                "{} cycles in {:.0} s",
                cycle + 1,
                began.elapsed().as_secs_f64()
            );
        }
        assert!(off < 0.01, "cycle {cycle}: {:.2} % differ", off * 100.0);
        worst = worst.max(off);
    }
    let (free, pushed) = (&looks.most_free, &looks.most_pushed);
    let (free, pushed) = (free.load(Ordering::SeqCst), pushed.load(Ordering::SeqCst));
    println!(
        "{} cycles in {:.0} s, {} MB written; ledger and file system differ by {:.3} % at most; \
         {} looks: at most {:.2} % of the limit was free to prune, and {:.2} % while steps held all of it",
        scale.cycles,
        began.elapsed().as_secs_f64(),
        written / 1_000_000,
        worst * 100.0,
        looks.count.load(Ordering::SeqCst),
        free as f64 / scale.limit as f64 * 100.0,
        pushed as f64 / scale.limit as f64 * 100.0,
    );
    assert!(looks.count.load(Ordering::SeqCst) >= scale.cycles.min(10));
    assert!(
        free <= scale.limit + scale.limit / 100,
        "{free} bytes nobody used, of {}",
        scale.limit
    );
}

/// Looks at what nobody uses, time after time.
async fn look(cache: CacheManager, looks: Arc<Looks>, limit: u64, every: Duration) {
    loop {
        let all = cache.disk_usage().await.unwrap();
        let sum = |held: bool| -> u64 {
            let some = all.iter().filter(|one| one.in_use == held);
            some.map(|one| one.size).sum()
        };
        let (free, held) = (sum(false), sum(true));
        looks.count.fetch_add(1, Ordering::SeqCst);
        looks.most_free.fetch_max(free, Ordering::SeqCst);
        if held > limit {
            looks.most_pushed.fetch_max(free, Ordering::SeqCst);
        }
        for _ in 0..every.as_millis() / 10 {
            if looks.end.load(Ordering::SeqCst) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Some chains of steps at once. Returns how many bytes they wrote.
async fn build(cache: &CacheManager, random: &mut Random, limit: u64) -> u64 {
    let _work = cache.work();
    let chains = 1 + random.below(3);
    let mut running = Vec::new();
    for _ in 0..chains {
        let (cache, seed) = (cache.clone(), random.next());
        running.push(tokio::spawn(chain(cache, Random(seed), limit)));
    }
    let mut written = 0;
    for chain in running {
        written += chain.await.unwrap();
    }
    written
}

async fn chain(cache: CacheManager, mut random: Random, limit: u64) -> u64 {
    let mut written = 0;
    let mut last = existing(&cache, &mut random).await;
    for _ in 0..1 + random.below(6) {
        let parent = match &last {
            Some(id) => match cache.get(id).await {
                Ok(found) => found.local(),
                // Pruned meanwhile.
                Err(_) => None,
            },
            None => None,
        };
        let retain = random.below(6) == 0;
        let options = RecordOptions {
            retain,
            ..RecordOptions::default()
        };
        let work = cache.new_mutable(parent.as_ref(), options).await.unwrap();
        written += write(&work, &mut random, limit / 100).await;
        if random.below(8) == 0 {
            // A step that failed.
            drop(work);
            continue;
        }
        let made = work.commit().await.unwrap();
        if random.below(3) == 0 {
            // As an exporter packs it.
            let bytes = random
                .next()
                .to_le_bytes()
                .repeat(1 + random.below(20_000) as usize);
            let blob = cache.content().write_all(&bytes).await.unwrap();
            let descriptor = Descriptor::new("x/layer".into(), bytes.len() as u64, blob.clone());
            let layer = Layer {
                descriptor,
                diff_id: digest_of(&random.next().to_le_bytes()),
                sources: Vec::new(),
            };
            made.set_layer(layer).await.unwrap();
            let manifest = format!("manifest of {blob}");
            cache
                .content()
                .write_all(manifest.as_bytes())
                .await
                .unwrap();
        }
        if random.below(8) > 0 {
            made.retain().await.unwrap();
        }
        last = Some(made.id().clone());
        if random.below(4) == 0
            && let Some(merged) = merge(&cache, &mut random, &made).await
        {
            last = Some(merged.id().clone());
        }
    }
    written
}

/// The changes of some other ref on top of `below`, sometimes with their files.
async fn merge(
    cache: &CacheManager,
    random: &mut Random,
    below: &ImmutableRef,
) -> Option<ImmutableRef> {
    let over = existing(cache, random).await?;
    // Pruned meanwhile, or itself one that has no files yet.
    let over = cache.get(&over).await.ok()?;
    let options = RecordOptions::default();
    let merged = cache.stack(Some(below), &over, options).await.unwrap();
    if random.below(4) > 0 {
        merged.localize(&Links).await.unwrap();
    }
    if random.below(4) > 0 {
        merged.retain().await.unwrap();
    }
    Some(merged)
}

/// A ref of an earlier build, sometimes.
async fn existing(cache: &CacheManager, random: &mut Random) -> Option<RefId> {
    let all = cache.disk_usage().await.unwrap();
    let refs: Vec<_> = all
        .iter()
        .filter(|one| !one.mutable && one.id.as_str().len() < 64)
        .collect();
    if refs.is_empty() || random.below(3) == 0 {
        return None;
    }
    Some(refs[random.below(refs.len() as u64) as usize].id.clone())
}

/// Files of `most` bytes together, folders, hard links and holes. Returns how many were written.
async fn write(work: &MutableRef, random: &mut Random, most: u64) -> u64 {
    let dir = work.mount().await.unwrap();
    let root = dir.path().to_owned();
    let seed = random.next();
    let writing = tokio::task::spawn_blocking(move || {
        let mut random = Random(seed);
        let mut left = random.below(most);
        let mut written = 0;
        let folder = root.join(format!("d{}", random.below(4)));
        std::fs::create_dir_all(&folder).unwrap();
        while left > 0 && written < most {
            let size = 1 + random.below(left.min(4 << 20));
            let name = folder.join(format!("f{}", random.below(1 << 40)));
            std::fs::write(&name, vec![seed as u8; size as usize]).unwrap();
            match random.below(10) {
                0 => std::fs::hard_link(&name, name.with_extension("link")).unwrap(),
                1 => {
                    let file = std::fs::File::options().write(true).open(&name).unwrap();
                    file.set_len(size + (1 << 30)).unwrap();
                }
                2 => std::fs::remove_file(&name).unwrap(),
                _ => {}
            }
            written += size;
            left -= size;
        }
        written
    });
    let written = writing.await.unwrap();
    dir.close().unwrap();
    written
}

async fn prune(cache: &CacheManager, random: &mut Random, limit: u64) {
    // Seldom of all: else nothing would ever come near the limit.
    let most = match random.below(25) {
        0 => 0,
        1..5 => limit / 2,
        _ => limit - limit / 8,
    };
    let options = PruneOptions {
        all: random.below(2) == 0,
        max_used_space: most,
        ..PruneOptions::default()
    };
    cache.prune(options).await.unwrap();
}

/// By which part the ledger and the file system differ.
async fn compare(cache: &CacheManager, root: &Path) -> f64 {
    let found = cache.verify().await.unwrap();
    assert_eq!(found.differences, [], "{found:?}");
    // Counted again from outside: folders that only hold others are nobody's.
    let folders = ["snapshots", "content"].map(|name| root.join(name));
    let frame: u64 = [
        "snapshots",
        "snapshots/s",
        "content",
        "content/blobs",
        "content/ingest",
        "content/blobs/sha256",
    ]
    .iter()
    .map(|name| std::os::unix::fs::MetadataExt::blocks(&root.join(name).metadata().unwrap()) * 512)
    .sum();
    let disk: u64 = folders.iter().map(|folder| taken(folder)).sum::<u64>() - frame;
    disk.abs_diff(found.ledger) as f64 / (disk.max(1 << 20)) as f64
}
