//! Handles of immutable refs.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use cooper_content::Digest;
use cooper_snapshot::{ActiveKey, Mount, SnapshotName};
use tokio::sync::OnceCell;

use crate::contenthash::{ChecksumOptions, ListedFile};
use crate::core::Shared;
use crate::error::snapshot;
use crate::keeper::Message;
use crate::lease::{Lease, Work};
use crate::record::Stage;
use crate::state::Entry;
use crate::{CacheError, Layer, RecordType, RefId};

/// One pin of a ref, shared by the clones of a handle.
pub(crate) struct Live {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: RefId,
    view: OnceCell<View>,
    /// The ref below, pinned for the mounts that were given out with this one's.
    below: OnceCell<LocalRef>,
}

/// How the ref is mounted, as long as it is pinned.
struct View {
    mounts: Vec<Mount>,
    _lease: Option<Lease>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Live").field(&self.id).finish()
    }
}

impl Live {
    pub(crate) fn new(shared: Arc<Shared>, id: RefId) -> Self {
        Self {
            shared,
            id,
            view: OnceCell::new(),
            below: OnceCell::new(),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // The view stands on the record until the keeper has removed it.
        drop(self.view.take());
        let waste = {
            let mut state = self.shared.state();
            let Some(entry) = state.get_mut(&self.id) else {
                return;
            };
            entry.handles = entry.handles.saturating_sub(1);
            if entry.handles == 0 {
                state.let_go(&self.id);
            }
            state.get(&self.id).is_some_and(Entry::is_waste)
        };
        if waste {
            self.shared.post(Message::Unused(self.id.clone()));
        } else {
            self.shared.touch();
            self.shared.book.changed.notify_one();
        }
    }
}

/// A state of a file system that does not change any more. The record cannot go while a handle
/// is there; when the last one is dropped it stays until it is pruned, if somebody kept it
/// ([`ImmutableRef::retain`]), and else it is removed.
#[derive(Clone)]
pub struct ImmutableRef {
    pub(crate) live: Arc<Live>,
}

impl std::fmt::Debug for ImmutableRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ImmutableRef").field(&self.live.id).finish()
    }
}

impl PartialEq for ImmutableRef {
    fn eq(&self, other: &Self) -> bool {
        self.live.id == other.live.id
    }
}

impl Eq for ImmutableRef {}

impl ImmutableRef {
    /// Its id.
    pub fn id(&self) -> &RefId {
        &self.live.id
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.live.shared
    }

    /// Reads from the record, which is there as long as a handle is.
    pub(crate) fn read<T>(&self, function: impl FnOnce(&crate::state::Entry) -> T) -> T {
        let state = self.shared().state();
        let entry = state.get(self.id());
        function(entry.expect("a record cannot go while it is pinned"))
    }

    /// The ref below it.
    pub fn parent(&self) -> Option<Self> {
        let mut state = self.shared().state();
        let parent = state.get(self.id())?.record.parent.clone()?;
        let live = self.shared().pin(&mut state, &parent)?;
        Some(Self { live })
    }

    /// The refs that it stands on, the lowest first, itself last.
    pub fn chain(&self) -> Vec<Self> {
        let mut state = self.shared().state();
        let ids = state.chain(self.id());
        let pins = ids
            .iter()
            .filter_map(|id| self.shared().pin(&mut state, id));
        pins.map(|live| Self { live }).collect()
    }

    /// The layer that it is known by or was packed into.
    pub fn layer(&self) -> Option<Layer> {
        self.read(|entry| entry.record.layer.clone())
    }

    /// Notes the layer that it was packed into. The record owns the blob from now on: it is
    /// removed from the content store with the last record that has it.
    ///
    /// # Cancel safety
    /// The layer is set when the future is first polled.
    pub async fn set_layer(&self, layer: Layer) -> Result<(), CacheError> {
        let handed = {
            let mut state = self.shared().state();
            state.set_layer(self.id(), Some(layer));
            if let Some(entry) = state.get_mut(self.id()) {
                entry.record.packed = true;
            }
            self.shared().hand_over(&mut state, self.id(), |_| Ok(()))?
        };
        self.shared().touch();
        self.shared().committed(self.id(), handed).await
    }

