//! Cache keys and where they are kept.
//!
//! A key is an identity: that of an operation over inputs with certain keys. Links lead from
//! the keys of inputs to the key of the operation, results hang on keys. This is the shape of
//! BuildKit's `CacheKeyStorage`, so that a cache written by one can be read by the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use oci_spec::image::Digest;
use sha2::Digest as _;

use crate::explain::{Journal, MemoryJournal, Noted};

/// Names a cache key. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Takes the name of a key that is known from elsewhere.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// A new name.
    pub(crate) fn fresh() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string().into())
    }

    /// The key of something without inputs: it follows from the digest and the output alone.
    /// An output of -1 stands for content as such, whoever made it.
    pub fn root(digest: &Digest, output: i64) -> Self {
        let text = format!("{digest}@{output}");
        let hash = sha2::Sha256::digest(text.as_bytes());
        Self(format!("sha256:{}", hex::encode(hash)).into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the key of an input leads to the key of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Which input of the operation.
    pub input: usize,
    /// Which output of the operation.
    pub output: usize,
    /// What the operation does, its inputs left out ([`crate::CacheMap::digest`]).
    pub digest: Digest,
    /// Which part of the input the operation looks at; `None` for all of it or for content.
    pub selector: Option<Digest>,
}

impl Link {
    /// One text for the whole link, unique and without spaces.
    pub fn to_text(&self) -> String {
        let selector = self.selector.as_ref().map(Digest::as_ref).unwrap_or("");
        format!("{}/{}/{}/{selector}", self.input, self.output, self.digest)
    }
}

/// A result that hangs on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheResult {
    /// Names it in the [`crate::ResultStore`].
    pub id: String,
    /// When it was made.
    pub created_at: SystemTime,
}

/// What is to be kept of one operation that was carried out.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    /// The key.
    pub id: KeyId,
    /// Where it is reached from.
    pub links: Vec<(KeyId, Link)>,
    /// What was made.
    pub result: CacheResult,
    /// What it was made of, to be kept in the same step; only when there is a
    /// [journal](KeyStore::journal).
    pub noted: Option<Arc<Noted>>,
}

/// Keeps keys. The calls are made from the solver's one task: they must be fast and must not
/// wait for a disk.
pub trait KeyStore: Send + Sync {
    /// The keys that `link` leads to from `from`.
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId>;

    /// The results that hang on `id`, in any order.
    fn results(&self, id: &KeyId) -> Vec<CacheResult>;

    /// Keeps an entry; the same one again changes nothing. Written in the background: what is
    /// lost with the machine is lost as a whole, what a key says is never wrong.
    fn add(&self, entry: KeyEntry);

    /// Forgets a result that is no more, and the keys that nothing hangs on any more.
    fn release(&self, result: &str);

    /// Where is kept what results were made of. Without one nothing is explained, and nothing
    /// is described.
    fn journal(&self) -> Option<Arc<dyn Journal>> {
        None
    }
}

/// Keeps keys in memory.
#[derive(Default)]
pub struct MemoryKeyStore {
    inner: Mutex<Inner>,
    journal: Option<Arc<MemoryJournal>>,
}

#[derive(Default)]
struct Inner {
    links: HashMap<(KeyId, String), BTreeSet<KeyId>>,
    backlinks: HashMap<KeyId, BTreeSet<(KeyId, String)>>,
    results: HashMap<KeyId, BTreeMap<String, SystemTime>>,
    owners: HashMap<String, BTreeSet<KeyId>>,
    /// How many links lead away from a key.
    outgoing: HashMap<KeyId, usize>,
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

    /// Takes a link in the form that [`Link::to_text`] gives; for loading what was kept.
    pub fn load_link(&self, from: KeyId, link: String, to: KeyId) {
        self.lock().link(from, link, to);
    }

    /// Takes a result; for loading what was kept.
    pub fn load_result(&self, id: KeyId, result: CacheResult) {
        self.lock().result(id, result);
    }

    /// Whether nothing hangs on `id` and nothing leads from it: it may be forgotten.
    pub fn is_bare(&self, id: &KeyId) -> bool {
        let inner = self.lock();
        !inner.results.contains_key(id) && !inner.outgoing.contains_key(id)
    }

    /// Forgets a result, with the keys that then have neither results nor links that lead
    /// away. Returns what was forgotten: the keys that the result hung on, and the links.
    pub fn forget(&self, result: &str) -> Forgotten {
        self.lock().forget(result)
    }

