//! Bringing lazy refs to disk: the layers of a chain are fetched side by side, and each is
//! unpacked while it arrives.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use cooper_cache::{Changes, Fill, FillError, Layer};
use cooper_content::{BlobReader, ContentError, ContentStore, Fetch, Ingest};
use cooper_progress::{StatusGuard, VertexProgress};
use cooper_snapshot::Mount;
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::unpack::{self, Limits, Unpacked};
use crate::{LayerError, blob, link};

/// Layers that are fetched at the same time for one chain, besides the one that is unpacked.
const SIDE_BY_SIDE: usize = 3;
const PIECE: usize = 128 << 10;
/// Pieces that wait for being unpacked.
const AHEAD: usize = 16;
/// Bytes between two reports of progress.
const REPORT: u64 = 1 << 20;

/// Knows where the blobs of layers can be fetched from.
pub trait FetchFor: Send + Sync {
    /// The places to try for a layer, in order.
    fn fetch_for(&self, layer: &Layer) -> Vec<Arc<dyn Fetch>>;
}

/// Fetches, verifies and unpacks layers; for one vertex, whose progress it reports. A clone is
/// the same.
///
/// Owns the tasks that fetch ahead: they end with its last clone.
#[derive(Clone)]
pub struct Filler {
    inner: Arc<Inner>,
    /// Apart, so that the tasks in it do not keep it alive.
    ahead: Arc<Mutex<JoinSet<()>>>,
}

struct Inner {
    content: Arc<dyn ContentStore>,
    fetch: Arc<dyn FetchFor>,
    progress: VertexProgress,
    slots: Arc<Semaphore>,
    limits: Limits,
}