    /// Keeps the record until it is pruned, because somebody refers to it by its id.
    ///
    /// # Cancel safety
    /// It is kept when the future is first polled.
    pub async fn retain(&self) -> Result<(), CacheError> {
        let handed = {
            let mut state = self.shared().state();
            match state.get_mut(self.id()) {
                Some(entry) if entry.record.kept => return Ok(()),
                Some(entry) => entry.record.kept = true,
                None => {}
            }
            self.shared().hand_over(&mut state, self.id(), |_| Ok(()))?
        };
        self.shared().touch();
        self.shared().committed(self.id(), handed).await
    }

    /// What users see of it.
    pub fn description(&self) -> String {
        self.read(|entry| entry.record.description.clone())
    }

    /// Which kind of thing it is.
    pub fn record_type(&self) -> RecordType {
        self.read(|entry| entry.record.record_type)
    }

    /// Changes which kind of thing it is.
    ///
    /// # Cancel safety
    /// It is changed when the future is first polled.
    pub async fn set_record_type(&self, record_type: RecordType) -> Result<(), CacheError> {
        let handed = {
            let mut state = self.shared().state();
            if let Some(entry) = state.get_mut(self.id()) {
                entry.record.record_type = record_type;
            }
            self.shared().hand_over(&mut state, self.id(), |_| Ok(()))?
        };
        self.shared().committed(self.id(), handed).await
    }

    /// When it was made.
    pub fn created_at(&self) -> SystemTime {
        self.read(|entry| entry.record.created_at)
    }

    /// Makes it be found by `index` ([`crate::CacheManager::search`]).
    ///
    /// # Cancel safety
    /// It is found when the future is first polled.
    pub async fn add_index(&self, index: &str) -> Result<(), CacheError> {
        let handed = {
            let mut state = self.shared().state();
            if !state.add_index(self.id(), index) {
                return Ok(());
            }
            self.shared().hand_over(&mut state, self.id(), |_| Ok(()))?
        };
        self.shared().committed(self.id(), handed).await
    }

    /// The names that it is found by, as they were added.
    pub fn indexes(&self) -> Vec<String> {
        self.read(|entry| entry.record.indexes.clone())
    }

    /// Whether its files are on disk.
    pub fn is_local(&self) -> bool {
        self.read(|entry| entry.record.state != Stage::Lazy)
    }

    /// The ref as a local one, when it is.
    pub fn local(&self) -> Option<LocalRef> {
        self.is_local().then(|| LocalRef {
            inner: self.clone(),
        })
    }
}

/// An immutable ref whose files are on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRef {
    pub(crate) inner: ImmutableRef,
}

impl std::ops::Deref for LocalRef {
    type Target = ImmutableRef;

    fn deref(&self) -> &ImmutableRef {
        &self.inner
    }
}

impl From<LocalRef> for ImmutableRef {
    fn from(local: LocalRef) -> Self {
        local.inner
    }
}

impl LocalRef {
    /// The mounts that show its files, to read. They can be mounted any number of times, and
    /// only as long as this handle or a clone of it is there.
    ///
    /// # Cancel safety
    /// The keeper removes what a dropped call began.
    pub async fn mounts(&self) -> Result<Vec<Mount>, CacheError> {
        let view = self.live.view.get_or_try_init(|| self.view()).await?;
        Ok(view.mounts.clone())
    }