    /// The names of all results.
    pub fn all_results(&self) -> Vec<String> {
        self.lock().owners.keys().cloned().collect()
    }
}

/// What [`MemoryKeyStore::forget`] took out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The keys that the result hung on.
    pub keys: Vec<KeyId>,
    /// The links: from, how, to.
    pub links: Vec<(KeyId, String, KeyId)>,
}

impl Inner {
    fn link(&mut self, from: KeyId, link: String, to: KeyId) {
        let end = (from.clone(), link);
        if self
            .links
            .entry(end.clone())
            .or_default()
            .insert(to.clone())
        {
            *self.outgoing.entry(from).or_default() += 1;
            self.backlinks.entry(to).or_default().insert(end);
        }
    }

    fn result(&mut self, id: KeyId, result: CacheResult) {
        self.owners
            .entry(result.id.clone())
            .or_default()
            .insert(id.clone());
        self.results
            .entry(id)
            .or_default()
            .insert(result.id, result.created_at);
    }

    fn forget(&mut self, result: &str) -> Forgotten {
        let mut forgotten = Forgotten::default();
        let owners = self.owners.remove(result).unwrap_or_default();
        for id in &owners {
            if let Some(results) = self.results.get_mut(id) {
                results.remove(result);
                if results.is_empty() {
                    self.results.remove(id);
                }
            }
        }
        let mut open: Vec<KeyId> = owners.iter().cloned().collect();
        forgotten.keys = open.clone();
        while let Some(id) = open.pop() {
            if self.results.contains_key(&id) || self.outgoing.contains_key(&id) {
                continue;
            }
            for (from, link) in self.backlinks.remove(&id).unwrap_or_default() {
                let end = (from.clone(), link.clone());
                if let Some(targets) = self.links.get_mut(&end) {
                    targets.remove(&id);
                    if targets.is_empty() {
                        self.links.remove(&end);
                    }
                }
                if let Some(count) = self.outgoing.get_mut(&from) {
                    *count -= 1;
                    if *count == 0 {
                        self.outgoing.remove(&from);
                        open.push(from.clone());
                    }
                }
                forgotten.links.push((from, link, id.clone()));
            }
        }
        forgotten
    }
}

impl KeyStore for MemoryKeyStore {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        let inner = self.lock();
        let found = inner.links.get(&(from.clone(), link.to_text()));
        found.into_iter().flatten().cloned().collect()
    }

    fn results(&self, id: &KeyId) -> Vec<CacheResult> {
        let inner = self.lock();
        let found = inner.results.get(id).into_iter().flatten();
        found
            .map(|(id, created_at)| CacheResult {
                id: id.clone(),
                created_at: *created_at,
            })
            .collect()
    }

    fn add(&self, entry: KeyEntry) {
        if let (Some(journal), Some(noted)) = (&self.journal, &entry.noted) {
            journal.add(&entry.id, noted);
        }
        let mut inner = self.lock();
        for (from, link) in entry.links {
            inner.link(from, link.to_text(), entry.id.clone());
        }
        inner.result(entry.id, entry.result);
    }

    fn release(&self, result: &str) {
        self.forget(result);
    }

    fn journal(&self) -> Option<Arc<dyn Journal>> {
        let journal = self.journal.clone()?;
        Some(journal)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn digest(letter: char) -> Digest {
        format!("sha256:{}", letter.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    #[test]
    fn a_result_that_goes_takes_the_keys_that_only_led_to_it() {
        let store = MemoryKeyStore::default();
        let (a, b) = (KeyId::root(&digest('a'), 0), KeyId::new("b"));
        let link = Link {
            input: 0,
            output: 0,
            digest: digest('b'),
            selector: None,
        };
        let result = |id: &str| CacheResult {
            id: id.into(),
            created_at: SystemTime::UNIX_EPOCH,
        };
        store.add(KeyEntry {
            id: a.clone(),
            links: vec![],
            result: result("one"),
            noted: None,
        });
        store.add(KeyEntry {
            id: b.clone(),
            links: vec![(a.clone(), link.clone())],
            result: result("two"),
            noted: None,
        });
        assert_eq!(store.links(&a, &link), std::slice::from_ref(&b));
        store.release("one");
        assert_eq!(
            store.links(&a, &link),
            std::slice::from_ref(&b),
            "still leads to two"
        );
        store.release("two");
        assert_eq!(store.links(&a, &link), []);
        assert!(store.is_bare(&a) && store.is_bare(&b));
        assert_eq!(store.lock().backlinks.len(), 0);
    }
}
