//! What results were made of, in the metadata store: to explain later why something is not
//! found in the cache.
//!
//! A note is written with the keys that it belongs to, in the same transaction, and read only
//! when somebody asks for an explanation. It outlives the result, so that what was pruned is
//! known; the oldest notes go when there are too many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cooper_solver::{FileList, Journal, KeyId, Note, Noted, Pruned, Recent};
use cooper_store::{Store, StoreError, Table, Write};
use serde::{Deserialize, Serialize};

/// Notes at most.
const MOST: usize = 4096;
/// Bytes of all notes at most, with the lists of files that are behind them.
const MOST_BYTES: u64 = 32 << 20;

/// By number, in 16 hexadecimal digits: the order in which they were written.
const NOTES: Table<Row> = Table::new("explain.notes");
/// `KEY`; the value is the note's number.
const KEYS: Table<u64> = Table::new("explain.keys");
/// `PLACE NUMBER`, for each place that the note is to be found at; the value is the key.
const PLACES: Table<String> = Table::new("explain.places");
/// Lists of files by their names, with the number of the last note that has them.
const FILES: Table<(u64, FileList)> = Table::new("explain.files");
/// By number: how many bytes there are. Small rows, to be read all at once.
const SIZES: Table<u64> = Table::new("explain.sizes");

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    key: String,
    note: Note,
}

/// Notes by their numbers, and how many bytes each of them has.
type Sizes = BTreeMap<u64, u64>;

/// Notes in the store.
pub(crate) struct StoredJournal {
    store: Store,
    recent: Recent,
    /// Read when the first note is written; used by the writer alone.
    sizes: Arc<Mutex<Option<Sizes>>>,
}

