//! Keys in memory.

use std::collections::HashSet;
use std::mem::take;
use std::sync::{Arc, Mutex, PoisonError};

use crate::caches::CacheKeys;
use crate::core::{ByKey, ByName, One};
use crate::explain::{Journal, MemoryJournal};
use crate::keys::{CacheResult, KeyEntry, KeyId, KeyStore, Link};

/// So many links of a key are followed when another one went, to see whether they lead to a
/// result.
const FEW: usize = 4;
/// So many links of a key are looked through one by one.
const LISTED: usize = 8;

/// Keeps keys in memory: about 750 bytes for one with one link and one result.
#[derive(Default)]
pub struct MemoryKeyStore {
    inner: Mutex<Inner>,
    journal: Option<Arc<MemoryJournal>>,
}

#[derive(Clone, Default)]
struct Inner {
    nodes: ByKey<KeyId, Box<Node>>,
    /// The keys that each result hangs on.
    owners: ByName<Arc<str>, One<KeyId>>,
}

/// What is known of a key.
#[derive(Clone, Default)]
struct Node {
    results: One<CacheResult>,
    /// What leads to it.
    back: One<(KeyId, Link)>,
    /// What it leads to.
    out: Links,
}

/// Where links lead. Most keys have one, some have as many as a graph has vertices.
#[derive(Clone)]
enum Links {
    Few(One<(Link, One<KeyId>)>),
    Many(Box<ByKey<Link, One<KeyId>>>),
}

impl Default for Links {
    fn default() -> Self {
        Self::Few(One::new())
    }
}

impl Links {
    fn len(&self) -> usize {
        match self {
            Self::Few(links) => links.len(),
            Self::Many(links) => links.len(),
        }
    }

    fn get(&self, link: &Link) -> &[KeyId] {
        let found = match self {
            Self::Few(links) => links.iter().find(|(known, _)| known == link),
            Self::Many(links) => return links.get(link).map_or(&[], |targets| targets),
        };
        found.map_or(&[], |(_, targets)| targets)
    }

    fn get_mut(&mut self, link: &Link) -> Option<&mut One<KeyId>> {
        match self {
            Self::Few(links) => {
                let found = links.iter_mut().find(|(known, _)| known == link);
                found.map(|(_, targets)| targets)
            }
            Self::Many(links) => links.get_mut(link),
        }
    }

    /// Says whether it is new.
    fn add(&mut self, link: &Link, to: &KeyId) -> bool {
        if let Some(targets) = self.get_mut(link) {
            let new = !targets.contains(to);
            if new {
                targets.push(to.clone());
            }
            return new;
        }
        if let Self::Few(links) = self
            && links.len() == LISTED
        {
            *self = Self::Many(Box::new(take(links).into_iter().collect()));
        }
        let targets = One::from_iter([to.clone()]);
        match self {
            Self::Few(links) => links.push((link.clone(), targets)),
            Self::Many(links) => drop(links.insert(link.clone(), targets)),
        }
        true
    }

    /// Says whether the link leads nowhere any more.
    fn remove(&mut self, link: &Link, to: &KeyId) -> bool {
        let Some(targets) = self.get_mut(link) else {
            return false;
        };
        targets.retain(|target| *target != *to);
        if !targets.is_empty() {
            return false;
        }
        match self {
            Self::Few(links) => links.retain(|(known, _)| *known != *link),
            Self::Many(links) => drop(links.remove(link)),
        }
        true
    }

    fn for_each(&self, mut each: impl FnMut(&Link, &KeyId)) {
        let mut all = |link: &Link, targets: &[KeyId]| {
            for target in targets {
                each(link, target);
            }
        };
        match self {
            Self::Few(links) => links.iter().for_each(|(link, to)| all(link, to)),
            Self::Many(links) => links.iter().for_each(|(link, to)| all(link, to)),
        }
    }
}

impl Node {
    fn is_bare(&self) -> bool {
        self.results.is_empty() && self.out.len() == 0
    }
}

impl MemoryKeyStore {
    /// One that also keeps what results were made of, to explain what is not found.
    pub fn with_journal() -> Self {
        Self {
            journal: Some(Arc::default()),
            ..Self::default()
        }
    }

