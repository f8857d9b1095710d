//! Blobs in a folder: `blobs/sha256/<hex>`, and ingests in `ingest/<name>`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::Digest as _;

use crate::{Blob, ContentError, ContentStore, Info, Ingest, digest_from, digest_of};

/// A content store in a folder of the local file system. Clones share it.
#[derive(Clone, Debug)]
pub struct FsContentStore {
    blobs: PathBuf,
    ingests: PathBuf,
    writing: Arc<Mutex<HashSet<String>>>,
}

impl FsContentStore {
    /// Opens the store in `root`, made when it is missing.
    pub fn open(root: &Path) -> Result<Self, ContentError> {
        let (blobs, ingests) = (root.join("blobs/sha256"), root.join("ingest"));
        for path in [&blobs, &ingests] {
            std::fs::create_dir_all(path).map_err(io("make", path))?;
        }
        Ok(Self {
            blobs,
            ingests,
            writing: Arc::default(),
        })
    }

    /// Removes what ingests of an earlier process left. To be called before the first ingest.
    pub fn clear_ingests(&self) -> Result<(), ContentError> {
        let list = std::fs::read_dir(&self.ingests).map_err(io("list", &self.ingests))?;
        for entry in list {
            let path = entry.map_err(io("list", &self.ingests))?.path();
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// Where the blob `digest` is kept.
    pub fn path(&self, digest: &Digest) -> Result<PathBuf, ContentError> {
        match digest.algorithm() {
            // The digest's own parser lets nothing but hexadecimal digits through.
            DigestAlgorithm::Sha256 => Ok(self.blobs.join(digest.digest())),
            _ => Err(ContentError::Algorithm {
                digest: digest.clone(),
            }),
        }
    }
}

fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContentError + use<> {
    let path = path.to_owned();
    move |source| ContentError::Io {
        attempt,
        path,
        source,
    }
}

fn found(digest: &Digest, path: &Path, error: io::Error) -> ContentError {
    if error.kind() == io::ErrorKind::NotFound {
        ContentError::NotFound {
            digest: digest.clone(),
        }
    } else {
        io("open", path)(error)
    }
}

struct FileBlob {
    file: File,
    size: u64,
}

impl Blob for FileBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

#[async_trait]
impl ContentStore for FsContentStore {
    async fn info(&self, digest: &Digest) -> Result<Info, ContentError> {
        let path = self.path(digest)?;
        let meta = std::fs::metadata(&path).map_err(|error| found(digest, &path, error))?;
        let created_at = meta.modified().map_err(io("stat", &path))?;
        Ok(Info {
            digest: digest.clone(),
            size: meta.len(),
            disk: meta.blocks() * 512,
            created_at,
        })
    }

    async fn open(&self, digest: &Digest) -> Result<Box<dyn Blob>, ContentError> {
        let path = self.path(digest)?;
        let file = File::open(&path).map_err(|error| found(digest, &path, error))?;
        let size = file.metadata().map_err(io("stat", &path))?.len();
        Ok(Box::new(FileBlob { file, size }))
    }

    async fn ingest(&self, reference: &str) -> Result<Box<dyn Ingest>, ContentError> {
        // Any text is a name; its digest is a file name.
        let name = digest_of(reference.as_bytes()).digest().to_owned();
        let lock = Lock::take(&self.writing, &name).ok_or_else(|| ContentError::Busy {
            reference: reference.to_owned(),
        })?;
        let path = self.ingests.join(name);
        let options = File::options()
            .read(true)
            .append(true)
            .create(true)
            .to_owned();
        let file = options.open(&path).map_err(io("open", &path))?;
        let mut ingest = FsIngest {
            store: self.clone(),
            reference: reference.to_owned(),
            path,
            file,
            offset: 0,
            hash: sha2::Sha256::new(),
            _lock: lock,
        };
        ingest.rehash()?;
        Ok(Box::new(ingest))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), ContentError> {
        let path = self.path(digest)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    async fn walk(&self) -> Result<Vec<Info>, ContentError> {
        let mut infos = Vec::new();
        for entry in std::fs::read_dir(&self.blobs).map_err(io("list", &self.blobs))? {
            let entry = entry.map_err(io("list", &self.blobs))?;
            let name = entry.file_name();
            let Some(Ok(digest)) = name
                .to_str()
                .map(|hex| format!("sha256:{hex}").parse::<Digest>())
            else {
                continue;
            };
            match self.info(&digest).await {
                Ok(info) => infos.push(info),
                // Deleted since the folder was listed.
                Err(ContentError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(infos)
    }

    async fn sync(&self, blobs: &[Digest]) -> Result<(), ContentError> {
        let mut paths = blobs
            .iter()
            .map(|digest| self.path(digest))
            .collect::<Result<Vec<_>, _>>()?;
        // The names, after the files that they stand for.
        paths.push(self.blobs.clone());
        let sync = move || {
            for path in paths {
                match File::open(&path) {
                    Ok(file) => file.sync_data().map_err(io("sync", &path))?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io("open", &path)(error)),
                }
            }
            Ok(())
        };
        let done = tokio::task::spawn_blocking(sync).await;
        done.map_err(|source| ContentError::Backend {
            attempt: "sync blobs".into(),
            source: source.into(),
        })?
    }
}

/// The right to write one ingest, given back when dropped.
struct Lock {
    writing: Arc<Mutex<HashSet<String>>>,
    name: String,
}

impl Lock {
    fn take(writing: &Arc<Mutex<HashSet<String>>>, name: &str) -> Option<Self> {
        let mut names = writing.lock().unwrap_or_else(PoisonError::into_inner);
        let free = names.insert(name.to_owned());
        free.then(|| Self {
            writing: writing.clone(),
            name: name.to_owned(),
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.name);
    }
}

struct FsIngest {
    store: FsContentStore,
    reference: String,
    path: PathBuf,
    file: File,
    offset: u64,
    hash: sha2::Sha256,
    _lock: Lock,
}

impl FsIngest {
    /// Takes in what an earlier attempt has written.
    fn rehash(&mut self) -> Result<(), ContentError> {
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = self
                .file
                .read(&mut buffer)
                .map_err(io("read", &self.path))?;
            if read == 0 {
                return Ok(());
            }
            self.hash.update(&buffer[..read]);
            self.offset += read as u64;
        }
    }

    fn discard(&self) -> Result<(), ContentError> {
        std::fs::remove_file(&self.path).map_err(io("remove", &self.path))
    }
}

#[async_trait]
impl Ingest for FsIngest {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        self.file
            .write_all(bytes)
            .map_err(io("write", &self.path))?;
        self.hash.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    async fn commit(
        self: Box<Self>,
        size: Option<u64>,
        digest: Option<&Digest>,
    ) -> Result<Digest, ContentError> {
        if let Some(expected) = size
            && expected != self.offset
        {
            self.discard()?;
            let reference = self.reference.clone();
            return Err(ContentError::SizeMismatch {
                reference,
                found: self.offset,
                expected,
            });
        }
        let found = digest_from(self.hash.clone().finalize().as_slice());
        if let Some(expected) = digest
            && *expected != found
        {
            self.discard()?;
            let (reference, expected) = (self.reference.clone(), expected.clone());
            return Err(ContentError::DigestMismatch {
                reference,
                found,
                expected,
            });
        }
        let target = self.store.path(&found)?;
        std::fs::rename(&self.path, &target).map_err(io("commit", &target))?;
        Ok(found)
    }

    async fn abort(self: Box<Self>) -> Result<(), ContentError> {
        self.discard()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_folder_conforms() {
        let dir = tempfile::tempdir().unwrap();
        crate::testsuite::run(&FsContentStore::open(dir.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn an_ingest_goes_on_in_another_process_and_can_be_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let store = FsContentStore::open(dir.path()).unwrap();
        let mut ingest = store.ingest("x").await.unwrap();
        ingest.write(b"half").await.unwrap();
        drop(ingest);
        let store = FsContentStore::open(dir.path()).unwrap();
        assert_eq!(store.ingest("x").await.unwrap().offset(), 4);
        store.clear_ingests().unwrap();
        assert_eq!(store.ingest("x").await.unwrap().offset(), 0);
    }
}
