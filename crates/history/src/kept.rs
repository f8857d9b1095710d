//! What is on the disk: a row for each record, and the blobs that they speak of.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cooper_content::{ContentStore, Digest, FsContentStore};
use cooper_store::{Opened, Store, Table};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{HistoryError, Record};

/// The file (BuildKit's name) and the folder, in the root.
const FILE: &str = "history.db";
const FOLDER: &str = "history";

/// By the build's name.
const RECORDS: Table<Row> = Table::new("records");

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    /// The record's message, in base64: what a later version writes into it is kept.
    record: String,
    /// The blobs that stay as long as the record does, and their sizes in bytes.
    blobs: Vec<(String, u64)>,
}

/// A record with the blobs that stay with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) blobs: Vec<(Digest, u64)>,
}

impl Entry {
    /// Bytes that it takes, about.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.record.encoded_len() as u64 * 4 / 3 + self.blobs.len() as u64 * 80
    }
}

impl Row {
    fn of(entry: &Entry) -> Self {
        let blobs = entry.blobs.iter();
        Self {
            record: STANDARD.encode(entry.record.encode_to_vec()),
            blobs: blobs
                .map(|(digest, size)| (digest.to_string(), *size))
                .collect(),
        }
    }

    /// `None` for what no program of this version wrote.
    fn entry(&self) -> Option<Entry> {
        let bytes = STANDARD.decode(&self.record).ok()?;
        let blobs = self.blobs.iter();
        let blobs = blobs.map(|(digest, size)| Some((digest.parse().ok()?, *size)));
        Some(Entry {
            record: Record::decode(&*bytes).ok()?,
            blobs: blobs.collect::<Option<_>>()?,
        })
    }
}

/// Reads and writes. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    store: Store,
    pub(crate) content: FsContentStore,
    boot: String,
    /// Blobs that were written since the last checkpoint began.
    fresh: Arc<Mutex<Vec<Digest>>>,
}

impl Kept {
    /// Opens what is in `root`. Blocks for the disk.
    pub(crate) fn open(root: &Path) -> Result<Self, HistoryError> {
        let boot = cooper_sys::boot_id().map_err(|source| HistoryError::Boot {
            path: root.to_owned(),
            source,
        })?;
        let path = root.join(FILE);
        let Opened { store, rebuilt, .. } = Store::open_or_rebuild(&path, &boot)?;
        if let Some(rebuilt) = rebuilt {
            tracing::error!(
                path = %path.display(),
                kept = %rebuilt.aside.display(),
                rows = rebuilt.rows,
                "the history of builds was damaged: {}; it is kept aside, and what is whole of it \
                 was brought over",
                rebuilt.detail
            );
        }
        let content = FsContentStore::open(&root.join(FOLDER))?;
        content.clear_ingests()?;
        Ok(Self {
            store,
            content,
            boot,
            fresh: Arc::default(),
        })
    }

    /// One record. Reads the disk.
    pub(crate) fn get(&self, reference: &str) -> Result<Option<Entry>, HistoryError> {
        let row = self.store.read(|tx| tx.get(&RECORDS, reference))?;
        Ok(row.and_then(|row| row.entry()))
    }

    /// All records in the order of their names. Reads the disk.
    pub(crate) fn all(&self) -> Result<Vec<Entry>, HistoryError> {
        let rows = self.store.read(|tx| tx.scan(&RECORDS, ""))?;
        let entries = rows.into_iter().filter_map(|(name, row)| {
            let entry = row.entry();
            if entry.is_none() {
                tracing::warn!(build = name, "a record of the history cannot be read");
            }
            entry
        });
        Ok(entries.collect())
    }

    /// Writes a record, in place of an earlier one of that name.
    pub(crate) async fn put(&self, entry: &Entry) -> Result<(), HistoryError> {
        {
            let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            fresh.extend(entry.blobs.iter().map(|(digest, _)| digest.clone()));
        }
        let (name, row) = (entry.record.r#ref.clone(), Row::of(entry));
        let written = self.store.write(move |tx| tx.put(&RECORDS, &name, &row));
        Ok(written.await?)
    }

    pub(crate) async fn delete(&self, reference: &str) -> Result<(), HistoryError> {
        let name = reference.to_owned();
        let deleted = self.store.write(move |tx| tx.delete(&RECORDS, &name));
        deleted.await?;
        Ok(())
    }

    /// Makes what is written survive the death of the machine. What is written meanwhile does with
    /// the next one.
    pub(crate) async fn checkpoint(self) -> Result<(), HistoryError> {
        let Self {
            store,
            content,
            boot,
            fresh,
        } = self;
        let runtime = tokio::runtime::Handle::current();
        let sync = move |_| {
            // The number of the last row is fixed by now, and the blobs of all rows before are here.
            let blobs = std::mem::take(&mut *fresh.lock().unwrap_or_else(PoisonError::into_inner));
            let synced = runtime.block_on(content.sync(&blobs));
            synced.map_err(|error| {
                let mut fresh = fresh.lock().unwrap_or_else(PoisonError::into_inner);
                fresh.extend(blobs);
                std::io::Error::other(error)
            })
        };
        store.checkpoint(&boot, sync).await?;
        Ok(())
    }

    /// Removes blobs that nobody knows, and records whose blobs are not there: the machine may
    /// have died. Gives those that stay.
    pub(crate) async fn mend(&self) -> Result<Vec<Entry>, HistoryError> {
        let found = self.content.walk().await?;
        let mut unknown: std::collections::HashSet<Digest> =
            found.into_iter().map(|info| info.digest).collect();
        let mut whole = Vec::new();
        let mut needed = Vec::new();
        for entry in self.all()? {
            let there = |(digest, _): &(Digest, u64)| unknown.contains(digest);
            if entry.blobs.iter().all(there) {
                needed.extend(entry.blobs.iter().map(|(digest, _)| digest.clone()));
                whole.push(entry);
                continue;
            }
            let build = &entry.record.r#ref;
            tracing::warn!(%build, "a record of the history goes because of missing blobs");
            self.delete(build).await?;
        }
        for digest in &needed {
            unknown.remove(digest);
        }
        for digest in &unknown {
            self.content.delete(digest).await?;
        }
        Ok(whole)
    }
}