    /// Forgets a result that something took away: `by` names it in explanations.
    pub fn prune(&self, result: &str, by: &str) {
        let forgotten = self.forget(result);
        for key in &forgotten.keys {
            if let Some(journal) = &self.journal {
                journal.pruned(key, by);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another store with the same in it.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        Self {
            inner: Mutex::new(self.lock().clone()),
            journal: None,
        }
    }

    /// Another store with the same under other names, but for what follows from digests.
    #[cfg(test)]
    pub(crate) fn renamed(&self, prefix: &str) -> Self {
        let name = |id: &KeyId| match id.as_str().starts_with("sha256:") {
            true => id.clone(),
            false => KeyId::new(&format!("{prefix}{}", id.as_str())),
        };
        let mut inner = Inner::default();
        let old = self.lock();
        for (id, node) in &old.nodes {
            node.out.for_each(|link, to| {
                inner.link(name(id), link, name(to));
            });
            for result in &node.results {
                inner.result(name(id), result.clone());
            }
        }
        Self {
            inner: Mutex::new(inner),
            journal: None,
        }
    }

    /// Takes a link; for loading what was kept.
    pub fn load_link(&self, from: KeyId, link: Link, to: KeyId) {
        self.lock().link(from, &link, to);
    }

    /// Takes a result; for loading what was kept.
    pub fn load_result(&self, id: KeyId, result: CacheResult) {
        self.lock().result(id, result);
    }

    /// Whether nothing hangs on `id` and nothing leads from it: it may be forgotten.
    pub fn is_bare(&self, id: &KeyId) -> bool {
        self.lock().nodes.get(id).is_none_or(|node| node.is_bare())
    }

    /// Forgets a result, with the keys that then lead to no result any more. Returns what was
    /// forgotten: the keys that the result hung on, and the links.
    pub fn forget(&self, result: &str) -> Forgotten {
        self.lock().forget(result)
    }

    /// All keys and links, in order. Who solves waits meanwhile: for people who look into it.
    pub fn graph(&self) -> KeyGraph {
        let mut graph = KeyGraph::default();
        for (from, node) in &self.lock().nodes {
            graph.keys.push(from.clone());
            node.out.for_each(|link, to| {
                graph.links.push((from.clone(), link.clone(), to.clone()));
            });
        }
        graph.sort();
        graph
    }

    /// The names of all results.
    pub fn all_results(&self) -> Vec<String> {
        self.lock().owners.keys().map(|id| id.to_string()).collect()
    }
}

/// Keys and what leads from one to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyGraph {
    /// The keys.
    pub keys: Vec<KeyId>,
    /// The links: from, how, to. Both ends are among the keys.
    pub links: Vec<(KeyId, Link, KeyId)>,
}

impl KeyGraph {
    /// Puts everything into the order of the names.
    pub fn sort(&mut self) {
        self.keys.sort_unstable();
        self.links
            .sort_unstable_by(|a, b| (&a.0, a.1.as_str(), &a.2).cmp(&(&b.0, b.1.as_str(), &b.2)));
    }
}

/// What [`MemoryKeyStore::forget`] took out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The keys that the result hung on.
    pub keys: Vec<KeyId>,
    /// The links: from, how, to.
    pub links: Vec<(KeyId, Link, KeyId)>,
}

impl Inner {
    fn connect(&mut self, id: &KeyId, links: Vec<(KeyId, Link)>) {
        for (from, link) in links {
            self.link(from, &link, id.clone());
        }
    }

    fn link(&mut self, from: KeyId, link: &Link, to: KeyId) {
        let node = self.nodes.entry(from.clone()).or_default();
        if node.out.add(link, &to) {
            let back = &mut self.nodes.entry(to).or_default().back;
            back.push((from, link.clone()));
        }
    }

    fn result(&mut self, id: KeyId, result: CacheResult) {
        let node = self.nodes.entry(id.clone()).or_default();
        match node.results.iter_mut().find(|known| known.id == result.id) {
            Some(known) => *known = result,
            None => {
                let owners = self.owners.entry(result.id.clone());
                owners.or_default().push(id);
                node.results.push(result);
            }
        }
    }

    fn forget(&mut self, result: &str) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for id in self.owners.remove(result).unwrap_or_default() {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.results.retain(|known| &*known.id != result);
            }
            forgotten.keys.push(id);
        }
        let mut open = forgotten.keys.clone();
        while let Some(id) = open.pop() {
            for key in self.without_results(&id) {
                let Some(node) = self.nodes.get_mut(&key) else {
                    continue;
                };
                for end in take(&mut node.back) {
                    self.unlink(end, &key, &mut open, &mut forgotten);
                }
                if self.nodes.get(&key).is_some_and(|node| node.is_bare()) {
                    self.nodes.remove(&key);
                }
            }
        }
        forgotten
    }

    /// The key and those it leads to, if no result is among them: keys may lead in circles, as
    /// when an operation changes nothing of its input.
    fn without_results(&self, id: &KeyId) -> Vec<KeyId> {
        let mut all = vec![id.clone()];
        let mut seen: HashSet<KeyId> = all.iter().cloned().collect();
        let mut next = 0;
        while let Some(key) = all.get(next).cloned() {
            next += 1;
            let Some(node) = self.nodes.get(&key) else {
                continue;
            };
            if !node.results.is_empty() {
                return Vec::new();
            }
            node.out.for_each(|_, target| {
                if seen.insert(target.clone()) {
                    all.push(target.clone());
                }
            });
        }
        all
    }

    fn unlink(
        &mut self,
        (from, link): (KeyId, Link),
        to: &KeyId,
        open: &mut Vec<KeyId>,
        forgotten: &mut Forgotten,
    ) {
        if let Some(node) = self.nodes.get_mut(&from)
            && node.out.remove(&link, to)
            // With few links left they may all lead in circles.
            && node.results.is_empty()
            && node.out.len() <= FEW
        {
            open.push(from.clone());
        }
        forgotten.links.push((from, link, to.clone()));
    }
}