    async fn view(&self) -> Result<View, CacheError> {
        let (shared, id) = (self.shared(), self.id());
        let snapshotter = &shared.snapshotter;
        // So that a sealed ref is not committed between the look and the mounts.
        let turn = self.read(|entry| entry.turn.clone());
        let _turn = turn.lock().await;
        let sealed = {
            let state = shared.state();
            match state.get(id).map(|entry| &entry.record.state) {
                Some(Stage::Committed { name, .. }) => Err(name.clone()),
                Some(Stage::Sealed { origin }) => Ok(match state.get(origin) {
                    Some(entry) => entry.record.state.clone(),
                    None => Stage::Lazy,
                }),
                _ => Ok(Stage::Lazy),
            }
        };
        let name = match sealed {
            Err(name) => name,
            // The snapshot is still active: shown as it is, read-only.
            Ok(Stage::Active { key }) => {
                let mounts = snapshotter.mounts(&ActiveKey::new(key)).await;
                let mounts = mounts.map_err(snapshot("mount the snapshot", id))?;
                return Ok(View {
                    mounts: mounts.into_iter().map(Mount::read_only).collect(),
                    _lease: None,
                });
            }
            Ok(_) => return Err(CacheError::NotFound { id: id.clone() }),
        };
        let key = RefId::random().to_string();
        let work = Work {
            stands_on: Some(id.clone()),
            ..Work::new(key.clone())
        };
        let lease = Lease::new(shared, work)?;
        let key = ActiveKey::new(key);
        snapshotter
            .view(&key, Some(&SnapshotName::new(name)))
            .await
            .map_err(snapshot("view the snapshot", id))?;
        let mounts = snapshotter
            .mounts(&key)
            .await
            .map_err(snapshot("mount the snapshot", id))?;
        Ok(View {
            mounts,
            _lease: Some(lease),
        })
    }

    /// Mounts it in a temporary place, to read.
    ///
    /// # Cancel safety
    /// When the future is dropped nothing stays mounted.
    pub async fn mount(&self) -> Result<MountedDir, CacheError> {
        let mounts = self.mounts().await?;
        mount(self.shared(), self.id(), mounts, Some(self.clone())).await
    }

    /// Where mounts for a short time belong: what is left there is swept when the cache is opened.
    pub fn mounts_folder(&self) -> &Path {
        &self.shared().mounts
    }

    /// The digest of the files at `path`, by BuildKit's rules (`cache/contenthash`): metadata
    /// without times, and content. What was hashed is remembered.
    ///
    /// # Errors
    /// `"/path": not found` when there is nothing at `path`.
    ///
    /// # Cancel safety
    /// Hashing stops soon after the future is dropped; what was hashed stays known.
    pub async fn checksum(
        &self,
        path: &Path,
        options: &ChecksumOptions,
    ) -> Result<Digest, CacheError> {
        crate::contenthash::checksum(self, path, options).await
    }

    /// The files behind a [checksum](Self::checksum) that was computed, at most about `most`:
    /// where there are more, directories stand for what is in them. `None` when it was not
    /// computed, or not all of it is known any more: the disk is not looked at.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn list_hashed(
        &self,
        path: &Path,
        options: &ChecksumOptions,
        most: usize,
    ) -> Result<Option<Vec<ListedFile>>, CacheError> {
        crate::contenthash::list(self, path, options, most).await
    }

    /// The mounts of the ref below, none when there is none, and those of this one: what the
    /// changes between them are computed from. For an overlay the first lower folder of the
    /// second holds just the changes.
    pub async fn diff_mounts(&self) -> Result<(Vec<Mount>, Vec<Mount>), CacheError> {
        let lower = match self.parent().and_then(|parent| parent.local()) {
            Some(parent) => {
                let mounts = parent.mounts().await?;
                // Its view lives as long as a handle of it: ours holds one.
                let _ = self.live.below.set(parent);
                mounts
            }
            None => Vec::new(),
        };
        Ok((lower, self.mounts().await?))
    }
}

/// A ref mounted in a temporary place, and unmounted when this value is dropped.
#[derive(Debug)]
#[must_use = "the mounts go when this value does"]
pub struct MountedDir {
    dir: cooper_snapshot::MountedDir,
    _pin: Option<LocalRef>,
}

impl MountedDir {
    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Unmounts and says whether that went well.
    pub fn close(self) -> Result<(), CacheError> {
        let at = self.dir.path().display().to_string();
        self.dir.close().map_err(snapshot("unmount the files", &at))
    }
}

pub(crate) async fn mount(
    shared: &Shared,
    id: &RefId,
    mounts: Vec<Mount>,
    pin: Option<LocalRef>,
) -> Result<MountedDir, CacheError> {
    let folder = shared.mounts.clone();
    let mounting =
        tokio::task::spawn_blocking(move || cooper_snapshot::MountedDir::mount(&mounts, &folder));
    let dir = mounting.await.map_err(|source| CacheError::Thread {
        id: id.to_string(),
        source,
    })?;
    Ok(MountedDir {
        dir: dir.map_err(snapshot("mount the files", id))?,
        _pin: pin,
    })
}
