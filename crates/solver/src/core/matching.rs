//! From the keys of inputs to the keys of an edge.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Content, Core, EdgeId, Key, KeyState, Want, push};
use crate::caches::CacheKeys;
use crate::keys::{KeyId, Link};

/// Whose keys from content are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    None,
    /// Of the inputs that have no other key that leads anywhere.
    Needed,
    All,
}

/// From a key of an input to keys of the edge.
pub(super) struct Step {
    pub(super) from: KeyId,
    pub(super) link: Link,
    /// Of which input it is.
    place: usize,
    /// Whether what is found counts.
    valid: bool,
    /// Where it leads here, when that was looked up.
    targets: Option<Vec<KeyId>>,
}

/// A key that was found.
struct Found {
    valid: bool,
    foreign: bool,
}

impl<O: Clone, E: Clone> Core<O, E> {
    /// Looks the keys up that the inputs have at `level`, and takes what all of them lead to.
    pub(super) fn match_keys(&mut self, id: EdgeId, level: Want, contents: Contents) {
        let weight = self.weight(id, level, contents);
        if self.edge(id).weight == weight {
            return;
        }
        self.edge_mut(id).weight = weight;
        let caches = match level {
            Want::Local => Vec::new(),
            _ => self.open_caches(id),
        };
        let vertex = self.edge(id).vertex;
        let mut all = Vec::new();
        for map in 0..self.vertex(vertex).maps.len() {
            if self.edge(id).own.len() <= map {
                self.edge_mut(id).own.push(None);
            }
            let steps = self.match_map(id, map, level, contents, &caches);
            all.push((map, steps));
        }
        self.find_records(id, &caches);
        // Others are not led to what is there: they find it, or have it made, by what they are.
        let found = !self.edge(id).records.is_empty();
        for (map, steps) in all {
            self.make_own(id, map, steps, found);
        }
    }

    /// A number that grows with all that keys are looked up from.
    fn weight(&self, id: EdgeId, level: Want, contents: Contents) -> u64 {
        let edge = self.edge(id);
        let vertex = self.vertex(edge.vertex);
        let mut weight = 1 + vertex.maps.len();
        if level > Want::Local {
            weight += self.open_count(edge.vertex);
        }
        for place in 0..edge.deps.len() {
            let keys = self.dep_keys(id, place, level);
            weight += keys.len() + keys.iter().filter(|key| key.valid).count();
            weight += usize::from(self.dep_content(id, place, contents).is_some());
        }
        weight as u64
    }

    /// The keys that an input has at `level`.
    fn dep_keys(&self, id: EdgeId, place: usize, level: Want) -> &[Key] {
        let dep = self.edge(self.edge(id).deps[place].edge);
        let end = match level {
            Want::Nothing | Want::Local => dep.ends[0] as usize,
            Want::Fast => dep.ends[1] as usize,
            Want::Slow | Want::Complete => dep.ids.len(),
        };
        &dep.ids[..end.min(dep.ids.len())]
    }

    fn dep_content(&self, id: EdgeId, place: usize, contents: Contents) -> Option<&KeyId> {
        let edge = self.edge(id);
        let looked_at = match contents {
            Contents::None => false,
            Contents::Needed => edge.deps[place].needed,
            Contents::All => true,
        };
        match self.vertex(edge.vertex).content(place) {
            Content::Known(key) if looked_at => Some(key),
            _ => None,
        }
    }

    pub(super) fn built_anew(&self, id: EdgeId) -> bool {
        self.vertex(self.edge(id).vertex).spec.ignore_cache
    }

    /// The link from a key of an input; `content`: from the key of its content.
    fn link(&self, id: EdgeId, map: usize, place: usize, content: bool) -> Link {
        let edge = self.edge(id);
        let map = &self.vertex(edge.vertex).maps[map];
        let selector = match content {
            true => None,
            false => map.selector(place),
        };
        Link::new(place, edge.index, &map.digest, selector)
    }

    /// Adds the keys of an input at `level`, each with its link and whether it counts.
    pub(super) fn dep_links(
        &self,
        id: EdgeId,
        map: usize,
        place: usize,
        level: Want,
        contents: Contents,
        steps: &mut Vec<Step>,
    ) {
        let anew = self.built_anew(self.edge(id).deps[place].edge);
        let mut add = |from: &KeyId, link: Link, valid: bool| {
            steps.push(Step {
                from: from.clone(),
                link,
                place,
                valid,
                targets: None,
            });
        };
        let keys = self.dep_keys(id, place, level);
        if !keys.is_empty() {
            let link = self.link(id, map, place, false);
            for key in keys {
                add(&key.id, link.clone(), key.valid && !anew);
            }
        }
        if let Some(key) = self.dep_content(id, place, contents) {
            add(key, self.link(id, map, place, true), true);
        }
    }

