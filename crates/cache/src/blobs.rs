//! Blobs as the cache accounts for them: what each takes, and who may still want it.
//!
//! A blob that is the layer of a record belongs to that record. All others, manifests and
//! configurations of images and layers in another compression, are records of their own: they
//! are in use as long as a build goes on that was there when they were last touched, and else
//! they are pruned like everything.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use cooper_content::{Blob, ContentError, ContentStore, Digest, Info, Ingest};
use tokio::sync::{Notify, RwLock};

/// What is known of a blob.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// What it takes on the disk in bytes.
    pub(crate) disk: u64,
    pub(crate) created_at: SystemTime,
    pub(crate) last_used: Option<SystemTime>,
    pub(crate) count: u64,
    /// The youngest work that was there when it was last touched.
    touched: u64,
}

#[derive(Debug, Default)]
struct Pages {
    blobs: HashMap<Digest, Known>,
    total: u64,
    /// The work that goes on, by when it began.
    running: BTreeMap<u64, ()>,
    clock: u64,
}

/// All blobs of a content store.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pages: Mutex<Pages>,
    /// Held for reading while a blob is touched, and for writing while one is removed: who has
    /// just seen a blob does not find it gone.
    gate: RwLock<()>,
    /// Told when a blob came.
    pub(crate) changed: Arc<Notify>,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what an earlier process left.
    pub(crate) fn load(&self, infos: Vec<Info>) {
        let mut pages = self.pages();
        for info in infos {
            pages.put(&info, false);
        }
    }

    /// What all blobs take, in bytes.
    pub(crate) fn total(&self) -> u64 {
        self.pages().total
    }

    /// What a blob takes, in bytes; 0 when it is not here.
    pub(crate) fn disk(&self, digest: &Digest) -> u64 {
        self.pages().blobs.get(digest).map_or(0, |blob| blob.disk)
    }

    /// The blobs that `wanted` says yes to, each with whether it is in use.
    pub(crate) fn list(&self, wanted: impl Fn(&Digest) -> bool) -> Vec<(Digest, Known, bool)> {
        let pages = self.pages();
        let found = pages.blobs.iter().filter(|(digest, _)| wanted(digest));
        found
            .map(|(digest, blob)| (digest.clone(), blob.clone(), pages.is_in_use(blob)))
            .collect()
    }

    fn is_in_use(&self, digest: &Digest) -> bool {
        let pages = self.pages();
        let blob = pages.blobs.get(digest);
        blob.is_some_and(|blob| pages.is_in_use(blob))
    }

    /// Removes a blob unless it is in use or `needed`, which is asked when nobody can touch the
    /// blob any more. Says whether it is gone.
    pub(crate) async fn remove(
        &self,
        content: &dyn ContentStore,
        digest: &Digest,
        needed: impl Fn() -> bool,
    ) -> Result<bool, ContentError> {
        let _gate = self.gate.write().await;
        if self.is_in_use(digest) || needed() {
            return Ok(false);
        }
        content.delete(digest).await?;
        let mut pages = self.pages();
        if let Some(blob) = pages.blobs.remove(digest) {
            pages.total = pages.total.saturating_sub(blob.disk);
        }
        Ok(true)
    }
}

impl Pages {
    fn put(&mut self, info: &Info, touched: bool) {
        let clock = if touched { self.clock } else { 0 };
        let blob = self.blobs.entry(info.digest.clone()).or_insert(Known {
            disk: 0,
            created_at: info.created_at,
            last_used: None,
            count: 0,
            touched: 0,
        });
        self.total = self.total.saturating_sub(blob.disk) + info.disk;
        blob.disk = info.disk;
        blob.touched = blob.touched.max(clock);
        if touched {
            blob.last_used = Some(SystemTime::now());
            blob.count += 1;
        }
    }

    fn is_in_use(&self, blob: &Known) -> bool {
        let oldest = self.running.first_key_value();
        oldest.is_some_and(|(began, ())| *began <= blob.touched)
    }
}

/// Work that looks at blobs which belong to no ref, such as a build: what it has touched stays
/// as long as this value is there.
#[derive(Debug)]
#[must_use = "what the work touches may go when this value does"]
pub struct Work {
    book: Arc<Book>,
    began: u64,
}

impl Work {
    pub(crate) fn begin(book: &Arc<Book>) -> Self {
        let mut pages = book.pages();
        pages.clock += 1;
        let began = pages.clock;
        pages.running.insert(began, ());
        drop(pages);
        Self {
            book: book.clone(),
            began,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.book.pages().running.remove(&self.began);
        self.book.changed.notify_one();
    }
}

/// A content store that writes down who comes and goes.
pub(crate) struct Watched {
    pub(crate) inner: Arc<dyn ContentStore>,
    pub(crate) book: Arc<Book>,
}

#[async_trait]
impl ContentStore for Watched {
    async fn info(&self, digest: &Digest) -> Result<Info, ContentError> {
        let _gate = self.book.gate.read().await;
        let info = self.inner.info(digest).await?;
        self.book.pages().put(&info, true);
        Ok(info)
    }

    async fn open(&self, digest: &Digest) -> Result<Box<dyn Blob>, ContentError> {
        let _gate = self.book.gate.read().await;
        let blob = self.inner.open(digest).await?;
        let clock = self.book.pages().clock;
        if let Some(known) = self.book.pages().blobs.get_mut(digest) {
            known.touched = clock;
            known.last_used = Some(SystemTime::now());
            known.count += 1;
        }
        Ok(blob)
    }

    async fn ingest(&self, reference: &str) -> Result<Box<dyn Ingest>, ContentError> {
        Ok(Box::new(WatchedIngest {
            ingest: self.inner.ingest(reference).await?,
            inner: self.inner.clone(),
            book: self.book.clone(),
        }))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), ContentError> {
        let _gate = self.book.gate.write().await;
        self.inner.delete(digest).await?;
        let mut pages = self.book.pages();
        if let Some(blob) = pages.blobs.remove(digest) {
            pages.total = pages.total.saturating_sub(blob.disk);
        }
        Ok(())
    }

    async fn walk(&self) -> Result<Vec<Info>, ContentError> {
        self.inner.walk().await
    }

    async fn sync(&self, blobs: &[Digest]) -> Result<(), ContentError> {
        self.inner.sync(blobs).await
    }
}

struct WatchedIngest {
    ingest: Box<dyn Ingest>,
    inner: Arc<dyn ContentStore>,
    book: Arc<Book>,
}

#[async_trait]
impl Ingest for WatchedIngest {
    fn offset(&self) -> u64 {
        self.ingest.offset()
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        self.ingest.write(bytes).await
    }

    async fn commit(
        self: Box<Self>,
        size: Option<u64>,
        digest: Option<&Digest>,
    ) -> Result<Digest, ContentError> {
        let _gate = self.book.gate.read().await;
        let digest = self.ingest.commit(size, digest).await?;
        let info = self.inner.info(&digest).await?;
        self.book.pages().put(&info, true);
        self.book.changed.notify_one();
        Ok(digest)
    }

    async fn abort(self: Box<Self>) -> Result<(), ContentError> {
        self.ingest.abort().await
    }
}
