//! The traits.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest};
use tokio::io::AsyncRead;

use crate::ContentError;

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it takes on the disk, in bytes: whole blocks of the file system.
    pub disk: u64,
    /// When it was committed.
    pub created_at: SystemTime,
}

/// A blob that is open for reading. It stays readable when the blob is deleted meanwhile.
pub trait Blob: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Reads at `offset`, as pread(2) does: fewer bytes than asked for are possible, none is
    /// the end. Blocks for the disk.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// Reads a [`Blob`] from its begin, on a thread that may block.
pub struct BlobReader<B> {
    blob: B,
    offset: u64,
}

impl<B> BlobReader<B> {
    /// At the begin of `blob`.
    pub fn new(blob: B) -> Self {
        Self { blob, offset: 0 }
    }
}

impl<B: std::ops::Deref<Target: Blob>> io::Read for BlobReader<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.blob.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Bytes on their way to become a blob.
///
/// Dropping it keeps what was written: an ingest of the same name goes on from there, and
/// [`Ingest::abort`] or the store's clean-up at start removes it.
#[async_trait]
pub trait Ingest: Send {
    /// How many bytes are there, those of an earlier attempt included.
    fn offset(&self) -> u64;

    /// Appends bytes.
    async fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError>;

    /// Makes it a blob. With `size` and `digest` it is checked against them, and what does not
    /// match is thrown away. A blob that is already there is no error.
    ///
    /// # Cancel safety
    /// When the future is dropped the blob is there or not, never in part.
    async fn commit(
        self: Box<Self>,
        size: Option<u64>,
        digest: Option<&Digest>,
    ) -> Result<Digest, ContentError>;

    /// Throws away what was written.
    async fn abort(self: Box<Self>) -> Result<(), ContentError>;
}

/// How many small blobs were begun: the number tells their ingests apart.
static WRITERS: AtomicU64 = AtomicU64::new(0);

/// Blobs by digest.
#[async_trait]
pub trait ContentStore: Send + Sync {
    /// What is known of `digest`.
    async fn info(&self, digest: &Digest) -> Result<Info, ContentError>;

    /// Opens a blob.
    async fn open(&self, digest: &Digest) -> Result<Box<dyn Blob>, ContentError>;

    /// Begins or resumes the ingest named `reference`; one at a time has a name.
    async fn ingest(&self, reference: &str) -> Result<Box<dyn Ingest>, ContentError>;

    /// Removes a blob. One that is not there is no error.
    async fn delete(&self, digest: &Digest) -> Result<(), ContentError>;

    /// All blobs, in no order.
    async fn walk(&self) -> Result<Vec<Info>, ContentError>;

    /// Waits until those of `blobs` that are here would survive the death of the machine.
    async fn sync(&self, blobs: &[Digest]) -> Result<(), ContentError>;

    /// The whole content of a small blob, at most `limit` bytes.
    async fn read_all(&self, digest: &Digest, limit: u64) -> Result<Bytes, ContentError> {
        let blob = self.open(digest).await?;
        let size = blob.size();
        if size > limit {
            return Err(ContentError::TooLarge {
                digest: digest.clone(),
                size,
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        io::Read::read_to_end(&mut BlobReader::new(&*blob), &mut bytes).map_err(|source| {
            ContentError::Backend {
                attempt: format!("read {digest}"),
                source: source.into(),
            }
        })?;
        Ok(bytes.into())
    }

    /// Stores a small blob whole.
    async fn write_all(&self, bytes: &[u8]) -> Result<Digest, ContentError> {
        let digest = crate::digest_of(bytes);
        if self.info(&digest).await.is_ok() {
            return Ok(digest);
        }
        // Others may write the same at this moment: a small blob is sooner written twice than
        // waited for.
        let number = WRITERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("blob-{digest}-{number}");
        let mut ingest = self.ingest(&name).await?;
        if ingest.offset() > 0 {
            // What an earlier process left may be anything.
            ingest.abort().await?;
            ingest = self.ingest(&name).await?;
        }
        ingest.write(bytes).await?;
        ingest.commit(Some(bytes.len() as u64), Some(&digest)).await
    }
}

/// Names of images whose blobs are in a store, for those who look for images there.
#[async_trait]
pub trait ImageStore: Send + Sync {
    /// Gives the image whose root is `target` the name, which another one may have had.
    /// `references` says which blobs each blob of the image needs: as long as the image has a
    /// name they stay, whatever else deletes them.
    ///
    /// # Cancel safety
    /// When the future is dropped the image has the name or not; blobs may stay longer.
    async fn name(
        &self,
        name: &str,
        target: &Descriptor,
        references: &[(Digest, Vec<Digest>)],
    ) -> Result<(), ContentError>;

    /// Unpacks an image's layers, the lowest first, each with the digest of its uncompressed form,
    /// so that a container of the image starts at once. What is unpacked stays as long as the
    /// image's configuration `config` does.
    ///
    /// # Errors
    /// Also when a layer's content is not what its digest says.
    ///
    /// # Cancel safety
    /// When the future is dropped some layers are unpacked or none, and nothing stays that nobody
    /// needs.
    async fn unpack(
        &self,
        config: &Digest,
        layers: &[(Descriptor, Digest)],
    ) -> Result<(), ContentError>;
}

/// Where blobs come from that are not in the store: a registry, a client.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// Opens the blob at `offset` bytes. The bytes are not verified: who stores them does.
    async fn fetch(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, ContentError>;
}
