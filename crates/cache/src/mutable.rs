//! Refs that are written, and how they become immutable.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use cooper_snapshot::{ActiveKey, Mount, SnapshotName};
use cooper_store::StoreError;

use crate::contenthash::{HashedChange, Tree};
use crate::core::Shared;
use crate::error::snapshot;
use crate::keeper::Message;
use crate::lease::{Lease, Work};
use crate::record::{OPENED, Record, Stage, Uses};
use crate::refs::{MountedDir, mount};
use crate::{CacheError, ImmutableRef, LocalRef, RecordOptions, RefId};

/// Sealed refs below a mutable one at most: with more a new one is cheaper than going on.
const MAX_SEALED: usize = 100;

/// Bytes beyond the limit of a step that the file system still takes.
const BEYOND: u64 = 1 << 20;

/// A state of a file system that is being written, and nobody else has.
///
/// Dropping it throws the state away, at once for the caller and soon on disk. One that was made
/// with [`RecordOptions::retain`] goes back instead, to be got again by its id.
#[derive(Debug)]
#[must_use = "dropping it throws away what was written"]
pub struct MutableRef {
    shared: Arc<Shared>,
    id: RefId,
    key: ActiveKey,
    retained: bool,
    // Until it is committed, when it is not retained.
    lease: Option<Lease>,
    hashes: Mutex<Hashes>,
    given_back: bool,
}