    fn match_map(
        &mut self,
        id: EdgeId,
        map: usize,
        level: Want,
        contents: Contents,
        caches: &[Arc<dyn CacheKeys>],
    ) -> Vec<Step> {
        let edge = self.edge(id);
        let count = edge.deps.len();
        if count == 0 {
            let digest = &self.vertex(edge.vertex).maps[map].digest;
            let output = i64::try_from(edge.index).unwrap_or(i64::MAX);
            let key = KeyId::root(digest, output);
            self.keys.is_root_of(&key, digest, output);
            let found = Found {
                valid: true,
                foreign: false,
            };
            self.edge_mut(id).own[map] = Some(key.clone());
            self.add_key(id, key, &found);
            return Vec::new();
        }
        let mut found = BTreeMap::new();
        let mut steps = Vec::with_capacity(count);
        for place in 0..count {
            let from = steps.len();
            self.dep_links(id, map, place, level, contents, &mut steps);
            // What leads nowhere does so whatever the other inputs have.
            if place > 0 && found.is_empty() {
                continue;
            }
            let mut targets = BTreeMap::new();
            for step in &mut steps[from..] {
                self.targets(step, caches, &mut targets);
            }
            if place == 0 {
                found = targets;
                continue;
            }
            found.retain(|key, found: &mut Found| {
                let Some(target) = targets.get(key) else {
                    return false;
                };
                found.valid &= target.valid;
                found.foreign |= target.foreign;
                true
            });
        }
        let here = found.iter().find(|(_, found)| !found.foreign);
        let here = here.map(|(key, _)| key.clone());
        for (key, found) in found {
            self.add_key(id, key, &found);
        }
        if !self.built_anew(id) {
            let own = &mut self.edge_mut(id).own[map];
            *own = own.take().or(here);
        }
        steps
    }

    /// Makes all keys of the inputs lead to one of the edge's keys, a new one if none was found
    /// here, so that other edges find it that share some of them. Not so when a result was
    /// `found`. What is built anew has one that follows from all of them: were they made to lead to
    /// one that has an older result, others would find that earlier than without it.
    fn make_own(&mut self, id: EdgeId, map: usize, steps: Vec<Step>, found: bool) {
        if steps.is_empty() {
            return;
        }
        let own = self.edge(id).own[map].clone();
        let own = own.filter(|_| !self.built_anew(id)).unwrap_or_else(|| {
            let own = KeyId::derived(steps.iter().map(|step| (&step.from, &step.link)));
            let mut counts = vec![false; self.edge(id).deps.len()];
            for step in steps.iter().filter(|step| step.valid) {
                counts[step.place] = true;
            }
            let found = Found {
                valid: counts.into_iter().all(|counts| counts),
                foreign: false,
            };
            self.add_key(id, own.clone(), &found);
            own
        });
        self.edge_mut(id).own[map] = Some(own.clone());
        for step in steps.into_iter().filter(|_| !found) {
            let leads = match step.targets {
                Some(targets) => targets.contains(&own),
                None => self.keys.links(&step.from, &step.link).contains(&own),
            };
            if !leads {
                self.add_pending(step.from, step.link, &own);
            }
        }
    }

    /// Adds the keys that are led to.
    fn targets(
        &self,
        step: &mut Step,
        caches: &[Arc<dyn CacheKeys>],
        targets: &mut BTreeMap<KeyId, Found>,
    ) {
        let mut add = |key: KeyId, foreign: bool| {
            let found = targets.entry(key).or_insert(Found {
                valid: false,
                foreign: true,
            });
            found.valid |= step.valid;
            found.foreign &= foreign;
        };
        let here = self.keys.links(&step.from, &step.link);
        for key in &here {
            add(key.clone(), false);
        }
        for cache in caches {
            for key in cache.links(&step.from, &step.link) {
                add(key, true);
            }
        }
        let end = (step.from.clone(), step.link.clone());
        for key in self.pending.get(&end).into_iter().flatten() {
            add(key.clone(), false);
        }
        step.targets = Some(here);
    }

    /// Whether a key of an input, or that of its content, leads to something that is kept.
    pub(super) fn leads_anywhere(&self, id: EdgeId, place: usize, content: bool) -> bool {
        let edge = self.edge(id);
        let caches = self.open_caches(id);
        let maps = 0..self.vertex(edge.vertex).maps.len();
        let leads = |key: &KeyId, link: &Link| {
            !self.keys.links(key, link).is_empty()
                || caches
                    .iter()
                    .any(|cache| !cache.links(key, link).is_empty())
        };
        if content {
            let key = self.dep_content(id, place, Contents::All);
            let key = key.expect("it is asked for when it is known");
            return maps
                .into_iter()
                .any(|map| leads(key, &self.link(id, map, place, true)));
        }
        if self.built_anew(edge.deps[place].edge) {
            return false;
        }
        let keys = self.dep_keys(id, place, Want::Slow);
        maps.into_iter().any(|map| {
            let link = self.link(id, map, place, false);
            let mut valid = keys.iter().filter(|key| key.valid);
            valid.any(|key| leads(&key.id, &link))
        })
    }

    fn add_pending(&mut self, from: KeyId, link: Link, to: &KeyId) {
        let targets = self
            .pending
            .entry((from.clone(), link.clone()))
            .or_default();
        if !targets.contains(to) {
            targets.push(to.clone());
            let known = self.known.entry(to.clone()).or_default();
            push(&mut known.links, (from, link));
        }
    }

    fn add_key(&mut self, id: EdgeId, key: KeyId, found: &Found) {
        let edge = self.edge_mut(id);
        let known = edge.ids.iter_mut().find(|known| known.id == key);
        let new = known.is_none();
        match known {
            Some(known) => known.valid |= found.valid,
            None => {
                let valid = found.valid;
                let id = key.clone();
                edge.ids.push(Key { id, valid });
            }
        }
        let nowhere = KeyState {
            foreign: true,
            ..KeyState::default()
        };
        let state = self.known.entry(key).or_insert(nowhere);
        state.foreign &= found.foreign;
        state.holders += u32::from(new);
    }
}
