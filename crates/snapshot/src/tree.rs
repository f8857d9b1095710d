//! Work on whole folders, on a thread that may block.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::io;
use crate::{SharedFile, SnapshotError, Usage};

/// Runs `function` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    function: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    match tokio::task::spawn_blocking(function).await {
        Ok(result) => result,
        Err(error) => Err(SnapshotError::Backend {
            attempt: "work on a snapshot".into(),
            source: error.into(),
        }),
    }
}

/// What lies in and below `dir`, `dir` included.
pub(crate) fn usage(dir: &Path) -> Result<Usage, SnapshotError> {
    let mut usage = Usage::default();
    // The files with more than one name.
    let mut seen: HashMap<(u64, u64), SharedFile> = HashMap::new();
    let mut open = vec![dir.to_owned()];
    let mut count = |meta: &std::fs::Metadata| {
        let bytes = meta.blocks() * 512;
        if meta.nlink() > 1 && !meta.is_dir() {
            let (device, inode) = (meta.dev(), meta.ino());
            let file = seen.entry((device, inode)).or_insert(SharedFile {
                device,
                inode,
                bytes,
                names: 0,
                links: meta.nlink(),
            });
            file.names += 1;
            if file.names > 1 {
                return;
            }
        }
        usage.bytes += bytes;
        usage.inodes += 1;
    };
    count(&dir.symlink_metadata().map_err(io("stat", dir))?);
    while let Some(dir) = open.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io("list", &dir)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(io("list", &dir))?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // A cache mount may be written meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io("stat", &entry.path())(error)),
            };
            count(&meta);
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    usage.shared = seen
        .into_values()
        .filter(|file| file.names < file.links)
        .collect();
    Ok(usage)
}

/// Removes a folder; one that is not there is no error.
pub(crate) fn remove(dir: &Path) -> Result<(), SnapshotError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Makes `folder` with the folders named `inside`, mode 0755 whatever the umask is.
pub(crate) fn make(folder: &Path, inside: &[&str]) -> Result<(), SnapshotError> {
    use std::os::unix::fs::PermissionsExt;
    let mut all: Vec<PathBuf> = vec![folder.to_owned()];
    all.extend(inside.iter().map(|name| folder.join(name)));
    for path in all {
        std::fs::create_dir(&path).map_err(io("make", &path))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).map_err(io("make", &path))?;
    }
    Ok(())
}
