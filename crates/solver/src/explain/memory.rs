//! A journal in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{FileList, Journal, Note, Noted, Pruned, seconds};
use crate::keys::KeyId;

/// Notes at most.
const MOST: usize = 4096;

/// Keys that are remembered as used lately.
const MOST_RECENT: usize = 16 << 10;

/// When keys were used, of the last few thousand that were: some hundred kilobytes. Of two
/// earlier results that are equally near, a user thinks of the one that was there last.
#[derive(Debug, Default)]
pub struct Recent {
    /// By a hash of the key: what two keys share is no more than a time.
    times: Mutex<(u64, HashMap<u64, u64>)>,
}

impl Recent {
    /// The key is used now.
    pub fn note(&self, key: &KeyId) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, times) = &mut *times;
        *now += 1;
        times.insert(hash(key), *now);
        if times.len() >= MOST_RECENT {
            // Half of them at once: it is rarely done.
            let since = now.saturating_sub(MOST_RECENT as u64 / 2);
            times.retain(|_, used| *used > since);
        }
    }

    /// When it was, as a number that only grows; 0 for not lately.
    pub fn get(&self, key: &KeyId) -> u64 {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.1.get(&hash(key)).copied().unwrap_or_default()
    }
}

pub(super) fn hash<T: Hash>(key: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Keeps notes in memory, the newest few thousand.
#[derive(Default)]
pub struct MemoryJournal {
    recent: Recent,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    notes: BTreeMap<u64, (KeyId, Note)>,
    by_key: HashMap<KeyId, u64>,
    files: HashMap<String, FileList>,
}

impl MemoryJournal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what is behind a key.
    pub fn add(&self, key: &KeyId, noted: &Noted) {
        self.recent.note(key);
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        if let Some(old) = inner.by_key.insert(key.clone(), number) {
            inner.notes.remove(&old);
        }
        inner
            .notes
            .insert(number, (key.clone(), noted.note.clone()));
        let files = noted.files.iter();
        inner
            .files
            .extend(files.map(|list| (list.name(), list.clone())));
        if inner.notes.len() > MOST
            && let Some((_, (key, _))) = inner.notes.pop_first()
        {
            inner.by_key.remove(&key);
            let inner = &mut *inner;
            let inputs = inner.notes.values().flat_map(|(_, note)| &note.inputs);
            let used: HashSet<_> = inputs.filter_map(|input| input.files.as_deref()).collect();
            inner.files.retain(|name, _| used.contains(name.as_str()));
        }
    }

    /// The result behind a key was pruned.
    pub fn pruned(&self, key: &KeyId, by: &str) {
        let inner = &mut *self.lock();
        let note = inner.by_key.get(key).and_then(|n| inner.notes.get_mut(n));
        if let Some((_, note)) = note {
            note.pruned = Some(Pruned {
                at: seconds(SystemTime::now()),
                by: by.to_owned(),
            });
        }
    }
}

impl Journal for MemoryJournal {
    fn at(&self, place: &str, limit: usize) -> Vec<(KeyId, Note)> {
        let inner = self.lock();
        let newest = inner.notes.values().rev();
        let here = newest.filter(|(_, note)| note.places().iter().any(|at| at == place));
        let mut here: Vec<_> = here.collect();
        here.sort_by_key(|(key, _)| u64::MAX - self.recent.get(key));
        here.into_iter().take(limit).cloned().collect()
    }

    fn of(&self, key: &KeyId) -> Option<Note> {
        let inner = self.lock();
        let number = inner.by_key.get(key)?;
        inner.notes.get(number).map(|(_, note)| note.clone())
    }

    fn files(&self, name: &str) -> Option<FileList> {
        self.lock().files.get(name).cloned()
    }

    fn used(&self, key: &KeyId) {
        self.recent.note(key);
    }

    fn last_used(&self, key: &KeyId) -> u64 {
        self.recent.get(key)
    }
}