impl StoredJournal {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            recent: Recent::default(),
            sizes: Arc::default(),
        }
    }

    /// What writes a note beside `key` in the transaction that it is given.
    pub(crate) fn writing(
        &self,
        key: &KeyId,
        noted: Arc<Noted>,
    ) -> impl FnOnce(&mut Write<'_>) -> Result<(), StoreError> + Send + 'static {
        self.recent.note(key);
        let (key, sizes) = (key.clone(), self.sizes.clone());
        move |tx| {
            let mut sizes = sizes.lock().unwrap_or_else(PoisonError::into_inner);
            if sizes.is_none() {
                *sizes = Some(stored_sizes(tx)?);
            }
            let sizes = sizes.get_or_insert_default();
            let written = write(tx, sizes, &key, &noted);
            if written.is_err() {
                // The transaction may be undone: what is stored is looked at again.
                *sizes = stored_sizes(tx).unwrap_or_default();
            }
            written
        }
    }

    fn read<T: Default>(
        &self,
        function: impl FnOnce(&cooper_store::Read<'_>) -> Result<T, StoreError>,
    ) -> T {
        self.store.read(function).unwrap_or_else(|error| {
            tracing::warn!(%error, "what results were made of cannot be read");
            T::default()
        })
    }
}

fn stored_sizes(tx: &Write<'_>) -> Result<Sizes, StoreError> {
    let rows = tx.scan(&SIZES, "")?;
    let numbered = rows
        .into_iter()
        .filter_map(|(number, size)| Some((u64::from_str_radix(&number, 16).ok()?, size)));
    Ok(numbered.collect())
}

fn row(number: u64) -> String {
    format!("{number:016x}")
}

fn write(
    tx: &mut Write<'_>,
    sizes: &mut Sizes,
    key: &KeyId,
    noted: &Noted,
) -> Result<(), StoreError> {
    if let Some(old) = tx.get(&KEYS, key.as_str())? {
        remove(tx, sizes, old)?;
    }
    let number = sizes.last_key_value().map_or(1, |(last, _)| last + 1);
    let note = &noted.note;
    let files: usize = noted.files.iter().map(FileList::size).sum();
    let parts = note.description.parts.iter();
    let parts: usize = parts.map(|part| part.name.len() + part.value.len()).sum();
    // Roughly, with what the rows have around it.
    let size = (files + 2 * parts + 1024) as u64;
    let named = row(number);
    tx.put(&KEYS, key.as_str(), &number)?;
    for place in note.places() {
        let key = key.as_str().to_owned();
        tx.put(&PLACES, &format!("{place} {named}"), &key)?;
    }
    for list in &noted.files {
        tx.put(&FILES, &list.name(), &(number, list.clone()))?;
    }
    tx.put(&SIZES, &named, &size)?;
    let value = Row {
        key: key.as_str().to_owned(),
        note: note.clone(),
    };
    tx.put(&NOTES, &named, &value)?;
    sizes.insert(number, size);
    let mut total: u64 = sizes.values().sum();
    while sizes.len() > MOST || (total > MOST_BYTES && sizes.len() > 1) {
        let Some((oldest, size)) = sizes.first_key_value().map(|(n, size)| (*n, *size)) else {
            break;
        };
        remove(tx, sizes, oldest)?;
        total -= size;
    }
    Ok(())
}

fn remove(tx: &mut Write<'_>, sizes: &mut Sizes, number: u64) -> Result<(), StoreError> {
    sizes.remove(&number);
    let named = row(number);
    // One that cannot be read, such as that of another version, goes alone.
    if let Ok(Some(Row { key, note })) = tx.get(&NOTES, &named) {
        if tx.get(&KEYS, &key)? == Some(number) {
            tx.delete(&KEYS, &key)?;
        }
        for place in note.places() {
            tx.delete(&PLACES, &format!("{place} {named}"))?;
        }
        for name in note.inputs.iter().filter_map(|input| input.files.as_ref()) {
            if tx.get(&FILES, name)?.is_some_and(|(of, _)| of == number) {
                tx.delete(&FILES, name)?;
            }
        }
    }
    tx.delete(&NOTES, &named)?;
    tx.delete(&SIZES, &named)?;
    Ok(())
}

/// Writes down that the result behind `key` was taken away.
pub(crate) fn write_pruned(tx: &mut Write<'_>, key: &KeyId, by: &str) -> Result<(), StoreError> {
    let Some(number) = tx.get(&KEYS, key.as_str())? else {
        return Ok(());
    };
    let named = row(number);
    let Some(mut row) = tx.get(&NOTES, &named)? else {
        return Ok(());
    };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    row.note.pruned = Some(Pruned {
        at: since.unwrap_or_default().as_secs(),
        by: by.to_owned(),
    });
    tx.put(&NOTES, &named, &row)
}

impl Journal for StoredJournal {
    fn at(&self, place: &str, limit: usize) -> Vec<(KeyId, Note)> {
        self.read(|tx| {
            let rows = tx.scan(&PLACES, &format!("{place} "))?.into_iter();
            let mut rows: Vec<_> = rows
                .map(|(row, key)| {
                    let key = KeyId::new(&key);
                    (self.recent.get(&key), row, key)
                })
                .collect();
            rows.sort_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
            let mut found = Vec::new();
            for (_, row, key) in rows {
                let number = row.rsplit(' ').next().unwrap_or_default();
                // One that is gone was lost with the machine.
                if let Ok(Some(row)) = tx.get(&NOTES, number) {
                    found.push((key, row.note));
                }
                if found.len() >= limit {
                    break;
                }
            }
            Ok(found)
        })
    }

    fn of(&self, key: &KeyId) -> Option<Note> {
        self.read(|tx| {
            let Some(number) = tx.get(&KEYS, key.as_str())? else {
                return Ok(None);
            };
            Ok(tx.get(&NOTES, &row(number))?.map(|row| row.note))
        })
    }

    fn files(&self, name: &str) -> Option<FileList> {
        self.read(|tx| Ok(tx.get(&FILES, name)?.map(|(_, list)| list)))
    }

    fn used(&self, key: &KeyId) {
        self.recent.note(key);
    }

    fn last_used(&self, key: &KeyId) -> u64 {
        self.recent.get(key)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cooper_solver::{Description, Digest, FileEntry, NoteInput};

    fn digest(number: usize) -> Digest {
        format!("sha256:{number:064x}").parse().unwrap()
    }

    fn files(path: &str) -> FileList {
        let entry = FileEntry {
            path: path.into(),
            digest: 1,
            mode: None,
            closed: false,
        };
        FileList::new([entry]).unwrap()
    }

    fn noted(number: usize, path: &str) -> Arc<Noted> {
        let mut description = Description::new("exec", "RUN make");
        description.part("variable V", &number.to_string());
        Arc::new(Noted {
            note: Note {
                name: "[1/1] RUN make".into(),
                digest: digest(number),
                description,
                inputs: vec![NoteInput {
                    keys: vec![],
                    content: Some("content".into()),
                    files: Some(files(path).name()),
                }],
                pruned: None,
            },
            files: vec![files(path)],
        })
    }

    fn journal() -> (tempfile::TempDir, StoredJournal) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db"), "boot").unwrap().0;
        (dir, StoredJournal::new(store))
    }

    async fn add(journal: &StoredJournal, key: &str, noted: Arc<Noted>) {
        let writing = journal.writing(&KeyId::new(key), noted);
        journal.store.write(writing).await.unwrap();
    }

    #[tokio::test]
    async fn the_newest_come_first_and_know_what_was_pruned() {
        let (_dir, journal) = journal();
        for number in 0..5 {
            let noted = noted(number, "/a");
            add(&journal, &format!("key{number}"), noted).await;
        }
        // The same key again is one note, the newest.
        add(&journal, "key1", noted(1, "/a")).await;
        let key = KeyId::new("key4");
        let write = journal
            .store
            .write(move |tx| write_pruned(tx, &key, "the policy x"));
        write.await.unwrap();
        let place = noted(0, "/a").note.places()[1].clone();
        let found = journal.at(&place, 3);
        let keys: Vec<_> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["key1", "key4", "key3"]);
        assert_eq!(found[1].1.pruned.as_ref().unwrap().by, "the policy x");
        let of = journal.of(&KeyId::new("key2")).unwrap();
        assert_eq!(of.digest, digest(2));
        assert!(journal.files(&files("/a").name()).is_some());
        assert_eq!(journal.of(&KeyId::new("other")), None);
    }

    #[tokio::test]
    async fn what_is_too_old_goes_with_all_that_belongs_to_it() {
        let (dir, journal) = journal();
        add(&journal, "first", noted(0, "/old")).await;
        let sizes = journal.sizes.clone();
        // As if there were many: their rows are not looked at before they go.
        for number in 2..=MOST as u64 {
            let mut sizes = sizes.lock().unwrap();
            sizes.as_mut().unwrap().insert(number, 0);
        }
        add(&journal, "second", noted(1, "/a")).await;
        assert_eq!(journal.of(&KeyId::new("first")), None);
        assert_eq!(journal.files(&files("/old").name()), None);
        assert!(journal.of(&KeyId::new("second")).is_some());
        assert!(journal.files(&files("/a").name()).is_some());
        let place = noted(0, "/a").note.places()[1].clone();
        assert_eq!(journal.at(&place, 10).len(), 1);
        // The bound is known after a restart, too.
        drop(journal);
        let store = Store::open(&dir.path().join("store.db"), "boot").unwrap().0;
        let journal = StoredJournal::new(store);
        add(&journal, "third", noted(2, "/a")).await;
        let sizes = journal.sizes.lock().unwrap();
        assert_eq!(sizes.as_ref().unwrap().len(), 2);
    }
}
