//! Many builds at once do not wait for the store, nor for each other. The figures are made by the
//! bench of the same name.
#![allow(clippy::unwrap_used)]

mod many;

use std::sync::Arc;
use std::time::Duration;

use many::Bed;

/// Loose bounds: other tests run at the same time. Keys that had to be read from the disk, or a
/// lock that is held while something is written, are far beyond them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_builds_at_once_wait_for_nothing() {
    let root = tempfile::tempdir().unwrap();
    let bed = Arc::new(Bed::new(root.path(), 16, 20).await);
    bed.round(true).await;
    let mut best = Duration::MAX;
    let mut waits = Vec::new();
    let mut alone = Duration::MAX;
    let (mut least_work, mut least_alone) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        let round = bed.round(false).await;
        alone = alone.min(round.time);
        least_alone = least_alone.min(round.work);
        let round = bed.round(true).await;
        best = best.min(round.time);
        least_work = least_work.min(round.work);
        waits.push(round.wait(990));
        // Each step is looked up, and what each build ends with is loaded.
        assert!(round.waits.len() >= 16 * 20, "{} calls", round.waits.len());
    }
    waits.sort_unstable();
    assert!(waits[2] < Duration::from_millis(5), "{waits:?}");
    assert!(best < alone * 2, "{best:?} at once, {alone:?} one by one");
    assert!(
        least_work < least_alone * 2,
        "{least_work:?} of a processor at once, {least_alone:?} one by one"
    );
}
