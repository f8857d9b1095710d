//! Mounts in a temporary place.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cooper_sys::MountGuard;

use crate::error::io;
use crate::{Mount, SnapshotError};

/// Mounts that are there as long as this value is, in a folder of their own. A single bind for
/// writing is not mounted at all: its source is the place.
///
/// Dropping it unmounts lazily and removes the folder, at once and without waiting.
#[derive(Debug)]
#[must_use = "the mounts go when this value does"]
pub struct MountedDir {
    // Unmounted in this order: the last one mounted first.
    guards: Vec<MountGuard>,
    path: PathBuf,
    own: bool,
}

impl MountedDir {
    /// Mounts `mounts`, one over the other, in a new folder below `parent`.
    pub fn mount(mounts: &[Mount], parent: &Path) -> Result<Self, SnapshotError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if let [only] = mounts
            && only.kind == "bind"
            && only.upper().is_some()
        {
            return Ok(Self {
                guards: Vec::new(),
                path: only.source.clone(),
                own: false,
            });
        }
        std::fs::create_dir_all(parent).map_err(io("make", parent))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("mounted-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).map_err(io("make", &path))?;
        let mut mounted = Self {
            guards: Vec::new(),
            path,
            own: true,
        };
        for mount in mounts {
            let guard =
                MountGuard::mount(&mount.kind, &mount.source, &mount.options, &mounted.path)
                    .map_err(io("mount on", &mounted.path))?;
            mounted.guards.insert(0, guard);
        }
        Ok(mounted)
    }

    /// Where the files are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and says whether that went well.
    pub fn close(mut self) -> Result<(), SnapshotError> {
        for guard in std::mem::take(&mut self.guards) {
            guard.close().map_err(io("unmount", &self.path))?;
        }
        Ok(())
    }
}

impl Drop for MountedDir {
    fn drop(&mut self) {
        self.guards.clear();
        if self.own {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}
