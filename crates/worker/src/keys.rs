//! The solver's keys in the metadata store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cooper_content::{PlaintextKind, Plaintexts, digest_noted};
use cooper_solver::{
    CacheResult, Digest, Journal, KeyEntry, KeyGraph, KeyId, KeyStore, Link, MemoryKeyStore,
};
use cooper_store::{Store, StoreError, Table, Write};

use crate::journal::{StoredJournal, write_pruned};

/// `FROM LINK TO`, none of which has a space in it.
const LINKS: Table<()> = Table::new("solver.links");
/// `RESULT KEY`; the value is when it was made, in nanoseconds since 1970.
const RESULTS: Table<u64> = Table::new("solver.results");

/// Keys in memory, read from the store once and written behind. What a result stands for is
/// kept before its keys are: a row that is lost costs a cache hit and never gives a wrong one.
pub struct StoredKeys {
    memory: MemoryKeyStore,
    store: Store,
    journal: Arc<StoredJournal>,
    /// Who is told what keys are made of.
    plaintexts: Option<Arc<dyn Plaintexts>>,
}

impl StoredKeys {
    /// Reads what is kept, and forgets the keys of results that are not there any more: they went
    /// while nobody was told. Blocks for the disk.
    pub fn open(store: Store, is_there: impl Fn(&str) -> bool) -> Result<Self, StoreError> {
        let memory = MemoryKeyStore::default();
        let (links, results) =
            store.read(|tx| Ok((tx.scan(&LINKS, "")?, tx.scan(&RESULTS, "")?)))?;
        for (row, ()) in links {
            if let [from, link, to] = row.split(' ').collect::<Vec<_>>()[..] {
                memory.load_link(KeyId::new(from), Link::from_text(link), KeyId::new(to));
            }
        }
        let mut gone = BTreeSet::new();
        for (row, nanos) in results {
            if let Some((id, key)) = row.split_once(' ') {
                if !is_there(id) {
                    gone.insert(id.to_owned());
                }
                let created_at = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
                let result = CacheResult {
                    id: id.into(),
                    created_at,
                };
                memory.load_result(KeyId::new(key), result);
            }
        }
        let journal = Arc::new(StoredJournal::new(store.clone()));
        let keys = Self {
            memory,
            store,
            journal,
            plaintexts: None,
        };
        for result in gone {
            keys.removed(&result, None);
        }
        Ok(keys)
    }

    /// The same, and `plaintexts` is told what keys are made of.
    pub fn telling(self, plaintexts: Option<Arc<dyn Plaintexts>>) -> Self {
        Self { plaintexts, ..self }
    }

    /// All keys and links.
    pub fn graph(&self) -> KeyGraph {
        self.memory.graph()
    }

    /// `digest` and `output` have a digest of their own in caches that others read.
    fn tell_output(&self, digest: &Digest, output: i64) {
        if let Some(plaintexts) = self.plaintexts.as_deref() {
            let text = KeyId::root_text(digest, output);
            digest_noted(Some(plaintexts), PlaintextKind::String, text.as_bytes());
        }
    }

    /// Forgets a result that is no more, and the keys that nothing hangs on any more. `by`
    /// names what took it, if something did: explanations say so.
    pub fn removed(&self, result: &str, by: Option<&str>) {
        let forgotten = self.memory.forget(result);
        if forgotten.keys.is_empty() && forgotten.links.is_empty() {
            return;
        }
        let (result, by) = (result.to_owned(), by.map(str::to_owned));
        self.write(move |tx| {
            for key in &forgotten.keys {
                tx.delete(&RESULTS, &result_row(&result, key))?;
                if let Some(by) = &by
                    && let Err(error) = write_pruned(tx, key, by)
                {
                    tracing::warn!(%error, "what pruned a result is not written");
                }
            }
            for (from, link, to) in &forgotten.links {
                tx.delete(&LINKS, &link_row(from, link, to))?;
            }
            Ok(())
        });
    }

