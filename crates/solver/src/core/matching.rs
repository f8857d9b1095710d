//! From the keys of inputs to the keys of an edge, and edges that turn out to be the same.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Content, Core, EdgeId, InputState, VertexId, Want};
use crate::explain::{Note, Noted};
use crate::keys::{CacheResult, KeyEntry, KeyId, Link};

impl<O: Clone, E: Clone> Core<O, E> {
    /// Looks at what is new among the inputs' keys. `None` when the edge was merged into
    /// another one.
    pub(super) fn match_keys(&mut self, id: EdgeId) -> Option<EdgeId> {
        let vertex = self.edge(id).vertex;
        let mut known = false;
        for map in 0..self.vertex(vertex).maps.len() {
            self.make_room(id, map);
            let found = self.match_map(id, map);
            for (key, valid) in found {
                known |= self.add_key(id, key, valid);
            }
        }
        if known {
            self.enqueue_dependents(id);
            if let Some(other) = self.same_as(id) {
                self.merge(id, other);
                return None;
            }
        }
        Some(id)
    }

    fn make_room(&mut self, id: EdgeId, map: usize) {
        let edge = self.edge_mut(id);
        let count = edge.deps.len();
        if edge.matched.len() <= map {
            edge.matched.push(vec![HashSet::new(); count]);
            edge.led.push(vec![HashSet::new(); count]);
            edge.fresh.push(None);
            for dep in &mut edge.deps {
                dep.seen.push((0, 0, 0));
                dep.content_seen.push(false);
            }
        }
    }

    /// The keys that the map gives now, and which of them count.
    fn match_map(&mut self, id: EdgeId, map: usize) -> Vec<(KeyId, bool)> {
        let edge = self.edge(id);
        let (vertex, index) = (edge.vertex, edge.index);
        let digest = self.vertex(vertex).maps[map].digest.clone();
        if edge.deps.is_empty() {
            let output = i64::try_from(index).unwrap_or(i64::MAX);
            return vec![(KeyId::root(&digest, output), true)];
        }
        let (mut new, mut changed) = (Vec::new(), false);
        for dep in 0..edge.deps.len() {
            let (keys, more) = self.new_dep_keys(id, map, dep);
            new.extend(keys);
            changed |= more;
        }
        if new.is_empty() && !changed {
            return Vec::new();
        }
        if let Some(fresh) = self.edge(id).fresh[map].clone() {
            for (key, link) in new {
                self.add_pending(key, link, fresh.clone());
            }
        }
        // All of them are looked up, not only the new ones: others may have added links from
        // the old ones meanwhile.
        let all = self.all_dep_keys(id, map);
        for (key, link, valid) in all.clone() {
            let dep = link.input;
            let mut targets = self.keys.links(&key, &link);
            let end = (key, link);
            targets.extend(self.pending.get(&end).into_iter().flatten().cloned());
            let edge = self.edge_mut(id);
            if valid {
                edge.led[map][dep].extend(targets.iter().cloned());
            }
            edge.matched[map][dep].extend(targets);
        }
        let matched = &self.edge(id).matched[map];
        let (first, rest) = matched.split_first().expect("there are inputs");
        let mut found: Vec<_> = first
            .iter()
            .filter(|key| rest.iter().all(|set| set.contains(*key)))
            .cloned()
            .collect();
        found.sort();
        let led = &self.edge(id).led[map];
        let counts = |key: &KeyId| led.iter().all(|set| set.contains(key));
        let mut found: Vec<_> = found
            .into_iter()
            .map(|key| (key.clone(), counts(&key)))
            .collect();
        if found.is_empty() && self.edge(id).fresh[map].is_none() && self.all_have_keys(id) {
            let fresh = KeyId::fresh();
            self.edge_mut(id).fresh[map] = Some(fresh.clone());
            let counts = (0..self.edge(id).deps.len()).all(|dep| {
                all.iter()
                    .any(|(_, link, valid)| *valid && link.input == dep)
            });
            for (key, link, _) in all {
                self.add_pending(key, link, fresh.clone());
            }
            found.push((fresh, counts));
        }
        found
    }

    fn all_have_keys(&self, id: EdgeId) -> bool {
        let edge = self.edge(id);
        edge.deps.iter().enumerate().all(|(index, dep)| {
            !self.edge(self.find(dep.edge)).ids.is_empty()
                || matches!(self.vertex(edge.vertex).content[index], Content::Known(_))
        })
    }

    /// The link from a key of an input; `content`: from the key of its content.
    fn link(&self, id: EdgeId, map: usize, dep: usize, content: bool) -> Link {
        let edge = self.edge(id);
        let map = &self.vertex(edge.vertex).maps[map];
        let selector = map.deps.get(dep).and_then(|(selector, _)| selector.clone());
        Link {
            input: dep,
            output: edge.index,
            digest: map.digest.clone(),
            selector: selector.filter(|_| !content),
        }
    }

