//! What pruning would take, and why the rest stays.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::time::SystemTime;

use cooper_content::Digest;

use crate::core::Core;
use crate::state::{Entry, State};
use crate::usage::blob_record;
use crate::{PruneOptions, RecordType, RefId, UsageRecord};

/// What pruning would do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What would go, in this order.
    pub goes: Vec<UsageRecord>,
    /// What would stay, in the order of the ids.
    pub stays: Vec<Stays>,
    pub(crate) picks: Vec<Pick>,
}

/// A record that would stay.
#[derive(Clone, Debug)]
pub struct Stays {
    /// The record.
    pub record: UsageRecord,
    /// Why.
    pub why: Why,
}

/// Why a record stays.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Somebody has it: a build, or who looks at it.
    InUse,
    /// Another one stands on it.
    Needed {
        /// That one, which stays too.
        by: RefId,
    },
    /// The daemon or a frontend needs it, and not all was asked for.
    Internal,
    /// It was used within the time that is spared.
    Recent {
        /// When.
        used: SystemTime,
    },
    /// The filters do not match it.
    Filtered,
    /// There is space enough without its end.
    Space {
        /// Bytes that all records may take.
        keep: u64,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("in use"),
            Self::Needed { by } => write!(f, "{by} stands on it"),
            Self::Internal => f.write_str("needed by the daemon or a frontend"),
            Self::Recent { used } => {
                let ago = used.elapsed().unwrap_or_default();
                write!(f, "used {} seconds ago", ago.as_secs())
            }
            Self::Filtered => f.write_str("no filter matches it"),
            Self::Space { keep } => write!(f, "all take less than {keep} bytes without it"),
        }
    }
}

/// What is to be ended.
#[derive(Clone, Debug)]
pub(crate) struct Pick {
    pub(crate) record: UsageRecord,
    pub(crate) what: What,
    /// Nobody asks for it once what stands on it is gone: it goes without being pruned.
    pub(crate) waste: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A ref, with the one that is sealed over it.
    Ref {
        sealed: Option<RefId>,
    },
    Blob(Digest),
}

struct Row {
    pick: Pick,
    needs: Vec<RefId>,
    children: usize,
    held: bool,
    gone: bool,
}

impl Row {
    fn of(core: &Core, state: &State, id: &RefId, entry: &Entry) -> Self {
        let sealed = entry.sealed.clone();
        let over = sealed.as_ref().and_then(|id| state.get(id));
        let needs = entry.record.needs();
        let needs = needs.chain(over.into_iter().flat_map(|over| over.record.needs()));
        let record = UsageRecord {
            size: core.size(state, id, entry),
            ..state.usage(id, entry, false)
        };
        Self {
            needs: needs.cloned().collect(),
            children: entry.children,
            held: entry.handles > 0 || entry.taken || over.is_some_and(|over| !over.is_idle()),
            gone: false,
            pick: Pick {
                record,
                what: What::Ref { sealed },
                waste: !entry.record.kept && !entry.record.retain,
            },
        }
    }

    /// Why it stays although nothing stands on it.
    fn spared(&self, options: &PruneOptions, now: SystemTime) -> Option<Why> {
        let record = &self.pick.record;
        let internal = matches!(
            record.record_type,
            RecordType::Internal | RecordType::Frontend
        );
        if internal && !options.all {
            return Some(Why::Internal);
        }
        if !options.keep_duration.is_zero()
            && let Some(used) = record.last_used_at
            && now.checked_sub(options.keep_duration) < Some(used)
        {
            return Some(Why::Recent { used });
        }
        match &options.filter {
            Some(filter) if !filter(record) => Some(Why::Filtered),
            _ => None,
        }
    }
}

