//! Blobs in memory, for tests and small programs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use oci_spec::image::Digest;

use crate::{Blob, ContentError, ContentStore, Info, Ingest, digest_of};

/// A content store that is gone with its last clone.
#[derive(Clone, Debug, Default)]
pub struct MemoryContentStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    blobs: HashMap<Digest, (Arc<Vec<u8>>, SystemTime)>,
    ingests: HashMap<String, Vec<u8>>,
    writing: HashSet<String>,
}

impl MemoryContentStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct MemoryBlob(Arc<Vec<u8>>);

impl Blob for MemoryBlob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let begin = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.0.len());
        let length = buffer.len().min(self.0.len() - begin);
        buffer[..length].copy_from_slice(&self.0[begin..begin + length]);
        Ok(length)
    }
}

#[async_trait]
impl ContentStore for MemoryContentStore {
    async fn info(&self, digest: &Digest) -> Result<Info, ContentError> {
        let state = self.state();
        let blob = state.blobs.get(digest);
        let (blob, created_at) = blob.ok_or_else(|| ContentError::NotFound {
            digest: digest.clone(),
        })?;
        Ok(Info {
            digest: digest.clone(),
            size: blob.len() as u64,
            disk: blob.len() as u64,
            created_at: *created_at,
        })
    }

    async fn open(&self, digest: &Digest) -> Result<Box<dyn Blob>, ContentError> {
        let state = self.state();
        let blob = state.blobs.get(digest);
        let (blob, _) = blob.ok_or_else(|| ContentError::NotFound {
            digest: digest.clone(),
        })?;
        Ok(Box::new(MemoryBlob(blob.clone())))
    }

    async fn ingest(&self, reference: &str) -> Result<Box<dyn Ingest>, ContentError> {
        let mut state = self.state();
        if !state.writing.insert(reference.to_owned()) {
            return Err(ContentError::Busy {
                reference: reference.to_owned(),
            });
        }
        let bytes = state.ingests.remove(reference).unwrap_or_default();
        drop(state);
        let reference = reference.to_owned();
        Ok(Box::new(MemoryIngest {
            store: self.clone(),
            reference,
            bytes: Some(bytes),
        }))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), ContentError> {
        self.state().blobs.remove(digest);
        Ok(())
    }

    async fn walk(&self) -> Result<Vec<Info>, ContentError> {
        let state = self.state();
        let info = |(digest, (blob, created_at)): (&Digest, &(Arc<Vec<u8>>, SystemTime))| Info {
            digest: digest.clone(),
            size: blob.len() as u64,
            disk: blob.len() as u64,
            created_at: *created_at,
        };
        Ok(state.blobs.iter().map(info).collect())
    }

    async fn sync(&self, _: &[Digest]) -> Result<(), ContentError> {
        Ok(())
    }
}

struct MemoryIngest {
    store: MemoryContentStore,
    reference: String,
    /// `None` when it was committed or aborted.
    bytes: Option<Vec<u8>>,
}

#[async_trait]
impl Ingest for MemoryIngest {
    fn offset(&self) -> u64 {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        self.bytes.get_or_insert_default().extend_from_slice(bytes);
        Ok(())
    }

    async fn commit(
        mut self: Box<Self>,
        size: Option<u64>,
        digest: Option<&Digest>,
    ) -> Result<Digest, ContentError> {
        let bytes = self.bytes.take().unwrap_or_default();
        let reference = self.reference.clone();
        if let Some(expected) = size
            && expected != bytes.len() as u64
        {
            return Err(ContentError::SizeMismatch {
                reference,
                found: bytes.len() as u64,
                expected,
            });
        }
        let found = digest_of(&bytes);
        if let Some(expected) = digest
            && *expected != found
        {
            let expected = expected.clone();
            return Err(ContentError::DigestMismatch {
                reference,
                found,
                expected,
            });
        }
        let blob = (Arc::new(bytes), SystemTime::now());
        self.store
            .state()
            .blobs
            .entry(found.clone())
            .or_insert(blob);
        Ok(found)
    }

    async fn abort(mut self: Box<Self>) -> Result<(), ContentError> {
        self.bytes = None;
        Ok(())
    }
}

impl Drop for MemoryIngest {
    fn drop(&mut self) {
        let mut state = self.store.state();
        state.writing.remove(&self.reference);
        if let Some(bytes) = self.bytes.take() {
            state
                .ingests
                .insert(std::mem::take(&mut self.reference), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_conforms() {
        crate::testsuite::run(&MemoryContentStore::default()).await;
    }
}
