//! Pruning: which records end, in which order, by BuildKit's rules (`cache/manager.go`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use crate::error::io;
use crate::keeper::Message;
use crate::remove::Removal;
use crate::state::Entry;
use crate::{CacheError, CacheManager, RecordType, RefId, UsageRecord};

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
    /// How many bytes to keep of `total`, when `free` are free; none when space is no matter.
    fn keep(&self, total: u64, free: u64) -> Option<u64> {
        if self.max_used_space == 0 && self.reserved_space == 0 && self.min_free_space == 0 {
            return None;
        }
        let mut keep = self.max_used_space;
        let excess = self.min_free_space.saturating_sub(free);
        if excess > 0 {
            let left = total.saturating_sub(excess);
            keep = if keep == 0 { left } else { keep.min(left) };
        }
        keep = keep.max(self.reserved_space);
        // BuildKit reads 0 as no bound, which prunes everything that it may.
        Some(keep)
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

/// A record that may go, with what decides when.
struct Candidate {
    id: RefId,
    last_used: Option<SystemTime>,
    count: u64,
}

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
        // A view that nobody looks at any more holds what it shows until the keeper got to it.
        self.settle().await;
        let mut pruned = Vec::new();
        let mut bound = None;
        let mut total = 0;
        let spaced = options.max_used_space | options.reserved_space | options.min_free_space;
        if spaced != 0 {
            let usage = self.disk_usage().await?;
            total = usage.iter().map(|record| record.size).sum();
            bound = options.keep(total, self.free()?);
        }
        loop {
            if bound.is_some_and(|keep| keep != 0 && total < keep) {
                return Ok(pruned);
            }
            let mut candidates = self.candidates(&options);
            if candidates.is_empty() {
                return Ok(pruned);
            }
            if bound.is_some_and(|keep| keep != 0) {
                sort(&mut candidates);
                candidates.truncate(1);
            }
            let ended = self.end(candidates, options.name()).await?;
            total = ended.iter().fold(total, |total: u64, record| {
                total.saturating_sub(record.size)
            });
            if ended.is_empty() {
                // Others took them meanwhile.
                return Ok(pruned);
            }
            pruned.extend(ended);
        }
    }

    fn free(&self) -> Result<u64, CacheError> {
        let root = &self.shared.mounts;
        let stat = rustix::fs::statvfs(root)
            .map_err(|error| io("measure the disk at", root)(error.into()))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    fn candidates(&self, options: &PruneOptions) -> Vec<Candidate> {
        let cut = SystemTime::now().checked_sub(options.keep_duration);
        let state = self.shared.state();
        let may_go = |id: &RefId, entry: &Entry| {
            if !entry.is_idle() || !state.is_shown(entry) {
                return false;
            }
            let kind = entry.record.record_type;
            if !options.all && matches!(kind, RecordType::Internal | RecordType::Frontend) {
                return false;
            }
            if !options.keep_duration.is_zero()
                && entry.uses.last_used.is_some_and(|used| Some(used) > cut)
            {
                return false;
            }
            match &options.filter {
                Some(filter) => filter(&state.usage(id, entry, false)),
                None => true,
            }
        };
        let found = state.iter().filter(|(id, entry)| may_go(id, entry));
        found
            .map(|(id, entry)| Candidate {
                id: id.clone(),
                last_used: entry.uses.last_used,
                count: entry.uses.count,
            })
            .collect()
    }

    /// Ends those that are still unused, each together with what is sealed over it. All at once:
    /// their invalidation is made durable by one sync.
    async fn end(
        &self,
        candidates: Vec<Candidate>,
        by: &'static str,
    ) -> Result<Vec<UsageRecord>, CacheError> {
        let by: Arc<str> = by.into();
        let mut sizes = Vec::new();
        for candidate in candidates {
            let size = self.size(&candidate.id).await?;
            sizes.push((candidate.id, size));
        }
        let mut ended = Vec::new();
        let mut removals = Vec::new();
        {
            let mut state = self.shared.state();
            for (id, size) in sizes {
                let Some(entry) = state.get(&id).filter(|entry| entry.is_idle()) else {
                    continue;
                };
                let mut record = state.usage(&id, entry, false);
                record.size = size;
                let sealed = entry.sealed.clone();
                if let Some(sealed) = &sealed
                    && state.get(sealed).is_some_and(|entry| !entry.is_idle())
                {
                    continue;
                }
                // The sealed one first: it is over the snapshot of the other.
                for id in sealed.into_iter().chain([id]) {
                    if let Some(entry) = state.take(&id) {
                        removals.push(Removal {
                            by: Some(by.clone()),
                            ..Removal::new(id, entry)
                        });
                    }
                }
                ended.push(record);
            }
        }
        if !removals.is_empty() {
            let (done, wait) = oneshot::channel();
            self.shared.post(Message::Remove(removals, done));
            wait.await.map_err(|_| CacheError::Closed)?;
        }
        Ok(ended)
    }
}

/// The least used and longest unused first: each counts by its rank among all.
fn sort(candidates: &mut [Candidate]) {
    fn ranks<K: Ord + Copy>(keys: &[K]) -> impl Fn(&K) -> f64 + use<K> {
        let mut distinct = keys.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let most = (distinct.len().max(2) - 1) as f64;
        move |key| distinct.binary_search(key).unwrap_or_default() as f64 / most
    }
    let times: Vec<_> = candidates.iter().map(|one| one.last_used).collect();
    let counts: Vec<_> = candidates.iter().map(|one| one.count).collect();
    let (time, count) = (ranks(&times), ranks(&counts));
    candidates.sort_by(|a, b| {
        let rank = |one: &Candidate| time(&one.last_used) + count(&one.count);
        rank(a).total_cmp(&rank(b)).then_with(|| a.id.cmp(&b.id))
    });
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
        let cases = [
            (options(0, 0, 0), 100, 50, None),
            (options(80, 0, 0), 100, 50, Some(80)),
            (options(0, 10, 0), 100, 50, Some(10)),
            (options(0, 0, 70), 100, 50, Some(80)),
            (options(60, 0, 70), 100, 50, Some(60)),
            (options(90, 85, 70), 100, 50, Some(85)),
            (options(0, 0, 500), 100, 50, Some(0)),
        ];
        for (options, total, free, expected) in cases {
            assert_eq!(options.keep(total, free), expected, "{options:?}");
        }
    }

    #[test]
    fn the_least_used_and_longest_unused_goes_first() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let mut all: Vec<Candidate> = [(at(30), 1), (at(10), 1), (None, 9), (at(20), 5)]
            .into_iter()
            .map(|(last_used, count)| Candidate {
                id: RefId::random(),
                last_used,
                count,
            })
            .collect();
        sort(&mut all);
        let order: Vec<u64> = all.iter().map(|one| one.count).collect();
        assert_eq!(order[0], 1);
        assert_eq!(all[0].last_used, at(10));
    }
}
