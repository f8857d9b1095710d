//! Pruning: which records end, in which order, by BuildKit's rules (`cache/manager.go`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::io;
use crate::keeper::Message;
use crate::plan::{Pick, Plan, What};
use crate::remove::Removal;
use crate::state::Entry;
use crate::{CacheError, CacheManager, RefId, UsageRecord};

/// Says of a record whether it may be pruned.
pub type UsageFilter = Arc<dyn Fn(&UsageRecord) -> bool + Send + Sync>;

/// What to prune. The default prunes everything that is not in use, but for what frontends and
/// the daemon need.
#[derive(Clone, Default)]
pub struct PruneOptions {
    /// Also what frontends and the daemon need.
    pub all: bool,
    /// Spare what was used within this time; zero spares nothing.
    pub keep_duration: Duration,
    /// Bytes that the cache may have whatever else is said; 0 for none.
    pub reserved_space: u64,
    /// Bytes that the cache may have at most; 0 for no limit.
    pub max_used_space: u64,
    /// Bytes that are to be free on the disk; 0 for none.
    pub min_free_space: u64,
    /// Only records that it says yes to.
    pub filter: Option<UsageFilter>,
}

impl std::fmt::Debug for PruneOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PruneOptions")
            .field("all", &self.all)
            .field("keep_duration", &self.keep_duration)
            .field("reserved_space", &self.reserved_space)
            .field("max_used_space", &self.max_used_space)
            .field("min_free_space", &self.min_free_space)
            .field("filter", &self.filter.is_some())
            .finish()
    }
}

impl PruneOptions {
    /// How many bytes to keep of `total`, when `free` are free; none when space is no matter
    /// (BuildKit, `cache/manager.go`, `calculateKeepBytes`).
    fn keep(&self, total: u64, free: u64) -> Option<u64> {
        if !self.has_bound() {
            return None;
        }
        let most = match self.max_used_space {
            0 => None,
            most => Some(most),
        };
        let bound = match self.min_free_space.saturating_sub(free) {
            // Free space was asked for and is there: nothing has to go. BuildKit keeps as much as
            // there is then, and as less than that is what it wants, one record goes each time.
            0 if self.min_free_space > 0 => most.unwrap_or(u64::MAX),
            // With space reserved alone that is the bound.
            0 => most.unwrap_or(0),
            lacking => total.saturating_sub(lacking).min(most.unwrap_or(u64::MAX)),
        };
        Some(bound.max(self.reserved_space))
    }

    /// Whether it is about space.
    pub(crate) fn has_bound(&self) -> bool {
        self.max_used_space | self.reserved_space | self.min_free_space != 0
    }

    /// What explains to a user that a record went.
    fn name(&self) -> &'static str {
        match self {
            Self {
                max_used_space: 1..,
                ..
            } => "the policy maxUsedSpace",
            Self {
                min_free_space: 1..,
                ..
            } => "the policy minFreeSpace",
            Self {
                reserved_space: 1..,
                ..
            } => "the policy reservedSpace",
            Self { keep_duration, .. } if !keep_duration.is_zero() => "the policy keepDuration",
            Self {
                filter: Some(_), ..
            } => "the policy filters",
            _ => "a prune of all that is unused",
        }
    }
}

/// Records that are ended at once: one sync makes the end of all of them durable, and whoever
/// waits for the keeper waits no longer than for these.
const BATCH: usize = 256;

impl CacheManager {
    /// Ends records that nobody uses and that `options` do not spare, and removes what they
    /// stand for. Returns them with what they took.
    ///
    /// With a bound on space they go one by one, the least used and longest unused first, until
    /// it is kept; what others stand on goes after them.
    ///
    /// # Cancel safety
    /// A record whose end was begun ends; others stay.
    pub async fn prune(&self, options: PruneOptions) -> Result<Vec<UsageRecord>, CacheError> {
        // One at a time: two that count the same records would both take too much.
        let _pruning = self.shared.pruning.lock().await;
        // A view that nobody looks at any more holds what it shows until the keeper got to it.
        self.settle().await;
        if options.has_bound() {
            self.shared.measure_all(true).await?;
        }
        self.prune_to(&options, 0).await
    }

    /// What [`CacheManager::prune`] would do now. Nothing is removed.
    ///
    /// # Cancel safety
    /// Nothing is changed but what is known of sizes.
    pub async fn plan_prune(&self, options: &PruneOptions) -> Result<Plan, CacheError> {
        self.settle().await;
        self.shared.measure_all(true).await?;
        let keep = self.bound(options, 0)?;
        Ok(self.shared.plan(options, keep))
    }

    /// As [`CacheManager::prune`], and `ahead` bytes more than the bounds ask for.
    pub(crate) async fn prune_to(
        &self,
        options: &PruneOptions,
        ahead: u64,
    ) -> Result<Vec<UsageRecord>, CacheError> {
        self.shared.measure_all(false).await?;
        let mut pruned = Vec::new();
        loop {
            let keep = self.bound(options, ahead)?;
            if keep.is_some_and(|keep| self.shared.total() < keep) {
                return Ok(pruned);
            }
            let picks = self.shared.plan(options, keep).picks;
            let mut ended = Vec::new();
            for batch in picks.chunks(BATCH) {
                ended.extend(self.end(batch, options.name()).await?);
            }
            if ended.is_empty() {
                return Ok(pruned);
            }
            // With the end of some others may be free by now.
            pruned.extend(ended);
        }
    }

