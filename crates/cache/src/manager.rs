//! The manager: where refs are made and found.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use cooper_content::{ContentStore, Plaintexts};
use cooper_snapshot::Snapshotter;
use cooper_store::{Dropped, Store};
use tokio::sync::{mpsc, oneshot};

use crate::core::{Handed, Shared};
use crate::keeper::{self, Message};
use crate::record::{Record, Stage, Uses};
use crate::refs::Live;
use crate::state::{MAX_CHAIN, State};
use crate::{CacheError, ImmutableRef, Layer, LocalRef, MutableRef, RecordOptions, RefId};

/// References of one layer at most: a record does not grow with every name of an image.
const MOST_SOURCES: usize = 16;

/// A ref that does not go, and its changes on their way to the disk if there are any.
pub(crate) type Pinned = (Arc<Live>, Result<Option<Handed>, CacheError>);

/// What a cache stands on.
pub struct CacheConfig {
    /// Where the records are.
    pub store: Store,
    /// What the store dropped when it was opened, because the machine had died.
    pub dropped: Vec<Dropped>,
    /// Where the files are.
    pub snapshotter: Arc<dyn Snapshotter>,
    /// Where the blobs are.
    pub content: Arc<dyn ContentStore>,
    /// A folder for temporary mounts, made when it is missing. It is on the file system that
    /// snapshots and blobs are on: that one is synced, and its free space counts. Beside it is
    /// the folder `hashes`, for the content hashes of refs.
    pub mounts: PathBuf,
}

impl std::fmt::Debug for CacheConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("CacheConfig");
        out.field("mounts", &self.mounts).finish_non_exhaustive()
    }
}

/// The cache. Clones share it.
#[derive(Clone)]
pub struct CacheManager {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for CacheManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CacheManager")
    }
}

impl CacheManager {
    /// Opens the cache: removes what a dead process left (leases of older epochs, half-made
    /// records, snapshots that belong to none), throws away what the death of the machine may
    /// have spoilt, and starts the keeper, a task that ends with the last handle.
    pub async fn open(config: CacheConfig) -> Result<Self, CacheError> {
        let core = Arc::new(crate::open::open(config).await?);
        let (mail, mailbox) = mpsc::unbounded_channel();
        tokio::spawn(keeper::serve(core.clone(), mailbox));
        Ok(Self {
            shared: Arc::new(Shared { core, mail }),
        })
    }

