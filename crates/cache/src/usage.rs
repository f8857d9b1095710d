//! What the records take, and who uses them.

use std::collections::HashSet;
use std::time::SystemTime;

use cooper_content::Digest;
use cooper_snapshot::{ActiveKey, SnapshotError, SnapshotName, Usage};

use crate::blobs::{Known, Work};
use crate::core::Core;
use crate::record::Stage;
use crate::state::{Entry, State};
use crate::{CacheError, CacheManager, RecordType, RefId};

/// A record as users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// Its id.
    pub id: RefId,
    /// Whether it can be written.
    pub mutable: bool,
    /// Whether somebody has it, or a ref that stands on it; for a moment after that also the
    /// collector, which makes room for it first.
    pub in_use: bool,
    /// What it takes on disk in bytes, snapshot and blob, what it stands on not included. While
    /// it is being written: what it took when it was last looked at.
    pub size: u64,
    /// The refs that it stands on: its parent, and whose changes it has if they are another's.
    pub parents: Vec<RefId>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When its last handle was dropped.
    pub last_used_at: Option<SystemTime>,
    /// How often that was.
    pub usage_count: u64,
    /// What it is.
    pub description: String,
    /// Which kind of thing it is.
    pub record_type: RecordType,
    /// Whether images or containers outside the cache use it too; they never do here.
    pub shared: bool,
}

impl State {
    /// The ids that somebody has, and all that they stand on. Also those that were let go, until
    /// the collector has made room for them.
    pub(crate) fn in_use(&self) -> HashSet<RefId> {
        let mut used = HashSet::new();
        let held = self.iter().filter(|(_, entry)| {
            entry.handles > 0 || entry.taken || self.looks.awaited(entry.let_go)
        });
        let mut open: Vec<RefId> = held.map(|(id, _)| id.clone()).collect();
        while let Some(id) = open.pop() {
            if let Some(entry) = self.get(&id)
                && used.insert(id)
            {
                open.extend(entry.record.needs().cloned());
            }
        }
        used
    }

    /// Whether the record is shown: of a mutable ref and the one that is sealed over it only
    /// one is, the sealed one while somebody has it.
    pub(crate) fn is_shown(&self, entry: &Entry) -> bool {
        // What nobody needs is being removed.
        if entry.is_waste() {
            return false;
        }
        match &entry.record.state {
            Stage::Sealed { .. } => !entry.is_idle(),
            Stage::Active { .. } => match &entry.sealed {
                Some(sealed) => self.get(sealed).is_none_or(Entry::is_idle),
                None => true,
            },
            _ => true,
        }
    }

    pub(crate) fn usage(&self, id: &RefId, entry: &Entry, in_use: bool) -> UsageRecord {
        UsageRecord {
            id: id.clone(),
            mutable: entry.record.is_mutable(),
            in_use,
            size: 0,
            parents: entry.record.stands_on().cloned().collect(),
            created_at: entry.record.created_at,
            last_used_at: entry.uses.last_used,
            usage_count: entry.uses.count,
            description: entry.record.description.clone(),
            record_type: entry.record.record_type,
            shared: false,
        }
    }
}

/// What belongs to no ref as users see it: a blob, by its digest.
pub(crate) fn blob_record(digest: &Digest, blob: &Known, in_use: bool) -> Option<UsageRecord> {
    Some(UsageRecord {
        // 64 hexadecimal digits are an id.
        id: digest.digest().parse().ok()?,
        mutable: false,
        in_use,
        size: blob.disk,
        parents: Vec::new(),
        created_at: blob.created_at,
        last_used_at: blob.last_used.or(Some(blob.created_at)),
        usage_count: blob.count,
        description: format!("blob {digest}"),
        record_type: RecordType::Regular,
        shared: false,
    })
}

impl Core {
    /// What belongs to the record, in bytes, as far as it is known.
    pub(crate) fn size(&self, state: &State, id: &RefId, entry: &Entry) -> u64 {
        let files = match &entry.record.state {
            // Whose files they are.
            Stage::Sealed { origin } => origin,
            _ => id,
        };
        let snapshot = state.get(files).and_then(|entry| entry.uses.size);
        let snapshot = snapshot.map(|all| all.saturating_sub(state.shares.of_others(files)));
        let blob = entry.record.layer.as_ref().map_or(0, |layer| {
            let digest = layer.descriptor.digest();
            match state.blob_owner(digest) {
                Some(owner) if owner == id => self.book.disk(digest),
                _ => 0,
            }
        });
        snapshot.unwrap_or(0) + blob
    }

