//! Learning from the disk what a tree does not know yet.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cooper_snapshot::{Mount, MountedDir};
use cooper_sys::Root;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::file::{FileStat, hash};
use super::tree::{Key, Kind, Raw, Tree, parent_of, step};
use crate::CacheError;
use crate::error::{io, snapshot};

/// Symbolic links that are followed for one path, as in BuildKit.
const MAX_LINKS: usize = 255;
/// Bytes of extended attributes of one file (xattr(7)).
const MAX_XATTRS: usize = 64 << 10;

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
}

struct Disk {
    root: Root,
    mounted: MountedDir,
}

impl Scan {
    pub(crate) fn without_disk() -> Self {
        Self {
            source: None,
            cancelled: Arc::default(),
            disk: None,
        }
    }

    /// Over the files that `mounts` show, mounted below `folder`.
    pub(crate) fn on(mounts: Vec<Mount>, folder: PathBuf, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            source: Some((mounts, folder)),
            cancelled,
            disk: None,
        }
    }

    /// Whether the disk was looked at.
    pub(crate) fn has_changed(&self) -> bool {
        self.disk.is_some()
    }

    fn disk(&mut self) -> Result<&Disk, Failure> {
        if self.disk.is_none() {
            let (mounts, folder) = self.source.as_ref().ok_or(Failure::NeedsDisk)?;
            let mounted = MountedDir::mount(mounts, folder);
            let mounted = mounted.map_err(snapshot("mount the files", &folder.display()))?;
            let root = Root::open(mounted.path()).map_err(io("open", mounted.path()))?;
            self.disk = Some(Disk { root, mounted });
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
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(CacheError::Closed.into());
        }
        let disk = self.disk()?;
        let path = path_on_disk(key);
        let shown = disk.mounted.path().join(&path);
        let failed = |error: std::io::Error| io("list", &shown)(error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let dir = disk
            .root
            .open_with(&path, flags, Mode::empty())
            .map_err(failed)?;
        let entries = rustix::fs::Dir::read_from(&dir).map_err(|e| failed(e.into()))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed(error.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
                    FileType::from_raw_mode(stat.map_err(|error| failed(error.into()))?.st_mode)
                }
                kind => kind,
            };
            let kind = match kind {
                FileType::Directory => Kind::Directory {
                    header: None,
                    listed: false,
                },
                FileType::Symlink => Kind::Symlink {
                    target: rustix::fs::readlinkat(&dir, name, Vec::new())
                        .map_err(|error| failed(error.into()))?
                        .into_bytes(),
                },
                _ => Kind::File,
            };
            let mut child = key.to_vec();
            step(&mut child, name.to_bytes());
            tree.learn(child, kind);
        }
        if let Some(node) = tree.get_mut(key)
            && let Kind::Directory { listed, .. } = &mut node.kind
        {
            *listed = true;
        }
        Ok(())
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
        while let Some(dir) = open.pop() {
            self.list(tree, &dir)?;
            let inside = tree.subtree(&dir).skip(1);
            open.extend(
                inside
                    .filter(|(_, node)| matches!(node.kind, Kind::Directory { listed: false, .. }))
                    .map(|(key, _)| key.clone()),
            );
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
            self.hash_all(tree, vec![key.to_vec()])?;
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
        self.hash_all(tree, missing)?;
        tree.fold(key).ok_or_else(|| not_found(key))
    }

    /// The digest of the metadata of the directory `key`, or of the file that it is.
    pub(crate) fn header(&mut self, tree: &mut Tree, key: &[u8]) -> Result<Raw, Failure> {
        let read = |tree: &Tree| match tree.get(key).map(|node| (&node.kind, node.digest)) {
            Some((Kind::Directory { header, .. }, _)) => *header,
            Some((_, digest)) => digest,
            None => None,
        };
        if let Some(digest) = read(tree) {
            return Ok(digest);
        }
        self.hash_all(tree, vec![key.to_vec()])?;
        read(tree).ok_or_else(|| not_found(key))
    }

    /// Hashes the files and the metadata of the directories `keys`, on as many threads as there
    /// are processors.
    pub(crate) fn hash_all(&mut self, tree: &mut Tree, keys: Vec<Key>) -> Result<(), Failure> {
        if keys.is_empty() {
            return Ok(());
        }
        let cancelled = self.cancelled.clone();
        let disk = self.disk()?;
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Hashed)>, CacheError> {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(key) = keys.get(index) else {
                    return Ok(done);
                };
                if cancelled.load(Ordering::Relaxed) {
                    return Err(CacheError::Closed);
                }
                done.push((index, disk.hash(key)?));
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = processors.min(keys.len().div_ceil(16));
        let results: Vec<Result<Vec<(usize, Hashed)>, CacheError>> = if threads <= 1 {
            vec![work()]
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                let join = threads.into_iter().map(|thread| match thread.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                join.collect()
            })
        };
        for result in results {
            for (index, (digest, mode)) in result? {
                let Some(node) = tree.get_mut(&keys[index]) else {
                    continue;
                };
                node.mode = Some(mode);
                match &mut node.kind {
                    Kind::Directory { header, .. } => *header = Some(digest),
                    _ => node.digest = Some(digest),
                }
            }
        }
        Ok(())
    }
}