    /// The keys of an input that were not looked at, and whether more of them count than did.
    fn new_dep_keys(&mut self, id: EdgeId, map: usize, dep: usize) -> (Vec<(KeyId, Link)>, bool) {
        let edge = self.edge(id);
        let input = self.find(edge.deps[dep].edge);
        let (of, count, counted) = edge.deps[dep].seen[map];
        let count = if of == input { count } else { 0 };
        let valid = match self.built_anew(input) {
            true => 0,
            false => self.edge(input).valid.len(),
        };
        let ids = &self.edge(input).ids;
        let mut new: Vec<_> = ids[count..]
            .iter()
            .map(|key| (key.clone(), self.link(id, map, dep, false)))
            .collect();
        let now = (input, ids.len(), valid);
        let content = &self.vertex(edge.vertex).content[dep];
        let mut content_seen = edge.deps[dep].content_seen[map];
        if let (Content::Known(key), false) = (content, content_seen) {
            new.push((key.clone(), self.link(id, map, dep, true)));
            content_seen = true;
        }
        let state = &mut self.edge_mut(id).deps[dep];
        state.seen[map] = now;
        state.content_seen[map] = content_seen;
        (new, of != input || counted != valid)
    }

    fn built_anew(&self, id: EdgeId) -> bool {
        self.vertex(self.edge(id).vertex).spec.ignore_cache
    }

    /// The keys of all inputs, and which of them count.
    fn all_dep_keys(&self, id: EdgeId, map: usize) -> Vec<(KeyId, Link, bool)> {
        let edge = self.edge(id);
        let mut all = Vec::new();
        for (index, dep) in edge.deps.iter().enumerate() {
            let input = self.find(dep.edge);
            let anew = self.built_anew(input);
            let input = self.edge(input);
            for key in &input.ids {
                let valid = !anew && input.valid.contains(key);
                all.push((key.clone(), self.link(id, map, index, false), valid));
            }
            if let Content::Known(key) = &self.vertex(edge.vertex).content[index] {
                all.push((key.clone(), self.link(id, map, index, true), true));
            }
        }
        all
    }

    fn add_pending(&mut self, from: KeyId, link: Link, to: KeyId) {
        let end = (from, link);
        if self
            .pending
            .entry(end.clone())
            .or_default()
            .insert(to.clone())
        {
            self.pending_of.entry(to).or_default().push(end);
        }
    }

    /// Takes a key for the edge; says whether it is new, or counts only now.
    fn add_key(&mut self, id: EdgeId, key: KeyId, valid: bool) -> bool {
        let edge = self.edge(id);
        let (known, counts) = (edge.ids.contains(&key), edge.valid.contains(&key));
        if known && (counts || !valid) {
            return false;
        }
        let mut records = if !valid || self.built_anew(id) {
            Vec::new()
        } else {
            self.keys.results(&key)
        };
        let edge = self.edge_mut(id);
        if valid {
            edge.valid.insert(key.clone());
        }
        if !known {
            edge.ids.push(key);
        }
        records.retain(|record| {
            !edge.tried.contains(&record.id)
                && !edge.records.iter().any(|known| known.id == record.id)
        });
        edge.records.extend(records);
        edge.records
            .sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        true
    }

    /// Another edge with one of the edge's keys that it can be merged with. The keys are
    /// registered on the way.
    fn same_as(&mut self, id: EdgeId) -> Option<EdgeId> {
        let keys = self.edge(id).ids.clone();
        let mut same = None;
        for key in keys {
            match self.by_key.get(&key).map(|other| self.find(*other)) {
                Some(other) if other != id => {
                    let counts = |edge: EdgeId| self.edge(edge).valid.contains(&key);
                    if same.is_none() && counts(id) && counts(other) && self.may_merge(id, other) {
                        same = Some(other);
                    }
                }
                _ => {
                    self.by_key.insert(key, id);
                }
            }
        }
        same
    }

    /// Whether `from` can become `to`.
    fn may_merge(&self, from: EdgeId, to: EdgeId) -> bool {
        let (source, target) = (self.edge(from), self.edge(to));
        let (source_vertex, target_vertex) =
            (self.vertex(source.vertex), self.vertex(target.vertex));
        // Who wants it built anew is not served with what is not.
        let anew = !source_vertex.spec.ignore_cache || target_vertex.spec.ignore_cache;
        let untouched = source.result.is_none()
            && matches!(source_vertex.exec, super::Exec::Idle)
            && source.error.is_none()
            && target.error.is_none();
        anew && untouched && !self.leads_to(from, to) && !self.leads_to(to, from)
    }

    /// Whether `target` is among the inputs of `from`, directly or not.
    fn leads_to(&self, from: EdgeId, target: EdgeId) -> bool {
        let target = self.edge(target).vertex;
        let mut open = vec![self.edge(from).vertex];
        let mut seen = HashSet::new();
        while let Some(vertex) = open.pop() {
            if vertex == target {
                return true;
            }
            if !seen.insert(vertex) {
                continue;
            }
            let state = self.vertex(vertex);
            open.extend(state.spec.inputs.iter().map(|(input, _)| *input));
            for edge in state.edges.values() {
                open.push(self.edge(self.find(*edge)).vertex);
            }
        }
        false
    }

