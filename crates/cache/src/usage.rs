//! What the records take, and who uses them.

use std::collections::HashSet;
use std::time::SystemTime;

use cooper_content::ContentError;
use cooper_snapshot::{ActiveKey, SnapshotError, SnapshotName};

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
    /// Whether somebody has it, or a ref that stands on it.
    pub in_use: bool,
    /// What it takes on disk in bytes, snapshot and blob, what it stands on not included; 0
    /// while it is being written.
    pub size: u64,
    /// The ref that it stands on.
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
    /// The ids that somebody has, and all that they stand on.
    pub(crate) fn in_use(&self) -> HashSet<RefId> {
        let mut used = HashSet::new();
        let held = self.iter().filter(|(_, e)| e.handles > 0 || e.taken);
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
            parents: entry.record.parent.iter().cloned().collect(),
            created_at: entry.record.created_at,
            last_used_at: entry.uses.last_used,
            usage_count: entry.uses.count,
            description: entry.record.description.clone(),
            record_type: entry.record.record_type,
            shared: false,
        }
    }
}

impl CacheManager {
    /// All records with what they take, in the order of their ids.
    ///
    /// # Cancel safety
    /// Nothing is changed but what is known of sizes.
    pub async fn disk_usage(&self) -> Result<Vec<UsageRecord>, CacheError> {
        let mut records: Vec<UsageRecord> = {
            let state = self.shared.state();
            let used = state.in_use();
            let shown = state.iter().filter(|(_, entry)| state.is_shown(entry));
            shown
                .map(|(id, entry)| state.usage(id, entry, used.contains(id)))
                .collect()
        };
        records.sort_by(|a, b| a.id.cmp(&b.id));
        for record in &mut records {
            record.size = self.size(&record.id).await?;
        }
        Ok(records)
    }

    /// What the record takes in bytes. Remembered until it is written again.
    pub(crate) async fn size(&self, id: &RefId) -> Result<u64, CacheError> {
        let (holder, stage, known, layer) = {
            let state = self.shared.state();
            let Some(entry) = state.get(id) else {
                return Ok(0);
            };
            let layer = entry.record.layer.clone();
            // Whose files they are.
            let (holder, entry) = match &entry.record.state {
                Stage::Sealed { origin } => match state.get(origin) {
                    Some(entry) => (origin.clone(), entry),
                    None => return Ok(0),
                },
                _ => (id.clone(), entry),
            };
            if entry.taken {
                // What it takes changes.
                return Ok(0);
            }
            (holder, entry.record.state.clone(), entry.uses.size, layer)
        };
        let snapshotter = &self.shared.snapshotter;
        let measured = match (&stage, known) {
            (_, Some(_)) => Ok(known),
            (Stage::Active { key }, None) => snapshotter
                .usage_active(&ActiveKey::new(key.clone()))
                .await
                .map(|usage| Some(usage.bytes)),
            (Stage::Committed { name, owner: None }, None) => snapshotter
                .usage(&SnapshotName::new(name.clone()))
                .await
                .map(|usage| Some(usage.bytes)),
            _ => Ok(None),
        };
        let measured = match measured {
            Ok(size) => size,
            // Removed meanwhile.
            Err(SnapshotError::NotFound { .. }) => None,
            Err(error) => return Err(crate::error::snapshot("measure the snapshot", id)(error)),
        };
        if known.is_none() && measured.is_some() {
            let mut state = self.shared.state();
            if let Some(entry) = state.get_mut(&holder)
                && entry.record.state == stage
                && !entry.taken
            {
                entry.uses.size = measured;
                entry.uses_changed = true;
            }
        }
        let snapshot = measured.unwrap_or(0);
        let blob = match layer {
            Some(layer) => match self.shared.content.info(layer.descriptor.digest()).await {
                Ok(info) => info.size,
                Err(ContentError::NotFound { .. }) => 0,
                Err(error) => return Err(error.into()),
            },
            None => 0,
        };
        Ok(snapshot + blob)
    }
}