    /// Whether more is taken than `options` allow.
    pub(crate) fn is_over(&self, options: &PruneOptions, ahead: u64) -> Result<bool, CacheError> {
        let keep = self.bound(options, ahead)?;
        Ok(keep.is_some_and(|keep| self.shared.total() >= keep))
    }

    /// Bytes that everything may take.
    fn bound(&self, options: &PruneOptions, ahead: u64) -> Result<Option<u64>, CacheError> {
        if !options.has_bound() {
            return Ok(None);
        }
        let free = match options.min_free_space {
            0 => u64::MAX,
            _ => self.free()?.saturating_sub(ahead),
        };
        let ahead = PruneOptions {
            // What is reserved is not given up for what may come.
            max_used_space: match options.max_used_space {
                0 => 0,
                most => most.saturating_sub(ahead).max(1),
            },
            ..options.clone()
        };
        Ok(ahead.keep(self.shared.total(), free))
    }

    fn free(&self) -> Result<u64, CacheError> {
        let root = &self.shared.mounts;
        let stat = rustix::fs::statvfs(root)
            .map_err(|error| io("measure the disk at", root)(error.into()))?;
        // All that is free, as BuildKit has it, what is kept for root included.
        Ok(stat.f_bfree.saturating_mul(stat.f_frsize))
    }

    /// Ends those that are still unused, each together with what is sealed over it. All at once:
    /// their invalidation is made durable by one sync.
    async fn end(&self, picks: &[Pick], by: &'static str) -> Result<Vec<UsageRecord>, CacheError> {
        let by: Arc<str> = by.into();
        let core = &self.shared.core;
        let mut ended = Vec::new();
        let mut removals = Vec::new();
        {
            let mut state = core.state();
            // Children that are taken out here and count until they are removed.
            let mut going: HashMap<RefId, usize> = HashMap::new();
            for pick in picks {
                let id = &pick.record.id;
                let What::Ref { sealed } = &pick.what else {
                    continue;
                };
                let Some(entry) = state.get(id) else {
                    if pick.waste {
                        // It went with the last one that stood on it.
                        ended.push(pick.record.clone());
                    }
                    continue;
                };
                let children = going.get(id).copied().unwrap_or(0);
                let free = entry.handles == 0 && !entry.taken && entry.children == children;
                let over = entry.sealed.as_ref().and_then(|id| state.get(id));
                if !free || entry.sealed != *sealed || !over.is_none_or(Entry::is_idle) {
                    continue;
                }
                // The sealed one first: it is over the snapshot of the other.
                for id in sealed.iter().chain([id]) {
                    if let Some(entry) = state.take(id) {
                        for needed in entry.record.needs() {
                            *going.entry(needed.clone()).or_default() += 1;
                        }
                        removals.push(Removal {
                            by: Some(by.clone()),
                            ..Removal::new(id.clone(), entry)
                        });
                    }
                }
                ended.push(pick.record.clone());
            }
        }
        if !removals.is_empty() {
            let (done, wait) = oneshot::channel();
            self.shared.post(Message::Remove(removals, done));
            wait.await.map_err(|_| CacheError::Closed)?;
        }
        for pick in picks {
            if let What::Blob(digest) = &pick.what {
                let needed = || core.state().has_blob(digest);
                if core.book.remove(&*core.blobs, digest, needed).await? {
                    ended.push(pick.record.clone());
                }
            }
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_is_kept() {
        let options = |max, reserved, free| PruneOptions {
            max_used_space: max,
            reserved_space: reserved,
            min_free_space: free,
            ..PruneOptions::default()
        };
        const ALL: u64 = u64::MAX;
        // Of a total of 100, with 50 free.
        let cases = [
            // Space is no matter.
            (options(0, 0, 0), None),
            // One of them alone.
            (options(80, 0, 0), Some(80)),
            (options(200, 0, 0), Some(200)),
            (options(0, 10, 0), Some(10)),
            (options(0, 200, 0), Some(200)),
            (options(0, 0, 70), Some(80)),
            (options(0, 0, 150), Some(0)),
            (options(0, 0, 500), Some(0)),
            (options(0, 0, 50), Some(ALL)),
            (options(0, 0, 30), Some(ALL)),
            // The lower of the two upper ones.
            (options(60, 0, 70), Some(60)),
            (options(90, 0, 70), Some(80)),
            (options(60, 0, 30), Some(60)),
            // What is reserved stays whatever is said.
            (options(90, 85, 70), Some(85)),
            (options(60, 85, 30), Some(85)),
            (options(60, 20, 0), Some(60)),
            (options(0, 40, 500), Some(40)),
            (options(0, 10, 70), Some(80)),
            // Nothing has to go: what is reserved is no bound then.
            (options(0, 10, 30), Some(ALL)),
            (options(0, 200, 30), Some(ALL)),
        ];
        for (options, expected) in cases {
            assert_eq!(options.keep(100, 50), expected, "{options:?}");
        }
    }
}
