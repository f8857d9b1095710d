//! All records in memory, and what is known of them only while the process lives.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use cooper_content::{Digest, chain_id};
use cooper_snapshot::Usage;
use cooper_store::Seq;
use tokio::sync::Notify;

use crate::RefId;
use crate::record::{Record, Stage, Uses};
use crate::refs::Live;
use crate::shares::Shares;

/// Refs of one chain at most: a bound on every walk, far above what images have.
pub(crate) const MAX_CHAIN: usize = 4096;

/// A record and its counters.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    /// The commit that made its row; 0 when that was another process, or is not known yet:
    /// certainly durable.
    pub(crate) seq: Seq,
    /// Whether there is a row.
    pub(crate) stored: bool,
    /// Live handles of the immutable ref, clones not counted.
    pub(crate) handles: usize,
    /// The handle that a new one can be cloned from.
    pub(crate) live: Weak<Live>,
    /// Records and views that stand on this one.
    pub(crate) children: usize,
    /// Whether somebody has the mutable ref ([`State::set_taken`]).
    pub(crate) taken: bool,
    /// How often that changed: a size that was measured before says nothing afterwards.
    pub(crate) turns: u64,
    /// The collector's look that was the last one to begin before it was let go ([`Looks`]).
    pub(crate) let_go: u64,
    /// The immutable ref that is sealed over this mutable one.
    pub(crate) sealed: Option<RefId>,
    pub(crate) uses: Uses,
    /// Whether `uses` was changed since it was stored.
    pub(crate) uses_changed: bool,
    /// Held by who brings the ref to disk.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// Told when the mutable ref is free again.
    pub(crate) released: Arc<Notify>,
    /// Chain ids by content and by blob, when all below have layers.
    pub(crate) chains: Option<(Digest, Digest)>,
}

impl Entry {
    /// Whether nothing in this process and no record needs it.
    pub(crate) fn is_idle(&self) -> bool {
        self.handles == 0 && self.children == 0 && !self.taken
    }

    /// Whether it can go without being pruned: idle, and nobody will ask for it by its id.
    pub(crate) fn is_waste(&self) -> bool {
        self.is_idle() && !self.record.kept && !self.record.retain
    }

    pub(crate) fn used(&mut self) {
        self.uses.last_used = Some(SystemTime::now());
        self.uses.count += 1;
        self.uses_changed = true;
    }
}

/// All entries, found by id, by index, by chain and by blob.
#[derive(Debug, Default)]
pub(crate) struct State {
    entries: HashMap<RefId, Entry>,
    indexes: HashMap<String, BTreeSet<RefId>>,
    by_content: HashMap<Digest, BTreeSet<RefId>>,
    by_blob_chain: HashMap<Digest, BTreeSet<RefId>>,
    by_blob: HashMap<Digest, BTreeSet<RefId>>,
    /// Mutable refs that have a row in [`crate::record::OPENED`], and how often they were taken.
    pub(crate) opened: HashMap<RefId, u64>,
    /// What the snapshots take whose size is known, in bytes.
    snapshots: u64,
    /// Those that have a snapshot of their own whose size is not known.
    unmeasured: BTreeSet<RefId>,
    /// The mutable refs that somebody has.
    running: BTreeSet<RefId>,
    /// What several snapshots have.
    pub(crate) shares: Shares,
    pub(crate) looks: Looks,
}

/// The collector's looks, counted from 1. What is let go counts as in use until one that began
/// afterwards has made room for it: what a step wrote is known by samples only, and all of it is
/// free to prune at once when the step ends.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// Whether there is a collector that keeps a bound.
    collecting: bool,
    begun: u64,
    ended: u64,
}

impl Looks {
    /// Says whether somebody looks from now on.
    pub(crate) fn set_collecting(&mut self, collecting: bool) {
        self.collecting = collecting;
    }

    /// Begins a look, and returns which it is.
    pub(crate) fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    pub(crate) fn end(&mut self, look: u64) {
        self.ended = look;
    }

    /// Whether a look still has to make room for what was let go after look `begun` began.
    pub(crate) fn awaited(&self, begun: u64) -> bool {
        self.collecting && self.ended <= begun
    }
}

fn link<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<RefId>>, key: K, id: &RefId) {
    map.entry(key).or_default().insert(id.clone());
}

fn unlink<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<RefId>>, key: &K, id: &RefId) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

