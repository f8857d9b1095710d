//! What digests in cache keys were computed from, in a store of their own.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cooper_content::{Digest, Frame, Plaintext, PlaintextKind, Plaintexts};
use cooper_store::{Opened, Store, StoreError, Table};
use serde::{Deserialize, Serialize};

use crate::WorkerError;
use crate::worker::open_store;

/// Bytes of the file from which on nothing more is kept.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes that wait to be written; what comes while there are more is left out.
const MOST_WAITING: usize = 64 << 20;
/// Digests that are remembered as written, 32 bytes each.
const MOST_KNOWN: usize = 1 << 20;
/// What a row takes beside its bytes.
const ROW: usize = 256;

/// By digest.
const PLAINTEXTS: Table<Row> = Table::new("plaintexts");

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    kind: String,
    frames: Vec<Part>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Part {
    /// In base64.
    #[serde(rename = "data")]
    Data(String),
    /// How many bytes.
    #[serde(rename = "skip")]
    Skip(u64),
}

impl Row {
    fn of(plaintext: &Plaintext) -> Self {
        let frames = plaintext.frames().iter().map(|frame| match frame {
            Frame::Data(bytes) => Part::Data(STANDARD.encode(bytes)),
            Frame::Skip(count) => Part::Skip(*count),
        });
        Self {
            kind: plaintext.kind().name().to_owned(),
            frames: frames.collect(),
        }
    }

    /// `None` for what no program of this version wrote.
    fn plaintext(&self) -> Option<Plaintext> {
        let mut plaintext = Plaintext::new(PlaintextKind::named(&self.kind)?);
        for part in &self.frames {
            match part {
                Part::Data(text) => plaintext.data(&STANDARD.decode(text).ok()?),
                Part::Skip(count) => plaintext.skip(*count),
            }
        }
        Some(plaintext)
    }
}

/// Plaintexts in a file, written behind. Who tells of one waits for nothing: when more is told
/// than can be written, and when the file has become a gibibyte, plaintexts are left out.
///
/// What is written survives the death of the process, and that of the machine from
/// [`close`](Self::close) on.
#[derive(Debug)]
pub struct StoredPlaintexts {
    store: Store,
    path: PathBuf,
    boot: String,
    /// What was handed to the store.
    known: Mutex<HashSet<[u8; 32]>>,
    waiting: Arc<AtomicUsize>,
    /// About as many bytes as the file has.
    size: Arc<AtomicU64>,
    /// Whether it was said that something is left out.
    said: AtomicBool,
}

impl StoredPlaintexts {
    /// Opens the file `path`, made when it is missing.
    ///
    /// # Errors
    /// The file cannot be opened, or a later version wrote it.
    pub async fn open(path: &Path) -> Result<Self, WorkerError> {
        let boot = cooper_sys::boot_id().map_err(WorkerError::open("the boot id", path))?;
        let Opened { store, .. } = open_store(path).await?;
        let size = std::fs::metadata(path).map_or(0, |file| file.len());
        Ok(Self {
            store,
            path: path.to_owned(),
            boot,
            known: Mutex::default(),
            waiting: Arc::default(),
            size: Arc::new(AtomicU64::new(size)),
            said: AtomicBool::new(false),
        })
    }

    /// Waits until everything that was told so far can be read.
    pub async fn written(&self) -> Result<(), StoreError> {
        self.store.write(|_| Ok(())).await
    }

    /// The plaintext of `digest`, if it is known. Reads the disk.
    pub fn get(&self, digest: &str) -> Result<Option<Plaintext>, StoreError> {
        let row = self.store.read(|tx| tx.get(&PLAINTEXTS, digest))?;
        Ok(row.and_then(|row| row.plaintext()))
    }

    /// Part number `part` of 256 of all that is known, in the order of the digests, and so are the
    /// parts. Reads the disk.
    pub fn part(&self, part: u8) -> Result<Vec<(String, Plaintext)>, StoreError> {
        let prefix = format!("sha256:{part:02x}");
        let rows = self.store.read(|tx| tx.scan(&PLAINTEXTS, &prefix))?;
        let whole = rows
            .into_iter()
            .filter_map(|(digest, row)| Some((digest, row.plaintext()?)));
        Ok(whole.collect())
    }

    /// Waits until everything is written, durably.
    pub async fn close(&self) {
        if let Err(error) = self.store.checkpoint(&self.boot, |_| Ok(())).await {
            tracing::warn!(%error, "what cache keys were made of is not durable");
        }
    }

