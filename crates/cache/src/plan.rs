//! What pruning would take, and why the rest stays.

use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use cooper_content::Digest;

use crate::core::Core;
use crate::shares::FileId;
use crate::state::{Entry, State};
use crate::usage::blob_record;
use crate::{PruneOptions, RecordType, RefId, UsageRecord};

/// Each one that goes changes the places of the others. Where there are many, this part of them
/// goes before they are put in order again.
const RANKED: usize = 256;

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

/// What several records may have, and is gone with the last of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Share {
    File(FileId),
    Blob(Digest),
}

struct Row {
    pick: Pick,
    /// Bytes that nobody else has.
    own: u64,
    /// What others may have too, in bytes.
    shares: Vec<(Share, u64)>,
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
        let files = state.shares.of(id);
        let shared: u64 = files.iter().map(|file| file.bytes).sum();
        let files = files.iter();
        let mut shares: Vec<_> = files
            .map(|file| (Share::File((file.device, file.inode)), file.bytes))
            .collect();
        if let Some(layer) = &entry.record.layer {
            let blob = layer.descriptor.digest();
            shares.push((Share::Blob(blob.clone()), core.book.disk(blob)));
        }
        Self {
            own: entry.uses.size.unwrap_or(0).saturating_sub(shared),
            shares,
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
        let mut holders: HashMap<Share, usize> = HashMap::new();
        let mut rows: Vec<Row> = {
            let state = self.state();
            let shown = state.iter().filter(|(_, entry)| state.is_shown(entry));
            let mut rows: Vec<_> = shown
                .map(|(id, entry)| Row::of(self, &state, id, entry))
                .collect();
            let blobs = self.book.list(|digest| !state.has_blob(digest));
            rows.extend(blobs.into_iter().filter_map(|(digest, blob, in_use)| {
                Some(Row {
                    own: blob.disk,
                    shares: Vec::new(),
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
            for (share, _) in rows.iter().flat_map(|row| &row.shares) {
                let count = match share {
                    Share::File(file) => state.shares.holders(*file),
                    Share::Blob(blob) => state.blob_holders(blob),
                };
                holders.insert(share.clone(), count);
            }
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
        let ready = |row: &Row| !row.held && row.children == 0;
        let may_go = |rows: &[Row], index: usize| ready(&rows[index]) && spared[index].is_none();
        let mut candidates: Vec<usize> = (0..rows.len())
            .filter(|index| may_go(&rows, *index))
            .collect();
        let mut picks = Vec::new();
        let enough = |total: u64| keep.is_some_and(|keep| total < keep);
        while !enough(total) && !candidates.is_empty() {
            sort(&rows, &mut candidates);
            let at_once = match keep {
                Some(_) => candidates.len().div_ceil(RANKED),
                None => candidates.len(),
            };
            for first in candidates.drain(..at_once).collect::<Vec<_>>() {
                if enough(total) {
                    break;
                }
                let mut going = vec![first];
                while let Some(index) = going.pop() {
                    let row = &mut rows[index];
                    row.gone = true;
                    // What passes to others is not freed.
                    let mut freed = row.own;
                    for (share, bytes) in &row.shares {
                        if let Some(count) = holders.get_mut(share) {
                            *count = count.saturating_sub(1);
                            freed += if *count == 0 { *bytes } else { 0 };
                        }
                    }
                    row.pick.record.size = freed;
                    total = total.saturating_sub(freed);
                    picks.push(row.pick.clone());
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
                            candidates.push(below);
                        }
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

/// Puts those that may go in the order in which they do: the least used and longest unused first,
/// each counted by its place among these (BuildKit, `cache/manager.go`, `sortDeleteRecords`).
fn sort(rows: &[Row], candidates: &mut [usize]) {
    /// For each key its place among the different ones, from 1 for what is the least of all
    /// keys that there can be, divided by the last place.
    fn places<K: Ord + Copy>(keys: &[K], least: K) -> impl Fn(K) -> f64 {
        let mut distinct = keys.to_vec();
        distinct.push(least);
        distinct.sort_unstable();
        distinct.dedup();
        move |key| {
            let place = distinct.binary_search(&key).unwrap_or_default() + 1;
            place as f64 / distinct.len() as f64
        }
    }
    let record = |index: &usize| &rows[*index].pick.record;
    let times: Vec<_> = candidates
        .iter()
        .map(|one| record(one).last_used_at)
        .collect();
    let counts: Vec<_> = candidates
        .iter()
        .map(|one| record(one).usage_count)
        .collect();
    let (time, count) = (places(&times, None), places(&counts, 0));
    // Equal ones in the order in which they were made.
    candidates.sort_by_cached_key(|one| {
        let record = record(one);
        let rank = time(record.last_used_at) + count(record.usage_count);
        // Whole numbers can be put in order.
        ((rank * 1e12) as u64, record.created_at)
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(used: Option<u64>, count: u64) -> Row {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let record = UsageRecord {
            id: RefId::random(),
            mutable: false,
            in_use: false,
            size: 1,
            parents: Vec::new(),
            created_at: at(0),
            last_used_at: used.map(at),
            usage_count: count,
            description: String::new(),
            record_type: RecordType::Regular,
            shared: false,
        };
        Row {
            own: 1,
            shares: Vec::new(),
            pick: Pick {
                record,
                what: What::Ref { sealed: None },
                waste: false,
            },
            needs: Vec::new(),
            children: 0,
            held: false,
            gone: false,
        }
    }

    /// As BuildKit sorts them, which counts places from 1, and those that were never used, or
    /// have no count, as the first.
    #[test]
    fn the_least_used_and_longest_unused_goes_first() {
        type Used = (Option<u64>, u64);
        let cases: [(&[Used], &[usize]); 5] = [
            // By time alone, and by count alone.
            (&[(Some(3), 1), (Some(1), 1), (Some(2), 1)], &[1, 2, 0]),
            (&[(Some(1), 3), (Some(1), 1), (Some(1), 2)], &[1, 2, 0]),
            // Never used comes before all.
            (&[(Some(1), 1), (None, 0)], &[1, 0]),
            // 2/3 + 4/5 of the first is more than 3/3 + 2/5 of the last.
            (
                &[(Some(1), 40), (Some(1), 50), (Some(1), 20), (Some(2), 10)],
                &[2, 3, 0, 1],
            ),
            (&[], &[]),
        ];
        for (given, expected) in cases {
            let rows: Vec<Row> = given
                .iter()
                .map(|(used, count)| row(*used, *count))
                .collect();
            let mut order: Vec<usize> = (0..rows.len()).collect();
            sort(&rows, &mut order);
            assert_eq!(order, expected, "{given:?}");
        }
    }
}