impl State {
    pub(crate) fn get(&self, id: &RefId) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: &RefId) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RefId, &Entry)> {
        self.entries.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&RefId, &mut Entry)> {
        self.entries.iter_mut()
    }

    /// Adds a record; what it needs has one child more from now on.
    pub(crate) fn insert(&mut self, id: RefId, record: Record, uses: Uses) {
        for needed in record.needs() {
            if let Some(entry) = self.entries.get_mut(needed) {
                entry.children += 1;
            }
        }
        if let Stage::Sealed { origin } = &record.state
            && let Some(entry) = self.entries.get_mut(origin)
        {
            entry.sealed = Some(id.clone());
        }
        for index in &record.indexes {
            link(&mut self.indexes, index.clone(), &id);
        }
        let entry = Entry {
            record,
            seq: 0,
            stored: false,
            handles: 0,
            live: Weak::new(),
            children: 0,
            taken: false,
            turns: 0,
            let_go: self.looks.begun,
            sealed: None,
            uses,
            uses_changed: false,
            turn: Arc::default(),
            released: Arc::default(),
            chains: None,
        };
        self.snapshots += entry.uses.size.unwrap_or(0);
        if entry.uses.size.is_none() && entry.record.has_snapshot() {
            self.unmeasured.insert(id.clone());
        }
        self.entries.insert(id.clone(), entry);
        self.link_layer(&id);
    }

    /// Notes what the snapshot of `id` takes in bytes, or that it is not known any more.
    pub(crate) fn set_size(&mut self, id: &RefId, size: Option<u64>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        self.snapshots = self.snapshots.saturating_sub(entry.uses.size.unwrap_or(0));
        self.snapshots += size.unwrap_or(0);
        entry.uses.size = size;
        self.shares.remove(id);
        // Of what is being written the size is not worth a row.
        entry.uses_changed |= !entry.taken;
        if size.is_none() && entry.record.has_snapshot() {
            self.unmeasured.insert(id.clone());
        } else {
            self.unmeasured.remove(id);
        }
    }

    /// Notes what the snapshot of `id` was found to take.
    pub(crate) fn set_usage(&mut self, id: &RefId, usage: &Usage) {
        self.set_size(id, Some(usage.bytes));
        let Some(made) = self.get(id).map(|entry| entry.record.created_at) else {
            return;
        };
        if self.shares.set(id, made, &usage.shared) {
            // Others may have been measured before they shared anything.
            let measured = |(_, entry): &(&RefId, &Entry)| {
                entry.uses.size.is_some() && !entry.taken && entry.record.has_snapshot()
            };
            let others = self.iter().filter(measured).map(|(id, _)| id.clone());
            let others: Vec<RefId> = others
                .filter(|other| other != id && self.shares.of(other).is_empty())
                .collect();
            for other in others {
                self.set_size(&other, None);
            }
        }
    }

    /// Notes that somebody has the mutable ref `id`, or nobody any more; how much it takes is
    /// not known then.
    pub(crate) fn set_taken(&mut self, id: &RefId, taken: bool) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.taken = taken;
        entry.turns += 1;
        if taken {
            self.running.insert(id.clone());
        } else {
            self.running.remove(id);
        }
        self.set_size(id, None);
    }

    /// Notes that nobody has the ref any more.
    pub(crate) fn let_go(&mut self, id: &RefId) {
        let begun = self.looks.begun;
        if let Some(entry) = self.entries.get_mut(id) {
            entry.used();
            entry.let_go = begun;
        }
    }

    /// What the snapshots take whose size is known, in bytes.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        self.snapshots.saturating_sub(self.shares.double())
    }

    /// Those whose size is not known.
    pub(crate) fn unmeasured(&self) -> impl Iterator<Item = &RefId> {
        self.unmeasured.iter()
    }

    /// The mutable refs that somebody has.
    pub(crate) fn running(&self) -> &BTreeSet<RefId> {
        &self.running
    }

    /// Takes a record out. Its children must be gone; what it needs is told by
    /// [`State::release_needs`] when its snapshot is gone too.
    pub(crate) fn take(&mut self, id: &RefId) -> Option<Entry> {
        self.unlink_layer(id);
        let entry = self.entries.remove(id)?;
        for index in &entry.record.indexes {
            unlink(&mut self.indexes, index, id);
        }
        if let Stage::Sealed { origin } = &entry.record.state
            && let Some(origin) = self.entries.get_mut(origin)
        {
            origin.sealed = None;
        }
        self.opened.remove(id);
        self.unmeasured.remove(id);
        self.running.remove(id);
        self.shares.remove(id);
        self.snapshots = self.snapshots.saturating_sub(entry.uses.size.unwrap_or(0));
        Some(entry)
    }

    /// Counts a child of each of `needed` away, and returns those that are waste now.
    pub(crate) fn release_needs<'a>(
        &mut self,
        needed: impl IntoIterator<Item = &'a RefId>,
    ) -> Vec<RefId> {
        let mut waste = Vec::new();
        for id in needed {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.children = entry.children.saturating_sub(1);
                if entry.is_waste() {
                    waste.push(id.clone());
                }
            }
        }
        waste
    }

    /// Counts one child more for each of `needed`.
    pub(crate) fn hold_needs<'a>(&mut self, needed: impl IntoIterator<Item = &'a RefId>) {
        for id in needed {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.children += 1;
            }
        }
    }

    /// Sets the layer of a record, or none, and the chains that follow from it.
    pub(crate) fn set_layer(&mut self, id: &RefId, layer: Option<crate::Layer>) {
        self.unlink_layer(id);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.record.layer = layer;
        }
        self.link_layer(id);
    }

    pub(crate) fn add_index(&mut self, id: &RefId, index: &str) -> bool {
        let Some(entry) = self.entries.get_mut(id) else {
            return false;
        };
        if entry.record.indexes.iter().any(|known| known == index) {
            return false;
        }
        entry.record.indexes.push(index.to_owned());
        link(&mut self.indexes, index.to_owned(), id);
        true
    }

    /// Takes indexes away; returns the refs that had one.
    pub(crate) fn remove_indexes(&mut self, wanted: impl Fn(&str) -> bool) -> BTreeSet<RefId> {
        let mut had = BTreeSet::new();
        self.indexes.retain(|index, ids| {
            let keep = !wanted(index);
            if !keep {
                had.append(ids);
            }
            keep
        });
        for id in &had {
            if let Some(entry) = self.get_mut(id) {
                entry.record.indexes.retain(|index| !wanted(index));
            }
        }
        had
    }

    pub(crate) fn search(&self, index: &str) -> Vec<RefId> {
        let ids = self.indexes.get(index);
        ids.map(|ids| ids.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// The chain ids that a ref with `layer` on `parent` has; none when a ref below has no layer.
    pub(crate) fn chains_on(
        &self,
        parent: Option<&RefId>,
        layer: &crate::Layer,
    ) -> Option<(Digest, Digest)> {
        let below = match parent {
            None => None,
            Some(parent) => Some(self.entries.get(parent)?.chains.as_ref()?),
        };
        let (content, blob) = match below {
            None => (None, None),
            Some((content, blob)) => (Some(content), Some(blob)),
        };
        Some((
            chain_id(content, &layer.diff_id),
            chain_id(blob, layer.descriptor.digest()),
        ))
    }

    fn link_layer(&mut self, id: &RefId) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let Some(layer) = entry.record.layer.clone() else {
            return;
        };
        let chains = self.chains_on(entry.record.parent.as_ref(), &layer);
        link(&mut self.by_blob, layer.descriptor.digest().clone(), id);
        if let Some((content, blob)) = &chains {
            link(&mut self.by_content, content.clone(), id);
            link(&mut self.by_blob_chain, blob.clone(), id);
        }
        if let Some(entry) = self.entries.get_mut(id) {
            entry.chains = chains;
        }
    }

    fn unlink_layer(&mut self, id: &RefId) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let Some(layer) = &entry.record.layer else {
            return;
        };
        unlink(&mut self.by_blob, layer.descriptor.digest(), id);
        if let Some((content, blob)) = entry.chains.take() {
            unlink(&mut self.by_content, &content, id);
            unlink(&mut self.by_blob_chain, &blob, id);
        }
    }

    /// A ref that is this chain of blobs.
    pub(crate) fn by_blob_chain(&self, chain: &Digest) -> Option<RefId> {
        self.by_blob_chain.get(chain)?.first().cloned()
    }

    /// A ref other than `than` that has this content on disk in a snapshot of its own.
    pub(crate) fn local_twin(&self, content: &Digest, than: &RefId) -> Option<(RefId, String)> {
        let ids = self.by_content.get(content)?;
        ids.iter().filter(|id| *id != than).find_map(|id| {
            match &self.entries.get(id)?.record.state {
                Stage::Committed { name, owner: None } => Some((id.clone(), name.clone())),
                _ => None,
            }
        })
    }

    /// How many records have this blob.
    pub(crate) fn blob_holders(&self, blob: &Digest) -> usize {
        self.by_blob.get(blob).map_or(0, BTreeSet::len)
    }

    /// Whether a record has this blob.
    pub(crate) fn has_blob(&self, blob: &Digest) -> bool {
        self.by_blob.contains_key(blob)
    }

    /// The record that a blob belongs to: the oldest one that has it.
    pub(crate) fn blob_owner(&self, blob: &Digest) -> Option<&RefId> {
        let holders = self.by_blob.get(blob)?;
        let made = |id: &&RefId| self.get(id).map(|entry| entry.record.created_at);
        holders.iter().min_by_key(|id| (made(id), *id))
    }

    /// The ids from the lowest up to `id`.
    pub(crate) fn chain(&self, id: &RefId) -> Vec<RefId> {
        let mut chain = vec![id.clone()];
        let mut next = self.get(id).and_then(|entry| entry.record.parent.clone());
        while let Some(id) = next
            && chain.len() < MAX_CHAIN
        {
            next = self.get(&id).and_then(|entry| entry.record.parent.clone());
            chain.push(id);
        }
        chain.reverse();
        chain
    }
}