impl Core {
    /// What `options` take when everything may take `keep` bytes; `None` when space is no
    /// matter. The least used and longest unused goes first, and what stands on others before
    /// those.
    pub(crate) fn plan(&self, options: &PruneOptions, keep: Option<u64>) -> Plan {
        let mut rows: Vec<Row> = {
            let state = self.state();
            let shown = state.iter().filter(|(_, entry)| state.is_shown(entry));
            let mut rows: Vec<_> = shown
                .map(|(id, entry)| Row::of(self, &state, id, entry))
                .collect();
            let blobs = self.book.list(|digest| !state.has_blob(digest));
            rows.extend(blobs.into_iter().filter_map(|(digest, blob, in_use)| {
                Some(Row {
                    needs: Vec::new(),
                    children: 0,
                    held: in_use,
                    gone: false,
                    pick: Pick {
                        record: blob_record(&digest, &blob, in_use)?,
                        what: What::Blob(digest),
                        waste: false,
                    },
                })
            }));
            rows
        };
        let mut total = self.total();
        let by_id: HashMap<RefId, usize> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| (row.pick.record.id.clone(), index))
            .collect();
        let now = SystemTime::now();
        let spared: Vec<Option<Why>> = rows.iter().map(|row| row.spared(options, now)).collect();
        let ranks = ranks(&rows);
        let ready = |row: &Row| !row.held && row.children == 0;
        let mut heap: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        for (index, row) in rows.iter().enumerate() {
            if ready(row) && spared[index].is_none() {
                heap.push(Reverse((ranks[index], index)));
            }
        }
        let mut picks = Vec::new();
        let enough = |total: u64| keep.is_some_and(|keep| total < keep);
        while !enough(total)
            && let Some(Reverse((_, first))) = heap.pop()
        {
            let mut going = vec![first];
            while let Some(index) = going.pop() {
                rows[index].gone = true;
                total = total.saturating_sub(rows[index].pick.record.size);
                picks.push(rows[index].pick.clone());
                for needed in std::mem::take(&mut rows[index].needs) {
                    let Some(below) = by_id.get(&needed).copied() else {
                        continue;
                    };
                    let row = &mut rows[below];
                    row.children = row.children.saturating_sub(1);
                    if !ready(row) || row.gone {
                        continue;
                    }
                    if row.pick.waste {
                        going.push(below);
                    } else if spared[below].is_none() {
                        heap.push(Reverse((ranks[below], below)));
                    }
                }
            }
        }
        let mut stays = stays(&rows, spared, keep);
        stays.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        Plan {
            goes: picks.iter().map(|pick| pick.record.clone()).collect(),
            stays,
            picks,
        }
    }
}

/// The rows that are not gone, each with why.
fn stays(rows: &[Row], spared: Vec<Option<Why>>, keep: Option<u64>) -> Vec<Stays> {
    let mut needed: HashMap<&RefId, &RefId> = HashMap::new();
    for row in rows.iter().filter(|row| !row.gone) {
        for below in &row.needs {
            needed.insert(below, &row.pick.record.id);
        }
    }
    let stays = rows.iter().zip(spared).filter(|(row, _)| !row.gone);
    stays
        .map(|(row, spared)| {
            let record = row.pick.record.clone();
            let why = match needed.get(&record.id) {
                _ if row.held => Why::InUse,
                Some(by) if row.children > 0 => Why::Needed { by: (*by).clone() },
                // A view of it is mounted.
                _ if row.children > 0 => Why::InUse,
                _ => spared.unwrap_or(Why::Space {
                    keep: keep.unwrap_or(0),
                }),
            };
            Stays {
                record: UsageRecord {
                    in_use: why == Why::InUse,
                    ..record
                },
                why,
            }
        })
        .collect()
}

/// The order in which rows go: the least used and longest unused first, each counted by its
/// place among all (BuildKit, `cache/manager.go`, `sortDeleteRecords`).
fn ranks(rows: &[Row]) -> Vec<u64> {
    fn places<K: Ord + Copy>(keys: &[K]) -> Vec<f64> {
        let mut distinct = keys.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let most = (distinct.len().max(2) - 1) as f64;
        let place = |key| distinct.binary_search(key).unwrap_or_default() as f64 / most;
        keys.iter().map(place).collect()
    }
    let times: Vec<_> = rows
        .iter()
        .map(|row| row.pick.record.last_used_at)
        .collect();
    let counts: Vec<_> = rows.iter().map(|row| row.pick.record.usage_count).collect();
    let (times, counts) = (places(&times), places(&counts));
    // Whole numbers can be put in order.
    let rank = |(time, count): (f64, f64)| ((time + count) * 1e9) as u64;
    times.into_iter().zip(counts).map(rank).collect()
}
