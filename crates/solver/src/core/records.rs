//! Results in caches: finding them, keeping them, and sharing what is being made.

use std::collections::HashSet;
use std::sync::Arc;

use super::matching::Contents;
use super::{Command, Core, EdgeId, Exec, Record, Task, Want, Work, push};
use crate::caches::CacheKeys;
use crate::keys::{CacheResult, KeyEntry, KeyId, Link};

impl<O: Clone, E: Clone> Core<O, E> {
    /// Takes what hangs on the edge's keys here and in `caches`.
    pub(super) fn find_records(&mut self, id: EdgeId, caches: &[Arc<dyn CacheKeys>]) {
        if self.built_anew(id) || self.edge(id).result.is_some() {
            return;
        }
        let mut found = Vec::new();
        let names = match caches.is_empty() {
            true => Vec::new(),
            false => self.open_names(id),
        };
        for key in self.edge(id).ids.iter().filter(|key| key.valid) {
            // What was made meanwhile is shared by those who are about to be carried out: whether
            // it is there already must make no difference before.
            let here = self.keys.results(&key.id).into_iter();
            let here = here.filter(|result| !self.made.contains_key(&result.id));
            found.extend(here.map(|result| (None, 0, result)));
            for ((name, cache), rank) in names.iter().zip(caches).zip(1..) {
                let there = cache.results(&key.id).into_iter();
                found.extend(there.map(|result| (Some(*name), rank, result)));
            }
        }
        if found.is_empty() {
            return;
        }
        let edge = self.edge_mut(id);
        for (cache, rank, result) in found {
            let tried = edge.rare.get().tried.iter();
            let tried = tried.map(|(cache, id)| (*cache, id));
            let known = edge
                .records
                .iter()
                .map(|known| (known.cache, &known.result.id));
            if tried.chain(known).all(|known| known != (cache, &result.id)) {
                let record = Record {
                    cache,
                    rank,
                    result,
                };
                push(&mut edge.records, record);
            }
        }
        // What is here before what is elsewhere, then the newest.
        edge.records.sort_by(|a, b| {
            let by_time = || a.result.created_at.cmp(&b.result.created_at);
            let by_name = || a.result.id.cmp(&b.result.id);
            let by_rank = b.rank.cmp(&a.rank);
            by_rank.then_with(by_time).then_with(by_name)
        });
    }

    /// Loads the best result that was found, if it is needed.
    pub(super) fn load(&mut self, id: EdgeId) {
        let edge = self.edge_mut(id);
        if edge.want != Want::Complete || edge.result.is_some() || edge.loading.is_some() {
            return;
        }
        if let Some(record) = edge.records.pop() {
            let (cache, result) = (record.cache, record.result.id.clone());
            edge.rare.make().tried.push((cache, result.clone()));
            let vertex = edge.vertex;
            let work = Work::Load { cache, result };
            let task = self.start(vertex, Task::Load(id, Box::new(record)), work);
            self.edge_mut(id).loading = Some(task);
        }
    }

    /// A record was loaded, or was gone.
    pub(super) fn loaded(
        &mut self,
        id: EdgeId,
        record: Record,
        output: Option<(O, Option<CacheResult>)>,
    ) {
        self.edge_mut(id).loading = None;
        let Some((output, kept)) = output else {
            if record.cache.is_none() {
                self.keys.release(&record.result.id);
            }
            return self.enqueue(id);
        };
        self.show_cached(id);
        self.claim(id);
        let here = record.cache.is_none().then_some(record.result);
        let keep = kept.is_some();
        self.edge_mut(id).kept = kept.or(here);
        self.complete(id, output, keep);
    }

    /// What was found in the cache, and what led to it and is in the cache too: users see all of
    /// it as cached, although only the last one was loaded, inputs before those who take them.
    fn show_cached(&mut self, edge: EdgeId) {
        let mut open = vec![edge];
        let mut found = Vec::new();
        while let Some(id) = open.pop() {
            let state = self.edge_mut(id);
            let cached = id == edge || (state.result.is_none() && !state.records.is_empty());
            if cached && !std::mem::replace(&mut state.shown, true) {
                found.push(state.vertex);
                open.extend(state.deps.iter().map(|dep| dep.edge));
            }
        }
        // Inputs are added before those who take them: their numbers are lower.
        found.sort_unstable();
        found.dedup();
        let shown = found.into_iter().map(|vertex| Command::Cached { vertex });
        self.commands.extend(shown);
    }

    /// Keeps a result under all keys of the edge, with the links that lead to them; where it was
    /// built anew all keys of its inputs lead to its `own` keys alone.
    pub(super) fn keep(&mut self, id: EdgeId, result: &CacheResult, own: &[Option<KeyId>]) {
        let edge = self.edge(id);
        let mut steps = Vec::new();
        for map in 0..self.vertex(edge.vertex).maps.len() {
            for place in 0..edge.deps.len() {
                self.dep_links(id, map, place, Want::Slow, Contents::All, &mut steps);
            }
        }
        let mut links: Vec<_> = steps
            .into_iter()
            .map(|step| (step.from, step.link))
            .collect();
        let foreign = |core: &Self, key: &KeyId| core.known.get(key).is_some_and(|k| k.foreign);
        links.retain(|(key, _)| !foreign(self, key));
        let mut inputs: Vec<_> = links.iter().map(|(key, _)| key.clone()).collect();
        inputs.sort_unstable();
        inputs.dedup();
        for key in inputs {
            self.persist(key);
        }
        let noted = self.noted(id);
        let ids: Vec<_> = self.edge(id).ids.iter().map(|key| key.id.clone()).collect();
        let anew = self.built_anew(id);
        for key in ids {
            if !foreign(self, &key) {
                let links = match anew && !own.iter().flatten().any(|own| *own == key) {
                    true => self.links_to(&key),
                    false => links.clone(),
                };
                self.keys.add(KeyEntry {
                    id: key.clone(),
                    links,
                    result: result.clone(),
                    noted: noted.clone(),
                });
                self.forget_kept(&key);
            }
        }
    }

