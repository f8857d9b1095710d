//! What is common to the mounts of all processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cooper_cache::CacheManager;
use cooper_sys::MountPoint;

use crate::cachedir::CacheDirs;
use crate::error::{cache, io};
use crate::{MountError, Prepare, Prepared};

/// Prepares the mounts of processes. It owns which cache mounts are in use, and a folder with
/// the secrets and sockets of processes that run. Cheap to clone.
#[derive(Clone)]
pub struct MountManager {
    pub(crate) cache: CacheManager,
    pub(crate) dirs: Arc<CacheDirs>,
    dir: Arc<Dir>,
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    next: AtomicU64,
}

impl MountManager {
    /// A manager over `cache`. What an earlier process left in `dir` is unmounted and removed
    /// before the first use.
    pub fn new(cache: CacheManager, dir: PathBuf) -> Self {
        if let Err(error) = sweep(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove what earlier mounts left");
        }
        let next = AtomicU64::new(0);
        Self {
            cache,
            dirs: Arc::default(),
            dir: Arc::new(Dir { path: dir, next }),
        }
    }

    /// Prepares the mounts of one process.
    ///
    /// # Cancel safety
    /// When the future is dropped everything is given back.
    pub async fn prepare(&self, prepare: Prepare<'_>) -> Result<Prepared, MountError> {
        prepare.run(self).await
    }

    /// Makes the caches of these ids begin anew. Who has one keeps it.
    ///
    /// # Cancel safety
    /// When the future is dropped some may be forgotten.
    pub async fn forget_caches(&self, ids: &[&str]) -> Result<(), MountError> {
        let forgotten = self.dirs.forget(&self.cache, ids).await;
        forgotten.map_err(cache("forget the caches of", &ids.join(", ")))
    }

    /// A new empty folder.
    pub(crate) fn place(&self) -> Result<Place, MountError> {
        let dir = &self.dir;
        let number = dir.next.fetch_add(1, Ordering::Relaxed);
        let path = dir.path.join(format!("{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir.path).map_err(io("make", &dir.path))?;
        std::fs::create_dir(&path).map_err(io("make", &path))?;
        Ok(Place { path })
    }
}

/// A folder that is removed, being empty, when this value is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn sweep(dir: &Path) -> std::io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let dir = dir.canonicalize()?;
    for mount in MountPoint::below(&dir)? {
        cooper_sys::mount::unmount(&mount.target)?;
    }
    for entry in std::fs::read_dir(&dir)? {
        let path = entry?.path();
        // Sockets and empty places; anything else is not ours.
        if std::fs::remove_file(path.join("agent")).is_ok() || path.is_dir() {
            std::fs::remove_dir(&path)?;
        }
    }
    Ok(())
}