/// A digest, and the permissions.
type Hashed = (Raw, u16);

impl Disk {
    fn hash(&self, key: &[u8]) -> Result<Hashed, CacheError> {
        let path = path_on_disk(key);
        let shown = self.mounted.path().join(&path);
        let entry = self.root.entry(&path).map_err(io("open", &shown))?;
        let found = entry.stat().map_err(io("stat", &shown))?;
        let mut stat = FileStat::from_disk(&found);
        let kind = FileType::from_raw_mode(found.st_mode);
        if kind == FileType::Symlink {
            let target = entry.read_link().map_err(io("read the link", &shown))?;
            stat.linkname = target.into_os_string().into_vec();
            // Links have no permissions of their own.
            stat.mode |= 0o777;
        }
        let mode = u16::try_from(stat.permissions()).unwrap_or_default();
        stat.xattrs = xattrs(&entry.proc_path()).map_err(io("read the attributes of", &shown))?;
        if kind != FileType::RegularFile || stat.size == 0 {
            let digest = hash(&stat, &mut std::io::empty()).map_err(io("read", &shown))?;
            return Ok((digest, mode));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(entry.dir.as_fd(), &entry.name, flags, Mode::empty());
        let mut file = File::from(file.map_err(|error| io("open", &shown)(error.into()))?);
        let digest = hash(&stat, &mut file).map_err(io("read", &shown))?;
        Ok((digest, mode))
    }
}

/// The extended attributes of a file, a link not followed. A file system without them has none.
fn xattrs(path: &std::path::Path) -> std::io::Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
    use rustix::io::Errno;
    let mut found = std::collections::BTreeMap::new();
    let mut names = Vec::with_capacity(1024);
    let listed = loop {
        names.clear();
        match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
            Err(Errno::RANGE) if names.capacity() < MAX_XATTRS => {
                names.reserve(MAX_XATTRS);
            }
            result => break result,
        }
    };
    match listed {
        Ok(_) => {}
        Err(Errno::NOTSUP) => return Ok(found),
        Err(error) => return Err(error.into()),
    }
    let names = names.split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty()) {
        let mut value: Vec<u8> = Vec::with_capacity(256);
        let read = loop {
            value.clear();
            let text = std::ffi::OsStr::from_bytes(name);
            match rustix::fs::lgetxattr(path, text, rustix::buffer::spare_capacity(&mut value)) {
                Err(Errno::RANGE) if value.capacity() < MAX_XATTRS => {
                    value.reserve(MAX_XATTRS);
                }
                result => break result,
            }
        };
        // One that cannot be read does not count.
        if read.is_ok() {
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
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

fn path_on_disk(key: &[u8]) -> PathBuf {
    let text: Vec<u8> = key
        .iter()
        .skip(1)
        .map(|byte| if *byte == 0 { b'/' } else { *byte })
        .collect();
    std::ffi::OsString::from_vec(text).into()
}