    fn merge(&mut self, from: EdgeId, to: EdgeId) {
        let source = self.edge_mut(from);
        let want = source.want;
        let vertex = source.vertex;
        let loading = source.loading.take();
        let dependents = std::mem::take(&mut source.dependents);
        let requests = std::mem::take(&mut source.requests);
        if let Some(task) = loading {
            self.abort(task);
        }
        self.merged.insert(from, to);
        for request in &requests {
            if let Some((_, edge)) = self.requests.get_mut(request) {
                *edge = to;
            }
        }
        let target = self.edge_mut(to);
        target.dependents.extend(dependents);
        target.requests.extend(requests);
        let target_vertex = target.vertex;
        let jobs: Vec<_> = self.vertex(vertex).jobs.iter().copied().collect();
        for job in jobs {
            self.join(target_vertex, job);
        }
        // The keys that only the merged edge had are the other one's too.
        for key in self.edge(from).ids.clone() {
            let valid = self.edge(from).valid.contains(&key);
            self.add_key(to, key.clone(), valid);
            self.by_key.entry(key).or_insert(to);
        }
        self.want(to, want.max(Want::Fast));
        self.enqueue(to);
        self.enqueue_dependents(to);
    }

    /// Keeps a result under all keys of the edge, with the links that lead to them.
    pub(super) fn keep(&mut self, id: EdgeId, result: &CacheResult) {
        let edge = self.edge(id);
        let ids = edge.ids.clone();
        let maps = self.vertex(edge.vertex).maps.len();
        let mut links = Vec::new();
        for map in 0..maps {
            let all = self.all_dep_keys(id, map).into_iter();
            let all = all.map(|(key, link, _)| (key, link));
            let from_kept = all.filter(|(key, _)| !self.pending_of.contains_key(key));
            links.extend(from_kept);
        }
        let noted = self.noted(id);
        for key in ids {
            self.keys.add(KeyEntry {
                id: key.clone(),
                links: links.clone(),
                result: result.clone(),
                noted: noted.clone(),
            });
            self.forget_pending(&key);
        }
    }

    /// What an edge is made of whose vertex was carried out just now.
    fn noted(&self, id: EdgeId) -> Option<Arc<Noted>> {
        let vertex = self.edge(id).vertex;
        let (_, draft) = self.draft.as_ref().filter(|(of, _)| *of == vertex)?;
        let mut note = Note {
            name: draft.name.clone(),
            digest: draft.digest.clone(),
            description: draft.description.clone(),
            inputs: Vec::new(),
            pruned: None,
        };
        let inputs = self.inputs(vertex);
        for (index, input) in inputs.iter().enumerate() {
            for key in &input.keys {
                note.add_key(index, key, false);
            }
            if let Some(key) = &input.content {
                note.add_key(index, key, true);
            }
        }
        for (index, files) in &draft.files {
            if let Some(input) = note.inputs.get_mut(*index) {
                input.files = Some(files.name());
            }
        }
        let files = draft.files.iter().map(|(_, files)| files.clone()).collect();
        Some(Arc::new(Noted { note, files }))
    }

    /// The keys of all outputs of a vertex that somebody asked for.
    pub(crate) fn keys_of(&self, vertex: VertexId) -> impl Iterator<Item = &KeyId> {
        let state = self.vertices.get(&vertex);
        let edges = state.into_iter().flat_map(|state| state.edges.values());
        edges.flat_map(|edge| &self.edge(self.find(*edge)).ids)
    }

    /// What is known of the inputs of a vertex that has an edge.
    pub(crate) fn inputs(&self, vertex: VertexId) -> Vec<InputState> {
        let state = self.vertex(vertex);
        let Some(edge) = state.edges.values().next() else {
            return Vec::new();
        };
        let deps = self.edge(*edge).deps.iter().zip(&state.content);
        deps.map(|(dep, content)| {
            let input = self.find(dep.edge);
            let anew = self.built_anew(input);
            let input = self.edge(input);
            InputState {
                vertex: input.vertex,
                keys: input.ids.clone(),
                counts: !anew && !input.valid.is_empty(),
                content: match content {
                    Content::Known(key) => Some(key.clone()),
                    _ => None,
                },
            }
        })
        .collect()
    }

    /// A key is not of this edge any more.
    pub(super) fn forget_key(&mut self, key: &KeyId, edge: EdgeId) {
        if self.by_key.get(key) == Some(&edge) {
            self.by_key.remove(key);
            self.forget_pending(key);
        }
    }

    fn forget_pending(&mut self, key: &KeyId) {
        for end in self.pending_of.remove(key).unwrap_or_default() {
            if let Some(targets) = self.pending.get_mut(&end) {
                targets.remove(key);
                if targets.is_empty() {
                    self.pending.remove(&end);
                }
            }
        }
    }
}
