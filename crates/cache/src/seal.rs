//! Sealed refs: committed by contract, on a snapshot that its mutable ref can go on writing.
//! When something is to stand on one, or who has it does not let go, the snapshot is committed.

use cooper_snapshot::{ActiveKey, SnapshotName};

use crate::core::{Core, Shared};
use crate::error::snapshot;
use crate::keeper::Message;
use crate::record::{RECORDS, Stage};
use crate::remove::Removal;
use crate::{CacheError, LocalRef, RefId};

impl Shared {
    /// The name of the committed snapshot of `local`, for something to stand on. A sealed one
    /// is committed first.
    pub(crate) async fn committed_name(&self, local: &LocalRef) -> Result<String, CacheError> {
        for _ in 0..2 {
            let stage = local.read(|entry| entry.record.state.clone());
            match stage {
                Stage::Committed { name, .. } => return Ok(name),
                Stage::Sealed { .. } => self.request_finalise(local.id()).await?,
                Stage::Active { .. } | Stage::Lazy => break,
            }
        }
        Err(CacheError::NotFound {
            id: local.id().clone(),
        })
    }

    /// Asks the keeper to commit the snapshot of a sealed ref.
    pub(crate) async fn request_finalise(&self, id: &RefId) -> Result<(), CacheError> {
        let (done, wait) = tokio::sync::oneshot::channel();
        self.post(Message::Finalise(id.clone(), done));
        wait.await.map_err(|_| CacheError::Closed)?
    }
}

impl Core {
    /// Commits the snapshot of the sealed ref `id`; its mutable ref goes on in a new one on top.
    /// Runs in the keeper: half of it would leave two records without a snapshot.
    pub(crate) async fn finalise(&self, id: &RefId) -> Result<(), CacheError> {
        // Who asked for it may have given up: neither record goes meanwhile.
        let (turn, held) = {
            let mut state = self.state();
            let Some(entry) = state.get(id) else {
                return Err(CacheError::NotFound { id: id.clone() });
            };
            let turn = entry.turn.clone();
            let mut held = vec![id.clone()];
            if let Stage::Sealed { origin } = &entry.record.state {
                held.push(origin.clone());
            }
            state.hold_needs(&held);
            (turn, held)
        };
        let result = {
            let _turn = turn.lock().await;
            self.finalise_held(id).await
        };
        let waste = self.state().release_needs(&held);
        for id in waste {
            self.remove_if_waste(id).await;
        }
        result
    }

    async fn finalise_held(&self, id: &RefId) -> Result<(), CacheError> {
        let (origin, old) = {
            let state = self.state();
            let entry = state.get(id);
            match entry.map(|entry| &entry.record.state) {
                Some(Stage::Sealed { origin }) => {
                    match state.get(origin).map(|entry| &entry.record.state) {
                        Some(Stage::Active { key }) => (origin.clone(), key.clone()),
                        _ => return Err(CacheError::NotFound { id: id.clone() }),
                    }
                }
                Some(_) => return Ok(()),
                None => return Err(CacheError::NotFound { id: id.clone() }),
            }
        };
        self.hashes.copy(&origin, id);
        let name = SnapshotName::new(id.as_str());
        self.snapshotter
            .commit(&ActiveKey::new(old), &name)
            .await
            .map_err(snapshot("commit the snapshot", id))?;
        let key = RefId::random().to_string();
        let prepared = self
            .snapshotter
            .prepare(&ActiveKey::new(key.clone()), Some(&name))
            .await;
        let handed = {
            let mut state = self.state();
            let below = match state.get_mut(id) {
                Some(entry) => {
                    entry.record.state = Stage::Committed {
                        name: id.to_string(),
                        owner: None,
                    };
                    entry.record.parent.clone()
                }
                None => return Err(CacheError::NotFound { id: id.clone() }),
            };
            // The origin stands on what it has written so far.
            let continued = match state.get_mut(&origin) {
                Some(entry) => {
                    entry.sealed = None;
                    entry.record.parent = Some(id.clone());
                    entry.record.state = Stage::Active { key };
                    Some((origin.clone(), entry.record.clone()))
                }
                None => None,
            };
            state.set_size(id, None);
            state.set_size(&origin, None);
            state.release_needs(&below);
            state.hold_needs([id]);
            self.hand_over(&mut state, id, move |tx| match continued {
                Some((origin, record)) => tx.put(&RECORDS, origin.as_str(), &record),
                None => Ok(()),
            })?
        };
        self.committed(id, handed).await?;
        if let Err(error) = prepared {
            // It cannot be continued: as if it had been pruned. The next one begins anew.
            let removal = self.state().take(&origin);
            if let Some(entry) = removal {
                self.remove(vec![Removal::new(origin.clone(), entry)]).await;
            }
            return Err(snapshot("make the snapshot", &origin)(error));
        }
        Ok(())
    }
}
