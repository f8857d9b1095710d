//! Limits on single snapshots that the file system keeps, where it has quotas of projects.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cooper_sys::quota;

use crate::SnapshotError;
use crate::error::io;

/// Numbers of projects from here on are ours; those who number by hand begin at 1.
const FIRST: u32 = 0x4000_0000;

/// The projects of the snapshots in one folder.
#[derive(Debug)]
pub(crate) struct Projects {
    folders: File,
    /// Differs from that of another root on the same file system.
    base: u32,
}

impl Projects {
    /// Those of the snapshots in `folders`; none where limits are not kept.
    pub(crate) fn find(folders: &Path) -> Option<Self> {
        let file = File::open(folders).ok()?;
        if !quota::are_kept(&file) {
            return None;
        }
        let place = file.metadata().ok()?.ino();
        // Fibonacci hashing: folders that were made one after the other get far apart.
        let base = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Some(Self {
            folders: file,
            base: u32::try_from(base).unwrap_or_default(),
        })
    }

    fn of(&self, number: u64) -> u32 {
        let number = u32::try_from(number % u64::from(FIRST)).unwrap_or_default();
        FIRST | self.base.wrapping_add(number) & (FIRST - 1)
    }

    /// Lets what is in `folder`, that of snapshot `number`, and in the folders `inside` it have
    /// `bytes` at most. What is there already does not count.
    pub(crate) fn limit(
        &self,
        number: u64,
        folder: &Path,
        inside: &[&str],
        bytes: u64,
    ) -> Result<(), SnapshotError> {
        let project = self.of(number);
        // Before anything is in it: of an earlier snapshot there may be a limit.
        quota::set_limit(&self.folders, project, bytes).map_err(io("limit", folder))?;
        let all = inside.iter().map(|name| folder.join(name));
        for path in std::iter::once(folder.to_owned()).chain(all) {
            let open = File::open(&path).map_err(io("open", &path))?;
            quota::set_project(&open, project).map_err(io("set the project of", &path))?;
        }
        Ok(())
    }

    /// Takes the limit on snapshot `number` away.
    pub(crate) fn release(&self, number: u64, folder: &Path) -> Result<(), SnapshotError> {
        quota::set_limit(&self.folders, self.of(number), 0).map_err(io("limit", folder))
    }
}
