//! A process that is killed at a random moment: the cache opens, no record that was
//! acknowledged is lost, and none is half there.
//!
//! The short form is a test of each run of the tests; `cargo xtask soak disk` kills 1,000 times.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cooper_cache::{
    CacheManager, Descriptor, Layer, MutableRef, PruneOptions, RecordOptions, RefId,
};
use cooper_content::digest_of;
use futures::StreamExt;

use support::{Random, id, number, open, seed};

const CHILD: &str = "COOPER_CACHE_KILL_CHILD";
const NAME: &str = "a_killed_process_loses_no_record_and_leaves_none_by_half";

/// Says what was acknowledged. One write: a kill does not leave half a line.
fn say(what: &str, id: &RefId, text: &str) {
    let line = format!("{what} {id} {text}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

/// What the file of a ref says.
fn text(random: &mut Random) -> String {
    let word = random.next();
    format!("{word:016x}").repeat(1 + (word % 3000) as usize)
}

/// Makes and removes refs for ever.
async fn child(root: &Path, seed: u64) {
    let cache = open(root).await;
    std::io::stdout().write_all(b"open\n").unwrap();
    let mut running = Vec::new();
    for number in 0..3 {
        running.push(tokio::spawn(work(cache.clone(), Random(seed + number))));
    }
    for task in running {
        task.await.unwrap();
    }
}

async fn work(cache: CacheManager, mut random: Random) {
    let mut own: Vec<RefId> = Vec::new();
    loop {
        match random.below(10) {
            0 if !own.is_empty() => {
                let going = own.swap_remove(random.below(own.len() as u64) as usize);
                say("going", &going, "");
                let options = PruneOptions {
                    filter: Some(Arc::new(move |one| one.id == going)),
                    ..PruneOptions::default()
                };
                cache.prune(options).await.unwrap();
            }
            1 => source(&cache, &mut random).await,
            2 => {
                // Dropped before it is done.
                let half = cache
                    .new_mutable(None, RecordOptions::default())
                    .await
                    .unwrap();
                fill(&half, "half").await;
            }
            3 if random.below(8) == 0 => cache.close().await,
            _ => {
                let made = step(&cache, &mut random, &own).await;
                own.push(made);
            }
        }
    }
}

/// A step on top of an earlier one, with a blob.
async fn step(cache: &CacheManager, random: &mut Random, own: &[RefId]) -> RefId {
    let parent = match own.len() as u64 {
        0 => None,
        count => {
            let below = &own[random.below(count) as usize];
            cache.get(below).await.ok().and_then(|found| found.local())
        }
    };
    let work = cache
        .new_mutable(parent.as_ref(), RecordOptions::default())
        .await
        .unwrap();
    let text = text(random);
    fill(&work, &text).await;
    let made = work.commit().await.unwrap();
    if random.below(2) == 0 {
        let blob = cache.content().write_all(text.as_bytes()).await.unwrap();
        let layer = Layer {
            descriptor: Descriptor::new("x/layer".into(), text.len() as u64, blob),
            diff_id: digest_of(text.as_bytes()),
            sources: Vec::new(),
        };
        made.set_layer(layer).await.unwrap();
    }
    made.retain().await.unwrap();
    say("kept", made.id(), digest_of(text.as_bytes()).as_ref());
    made.id().clone()
}

/// A source that is written in place, and sealed.
async fn source(cache: &CacheManager, random: &mut Random) {
    let index = format!("source {}", random.below(4));
    let mut got = None;
    for found in cache.search(&index).unwrap() {
        got = cache.get_mutable(&found).await.ok().or(got);
    }
    let work = match got {
        Some(work) => work,
        None => {
            let options = RecordOptions {
                retain: true,
                indexes: vec![index],
                ..RecordOptions::default()
            };
            cache.new_mutable(None, options).await.unwrap()
        }
    };
    fill(&work, &text(random)).await;
    let sealed = work.commit().await.unwrap();
    if random.below(2) == 0 {
        // Something stands on it: it is committed.
        let below = sealed.local();
        let over = cache.new_mutable(below.as_ref(), RecordOptions::default());
        drop(over.await.unwrap());
    }
}

async fn fill(work: &MutableRef, text: &str) {
    let dir = work.mount().await.unwrap();
    std::fs::write(dir.path().join("text"), text).unwrap();
    dir.close().unwrap();
}

/// Looks at one record: it is there, whole, with its blob.
async fn look(cache: &CacheManager, name: &str, digest: &str) {
    let found = cache.get(&id(name)).await;
    let local = found
        .unwrap_or_else(|error| panic!("lost: {error}"))
        .local()
        .unwrap();
    let dir = local.mount().await.unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let text = std::fs::read(dir.path().join("text")).unwrap();
        dir.close().unwrap();
        text
    });
    let text = reading.await.unwrap();
    assert_eq!(digest_of(&text).to_string(), digest, "{name} is half there");
    if let Some(layer) = local.layer() {
        let blob = cache
            .content()
            .read_all(layer.descriptor.digest(), 1 << 20)
            .await;
        assert_eq!(&blob.unwrap()[..], &text[..]);
    }
}