    fn write<F>(&self, function: F)
    where
        F: FnOnce(&mut Write<'_>) -> Result<(), StoreError> + Send + 'static,
    {
        // Nobody waits for the end; a store that fails says so to those who write refs.
        if let Err(error) = self.store.submit(function) {
            tracing::warn!(%error, "cache keys are not written");
        }
    }
}

fn link_row(from: &KeyId, link: &Link, to: &KeyId) -> String {
    format!("{} {} {}", from.as_str(), link.as_str(), to.as_str())
}

fn result_row(result: &str, key: &KeyId) -> String {
    format!("{result} {}", key.as_str())
}

fn put_links(tx: &mut Write<'_>, links: &[(KeyId, Link)], to: &KeyId) -> Result<(), StoreError> {
    for (from, link) in links {
        tx.put(&LINKS, &link_row(from, link, to), &())?;
    }
    Ok(())
}

impl KeyStore for StoredKeys {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        self.memory.links(from, link)
    }

    fn results(&self, id: &KeyId) -> Vec<CacheResult> {
        self.memory.results(id)
    }

    fn add(&self, entry: KeyEntry) {
        self.memory.add(entry.clone());
        if self.plaintexts.is_some() {
            // The links of an operation differ in their inputs.
            let said = entry.links.first().and_then(|(_, link)| link.parts());
            if let Some(link) = said {
                let output = i64::try_from(link.output).unwrap_or(i64::MAX);
                self.tell_output(&link.digest, output);
            }
        }
        let noted = entry.noted.clone();
        let note = noted.map(|noted| self.journal.writing(&entry.id, noted));
        self.write(move |tx| {
            put_links(tx, &entry.links, &entry.id)?;
            let since = entry
                .result
                .created_at
                .duration_since(SystemTime::UNIX_EPOCH);
            let nanos = since.unwrap_or_default().as_nanos();
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            tx.put(&RESULTS, &result_row(&entry.result.id, &entry.id), &nanos)?;
            // The key is worth more than what explains it.
            if let Some(Err(error)) = note.map(|write| write(tx)) {
                tracing::warn!(%error, "what a result was made of is not written");
            }
            Ok(())
        });
    }

    fn connect(&self, id: &KeyId, links: Vec<(KeyId, Link)>) {
        self.memory.connect(id, links.clone());
        let id = id.clone();
        self.write(move |tx| put_links(tx, &links, &id));
    }

    fn release(&self, result: &str) {
        self.removed(result, None);
    }

    fn is_root_of(&self, _: &KeyId, digest: &Digest, output: i64) {
        self.tell_output(digest, output);
    }

    fn journal(&self) -> Option<Arc<dyn Journal>> {
        Some(self.journal.clone())
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
    fn keys_outlive_the_process_and_go_with_their_results() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let open_if = |there: &dyn Fn(&str) -> bool| {
            StoredKeys::open(Store::open(&path, "boot").unwrap().0, there).unwrap()
        };
        let open = || open_if(&|_| true);
        let from = KeyId::root(&digest('a'), 0);
        let link = Link::new(0, 1, &digest('b'), Some(&digest('c')));
        let to = KeyId::new("to");
        let made = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let result = CacheResult {
            id: "one".into(),
            created_at: made,
        };
        {
            let keys = open();
            keys.add(KeyEntry {
                id: to.clone(),
                links: vec![(from.clone(), link.clone())],
                result: result.clone(),
                noted: None,
            });
        }
        {
            let keys = open();
            assert_eq!(keys.links(&from, &link), std::slice::from_ref(&to));
            assert_eq!(keys.results(&to), std::slice::from_ref(&result));
            keys.release("one");
            assert_eq!(keys.links(&from, &link), []);
        }
        {
            let keys = open();
            assert_eq!(keys.links(&from, &link), []);
            assert_eq!(keys.results(&to), []);
            keys.add(KeyEntry {
                id: to.clone(),
                links: vec![(from.clone(), link.clone())],
                result,
                noted: None,
            });
        }
        // It went with the machine.
        assert_eq!(open_if(&|id| id != "one").results(&to), []);
        let keys = open();
        assert_eq!(keys.links(&from, &link), []);
        assert_eq!(keys.results(&to), []);
    }
}
