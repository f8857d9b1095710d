//! What is known of the ref below holds for all that an overlay's own folder does not have: after
//! a change of one file on top of many, one file is read.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_snapshot::Mount;
use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};

use super::cache::Slot;
use super::tree::{self, Key, Kind, Node, Tree};
use crate::LocalRef;

/// Refs below that are asked what they know, at most.
const LEVELS: usize = 16;

/// The folders that the refs of a chain have of their own, the topmost first; none when its
/// mounts are no overlay of `count` refs.
fn own_folders(mounts: &[Mount], count: usize) -> Vec<PathBuf> {
    let [only] = mounts else {
        return Vec::new();
    };
    let lower = only.option("lowerdir").unwrap_or_default();
    let folders: Vec<PathBuf> = lower.split(':').map(PathBuf::from).collect();
    if only.kind != "overlay" || only.upper().is_some() || folders.len() != count {
        return Vec::new();
    }
    folders
}

/// What the nearest ref below `local` knows, and the folders of all that are above that one, the
/// lowest first.
pub(super) fn below(local: &LocalRef, mounts: &[Mount]) -> Option<(Arc<Slot>, Vec<PathBuf>)> {
    let chain = local.chain();
    let folders = own_folders(mounts, chain.len());
    let mut above = Vec::new();
    let refs = chain.iter().rev().zip(folders);
    for (index, (one, folder)) in refs.take(LEVELS).enumerate() {
        if index > 0
            && let Ok(Some(slot)) = local.shared().hashes.known(one.id())
        {
            above.reverse();
            return Some((slot, above));
        }
        above.push(folder);
    }
    None
}

/// Takes over what `below` knows of `key` and what is in it, but for what the folders `above`
/// have.
pub(super) fn inherit(
    tree: &mut Tree,
    below: &Tree,
    above: &[PathBuf],
    key: &[u8],
) -> std::io::Result<()> {
    // The root of what a client sent was never looked at.
    let sent: [u8; 32] = Sha256::digest(b"").into();
    let is_sent = matches!(
        below.get(b"").map(|root| &root.kind),
        Some(Kind::Directory { header: Some(header), .. }) if *header == sent
    );
    let known = below.get(key).is_some_and(|node| match &node.kind {
        Kind::Directory { listed, .. } => *listed,
        _ => node.digest.is_some(),
    });
    if is_sent || !known || tree.subtree(key).nth(1).is_some() {
        return Ok(());
    }
    let subtree = below.subtree(key);
    let nodes = subtree.map(|(key, node)| (key.clone(), node.clone()));
    let mut taken = Tree::from_nodes(nodes.collect());
    let mut names: Vec<&[u8]> = Vec::new();
    let mut rest = key;
    while let Some(parent) = tree::parent_of(rest) {
        names.push(&rest[parent.len() + 1..]);
        rest = parent;
    }
    for folder in above {
        let mut place = folder.clone();
        let mut names = names.iter().rev();
        loop {
            match (look(&place)?, names.next()) {
                (Found::Merged, Some(name)) => place.push(OsStr::from_bytes(name)),
                (Found::Merged, None) => {
                    change(&mut taken, &place, key)?;
                    break;
                }
                // Nothing of this ref is in it.
                (Found::Nothing, _) => break,
                (Found::Replaced, _) => return Ok(()),
            }
        }
    }
    tree.take_over(taken);
    Ok(())
}

enum Found {
    /// A directory that shows the one below it too.
    Merged,
    /// Something that hides what is below it.
    Replaced,
    Nothing,
}

fn look(path: &Path) -> std::io::Result<Found> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    if !meta.is_dir() {
        return Ok(Found::Replaced);
    }
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        let mut value = [0; 8];
        if rustix::fs::lgetxattr(path, name, &mut value[..]).is_ok_and(|read| read > 0) {
            return Ok(Found::Replaced);
        }
    }
    Ok(Found::Merged)
}

/// Forgets of the directory `key`, which `folder` lies over, all that is in the folder.
fn change(tree: &mut Tree, folder: &Path, key: &[u8]) -> std::io::Result<()> {
    let mut open: Vec<(PathBuf, Key)> = vec![(folder.to_owned(), key.to_vec())];
    while let Some((folder, key)) = open.pop() {
        // Its own metadata may be others, and its names.
        tree.unlist(&key);
        let listed = rustix::fs::Dir::read_from(rustix::fs::open(
            &folder,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )?)?;
        for entry in listed {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = folder.join(OsStr::from_bytes(name));
            let mut inside = key.clone();
            tree::step(&mut inside, name);
            let directory = match entry.file_type() {
                FileType::Unknown => path.symlink_metadata()?.is_dir(),
                kind => kind == FileType::Directory,
            };
            let merged = directory
                && tree.get(&inside).is_some_and(Node::is_directory)
                && matches!(look(&path)?, Found::Merged);
            if merged {
                open.push((path, inside));
            } else {
                // Learned anew with the names.
                tree.forget(&inside);
            }
        }
    }
    Ok(())
}
