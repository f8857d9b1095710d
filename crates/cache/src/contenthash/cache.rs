//! The trees that are in memory, and those that are stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cooper_store::Store;

use super::{Tree, saved};
use crate::record::HASHES;
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
    store: Store,
    slots: Mutex<Slots>,
    /// Held while trees are stored or taken: one that was taken must not be stored afterwards.
    storing: tokio::sync::Mutex<()>,
}

impl HashCache {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            slots: Mutex::default(),
            storing: tokio::sync::Mutex::default(),
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored(&self, id: &RefId) -> Result<Option<Tree>, CacheError> {
        let text = self.store.read(|tx| tx.get(&HASHES, id.as_str()))?;
        Ok(text.and_then(|text| saved::read(&text)))
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
        let key = id.clone();
        let delete = self
            .store
            .write(move |tx| tx.delete(&HASHES, key.as_str()).map(|_| ()));
        delete.await?;
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

    pub(crate) fn forget(&self, id: &RefId) {
        self.slots().slots.remove(id);
    }

    /// Stores what is new. A tree that a thread is hashing is left for the next time.
    pub(crate) async fn save(&self) -> Result<(), CacheError> {
        let _storing = self.storing.lock().await;
        let all: Vec<(RefId, Arc<Slot>)> = {
            let slots = self.slots();
            let all = slots.slots.iter();
            all.map(|(id, (_, slot))| (id.clone(), slot.clone()))
                .collect()
        };
        let writing = tokio::task::spawn_blocking(move || {
            let mut rows = Vec::new();
            for (id, slot) in all {
                if let Ok(mut tree) = slot.tree.try_lock()
                    && std::mem::take(&mut tree.dirty)
                {
                    rows.push((id, saved::write(&tree)));
                }
            }
            rows
        });
        let rows = writing.await.unwrap_or_default();
        if rows.is_empty() {
            return Ok(());
        }
        let write = self.store.write(move |tx| {
            for (id, text) in &rows {
                tx.put(&HASHES, id.as_str(), text)?;
            }
            Ok(())
        });
        write.await?;
        self.slots().evict();
        Ok(())
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