    /// What all records take, in bytes, as far as it is known.
    pub(crate) fn total(&self) -> u64 {
        self.state().snapshot_bytes() + self.book.total()
    }

    /// Measures what is not known of snapshots, and when `running` says so, what is being
    /// written: what was measured of that is old as soon as it is there.
    pub(crate) async fn measure_all(&self, running: bool) -> Result<(), CacheError> {
        // What shares files with others shows that these have to be measured again.
        for round in 0..2 {
            let wanted: Vec<RefId> = {
                let state = self.state();
                let unknown = state
                    .unmeasured()
                    .filter(|id| !state.running().contains(*id));
                let written = state.running().iter().filter(|_| running && round == 0);
                unknown.chain(written).cloned().collect()
            };
            for id in wanted {
                self.measure(&id).await?;
            }
        }
        Ok(())
    }

    /// What a snapshot takes without the `shared` bytes of those that it has of another, where it
    /// does not say itself which files these are. That one goes after it: they are never its own.
    pub(crate) fn own(&self, mut usage: Usage, shared: u64) -> Usage {
        if !self.snapshotter.tells_shared() {
            usage.bytes = usage.bytes.saturating_sub(shared);
        }
        usage
    }

    /// Measures the snapshot of `id` and notes what it takes.
    pub(crate) async fn measure(&self, id: &RefId) -> Result<Option<u64>, CacheError> {
        let (stage, turns, shared) = {
            let state = self.state();
            let Some(entry) = state.get(id).filter(|entry| entry.record.has_snapshot()) else {
                return Ok(None);
            };
            let record = &entry.record;
            (record.state.clone(), entry.turns, record.shared_bytes)
        };
        let snapshotter = &self.snapshotter;
        let measured = match &stage {
            Stage::Active { key } => snapshotter.usage_active(&ActiveKey::new(key.clone())).await,
            Stage::Committed { name, .. } => {
                snapshotter.usage(&SnapshotName::new(name.clone())).await
            }
            Stage::Sealed { .. } | Stage::Lazy => return Ok(None),
        };
        let usage = match measured {
            Ok(usage) => usage,
            // Not made yet, or removed meanwhile.
            Err(SnapshotError::NotFound { .. }) => return Ok(None),
            Err(SnapshotError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            Err(error) => return Err(crate::error::snapshot("measure the snapshot", id)(error)),
        };
        let usage = self.own(usage, shared);
        let mut state = self.state();
        let same = |entry: &Entry| entry.record.state == stage && entry.turns == turns;
        if state.get(id).is_some_and(same) {
            state.set_usage(id, &usage);
        }
        Ok(Some(usage.bytes))
    }
}

impl CacheManager {
    /// All records with what they take, in the order of their ids: refs, and each blob that
    /// belongs to no ref. Every byte is counted once: what several records have belongs to the
    /// oldest of them.
    ///
    /// # Cancel safety
    /// Nothing is changed but what is known of sizes.
    pub async fn disk_usage(&self) -> Result<Vec<UsageRecord>, CacheError> {
        let core = &self.shared.core;
        core.measure_all(true).await?;
        let mut records: Vec<UsageRecord> = {
            let state = core.state();
            let used = state.in_use();
            let shown = state.iter().filter(|(_, entry)| state.is_shown(entry));
            let refs = shown.map(|(id, entry)| UsageRecord {
                size: core.size(&state, id, entry),
                ..state.usage(id, entry, used.contains(id))
            });
            let blobs = core.book.list(|digest| !state.has_blob(digest));
            let blobs = blobs
                .iter()
                .filter_map(|(digest, blob, in_use)| blob_record(digest, blob, *in_use));
            refs.chain(blobs).collect()
        };
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// Says that work has begun that may look at blobs which belong to no ref, such as a build.
    pub fn work(&self) -> Work {
        Work::begin(&self.shared.book)
    }
}