/// What is known of the content hashes of what is being written.
#[derive(Debug, Default)]
struct Hashes {
    /// Those of the state before the writing began.
    before: Option<Tree>,
    /// Whether the writer has told what it changed.
    told: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl MutableRef {
    pub(crate) async fn new(
        shared: Arc<Shared>,
        parent: Option<&LocalRef>,
        options: RecordOptions,
    ) -> Result<Self, CacheError> {
        let below = match parent {
            Some(parent) => Some(shared.committed_name(parent).await?),
            None => None,
        };
        let id = RefId::random();
        let key = id.to_string();
        let retained = options.retain;
        let stage = Stage::Active { key: key.clone() };
        let record = Record::new(parent.map(|parent| parent.id().clone()), stage, options);
        // The guard before the request, so that a dropped future leaves nothing.
        let lease = Lease::new(
            &shared,
            Work {
                name: Some(key.clone()),
                record: Some(id.clone()),
                ..Work::new(key.clone())
            },
        )?;
        {
            let mut state = shared.state();
            state.insert(id.clone(), record, Uses::default());
            state.set_taken(&id, true);
        }
        // From now on it is looked at how much is written.
        shared.book.changed.notify_one();
        let mut made = Self {
            key: ActiveKey::new(key),
            id,
            retained: false,
            lease: Some(lease),
            hashes: Mutex::new(Hashes {
                before: parent.is_none().then(|| Tree::received(true)),
                told: false,
            }),
            given_back: false,
            shared,
        };
        let below = below.map(SnapshotName::new);
        made.shared
            .snapshotter
            .prepare(&made.key, below.as_ref())
            .await
            .map_err(snapshot("make the snapshot", &made.id))?;
        if retained {
            made.keep().await?;
        } else {
            made.limit().await;
        }
        Ok(made)
    }

    /// Has the file system refuse what is more than one step may write, where it can: who looks
    /// from time to time may look too late.
    async fn limit(&self) {
        let most = self.shared.most_of_step.load(Ordering::Relaxed);
        if most == 0 {
            return;
        }
        // A step has to come beyond its limit to be told that it did.
        let bytes = most.saturating_add(BEYOND);
        if let Err(error) = self.shared.snapshotter.limit(&self.key, bytes).await {
            tracing::debug!(id = %self.id, %error, "the file system does not limit a step");
        }
    }

    /// Writes the record of a new one that outlives its handle.
    async fn keep(&mut self) -> Result<(), CacheError> {
        let id = self.id.clone();
        let handed = {
            let mut state = self.shared.state();
            state.opened.insert(id.clone(), 1);
            let Some(lease) = self.lease.take() else {
                return Ok(());
            };
            // From here on the record owns the snapshot, and dropping gives it back.
            self.retained = true;
            let finish = lease.finish();
            self.shared.hand_over(&mut state, &self.id, move |tx| {
                tx.put(&OPENED, id.as_str(), &())?;
                finish(tx)
            })?
        };
        self.shared.touch();
        self.shared.committed(&self.id, handed).await
    }

    /// Takes the retained mutable ref `id`.
    pub(crate) async fn take(shared: Arc<Shared>, id: &RefId) -> Result<Self, CacheError> {
        let locked = || CacheError::Locked { id: id.clone() };
        let (sealed, mut taken) = {
            let mut state = shared.state();
            let entry = state
                .get_mut(id)
                .ok_or_else(|| CacheError::NotFound { id: id.clone() })?;
            let Stage::Active { key } = &entry.record.state else {
                return Err(CacheError::NotMutable { id: id.clone() });
            };
            if entry.taken {
                return Err(locked());
            }
            if !entry.record.retain {
                return Err(CacheError::NotMutable { id: id.clone() });
            }
            let key = ActiveKey::new(key.clone());
            let sealed = entry.sealed.clone();
            state.set_taken(id, true);
            shared.book.changed.notify_one();
            let taken = Self {
                shared: shared.clone(),
                id: id.clone(),
                key,
                retained: true,
                lease: None,
                hashes: Mutex::default(),
                given_back: false,
            };
            (sealed, taken)
        };
        if let Some(sealed) = sealed {
            taken.unseal(&sealed).await?;
        }
        taken.hashes = Mutex::new(Hashes {
            before: Some(shared.hashes.take(id).await?),
            told: false,
        });
        // Durably noted before the first byte is written in place.
        let (handed, flush) = {
            let mut state = shared.state();
            shared.open_for_writing(&mut state, id)?
        };
        if let Some(handed) = handed {
            handed.await.map_err(|_| StoreError::Closed)??;
        }
        if flush {
            shared.store.flush().await?;
        }
        Ok(taken)
    }

    /// Frees the snapshot from the immutable ref that is sealed over it.
    async fn unseal(&mut self, sealed: &RefId) -> Result<(), CacheError> {
        let removed = {
            let mut state = self.shared.state();
            let idle = state.get(sealed).is_some_and(crate::state::Entry::is_idle);
            if idle { state.take(sealed) } else { None }
        };
        if let Some(entry) = removed {
            // Nobody looks at it: its record ends before the snapshot is written again, durably
            // when it is durable itself.
            let (done, wait) = tokio::sync::oneshot::channel();
            let removal = crate::remove::Removal::new(sealed.clone(), entry);
            self.shared.post(Message::Remove(vec![removal], done));
            return wait.await.map_err(|_| CacheError::Closed);
        }
        let (depth, gone) = {
            let state = self.shared.state();
            (state.chain(sealed).len(), state.get(sealed).is_none())
        };
        if gone {
            // Removed meanwhile: nothing stands on the snapshot.
            return Ok(());
        }
        if depth > MAX_SEALED {
            return Err(CacheError::Locked {
                id: self.id.clone(),
            });
        }
        self.shared.request_finalise(sealed).await?;
        let state = self.shared.state();
        if let Some(entry) = state.get(&self.id)
            && let Stage::Active { key } = &entry.record.state
        {
            self.key = ActiveKey::new(key.clone());
        }
        Ok(())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Its id. The immutable ref that it becomes has the same id, unless it is retained.
    pub fn id(&self) -> &RefId {
        &self.id
    }

    /// The mounts to write it through. Each call gives mounts of their own.
    pub async fn mounts(&self) -> Result<Vec<Mount>, CacheError> {
        let mounts = self.shared.snapshotter.mounts(&self.key).await;
        let mut mounts = mounts.map_err(snapshot("mount the snapshot", &self.id))?;
        if self.retained {
            // What is written in place for a long time is never on a volatile mount: after a
            // crash of the machine it could not be told from what is whole.
            for mount in &mut mounts {
                mount.options.retain(|option| option != "volatile");
            }
        }
        Ok(mounts)
    }

    /// Mounts it in a temporary place. Unmount it before it is committed.
    ///
    /// # Cancel safety
    /// When the future is dropped nothing stays mounted.
    pub async fn mount(&self) -> Result<MountedDir, CacheError> {
        let mounts = self.mounts().await?;
        mount(&self.shared, &self.id, mounts, None).await
    }

    /// Takes the hashes that the writer computed on the way, so that nothing is read again: the
    /// changes since it was got, in their order. They count when it is committed.
    pub fn set_content_hashes(&self, changes: impl IntoIterator<Item = HashedChange>) {
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        hashes.told = true;
        if let Some(tree) = &mut hashes.before {
            tree.change(changes);
        }
    }

    /// Makes it be found by `index` ([`crate::CacheManager::search`]).
    ///
    /// # Cancel safety
    /// It is found when the future is first polled.
    pub async fn add_index(&self, index: &str) -> Result<(), CacheError> {
        let handed = {
            let mut state = self.shared.state();
            if !state.add_index(&self.id, index) || !self.retained {
                return Ok(());
            }
            self.shared.hand_over(&mut state, &self.id, |_| Ok(()))?
        };
        self.shared.committed(&self.id, handed).await
    }

    /// Ends the writing. A retained one gives an immutable ref of another id and goes back; the
    /// immutable ref is sealed over the same snapshot, until the mutable one is got again.
    /// Nothing may have it mounted for writing.
    ///
    /// The ref survives the death of the process when this returns.
    ///
    /// # Cancel safety
    /// When the future is dropped there is no such ref: the keeper removes what there is of it.
    pub async fn commit(mut self) -> Result<ImmutableRef, CacheError> {
        let tree = {
            let hashes = self
                .hashes
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            let tree = hashes.before.take();
            tree.filter(|_| hashes.told)
        };
        if self.retained {
            return self.seal(tree).await;
        }
        let name = SnapshotName::new(self.id.as_str());
        self.shared
            .snapshotter
            .commit(&self.key, &name)
            .await
            .map_err(snapshot("commit the snapshot", &self.id))?;
        let (live, handed) = {
            let mut state = self.shared.state();
            let Some(entry) = state.get_mut(&self.id) else {
                return Err(CacheError::NotFound {
                    id: self.id.clone(),
                });
            };
            entry.record.state = Stage::Committed {
                name: self.id.to_string(),
                owner: None,
            };
            state.set_taken(&self.id, false);
            let live = self.shared.pin(&mut state, &self.id);
            let live = live.expect("the entry was there a line ago");
            // The pin has it from here on: when this call is dropped, the record is waste.
            self.given_back = true;
            let lease = self.lease.take();
            let finish = lease.map(Lease::finish);
            let handed = self.shared.hand_over(&mut state, &self.id, |tx| {
                finish.map_or(Ok(()), |finish| finish(tx))
            });
            // Not dropped under the lock.
            (live, handed)
        };
        let made = ImmutableRef { live };
        if let Some(tree) = tree {
            self.shared.hashes.set(&self.id, tree);
        }
        self.shared.touch();
        self.shared.committed(&self.id, handed?).await?;
        Ok(made)
    }

    async fn seal(mut self, tree: Option<Tree>) -> Result<ImmutableRef, CacheError> {
        let id = RefId::random();
        let (live, handed) = {
            let mut state = self.shared.state();
            let Some(entry) = state.get_mut(&self.id) else {
                return Err(CacheError::NotFound {
                    id: self.id.clone(),
                });
            };
            entry.used();
            entry.released.notify_waiters();
            self.given_back = true;
            let mut record = entry.record.clone();
            state.set_taken(&self.id, false);
            record.state = Stage::Sealed {
                origin: self.id.clone(),
            };
            record.retain = false;
            record.indexes.clear();
            record.created_at = std::time::SystemTime::now();
            state.insert(id.clone(), record, Uses::default());
            let live = self.shared.pin(&mut state, &id);
            let live = live.expect("the entry was made a line ago");
            let handed = self.shared.hand_over(&mut state, &id, |_| Ok(()));
            (live, handed)
        };
        let made = ImmutableRef { live };
        if let Some(tree) = tree {
            // Under the mutable ref: what is sealed over it may end before it does.
            self.shared.hashes.set(&self.id, tree);
        }
        self.shared.touch();
        self.shared.committed(&id, handed?).await?;
        Ok(made)
    }
}

impl Drop for MutableRef {
    fn drop(&mut self) {
        if self.given_back || !self.retained {
            // The lease, when there is one, is posted as it is dropped.
            return;
        }
        {
            let mut state = self.shared.state();
            state.set_taken(&self.id, false);
            state.let_go(&self.id);
            if let Some(entry) = state.get(&self.id) {
                entry.released.notify_waiters();
            }
        }
        self.shared.touch();
        self.shared.book.changed.notify_one();
    }
}
