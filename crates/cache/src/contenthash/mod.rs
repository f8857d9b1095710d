//! The content hash: digests of files and trees, equal to those of BuildKit's
//! `cache/contenthash` byte by byte, because cache keys are made of them.
//!
//! A file's digest is of a tar header without name and times, and of its content ([`file`]). A
//! directory's is of its own header and of the names and digests of what is in it ([`tree`]).
//! With wildcards or patterns it is of the paths that they choose ([`select`]).

mod cache;
mod disk;
mod file;
mod inherit;
mod listing;
mod noting;
mod saved;
mod scan;
mod select;
#[cfg(test)]
mod tests;
mod tree;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use cooper_content::{Digest, digest_from};
use cooper_snapshot::Mount;

pub(crate) use cache::HashCache;
pub use file::{FileHasher, FileStat, file_digest};
pub use listing::ListedFile;
pub(crate) use listing::list;
pub(crate) use tree::Tree;
pub use tree::{EntryKind, HashedChange};

use crate::record::Stage;
use crate::{CacheError, LocalRef};
use scan::{Failure, Scan};

/// Paths of a tree at most for a walk over it to be done at once, on an async thread.
const SMALL: usize = 500;

/// What of a path is hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChecksumOptions {
    /// Follow a symbolic link that the path itself is; those on the way are always followed.
    pub follow_links: bool,
    /// The path has wildcards, in the manner of Go's `path.Match`.
    pub wildcard: bool,
    /// Only what these patterns match, relative to the path.
    pub include: Vec<String>,
    /// Not what these patterns match, relative to the path.
    pub exclude: Vec<String>,
}

impl ChecksumOptions {
    fn is_plain(&self) -> bool {
        !self.wildcard && self.include.is_empty() && self.exclude.is_empty()
    }
}

/// Says to a blocking thread that nobody waits for it any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) async fn checksum(
    local: &LocalRef,
    path: &Path,
    options: &ChecksumOptions,
) -> Result<Digest, CacheError> {
    let shared = local.shared();
    let slot = slot(local)?;
    // What is known of a small tree needs no thread and no mount.
    // The lock ends with the block: the thread takes it.
    let at_once = {
        match slot.tree.try_lock() {
            Ok(mut tree) if tree.nodes().len() <= SMALL => {
                let mut scan = Scan::without_disk().telling(shared.plaintexts.get().cloned());
                Some(run(&mut tree, &mut scan, path, options))
            }
            _ => None,
        }
    };
    let result = match at_once {
        Some(result) => result,
        None => in_thread(local, &slot, None, path, options).await?,
    };
    let result = match result {
        Err(Failure::NeedsDisk) => {
            let mounts = local.mounts().await?;
            let result = in_thread(local, &slot, Some(mounts), path, options).await?;
            shared.touch();
            result
        }
        result => result,
    };
    match result {
        Ok(digest) => Ok(digest),
        Err(Failure::Cache(error)) => Err(error),
        Err(Failure::NeedsDisk) => Err(CacheError::Closed),
    }
}

/// Where the hashes of a ref are.
fn slot(local: &LocalRef) -> Result<Arc<cache::Slot>, CacheError> {
    let id = local.read(|entry| match &entry.record.state {
        // What is sealed over a snapshot has the hashes of who wrote it.
        Stage::Sealed { origin } => origin.clone(),
        _ => local.id().clone(),
    });
    local.shared().hashes.get(&id)
}

/// Runs on a thread that may block; with `mounts` it can look at the disk.
async fn in_thread(
    local: &LocalRef,
    slot: &Arc<cache::Slot>,
    mounts: Option<Vec<Mount>>,
    path: &Path,
    options: &ChecksumOptions,
) -> Result<Result<Digest, Failure>, CacheError> {
    let cancel = Cancel(Arc::default());
    let below = mounts
        .as_ref()
        .and_then(|mounts| inherit::below(local, mounts));
    let mut scan = match mounts {
        Some(mounts) => Scan::on(mounts, local.shared().mounts.clone(), cancel.0.clone()),
        None => Scan::without_disk(),
    }
    .telling(local.shared().plaintexts.get().cloned());
    let (path, options) = (path.to_owned(), options.clone());
    // The handle keeps the mounts good as long as the thread runs.
    let (pin, slot) = (local.clone(), slot.clone());
    let (told, result) = tokio::sync::oneshot::channel();
    let hashing = tokio::task::spawn_blocking(move || {
        let mut tree = slot.tree.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((below, above)) = &below
            && !options.wildcard
            // Who hashes it now would be waited for.
            && let Ok(below) = below.tree.try_lock()
        {
            let inherited = inherit::inherit(&mut tree, &below, above, &tree::key_of(&path));
            if let Err(error) = inherited {
                // Then everything is looked at.
                tracing::debug!(%error, "what is known of a state below could not be taken over");
            }
        }
        let result = run(&mut tree, &mut scan, &path, &options);
        tree.dirty |= scan.has_changed();
        drop(tree);
        drop(pin);
        // Who has given up waits for no result.
        let _ = told.send(result);
        // The kernel forgets all files of a mount when that goes, which takes as long as a good
        // part of looking at them: nobody waits for it.
        drop(scan);
    });
    match result.await {
        Ok(result) => Ok(result),
        // It has ended without one.
        Err(_) => match hashing.await {
            Ok(()) => Err(CacheError::Closed),
            Err(source) => Err(CacheError::Thread {
                id: local.id().to_string(),
                source,
            }),
        },
    }
}

/// The checksum over `tree`, which learns from `scan` what it does not know.
fn run(
    tree: &mut Tree,
    scan: &mut Scan,
    path: &Path,
    options: &ChecksumOptions,
) -> Result<Digest, Failure> {
    if !options.is_plain() {
        return select::checksum(tree, scan, path, options);
    }
    let key = tree::key_of(path);
    let (found, there) = scan.resolve(tree, &key, options.follow_links)?;
    if !there {
        let path = tree::path_of(&key);
        return Err(CacheError::PathNotFound { path }.into());
    }
    let digest = scan.digest(tree, &found)?;
    if let Some(plaintexts) = scan.plaintexts() {
        noting::tree(tree, &found, plaintexts);
    }
    Ok(digest_from(&digest))
}

/// The checksum with nothing known before.
#[cfg(test)]
pub(crate) fn afresh(
    mounts: Vec<Mount>,
    folder: &Path,
    path: &Path,
    options: &ChecksumOptions,
) -> Result<Digest, String> {
    let mut scan = Scan::on(mounts, folder.to_owned(), Arc::default());
    run(&mut Tree::unknown(), &mut scan, path, options).map_err(|failure| format!("{failure:?}"))
}