impl KeyStore for MemoryKeyStore {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        let inner = self.lock();
        let node = inner.nodes.get(from);
        node.map(|node| node.out.get(link).to_vec())
            .unwrap_or_default()
    }

    fn results(&self, id: &KeyId) -> Vec<CacheResult> {
        let inner = self.lock();
        let node = inner.nodes.get(id);
        node.map(|node| node.results.to_vec()).unwrap_or_default()
    }

    fn add(&self, entry: KeyEntry) {
        if let (Some(journal), Some(noted)) = (&self.journal, &entry.noted) {
            journal.add(&entry.id, noted);
        }
        let mut inner = self.lock();
        inner.connect(&entry.id, entry.links);
        inner.result(entry.id, entry.result);
    }

    fn connect(&self, id: &KeyId, links: Vec<(KeyId, Link)>) {
        self.lock().connect(id, links);
    }

    fn release(&self, result: &str) {
        self.forget(result);
    }

    fn journal(&self) -> Option<Arc<dyn Journal>> {
        let journal = self.journal.clone()?;
        Some(journal)
    }
}

impl CacheKeys for MemoryKeyStore {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        KeyStore::links(self, from, link)
    }

    fn results(&self, id: &KeyId) -> Vec<CacheResult> {
        KeyStore::results(self, id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use super::*;
    use crate::Digest;

    fn digest(letter: char) -> Digest {
        format!("sha256:{}", letter.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    fn link() -> Link {
        Link::new(0, 0, &digest('b'), None)
    }

    fn result(id: &str) -> CacheResult {
        CacheResult {
            id: id.into(),
            created_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn entry(id: &KeyId, from: &[&KeyId], name: &str) -> KeyEntry {
        KeyEntry {
            id: id.clone(),
            links: from.iter().map(|from| ((*from).clone(), link())).collect(),
            result: result(name),
            noted: None,
        }
    }

    #[test]
    fn the_graph_has_everything() {
        let store = MemoryKeyStore::default();
        let (a, b, c) = (KeyId::new("a"), KeyId::new("b"), KeyId::new("c"));
        store.add(entry(&b, &[&c, &a], "one"));
        store.add(entry(&KeyId::new("alone"), &[], "two"));
        let graph = store.graph();
        assert_eq!(
            graph.keys,
            [a.clone(), KeyId::new("alone"), b.clone(), c.clone()]
        );
        assert_eq!(graph.links, [(a, link(), b.clone()), (c, link(), b)]);
    }

    fn is_empty(store: &MemoryKeyStore) -> bool {
        let inner = store.lock();
        inner.nodes.is_empty() && inner.owners.is_empty()
    }

    #[test]
    fn a_result_that_goes_takes_the_keys_that_only_led_to_it() {
        let store = MemoryKeyStore::default();
        let (a, b) = (KeyId::root(&digest('a'), 0), KeyId::new("b"));
        store.add(entry(&a, &[], "one"));
        store.add(entry(&b, &[&a], "two"));
        let found = || KeyStore::links(&store, &a, &link());
        assert_eq!(found(), std::slice::from_ref(&b));
        store.release("one");
        assert_eq!(found(), std::slice::from_ref(&b), "still leads to two");
        store.release("two");
        assert_eq!(found(), []);
        assert!(store.is_bare(&a) && store.is_bare(&b));
        assert!(is_empty(&store));
    }

    #[test]
    fn a_key_with_many_links_finds_each_of_them() {
        let store = MemoryKeyStore::default();
        let (from, count) = (KeyId::new("from"), 3 * LISTED);
        let links = |number: usize| Link::new(number, 0, &digest('b'), None);
        let key = |number: usize| KeyId::new(&format!("to {number}"));
        for number in 0..count {
            let mut entry = entry(&key(number), &[], &format!("{number}"));
            entry.links = vec![(from.clone(), links(number)); 2];
            store.add(entry);
        }
        for number in 0..count {
            let found = KeyStore::links(&store, &from, &links(number));
            assert_eq!(found, [key(number)]);
            let gone = store.forget(&number.to_string());
            assert_eq!(gone.links, [(from.clone(), links(number), key(number))]);
            assert_eq!(KeyStore::links(&store, &from, &links(number)), []);
        }
        assert!(is_empty(&store));
    }

    #[test]
    fn keys_that_lead_in_circles_go_too() {
        let store = MemoryKeyStore::default();
        let key = |name: &str| KeyId::new(name);
        let (a, b, c) = (key("a"), key("b"), key("c"));
        store.add(entry(&a, &[&a, &c], "one"));
        store.connect(&b, vec![(a.clone(), link())]);
        store.connect(&c, vec![(b.clone(), link())]);
        store.add(entry(&c, &[&b], "two"));
        store.release("one");
        assert_eq!(KeyStore::links(&store, &a, &link()).len(), 2, "to two");
        store.release("two");
        assert!(is_empty(&store));
    }
}
