//! A journal in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{FileList, Journal, Note, Noted, Pruned, seconds};
use crate::keys::KeyId;

/// Notes at most.
const MOST: usize = 4096;

/// Keeps notes in memory, the newest few thousand.
#[derive(Default)]
pub struct MemoryJournal {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    notes: BTreeMap<u64, (KeyId, Note)>,
    by_key: HashMap<KeyId, u64>,
    files: HashMap<KeyId, FileList>,
}

impl MemoryJournal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what is behind a key.
    pub fn add(&self, key: &KeyId, noted: &Noted) {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        if let Some(old) = inner.by_key.insert(key.clone(), number) {
            inner.notes.remove(&old);
        }
        inner
            .notes
            .insert(number, (key.clone(), noted.note.clone()));
        inner.files.extend(noted.files.iter().cloned());
        if inner.notes.len() > MOST
            && let Some((_, (key, _))) = inner.notes.pop_first()
        {
            inner.by_key.remove(&key);
            let inner = &mut *inner;
            let inputs = inner.notes.values().flat_map(|(_, note)| &note.inputs);
            let used: HashSet<_> = inputs
                .filter_map(|input| input.content.as_deref())
                .collect();
            inner.files.retain(|key, _| used.contains(key.as_str()));
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
        here.take(limit).cloned().collect()
    }

    fn of(&self, key: &KeyId) -> Option<Note> {
        let inner = self.lock();
        let number = inner.by_key.get(key)?;
        inner.notes.get(number).map(|(_, note)| note.clone())
    }

    fn files(&self, content: &KeyId) -> Option<FileList> {
        self.lock().files.get(content).cloned()
    }
}