    /// Waits until everything that handles left behind is removed, and makes the cache durable.
    /// It can be used afterwards; nothing is lost when it is not called.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        self.shared.post(Message::Checkpoint(done));
        let made = match wait.await {
            Ok(Ok(())) => self.shared.store.flush().await.map_err(CacheError::from),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(()),
        };
        if let Err(error) = made {
            tracing::warn!(%error, "could not make the cache durable");
        }
    }

    /// Waits until everything that handles left behind so far is removed.
    pub async fn settle(&self) {
        let (done, wait) = oneshot::channel();
        self.shared.post(Message::Settle(done));
        let _ = wait.await;
    }

    /// Where the files are.
    pub fn snapshotter(&self) -> &Arc<dyn Snapshotter> {
        &self.shared.snapshotter
    }

    /// Where the blobs are.
    pub fn content(&self) -> &Arc<dyn ContentStore> {
        &self.shared.content
    }

    /// The folder for temporary mounts.
    pub fn mounts_dir(&self) -> &std::path::Path {
        &self.shared.mounts
    }

    /// Calls `listener` with the id of each ref whose record has ended, for those who refer to
    /// refs by id, and with what pruned it, if something did. It is called in the keeper and
    /// must not wait.
    pub fn on_removed(&self, listener: impl Fn(&RefId, Option<&str>) + Send + Sync + 'static) {
        let listeners = &self.shared.listeners;
        let mut listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Box::new(listener));
    }

    /// From now on `plaintexts` is told what the digests of files, and those that others compute
    /// with [`CacheManager::plaintexts`], are computed from. The first one stays.
    pub fn tell_plaintexts(&self, plaintexts: Arc<dyn Plaintexts>) {
        let _ = self.shared.plaintexts.set(plaintexts);
    }

    /// Who wants to know what digests are computed from, if somebody does.
    pub fn plaintexts(&self) -> Option<&dyn Plaintexts> {
        self.shared.plaintexts.get().map(AsRef::as_ref)
    }

    /// Makes a state to be written, on top of `parent` or empty.
    ///
    /// # Cancel safety
    /// The keeper removes what a dropped call began.
    pub async fn new_mutable(
        &self,
        parent: Option<&LocalRef>,
        options: RecordOptions,
    ) -> Result<MutableRef, CacheError> {
        if let Some(parent) = parent {
            self.check_depth(parent)?;
        }
        Box::pin(MutableRef::new(self.shared.clone(), parent, options)).await
    }

    /// The immutable ref `id`.
    ///
    /// # Errors
    /// [`CacheError::NotFound`].
    pub async fn get(&self, id: &RefId) -> Result<ImmutableRef, CacheError> {
        let mut state = self.shared.state();
        let live = self.shared.pin(&mut state, id);
        live.map(|live| ImmutableRef { live })
            .ok_or_else(|| CacheError::NotFound { id: id.clone() })
    }

    /// Whether there is an immutable ref `id`.
    pub fn has(&self, id: &RefId) -> bool {
        let state = self.shared.state();
        state
            .get(id)
            .is_some_and(|entry| !entry.record.is_mutable())
    }

    /// The retained mutable ref `id`, to go on writing. The immutable ref that was made of it
    /// last ends, unless somebody has it: then it keeps the files, and the mutable one goes on
    /// in a new snapshot on top of them.
    ///
    /// # Errors
    /// [`CacheError::Locked`] when somebody has it.
    ///
    /// # Cancel safety
    /// A dropped call gives it back.
    pub async fn get_mutable(&self, id: &RefId) -> Result<MutableRef, CacheError> {
        Box::pin(MutableRef::take(self.shared.clone(), id)).await
    }

    /// As [`CacheManager::get_mutable`], and waits as long as somebody has it.
    ///
    /// # Cancel safety
    /// A dropped call gives it back.
    pub async fn wait_mutable(&self, id: &RefId) -> Result<MutableRef, CacheError> {
        loop {
            let released = {
                let state = self.shared.state();
                let entry = state.get(id);
                let entry = entry.ok_or_else(|| CacheError::NotFound { id: id.clone() })?;
                entry.released.clone()
            };
            let told = released.notified();
            tokio::pin!(told);
            // Listening from here on: a release between the attempt and the wait is not missed.
            told.as_mut().enable();
            match self.get_mutable(id).await {
                Err(CacheError::Locked { .. }) => told.await,
                result => return result,
            }
        }
    }

    /// The ref that is `layer` on top of `parent`: one that is known by the same chain of
    /// blobs, or a new lazy one.
    ///
    /// # Cancel safety
    /// A new record that nobody got a handle of is removed.
    pub async fn get_by_blob(
        &self,
        parent: Option<&ImmutableRef>,
        layer: Layer,
        options: RecordOptions,
    ) -> Result<ImmutableRef, CacheError> {
        if let Some(parent) = parent {
            self.check_depth(parent)?;
        }
        let below = parent.map(|parent| parent.id().clone());
        let pinned = {
            let mut state = self.shared.state();
            let chains = state.chains_on(below.as_ref(), &layer);
            let known = chains
                .as_ref()
                .and_then(|(_, blobs)| state.by_blob_chain(blobs));
            if let Some(id) = known
                && let Some(live) = self.shared.pin(&mut state, &id)
            {
                (live, self.more_sources(&mut state, &id, layer))
            } else {
                let mut record = Record::new(below, Stage::Lazy, options);
                record.retain = false;
                record.layer = Some(layer);
                self.insert_lazy(&mut state, record)
            }
        };
        self.found(pinned).await
    }

    /// Puts a record of a ref in that is not on disk.
    pub(crate) fn insert_lazy(&self, state: &mut State, record: Record) -> Pinned {
        let id = RefId::random();
        state.insert(id.clone(), record, Uses::default());
        let live = self.shared.pin(state, &id);
        let live = live.expect("the entry was made a line ago");
        let handed = self.shared.hand_over(state, &id, |_| Ok(()));
        (live, handed.map(Some))
    }

    /// A handle of a ref whose changes, if there are any, are committed. The lock of the state is
    /// free by now: dropping a handle takes it.
    pub(crate) async fn found(&self, (live, handed): Pinned) -> Result<ImmutableRef, CacheError> {
        let found = ImmutableRef { live };
        if let Some(handed) = handed? {
            self.shared.touch();
            self.shared.committed(found.id(), handed).await?;
        }
        Ok(found)
    }

    /// Notes where the layers of a chain, the lowest first, can be fetched from, on those refs of
    /// theirs that are still to be fetched: an image that is known may come from another place
    /// by now.
    pub async fn note_sources(&self, layers: &[Layer]) -> Result<(), CacheError> {
        let mut noted = Vec::new();
        {
            let mut state = self.shared.state();
            let mut below = None;
            for layer in layers {
                let chains = state.chains_on(below.as_ref(), layer);
                let Some(id) = chains.and_then(|(_, blobs)| state.by_blob_chain(&blobs)) else {
                    break;
                };
                let lazy = state
                    .get(&id)
                    .is_some_and(|entry| entry.record.state == Stage::Lazy);
                if lazy && let Some(handed) = self.more_sources(&mut state, &id, layer.clone())? {
                    noted.push((id.clone(), handed));
                }
                below = Some(id);
            }
        }
        for (id, handed) in noted {
            self.shared.touch();
            self.shared.committed(&id, handed).await?;
        }
        Ok(())
    }

    /// Notes references that the layer of `id` can be fetched from, when they are new.
    fn more_sources(
        &self,
        state: &mut State,
        id: &RefId,
        layer: Layer,
    ) -> Result<Option<Handed>, CacheError> {
        let entry = state.get_mut(id);
        let Some(known) = entry.and_then(|entry| entry.record.layer.as_mut()) else {
            return Ok(None);
        };
        let new: Vec<_> = layer
            .sources
            .into_iter()
            .filter(|source| !known.sources.contains(source))
            .collect();
        if new.is_empty() {
            return Ok(None);
        }
        // What a build names now is tried before what earlier ones named.
        known.sources.splice(..0, new);
        known.sources.truncate(MOST_SOURCES);
        self.shared.hand_over(state, id, |_| Ok(())).map(Some)
    }

    pub(crate) fn check_depth(&self, parent: &ImmutableRef) -> Result<(), CacheError> {
        if self.shared.state().chain(parent.id()).len() >= MAX_CHAIN {
            return Err(CacheError::Depth {
                id: parent.id().clone(),
                limit: MAX_CHAIN,
            });
        }
        Ok(())
    }

    /// Makes what has one of these indexes be found by it no more. Who has it keeps it.
    ///
    /// # Cancel safety
    /// It is forgotten when the future is first polled.
    pub async fn forget(&self, wanted: impl Fn(&str) -> bool) -> Result<(), CacheError> {
        let mut handed = Vec::new();
        {
            let mut state = self.shared.state();
            for id in state.remove_indexes(wanted) {
                let one = self.shared.hand_over(&mut state, &id, |_| Ok(()))?;
                handed.push((id, one));
            }
        }
        for (id, one) in handed {
            self.shared.committed(&id, one).await?;
        }
        Ok(())
    }

    /// The refs that have this index, in the order of their ids.
    pub fn search(&self, index: &str) -> Result<Vec<RefId>, CacheError> {
        Ok(self.shared.state().search(index))
    }
}
