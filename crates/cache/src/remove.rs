//! Removing records and what they stand for.

use std::sync::{Arc, PoisonError};

use cooper_snapshot::{ActiveKey, SnapshotId, SnapshotName};

use crate::core::Core;
use crate::record::{OPENED, RECORDS, Stage, USES};
use crate::state::Entry;
use crate::{CacheError, RefId};

/// A record that was taken out and is still to be removed from the stores.
#[derive(Debug)]
pub(crate) struct Removal {
    pub(crate) id: RefId,
    pub(crate) entry: Entry,
    /// Whether its snapshot goes too.
    pub(crate) snapshot: bool,
    /// What pruned it: `the policy keepDuration`.
    pub(crate) by: Option<Arc<str>>,
}

impl Removal {
    pub(crate) fn new(id: RefId, entry: Entry) -> Self {
        Self {
            id,
            entry,
            snapshot: true,
            by: None,
        }
    }

    fn snapshot(&self) -> Option<SnapshotId> {
        match &self.entry.record.state {
            Stage::Active { key } => Some(SnapshotId::Active(ActiveKey::new(key.clone()))),
            Stage::Committed { name, owner: None } => {
                Some(SnapshotId::Committed(SnapshotName::new(name.clone())))
            }
            Stage::Committed { .. } | Stage::Sealed { .. } | Stage::Lazy => None,
        }
    }
}

impl Core {
    /// Removes the ref when nothing needs it and nobody will ask for it.
    pub(crate) async fn remove_if_waste(&self, id: RefId) {
        let removal = {
            let mut state = self.state();
            match state.get(&id) {
                Some(entry) if entry.is_waste() => state.take(&id),
                _ => None,
            }
        };
        if let Some(entry) = removal {
            self.remove(vec![Removal::new(id, entry)]).await;
        }
    }

    /// Removes what was taken out, and then what stood only for it. A failure is logged: the
    /// sweep at the next start tries again.
    pub(crate) async fn remove(&self, mut removals: Vec<Removal>) {
        while !removals.is_empty() {
            if let Err(error) = self.strike_out(&removals).await {
                // The files stay: a record that may come back must not find them gone.
                tracing::warn!(%error, "could not remove records");
                return;
            }
            let own = removals.iter().filter(|removal| removal.snapshot);
            let snapshots: Vec<_> = own.filter_map(Removal::snapshot).collect();
            let removed = self.snapshotter.remove_all(&snapshots).await;
            for (snapshot, result) in snapshots.iter().zip(removed) {
                if let Err(error) = result {
                    tracing::warn!(%snapshot, %error, "could not remove a snapshot");
                }
            }
            let mut next = Vec::new();
            for removal in removals {
                self.remove_blob(&removal).await;
                self.hashes.forget(&removal.id);
                {
                    let mut state = self.state();
                    for id in state.release_needs(removal.entry.record.needs()) {
                        if let Some(entry) = state.take(&id) {
                            next.push(Removal {
                                by: removal.by.clone(),
                                ..Removal::new(id, entry)
                            });
                        }
                    }
                }
                let listeners = self
                    .listeners
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                for listener in listeners.iter() {
                    listener(&removal.id, removal.by.as_deref());
                }
            }
            removals = next;
        }
    }

    /// Deletes the rows, durably when they are: before anything that they stand for goes.
    async fn strike_out(&self, removals: &[Removal]) -> Result<(), CacheError> {
        let stored = removals.iter().filter(|removal| removal.entry.stored);
        let ids: Vec<RefId> = stored.clone().map(|removal| removal.id.clone()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let write = self.store.write(move |tx| {
            for id in &ids {
                tx.delete(&RECORDS, id.as_str())?;
                tx.delete(&USES, id.as_str())?;
                tx.delete(&OPENED, id.as_str())?;
            }
            Ok(())
        });
        write.await?;
        // Asked now: a checkpoint that was not seen by now is written after the deletion.
        let durable = stored
            .map(|removal| removal.entry.seq)
            .any(|seq| self.is_durable(seq));
        if durable {
            self.store.flush().await?;
        }
        Ok(())
    }

    async fn remove_blob(&self, removal: &Removal) {
        let Some(layer) = &removal.entry.record.layer else {
            return;
        };
        let digest = layer.descriptor.digest();
        // What a build has just looked at stays, and is pruned by itself later.
        let needed = || self.state().has_blob(digest);
        if let Err(error) = self.book.remove(&*self.blobs, digest, needed).await {
            tracing::warn!(%digest, %error, "could not remove a blob");
        }
    }
}