/// Opens the cache as the next process does, and looks at everything that was acknowledged.
async fn check(root: &Path, kept: &BTreeMap<String, String>) {
    let began = Instant::now();
    let cache = open(root).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "opening took {:?}",
        began.elapsed()
    );
    // Some at once: the kernel takes its time over each unmount.
    let looks = kept.iter().map(|(name, digest)| look(&cache, name, digest));
    futures::stream::iter(looks)
        .for_each_concurrent(16, |look| look)
        .await;
    // Nothing lies around, mounted or not.
    let found = cache.verify().await.unwrap();
    assert_eq!(found.differences, [], "{found:?}");
    // It serves.
    let made = cache
        .new_mutable(None, RecordOptions::default())
        .await
        .unwrap();
    fill(&made, "after").await;
    drop(made.commit().await.unwrap());
    cache.settle().await;
    let mounted = cooper_sys::MountPoint::below(root).unwrap();
    assert_eq!(mounted.len(), 0, "{mounted:?}");
}

#[test]
fn a_killed_process_loses_no_record_and_leaves_none_by_half() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let Some(root) = std::env::var_os(CHILD) {
        let seed = number("COOPER_SOAK_SEED", 0);
        runtime.block_on(child(root.as_ref(), seed));
        return;
    }
    let full = std::env::var_os("COOPER_SOAK").is_some();
    let rounds = number("COOPER_KILLS", if full { 1000 } else { 10 });
    let mut random = Random(seed());
    let dir = tempfile::tempdir().unwrap();
    let mut kept = BTreeMap::new();
    let (mut acknowledged, mut longest) = (0, 0);
    let began = Instant::now();
    for round in 0..rounds {
        if round % 100 == 99 {
            println!(
                "{} kills in {:.0} s",
                round + 1,
                began.elapsed().as_secs_f64()
            );
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, dir.path())
            .env("COOPER_SOAK_SEED", random.next().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        if random.below(2) == 0 {
            // Killed at work, however long the start takes; else it may be killed on the way.
            let _ = output.find(|line| line.as_ref().is_ok_and(|line| line == "open"));
        }
        let wait = Duration::from_millis(10 + random.below(150));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(wait);
            child.kill().unwrap();
            child.wait().unwrap()
        });
        for line in output {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["kept", name, digest] => {
                    acknowledged += 1;
                    kept.insert(name.to_owned(), digest.to_owned());
                }
                ["going", name, _] => drop(kept.remove(name)),
                _ => {}
            }
        }
        let status = killer.join().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9),
            "{status}"
        );
        runtime.block_on(check(dir.path(), &kept));
        let log = dir.path().join("metadata.db-wal").metadata();
        longest = longest.max(log.map_or(0, |log| log.len()));
        if kept.len() > 100 {
            // The looks would take longer than the work.
            runtime.block_on(async {
                let cache = open(dir.path()).await;
                cache.prune(PruneOptions::default()).await.unwrap();
                cache.close().await;
            });
            kept.clear();
        }
    }
    println!(
        "{rounds} kills, {acknowledged} records acknowledged, none lost; the log of the metadata \
         was {} KiB at most",
        longest >> 10
    );
    assert!(
        acknowledged >= rounds / 2,
        "only {acknowledged} records were made"
    );
}