    fn leave_out(&self, why: &str) {
        if !self.said.swap(true, Ordering::Relaxed) {
            let path = self.path.display();
            tracing::warn!(%path, "{why}: not everything that cache keys are made of is kept");
        }
    }
}

fn raw(digest: &Digest) -> Option<[u8; 32]> {
    let mut raw = [0; 32];
    let hex = digest.as_ref().strip_prefix("sha256:")?;
    hex::decode_to_slice(hex, &mut raw).ok()?;
    Some(raw)
}

impl Plaintexts for StoredPlaintexts {
    fn wants(&self, digest: &Digest) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        raw(digest).is_some_and(|raw| !known.contains(&raw))
    }

    fn note(&self, digest: &Digest, plaintext: Plaintext) {
        let Some(raw) = raw(digest) else { return };
        let bytes = plaintext.kept() + ROW;
        if self.size.load(Ordering::Relaxed) >= MOST_BYTES {
            return self.leave_out("the file is full");
        }
        if self.waiting.load(Ordering::Relaxed) >= MOST_WAITING {
            return self.leave_out("the disk is slow");
        }
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MOST_KNOWN {
                known.clear();
            }
            if !known.insert(raw) {
                return;
            }
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let (waiting, size) = (self.waiting.clone(), self.size.clone());
        let digest = digest.as_ref().to_owned();
        let submitted = self.store.submit(move |tx| {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
            if !tx.has(&PLAINTEXTS, &digest)? {
                tx.put(&PLAINTEXTS, &digest, &Row::of(&plaintext))?;
                size.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        if submitted.is_err() {
            self.leave_out("the store is closed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cooper_content::{digest_noted, digest_of};

    #[tokio::test]
    async fn what_was_told_is_kept_and_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache-debug.db");
        let mut file = Plaintext::of(PlaintextKind::File, b"name\xff\0");
        file.skip(5_000_000_000);
        let texts: Vec<Vec<u8>> = (0..300_u32).map(|n| n.to_be_bytes().to_vec()).collect();
        {
            let kept = StoredPlaintexts::open(&path).await.unwrap();
            let digest = digest_of(b"a file");
            assert!(kept.wants(&digest));
            kept.note(&digest, file.clone());
            assert!(!kept.wants(&digest));
            for text in &texts {
                digest_noted(Some(&kept), PlaintextKind::String, text);
            }
            // What is no digest of bytes has no plaintext.
            let random: Digest = format!("random:{}", "a".repeat(64)).parse().unwrap();
            assert!(!kept.wants(&random));
            kept.note(&random, file.clone());
            kept.written().await.unwrap();
            assert_eq!(kept.get(digest.as_ref()).unwrap(), Some(file.clone()));
            kept.close().await;
        }
        let kept = StoredPlaintexts::open(&path).await.unwrap();
        // Told again by another process, with another plaintext: the first one stays.
        let digest = digest_of(b"a file");
        kept.note(&digest, Plaintext::of(PlaintextKind::Json, b"{}"));
        kept.written().await.unwrap();
        assert_eq!(kept.get(digest.as_ref()).unwrap(), Some(file.clone()));
        assert_eq!(kept.get(digest_of(b"else").as_ref()).unwrap(), None);

        let all: Vec<_> = (0..=255)
            .flat_map(|part| kept.part(part).unwrap())
            .collect();
        let names: Vec<String> = all.iter().map(|(name, _)| name.clone()).collect();
        let mut expected: Vec<String> = texts
            .iter()
            .map(|text| digest_of(text).to_string())
            .collect();
        expected.push(digest.to_string());
        expected.sort_unstable();
        assert_eq!(names, expected);
        let text = all
            .iter()
            .find(|(name, _)| *name == digest_of(&texts[7]).to_string());
        let expected = Plaintext::of(PlaintextKind::String, &texts[7]);
        assert_eq!(text.map(|(_, plaintext)| plaintext), Some(&expected));
    }

    #[tokio::test]
    async fn a_file_that_is_full_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let kept = StoredPlaintexts::open(&dir.path().join("db"))
            .await
            .unwrap();
        kept.size.store(MOST_BYTES, Ordering::Relaxed);
        let digest = digest_noted(Some(&kept), PlaintextKind::String, b"x");
        kept.written().await.unwrap();
        assert_eq!(kept.get(digest.as_ref()).unwrap(), None);
        assert!(kept.said.load(Ordering::Relaxed));
        // Once there is room it is taken.
        kept.size.store(0, Ordering::Relaxed);
        digest_noted(Some(&kept), PlaintextKind::String, b"x");
        kept.written().await.unwrap();
        assert!(kept.get(digest.as_ref()).unwrap().is_some());
    }
}
