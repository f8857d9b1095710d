//! 128 builds at once of 50 cached steps each, beside the same builds one by one:
//! `cargo bench -p cooper-worker --bench many_builds -- [BUILDS] [STEPS] [ROUNDS]`, as root.
#![allow(clippy::unwrap_used)]

#[path = "../tests/many/mod.rs"]
mod many;

use std::sync::Arc;
use std::time::Duration;

use many::{Bed, Round};

fn show(what: &str, rounds: &mut [Round], builds: usize) -> Duration {
    rounds.sort_by_key(|round| round.time);
    let round = &rounds[rounds.len() / 2];
    let worst = rounds.iter().map(|round| round.wait(990)).max();
    println!(
        "{what}: {:.1} ms, {:.0} µs a build, {:.0} µs of a processor; \
         {} calls to the store, of which 99 % took at most \
         {:.1} µs, 999 of 1,000 {:.1} µs, the longest {:.1} µs; 99 % in the worst round {:.1} µs",
        round.time.as_secs_f64() * 1e3,
        micros(round.time) / builds as f64,
        micros(round.work) / builds as f64,
        round.waits.len(),
        micros(round.wait(990)),
        micros(round.wait(999)),
        micros(round.wait(1000)),
        micros(worst.unwrap_or_default()),
    );
    round.time
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let number = |place: usize, usual| numbers.get(place).copied().unwrap_or(usual);
    let (builds, steps, rounds) = (number(0, 128), number(1, 50), number(2, 21));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio.block_on(async {
        let root = tempfile::tempdir().unwrap();
        let bed = Arc::new(Bed::new(root.path(), builds, steps).await);
        bed.round(true).await;
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            alone.push(bed.round(false).await);
            together.push(bed.round(true).await);
        }
        println!("{builds} builds of {steps} cached steps, {cores} processors, {rounds} rounds:");
        let alone = show("one by one", &mut alone, builds);
        let together = show("at once", &mut together, builds);
        let ratio = together.as_secs_f64() * cores as f64 / alone.as_secs_f64();
        println!("at once it takes {ratio:.2} times what the builds take one by one, divided by the processors");
    });
}
