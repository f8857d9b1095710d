//! Learning from the disk what a tree does not know yet.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cooper_content::Plaintexts;
use cooper_snapshot::Mount;

use super::disk::{Disk, Name, Seen};
use super::tree::{Key, Kind, Raw, Tree, parent_of, step};
use crate::CacheError;

/// Symbolic links that are followed for one path, as in BuildKit.
const MAX_LINKS: usize = 255;

/// Why a scan stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something is not known, and there is no disk to look at.
    NeedsDisk,
    Cache(CacheError),
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

/// Looks at the files of one ref. Mounts them when it must.
pub(crate) struct Scan {
    source: Option<(Vec<Mount>, PathBuf)>,
    cancelled: Arc<AtomicBool>,
    disk: Option<Disk>,
    seen: Seen,
    plaintexts: Option<Arc<dyn Plaintexts>>,
}

impl Scan {
    pub(crate) fn without_disk() -> Self {
        Self {
            source: None,
            cancelled: Arc::default(),
            disk: None,
            seen: Seen::default(),
            plaintexts: None,
        }
    }

    /// Over the files that `mounts` show, mounted below `folder`.
    pub(crate) fn on(mounts: Vec<Mount>, folder: PathBuf, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            source: Some((mounts, folder)),
            cancelled,
            disk: None,
            seen: Seen::default(),
            plaintexts: None,
        }
    }

    /// The same, and who is told what digests are computed from.
    pub(crate) fn telling(self, plaintexts: Option<Arc<dyn Plaintexts>>) -> Self {
        Self { plaintexts, ..self }
    }

    /// Who is told what digests are computed from.
    pub(crate) fn plaintexts(&self) -> Option<&dyn Plaintexts> {
        self.plaintexts.as_deref()
    }

    /// Whether the disk was looked at.
    pub(crate) fn has_changed(&self) -> bool {
        self.disk.is_some()
    }

    fn disk(&mut self) -> Result<&Disk, Failure> {
        if self.disk.is_none() {
            let (mounts, folder) = self.source.as_ref().ok_or(Failure::NeedsDisk)?;
            let mut disk = Disk::mount(mounts, folder, self.cancelled.clone())?;
            disk.plaintexts.clone_from(&self.plaintexts);
            self.disk = Some(disk);
        }
        self.disk.as_ref().ok_or(Failure::NeedsDisk)
    }

    /// Follows the links on the way to `key`, and the one that it is itself when `follow` is
    /// set. Gives where that leads and whether something is there.
    pub(crate) fn resolve(
        &mut self,
        tree: &mut Tree,
        key: &[u8],
        follow: bool,
    ) -> Result<(Key, bool), Failure> {
        let names = |path: &[u8]| -> Vec<Vec<u8>> {
            let names = path.split(|byte| *byte == 0 || *byte == b'/');
            names
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect()
        };
        let mut rest: VecDeque<Vec<u8>> = names(key).into();
        let mut current = Key::new();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let mut next = current.clone();
            step(&mut next, &name);
            if let Some(parent) = parent_of(&next) {
                self.list(tree, parent)?;
            }
            let Some(Kind::Symlink { target }) = tree.get(&next).map(|node| &node.kind) else {
                current = next;
                continue;
            };
            if !follow && rest.is_empty() {
                current = next;
                break;
            }
            links += 1;
            if links > MAX_LINKS {
                let path = super::tree::path_of(key);
                return Err(CacheError::TooManyLinks { path }.into());
            }
            if target.first() == Some(&b'/') {
                current.clear();
            }
            for name in names(target).into_iter().rev() {
                rest.push_front(name);
            }
        }
        let there = tree.get(&current).is_some();
        Ok((current, there))
    }

    /// Learns the names in the directory `key`, when it is one.
    fn list(&mut self, tree: &mut Tree, key: &[u8]) -> Result<(), Failure> {
        match tree.get(key).map(|node| &node.kind) {
            Some(Kind::Directory { listed: false, .. }) => {}
            _ => return Ok(()),
        }
        self.learn(tree, &[key.to_vec()]).map(|_| ())
    }

    /// Learns the names in the directories `keys`. Gives the directories that are in these.
    fn learn(&mut self, tree: &mut Tree, keys: &[Key]) -> Result<Vec<Key>, Failure> {
        let mut inside = Vec::new();
        for (key, names) in keys.iter().zip(self.disk()?.list_all(keys)?) {
            for Name {
                name,
                kind,
                regular,
            } in names
            {
                let mut child = Key::with_capacity(key.len() + 1 + name.len());
                child.extend_from_slice(key);
                step(&mut child, &name);
                if matches!(kind, Kind::Directory { .. }) {
                    inside.push(child.clone());
                }
                if !regular {
                    self.seen.others.insert(child.clone());
                }
                tree.learn(child, kind);
            }
            self.seen.listed.insert(key.clone());
            if let Some(node) = tree.get_mut(key)
                && let Kind::Directory { listed, .. } = &mut node.kind
            {
                *listed = true;
            }
        }
        Ok(inside)
    }

    /// Learns all names below `key`, except in directories whose digest is known when
    /// `folded` is set.
    pub(crate) fn list_all(
        &mut self,
        tree: &mut Tree,
        key: &[u8],
        folded: bool,
    ) -> Result<(), Failure> {
        let mut open: Vec<Key> = unlisted(tree, key, folded);
        while !open.is_empty() {
            let mut inside = self.learn(tree, &open)?;
            // Of some of them something may be known.
            inside.retain(|dir| {
                let node = tree.get(dir).map(|node| &node.kind);
                matches!(node, Some(Kind::Directory { listed: false, .. }))
            });
            open = inside;
        }
        Ok(())
    }

    /// The digest of what is at `key`.
    pub(crate) fn digest(&mut self, tree: &mut Tree, key: &[u8]) -> Result<Raw, Failure> {
        let node = tree.get(key).ok_or_else(|| not_found(key))?;
        if let Some(digest) = node.digest {
            return Ok(digest);
        }
        if !node.is_directory() {
            self.hash_all(tree, &[key.to_vec()])?;
            return tree
                .get(key)
                .and_then(|node| node.digest)
                .ok_or_else(|| not_found(key));
        }
        self.list_all(tree, key, true)?;
        let mut missing = Vec::new();
        let mut known: Option<&[u8]> = None;
        for (key, node) in tree.subtree(key) {
            if known.is_some_and(|known| super::tree::is_inside(key, known)) {
                continue;
            }
            match (&node.kind, node.digest) {
                (Kind::Directory { .. }, Some(_)) => known = Some(key),
                (Kind::Directory { header: None, .. }, None) | (_, None)
                    if !matches!(
                        node.kind,
                        Kind::Directory {
                            header: Some(_),
                            ..
                        }
                    ) =>
                {
                    missing.push(key.clone());
                }
                _ => {}
            }
        }
        self.hash_all(tree, &missing)?;
        tree.fold(key).ok_or_else(|| not_found(key))
    }

    /// The digests of `keys`: of directories of their metadata, of files of all.
    pub(crate) fn headers(&mut self, tree: &mut Tree, keys: &[&[u8]]) -> Result<Vec<Raw>, Failure> {
        let read =
            |tree: &Tree, key: &[u8]| match tree.get(key).map(|node| (&node.kind, node.digest)) {
                Some((Kind::Directory { header, .. }, _)) => *header,
                Some((_, digest)) => digest,
                None => None,
            };
        let missing = keys.iter().filter(|key| read(tree, key).is_none());
        let mut missing: Vec<Key> = missing.map(|key| key.to_vec()).collect();
        missing.sort_unstable();
        self.hash_all(tree, &missing)?;
        let all = keys
            .iter()
            .map(|key| read(tree, key).ok_or_else(|| not_found(key)));
        all.collect()
    }

    /// Hashes the files and the metadata of the directories `keys`, which are in order.
    pub(crate) fn hash_all(&mut self, tree: &mut Tree, keys: &[Key]) -> Result<(), Failure> {
        if keys.is_empty() {
            return Ok(());
        }
        self.disk()?;
        let disk = self.disk.as_ref().ok_or(Failure::NeedsDisk)?;
        let hashed = disk.hash_all(keys, &self.seen)?;
        tree.set_hashes(keys.iter().zip(hashed));
        Ok(())
    }
}

fn unlisted(tree: &Tree, key: &[u8], folded: bool) -> Vec<Key> {
    let mut known: Option<&[u8]> = None;
    let mut found = Vec::new();
    for (key, node) in tree.subtree(key) {
        if known.is_some_and(|known| super::tree::is_inside(key, known)) {
            continue;
        }
        match &node.kind {
            Kind::Directory { .. } if folded && node.digest.is_some() => known = Some(key),
            Kind::Directory { listed: false, .. } => found.push(key.clone()),
            _ => {}
        }
    }
    found
}

fn not_found(key: &[u8]) -> Failure {
    let path = super::tree::path_of(key);
    CacheError::PathNotFound { path }.into()
}
