//! The trees that are in memory, and those that are stored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Tree, saved};
use crate::error::io;
use crate::{CacheError, RefId};

/// Trees in memory, as many as BuildKit has; those that are not stored yet come on top.
const MOST: usize = 20;

/// One tree. Locked for as long as a thread hashes: only tried on async threads.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) tree: Mutex<Tree>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: HashMap<RefId, (u64, Arc<Slot>)>,
    clock: u64,
}

/// The trees by the ref that they are of.
#[derive(Debug)]
pub(crate) struct HashCache {
    /// A file for each ref, named by its id.
    folder: PathBuf,
    slots: Mutex<Slots>,
    /// Held while trees are stored or taken: one that was taken must not be stored afterwards.
    storing: tokio::sync::Mutex<()>,
}

impl HashCache {
    /// Keeps them in `folder`, made when it is missing, and removes those that are of none of the
    /// refs that `known` says yes to.
    pub(crate) fn open(
        folder: PathBuf,
        known: impl Fn(&RefId) -> bool,
    ) -> Result<Self, CacheError> {
        std::fs::create_dir_all(&folder).map_err(io("make", &folder))?;
        for entry in std::fs::read_dir(&folder).map_err(io("list", &folder))? {
            let entry = entry.map_err(io("list", &folder))?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            if !id.is_some_and(|id| known(&id)) {
                remove(&entry.path())?;
            }
        }
        Ok(Self {
            folder,
            slots: Mutex::default(),
            storing: tokio::sync::Mutex::default(),
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, id: &RefId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    fn stored(&self, id: &RefId) -> Result<Option<Tree>, CacheError> {
        let place = self.place(id);
        match std::fs::read(&place) {
            Ok(bytes) => Ok(saved::read(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", &place)(error)),
        }
    }

    /// The tree of `id`, which may know nothing.
    pub(crate) fn get(&self, id: &RefId) -> Result<Arc<Slot>, CacheError> {
        {
            let mut slots = self.slots();
            slots.clock += 1;
            let now = slots.clock;
            if let Some((used, slot)) = slots.slots.get_mut(id) {
                *used = now;
                return Ok(slot.clone());
            }
        }
        let tree = self.stored(id)?.unwrap_or_else(Tree::unknown);
        Ok(self.insert(id, tree))
    }

    /// The tree of `id`, if anything was hashed of it.
    pub(crate) fn known(&self, id: &RefId) -> Result<Option<Arc<Slot>>, CacheError> {
        if let Some((_, slot)) = self.slots().slots.get(id) {
            return Ok(Some(slot.clone()));
        }
        let tree = self.stored(id)?;
        Ok(tree.map(|tree| self.insert(id, tree)))
    }

    fn insert(&self, id: &RefId, tree: Tree) -> Arc<Slot> {
        let slot = Arc::new(Slot {
            tree: Mutex::new(tree),
        });
        let mut slots = self.slots();
        slots.clock += 1;
        let now = slots.clock;
        slots.slots.insert(id.clone(), (now, slot.clone()));
        slots.evict();
        slot
    }

    /// Sets the tree of `id`.
    pub(crate) fn set(&self, id: &RefId, mut tree: Tree) {
        tree.dirty = true;
        self.insert(id, tree);
    }

    /// Takes the tree of the mutable ref `id`, which is written from now on: what is stored of
    /// it is deleted before this returns.
    pub(crate) async fn take(&self, id: &RefId) -> Result<Tree, CacheError> {
        let _storing = self.storing.lock().await;
        let slot = self.slots().slots.remove(id);
        let tree = match slot {
            Some((_, slot)) => match Arc::try_unwrap(slot) {
                Ok(slot) => {
                    let tree = slot.tree.into_inner();
                    Some(tree.unwrap_or_else(PoisonError::into_inner))
                }
                Err(slot) => slot.tree.try_lock().ok().map(|tree| tree.clone()),
            },
            None => self.stored(id)?,
        };
        // It is not durably gone: when the machine dies before the next checkpoint, so is the ref.
        remove(&self.place(id))?;
        Ok(tree.unwrap_or_else(|| Tree::received(false)))
    }

    /// Lets `to` know what `from` knows. When that is not at hand, nothing happens.
    pub(crate) fn copy(&self, from: &RefId, to: &RefId) {
        let known = self.slots().slots.get(from).map(|(_, slot)| slot.clone());
        let tree = match known {
            Some(slot) => slot.tree.try_lock().ok().map(|tree| tree.clone()),
            None => self.stored(from).ok().flatten(),
        };
        if let Some(tree) = tree {
            self.set(to, tree);
        }
    }

    /// The ref is gone.
    pub(crate) fn forget(&self, id: &RefId) {
        self.slots().slots.remove(id);
        if let Err(error) = remove(&self.place(id)) {
            tracing::warn!(%error, "could not remove content hashes");
        }
    }

    /// Stores what is new. A tree that a thread is hashing is left for the next time, and one that
    /// there is no space for is not stored: it can be had again.
    pub(crate) async fn save(&self) {
        let _storing = self.storing.lock().await;
        let all: Vec<(RefId, Arc<Slot>)> = {
            let slots = self.slots();
            let all = slots.slots.iter();
            all.map(|(id, (_, slot))| (id.clone(), slot.clone()))
                .collect()
        };
        let folder = self.folder.clone();
        let writing = tokio::task::spawn_blocking(move || {
            for (id, slot) in all {
                let bytes = match slot.tree.try_lock() {
                    Ok(mut tree) => match std::mem::take(&mut tree.dirty) {
                        true => saved::write(&tree),
                        false => continue,
                    },
                    Err(_) => continue,
                };
                let place = folder.join(id.as_str());
                if let Err(error) = replace(&place, &bytes) {
                    tracing::warn!(%id, %error, "could not store content hashes");
                }
            }
        });
        if let Err(error) = writing.await {
            tracing::warn!(%error, "could not store content hashes");
        }
        self.slots().evict();
    }
}

/// Puts a file in the place of another, whole or not at all.
fn replace(place: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = place.with_extension("new");
    let replaced = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, place));
    replaced.inspect_err(|_| drop(std::fs::remove_file(&new)))
}

/// Removes a file; one that is not there is no error.
fn remove(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

impl Slots {
    /// Forgets the trees that were not used for longest, unless they are not stored.
    fn evict(&mut self) {
        if self.slots.len() <= MOST {
            return;
        }
        let mut clean: Vec<(u64, RefId)> = self
            .slots
            .iter()
            .filter(|(_, (_, slot))| slot.tree.try_lock().is_ok_and(|tree| !tree.dirty))
            .map(|(id, (used, _))| (*used, id.clone()))
            .collect();
        clean.sort_unstable();
        let excess = self.slots.len() - MOST;
        for (_, id) in clean.into_iter().take(excess) {
            self.slots.remove(&id);
        }
    }
}
