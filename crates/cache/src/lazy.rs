//! Bringing lazy refs to disk.

use std::path::PathBuf;

use async_trait::async_trait;
use cooper_snapshot::{ActiveKey, Mount, SnapshotName};

use crate::core::Handed;
use crate::error::snapshot;
use crate::lease::{Lease, Work};
use crate::record::Stage;
use crate::{CacheError, ImmutableRef, Layer, LocalRef, RefId};

/// Why a layer could not be brought.
pub type FillError = Box<dyn std::error::Error + Send + Sync>;

/// The changes from one state of files to another.
#[derive(Clone, Debug)]
pub struct Changes {
    /// What shows the first one; nothing for no files.
    pub lower: Vec<Mount>,
    /// What shows the second one. For an overlay its first lower folder holds just the changes.
    pub upper: Vec<Mount>,
    /// A folder for temporary mounts, which is swept if this process dies.
    pub scratch: PathBuf,
}

/// Brings the content of layers: fetches, verifies and unpacks. Given by those who know where
/// layers come from.
#[async_trait]
pub trait Fill: Send + Sync {
    /// Says which layers will be wanted, the lowest first, so that they can be fetched while
    /// others are unpacked. Dropping the `Fill` ends it.
    fn prefetch(&self, layers: &[Layer]) {
        let _ = layers;
    }

    /// Unpacks `layer` into `mounts`, which show what the layers below it made.
    ///
    /// # Cancel safety
    /// When the future is dropped, what was unpacked is thrown away.
    async fn fill(&self, layer: &Layer, mounts: &[Mount]) -> Result<(), FillError>;

    /// Makes `changes` again in `mounts`, which show another state. The files are on the same
    /// file system, and nobody writes to them: they can be shared. Says how many bytes of the
    /// disk are shared in the end.
    ///
    /// # Cancel safety
    /// When the future is dropped, what was made is thrown away.
    async fn repeat(&self, changes: &Changes, mounts: &[Mount]) -> Result<u64, FillError>;
}

impl ImmutableRef {
    /// Brings the ref and what it stands on to disk, the lowest first. Two callers who want the
    /// same ref share the work: one of them does it, and when it gives up the other goes on
    /// with its own `fill`.
    ///
    /// # Cancel safety
    /// Refs that are whole by then stay, what was begun is removed by the keeper.
    pub async fn localize(&self, fill: &dyn Fill) -> Result<LocalRef, CacheError> {
        if let Some(local) = self.local() {
            return Ok(local);
        }
        let chain = self.chain();
        let missing: Vec<&ImmutableRef> = chain.iter().filter(|one| !one.is_local()).collect();
        let wanted = missing
            .iter()
            .filter(|one| one.twin().is_none() && one.repeats().is_none());
        let layers: Vec<Layer> = wanted.filter_map(|one| one.layer()).collect();
        fill.prefetch(&layers);
        for one in missing {
            Box::pin(one.bring(fill)).await?;
        }
        self.local().ok_or_else(|| CacheError::NotFound {
            id: self.id().clone(),
        })
    }

    /// Brings this ref alone; what it stands on is on disk.
    async fn bring(&self, fill: &dyn Fill) -> Result<(), CacheError> {
        let turn = self.read(|entry| entry.turn.clone());
        let _turn = turn.lock().await;
        if self.is_local() || self.adopt().await? {
            return Ok(());
        }
        let shared = self.shared();
        let below = match self.parent() {
            Some(parent) => {
                let local = parent.local().ok_or_else(|| CacheError::NotFound {
                    id: parent.id().clone(),
                })?;
                Some(SnapshotName::new(shared.committed_name(&local).await?))
            }
            None => None,
        };
        // Names of this attempt alone: a later one does not meet what is left of it.
        let text = RefId::random().to_string();
        let (key, name) = (ActiveKey::new(&*text), SnapshotName::new(&*text));
        let work = Work {
            name: Some(text.clone()),
            ..Work::new(text.clone())
        };
        let lease = Lease::new(shared, work)?;
        let attempt = "make the snapshot";
        let snapshotter = &shared.snapshotter;
        snapshotter
            .prepare(&key, below.as_ref())
            .await
            .map_err(snapshot(attempt, self.id()))?;
        let mounts = snapshotter.mounts(&key).await;
        let mounts = mounts.map_err(snapshot("mount the snapshot", self.id()))?;
        let filled = match self.repeats() {
            Some(source) => {
                let (changes, _source) = source.changes().await?;
                fill.repeat(&changes, &mounts).await
            }
            None => {
                let layer = self.layer().ok_or_else(|| CacheError::NoLayer {
                    id: self.id().clone(),
                })?;
                fill.fill(&layer, &mounts).await.map(|()| 0)
            }
        };
        let shared_bytes = filled.map_err(|source| CacheError::Fill {
            id: self.id().clone(),
            source,
        })?;
        snapshotter
            .commit(&key, &name)
            .await
            .map_err(snapshot("commit the snapshot", self.id()))?;
        let finish = lease.finish();
        self.on_disk(text, None, shared_bytes, finish).await
    }

    /// Its changes over its parent, good as long as the handle is there. Nobody writes to the
    /// files any more.
    async fn changes(&self) -> Result<(Changes, LocalRef), CacheError> {
        let local = self.local().ok_or_else(|| CacheError::NotFound {
            id: self.id().clone(),
        })?;
        // A sealed one could be continued.
        self.shared().committed_name(&local).await?;
        let (lower, upper) = local.diff_mounts().await?;
        let scratch = local.mounts_folder().to_owned();
        let changes = Changes {
            lower,
            upper,
            scratch,
        };
        Ok((changes, local))
    }

    /// A ref on disk with the same content in other blobs, and the name of its snapshot.
    fn twin(&self) -> Option<(RefId, String)> {
        let state = self.shared().state();
        let (content, _) = state.get(self.id())?.chains.as_ref()?;
        state.local_twin(content, self.id())
    }

    /// Takes the snapshot of such a ref, when there is one.
    async fn adopt(&self) -> Result<bool, CacheError> {
        match self.twin() {
            Some((twin, name)) => {
                self.on_disk(name, Some(twin), 0, |_| Ok(())).await?;
                Ok(self.is_local())
            }
            None => Ok(false),
        }
    }

    async fn on_disk(
        &self,
        name: String,
        owner: Option<RefId>,
        shared_bytes: u64,
        also: impl FnOnce(&mut cooper_store::Write<'_>) -> Result<(), cooper_store::StoreError>
        + Send
        + 'static,
    ) -> Result<(), CacheError> {
        let handed: Handed = {
            let mut state = self.shared().state();
            if let Some(twin) = &owner
                && state.get(twin).is_none()
            {
                // Pruned meanwhile.
                return Ok(());
            }
            state.hold_needs(&owner);
            if let Some(entry) = state.get_mut(self.id()) {
                entry.record.state = Stage::Committed { name, owner };
                entry.record.shared_bytes = shared_bytes;
            }
            state.set_size(self.id(), None);
            self.shared().hand_over(&mut state, self.id(), also)?
        };
        self.shared().touch();
        self.shared().committed(self.id(), handed).await
    }
}