    /// Keeps what leads to a key that something else now hangs on, as BuildKit does: what is
    /// found by its content alone is so found by its definition when something was made of it.
    fn persist(&mut self, key: KeyId) {
        let mut open = vec![key];
        let mut seen = HashSet::new();
        while let Some(key) = open.pop() {
            let known = self.known.get(&key);
            let bare = known.is_none_or(|known| known.links.is_empty());
            if bare || !seen.insert(key.clone()) {
                continue;
            }
            let links = self.links_to(&key);
            open.extend(links.iter().map(|(from, _)| from.clone()));
            self.forget_kept(&key);
            if !links.is_empty() {
                self.keys.connect(&key, links);
            }
        }
    }

    /// What leads to a key and is not kept, but for what comes from keys that mean nothing here.
    fn links_to(&self, key: &KeyId) -> Vec<(KeyId, Link)> {
        let foreign = |key: &KeyId| self.known.get(key).is_some_and(|known| known.foreign);
        let links = self.known.get(key).into_iter();
        let links = links.flat_map(|known| &known.links);
        links.filter(|(from, _)| !foreign(from)).cloned().collect()
    }

    /// A result was made that is kept as `result`.
    pub(super) fn count_made(&mut self, result: &CacheResult) {
        *self.made.entry(result.id.clone()).or_default() += 1;
    }

    /// An edge that made one is gone.
    pub(super) fn forget_made(&mut self, result: &CacheResult) {
        if let Some(count) = self.made.get_mut(&result.id) {
            *count -= 1;
            if *count == 0 {
                self.made.remove(&result.id);
            }
        }
    }

    /// Whoever has one of the edge's keys, and is about to be carried out, takes its result.
    pub(super) fn claim(&mut self, id: EdgeId) {
        for place in 0..self.edge(id).ids.len() {
            let key = &self.edge(id).ids[place];
            if !key.valid {
                continue;
            }
            let key = key.id.clone();
            let claim = self.known.get(&key).and_then(|known| known.claim);
            let free = claim.is_none_or(|claim| !self.edges.contains_key(&claim));
            if let Some(known) = self.known.get_mut(&key).filter(|_| free) {
                known.claim = Some(id);
            }
        }
    }

    pub(super) fn give_back_claims(&mut self, id: EdgeId) {
        for place in 0..self.edge(id).ids.len() {
            let key = self.edge(id).ids[place].id.clone();
            if let Some(known) = self.known.get_mut(&key)
                && known.claim == Some(id)
            {
                known.claim = None;
            }
        }
    }

    /// Another edge that is or was carried out and has a key of this one.
    pub(super) fn claimed(&self, id: EdgeId) -> Option<EdgeId> {
        let edge = self.edge(id);
        let valid = edge.ids.iter().filter(|key| key.valid);
        let claims = valid.filter_map(|key| self.known.get(&key.id)?.claim);
        let mut others = claims.filter(|other| *other != id);
        others.find(|other| {
            let Some(state) = self.edges.get(other) else {
                return false;
            };
            let at_work = !matches!(self.vertex(state.vertex).exec, Exec::Idle);
            // Who wants it built anew is not served with what is not.
            let anew = !self.built_anew(id) || self.built_anew(*other);
            anew && state.error.is_none() && (state.result.is_some() || at_work)
        })
    }

    /// A key is not of this edge any more.
    pub(super) fn forget_key(&mut self, key: &KeyId, id: EdgeId) {
        let Some(known) = self.known.get_mut(key) else {
            return;
        };
        if known.claim == Some(id) {
            known.claim = None;
        }
        known.holders -= 1;
        if known.holders == 0 {
            self.forget_pending(key);
            self.known.remove(key);
        }
    }

    /// What leads to `key` is kept; but for what comes from keys that mean nothing here.
    fn forget_kept(&mut self, key: &KeyId) {
        let Some(known) = self.known.get_mut(key) else {
            return;
        };
        let links = std::mem::take(&mut known.links);
        let (stay, go): (Vec<_>, Vec<_>) = links
            .into_iter()
            .partition(|(from, _)| self.known.get(from).is_some_and(|known| known.foreign));
        if let Some(known) = self.known.get_mut(key) {
            known.links = stay;
        }
        self.unlink(key, go);
    }

    fn forget_pending(&mut self, key: &KeyId) {
        let known = self.known.get_mut(key);
        let links = known.map(|known| std::mem::take(&mut known.links));
        self.unlink(key, links.unwrap_or_default());
    }

    fn unlink(&mut self, key: &KeyId, links: Vec<(KeyId, Link)>) {
        for end in links {
            if let Some(targets) = self.pending.get_mut(&end) {
                targets.retain(|target| *target != *key);
                if targets.is_empty() {
                    self.pending.remove(&end);
                }
            }
        }
    }
}
