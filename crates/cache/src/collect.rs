//! The collector: keeps what the cache takes within bounds while builds go on.
//!
//! It looks at once when something came or was let go, and some times each second while steps
//! write: what they have written so far counts, and pushes out what nobody uses. When space gets
//! scarce it prunes ahead of need, by as much as was written since it last looked.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::{CacheError, CacheManager, PruneOptions, RefId};

/// From one look at the steps that write to the next, at least.
const SAMPLE: Duration = Duration::from_millis(200);
/// A look may take this part of the time: one at many files is followed by a longer pause.
const SHARE: u32 = 20;
/// News that come close together are looked at once.
const PAUSE: Duration = Duration::from_millis(20);
/// How often age is looked at while builds go on (BuildKit's value).
const EACH: Duration = Duration::from_secs(60);
/// How often when nothing happens.
const IDLE: Duration = Duration::from_secs(3600);
/// Part of a bound that is freed ahead of need at most.
const AHEAD: u64 = 8;

/// What the cache is kept within.
#[derive(Clone, Debug, Default)]
pub struct CacheLimits {
    /// What is pruned, each after the one before it: BuildKit's policies
    /// (docs/custom-workers, "garbage collection"). None prunes nothing.
    pub policies: Vec<PruneOptions>,
    /// Bytes that one step may write at most; 0 for no limit.
    pub most_of_step: u64,
}

/// The task that collects. It ends when this value is dropped.
#[derive(Debug)]
#[must_use = "the collector ends when this value is dropped"]
pub struct Collector {
    task: AbortHandle,
    cache: CacheManager,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
        self.cache.shared.state().looks.set_collecting(false);
    }
}

impl CacheManager {
    /// Starts to keep the cache within `limits`.
    pub fn collect(&self, limits: CacheLimits) -> Collector {
        let most = limits.most_of_step;
        self.shared.most_of_step.store(most, Ordering::Relaxed);
        let collects = limits.policies.iter().any(PruneOptions::has_bound);
        self.shared.state().looks.set_collecting(collects);
        let collecting = Collecting {
            cache: self.clone(),
            limits,
            written: 0,
            next_sample: Instant::now(),
            next_prune: Instant::now(),
            waits: false,
            next_age: Instant::now() + Duration::from_secs(1),
        };
        Collector {
            task: tokio::spawn(collecting.run()).abort_handle(),
            cache: self.clone(),
        }
    }

    /// Prunes by each policy, one after the other. Returns how many bytes that freed.
    ///
    /// # Cancel safety
    /// As that of [`CacheManager::prune`].
    pub async fn prune_by(&self, policies: &[PruneOptions]) -> Result<u64, CacheError> {
        self.prune_ahead(policies, 0).await
    }

    async fn prune_ahead(&self, policies: &[PruneOptions], grown: u64) -> Result<u64, CacheError> {
        let _pruning = self.shared.pruning.lock().await;
        let mut freed = 0;
        for policy in policies {
            let gone = self.prune_to(policy, ahead(policy, grown)).await?;
            freed += gone.iter().map(|record| record.size).sum::<u64>();
        }
        Ok(freed)
    }
}

struct Collecting {
    cache: CacheManager,
    limits: CacheLimits,
    /// What the running steps had written when they were last looked at.
    written: u64,
    next_sample: Instant,
    next_prune: Instant,
    /// Whether it is over a bound, and not pruned again before then.
    waits: bool,
    /// When age is looked at again.
    next_age: Instant,
}

impl Collecting {
    async fn run(mut self) {
        let changed = self.cache.shared.book.changed.clone();
        loop {
            if let Err(error) = self.look().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "could not collect what nobody uses"
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let busy = !self.cache.shared.state().running().is_empty();
            let next = if busy {
                self.next_sample.saturating_duration_since(Instant::now())
            } else if self.waits {
                self.next_prune.saturating_duration_since(Instant::now())
            } else {
                // What came last has to grow old first.
                EACH
            };
            let _ = tokio::time::timeout(next, changed.notified()).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look(&mut self) -> Result<(), CacheError> {
        if self.limits.policies.is_empty() && self.limits.most_of_step == 0 {
            return Ok(());
        }
        let look = self.cache.shared.state().looks.begin();
        let grown = self.sample().await?;
        if self.limits.policies.is_empty() {
            return Ok(());
        }
        self.cache.shared.measure_all(false).await?;
        let now = Instant::now();
        let each = if self.cache.shared.state().running().is_empty() {
            IDLE
        } else {
            EACH
        };
        let old = now >= self.next_age;
        let mut over = false;
        for policy in &self.limits.policies {
            over |= self.cache.is_over(policy, ahead(policy, grown))?;
        }
        self.waits = over && now < self.next_prune;
        if !old && (!over || self.waits) {
            // What was let go still waits, unless there is room.
            if !over {
                self.cache.shared.state().looks.end(look);
            }
            return Ok(());
        }
        let freed = self.cache.prune_ahead(&self.limits.policies, grown).await?;
        self.cache.shared.state().looks.end(look);
        if old {
            self.next_age = now + each;
        }
        if freed > 0 {
            tracing::debug!(freed, "collected what nobody uses");
        } else {
            // Everything is in use: to look again at once would find the same.
            self.next_prune = Instant::now() + SAMPLE + now.elapsed() * SHARE;
        }
        Ok(())
    }

    /// Measures what the running steps have written. Returns by how much it grew since the last
    /// time, in bytes.
    async fn sample(&mut self) -> Result<u64, CacheError> {
        let began = Instant::now();
        if began < self.next_sample {
            return Ok(0);
        }
        let core = &self.cache.shared.core;
        let running: Vec<RefId> = core.state().running().iter().cloned().collect();
        let mut written = 0;
        for id in &running {
            written += core.measure(id).await?.unwrap_or(0);
        }
        if !running.is_empty() {
            core.sampled.notify_waiters();
        }
        self.next_sample = Instant::now() + SAMPLE.max(began.elapsed() * SHARE);
        let grown = written.saturating_sub(self.written);
        self.written = written;
        Ok(grown)
    }
}

/// What is freed ahead of need for a policy, when steps write `grown` bytes between two looks.
fn ahead(policy: &PruneOptions, grown: u64) -> u64 {
    grown.min(policy.max_used_space.max(policy.min_free_space) / AHEAD)
}