impl Filler {
    /// A filler that keeps blobs in `content` and fetches those that are not there from where
    /// `fetch` says.
    pub fn new(
        content: Arc<dyn ContentStore>,
        fetch: Arc<dyn FetchFor>,
        progress: VertexProgress,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                content,
                fetch,
                progress,
                slots: Arc::new(Semaphore::new(SIDE_BY_SIDE)),
                limits: Limits::default(),
            }),
            ahead: Arc::default(),
        }
    }

    /// Fetches the layer's blob into the content store, if it is not there.
    ///
    /// # Cancel safety
    /// What was fetched by then is kept and resumed.
    pub async fn ensure_blob(&self, layer: &Layer) -> Result<(), LayerError> {
        self.inner.ensure(layer).await
    }

    /// Unpacks the layer into the mounts of a snapshot, fetching it when it is not there.
    ///
    /// # Cancel safety
    /// The unpacking stops soon after the future is dropped; the snapshot is to be thrown away.
    pub async fn unpack(&self, layer: &Layer, mounts: &[Mount]) -> Result<(), LayerError> {
        let unpacked = self.inner.unpack(layer, mounts.to_vec()).await?;
        if unpacked.diff_id != layer.diff_id {
            return Err(LayerError::DiffId {
                found: unpacked.diff_id,
                expected: layer.diff_id.clone(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Fill for Filler {
    fn prefetch(&self, layers: &[Layer]) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        // The lowest is unpacked at once, while it arrives.
        for layer in layers.iter().skip(1) {
            let (inner, layer) = (self.inner.clone(), layer.clone());
            ahead.spawn(async move {
                // Nobody closes it.
                let _slot = inner.slots.acquire().await.ok();
                if let Err(error) = inner.ensure(&layer).await {
                    // Who needs it tries it again, and has somebody to tell.
                    tracing::debug!(%error, digest = %layer.descriptor.digest(), "not fetched ahead");
                }
            });
        }
    }

    async fn fill(&self, layer: &Layer, mounts: &[Mount]) -> Result<(), FillError> {
        Ok(self.unpack(layer, mounts).await?)
    }

    async fn repeat(&self, changes: &Changes, mounts: &[Mount]) -> Result<u64, FillError> {
        let _status = self.inner.progress.status("merging", "merging");
        let stop = Stop::default();
        let stopped = stop.0.clone();
        let (changes, mounts) = (changes.clone(), mounts.to_vec());
        let linking = tokio::task::spawn_blocking(move || {
            link::link(&changes, &mounts, &|| stopped.load(Ordering::Relaxed))
        });
        Ok(linking.await.map_err(LayerError::from)??)
    }
}

impl std::fmt::Debug for Filler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Filler")
    }
}

impl Inner {
    async fn has(&self, layer: &Layer) -> bool {
        self.content.info(layer.descriptor.digest()).await.is_ok()
    }

    fn name(layer: &Layer) -> String {
        format!("layer-{}", layer.descriptor.digest())
    }

    async fn ensure(&self, layer: &Layer) -> Result<(), LayerError> {
        if self.has(layer).await {
            return Ok(());
        }
        let name = Self::name(layer);
        let _turn = blob::turn(&name).await;
        if self.has(layer).await {
            return Ok(());
        }
        let ingest = self.content.ingest(&name).await?;
        self.download(layer, ingest, None).await
    }

    async fn unpack(&self, layer: &Layer, mounts: Vec<Mount>) -> Result<Unpacked, LayerError> {
        let name = Self::name(layer);
        if !self.has(layer).await {
            let turn = blob::turn(&name).await;
            if !self.has(layer).await {
                let ingest = self.content.ingest(&name).await?;
                if ingest.offset() == 0 {
                    return self.arriving(layer, ingest, mounts).await;
                }
                // The begin is there already: first the rest, then all of it.
                self.download(layer, ingest, None).await?;
            }
            drop(turn);
        }
        let blob = self.content.open(layer.descriptor.digest()).await?;
        let _status = self.extracting(layer);
        let (stop, limits) = (Stop::default(), self.limits);
        let input = Stoppable {
            input: BlobReader::new(blob),
            stopped: stop.0.clone(),
        };
        tokio::task::spawn_blocking(move || unpack::unpack(input, &mounts, &limits)).await?
    }

    fn extracting(&self, layer: &Layer) -> StatusGuard {
        let id = format!("extracting {}", layer.descriptor.digest());
        self.progress.status(&id, "extract")
    }

    /// Unpacks a layer while it arrives.
    async fn arriving(
        &self,
        layer: &Layer,
        ingest: Box<dyn Ingest>,
        mounts: Vec<Mount>,
    ) -> Result<Unpacked, LayerError> {
        let status = self.extracting(layer);
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (stop, limits) = (Stop::default(), self.limits);
        let input = Stoppable {
            input: Arriving {
                receiver,
                piece: Bytes::new(),
            },
            stopped: stop.0.clone(),
        };
        let unpacking =
            tokio::task::spawn_blocking(move || unpack::unpack(input, &mounts, &limits));
        let downloading = async {
            let result = self.download(layer, ingest, Some(sender)).await;
            if result.is_err() {
                // What arrived may look whole.
                stop.stop();
            }
            result
        };
        let (downloaded, unpacked) = tokio::join!(downloading, unpacking);
        drop(status);
        let unpacked = unpacked?;
        match downloaded {
            Ok(()) => unpacked,
            // It was not wanted any more, because it could not be unpacked.
            Err(LayerError::Canceled) => Err(unpacked.err().unwrap_or(LayerError::Canceled)),
            Err(error) => Err(error),
        }
    }

    /// Brings the rest of a blob from the first place that gives it.
    async fn download(
        &self,
        layer: &Layer,
        mut ingest: Box<dyn Ingest>,
        mut unpacking: Option<mpsc::Sender<Bytes>>,
    ) -> Result<(), LayerError> {
        let descriptor = &layer.descriptor;
        let digest = descriptor.digest();
        let status = self.progress.status(digest.as_ref(), "downloading");
        let mut first = None;
        for fetch in self.fetch.fetch_for(layer) {
            let copied = self
                .copy(layer, fetch.as_ref(), &mut *ingest, &mut unpacking, &status)
                .await;
            match copied {
                Ok(()) => {
                    let size = descriptor.size();
                    ingest.commit(Some(size), Some(digest)).await?;
                    let size = i64::try_from(size).unwrap_or(i64::MAX);
                    status.finish(size, size);
                    return Ok(());
                }
                Err(LayerError::Canceled) => return Err(LayerError::Canceled),
                Err(error) => {
                    tracing::debug!(%digest, %error, "trying the next place");
                    // That of the place that the build names.
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| LayerError::NoSource {
            digest: digest.clone(),
        }))
    }

    async fn copy(
        &self,
        layer: &Layer,
        fetch: &dyn Fetch,
        ingest: &mut dyn Ingest,
        unpacking: &mut Option<mpsc::Sender<Bytes>>,
        status: &StatusGuard,
    ) -> Result<(), LayerError> {
        let descriptor = &layer.descriptor;
        let size = descriptor.size();
        let failed = |source| LayerError::Fetch {
            digest: descriptor.digest().clone(),
            source,
        };
        if ingest.offset() >= size {
            // All is there, as far as its length tells.
            return Ok(());
        }
        let mut reader = fetch
            .fetch(descriptor, ingest.offset())
            .await
            .map_err(failed)?;
        let mut reported = ingest.offset();
        let total = i64::try_from(size).unwrap_or(i64::MAX);
        let mut buffer = BytesMut::with_capacity(PIECE);
        loop {
            buffer.reserve(PIECE);
            let read = reader.read_buf(&mut buffer).await.map_err(|source| {
                failed(ContentError::Backend {
                    attempt: format!("read {}", descriptor.digest()),
                    source: source.into(),
                })
            })?;
            if read == 0 && ingest.offset() < size {
                let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(failed(ContentError::Backend {
                    attempt: format!("read {}", descriptor.digest()),
                    source: source.into(),
                }));
            }
            if read == 0 {
                return Ok(());
            }
            let piece = buffer.split().freeze();
            ingest.write(&piece).await?;
            if ingest.offset() > size {
                return Err(failed(ContentError::SizeMismatch {
                    reference: Self::name(layer),
                    found: ingest.offset(),
                    expected: size,
                }));
            }
            if let Some(sender) = unpacking
                && sender.send(piece).await.is_err()
            {
                return Err(LayerError::Canceled);
            }
            if ingest.offset() - reported >= REPORT {
                reported = ingest.offset();
                status.set(i64::try_from(reported).unwrap_or(i64::MAX), total);
            }
        }
    }
}

/// Tells a thread that its work is not wanted any more, when it is dropped.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A reader that fails once its work is not wanted any more.
struct Stoppable<R> {
    input: R,
    stopped: Arc<AtomicBool>,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        // Looked at afterwards: an end that came because of it is none.
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other(LayerError::Canceled));
        }
        Ok(read)
    }
}

/// What arrives, for a thread that may block.
struct Arriving {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(piece) = self.receiver.blocking_recv() else {
                return Ok(0);
            };
            self.piece = piece;
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
