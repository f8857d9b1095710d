//! Applying a layer to a snapshot (OCI image specification, "Applying Changesets"; containerd's
//! `archive.Apply` where that leaves a choice).
//!
//! A plain tree has removed what the layer deletes. An overlay's upper folder is written
//! directly, with nothing mounted: deletions become whiteouts and opaque folders there.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cooper_content::Digest;
use cooper_content::digest_from;
use cooper_snapshot::Mount;
use cooper_sys::userns::explain_owner;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::Digest as _;

use crate::archive::{Archive, Entry, Kind, Time};
use crate::parents::{Folder, Tree, is_missing, is_whiteout};
use crate::{LayerError, decompress};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Pieces in which content is moved, and in which it is passed between threads.
const BUFFER: usize = 256 << 10;
/// Pieces that wait for being unpacked.
const AHEAD: usize = 8;

/// How much of a layer is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of files, the holes of sparse ones included.
    pub bytes: u64,
}

impl Default for Limits {
    /// Four million entries and a quarter of a terabyte: far above what images have.
    fn default() -> Self {
        Self {
            entries: 4 << 20,
            bytes: 256 << 30,
        }
    }
}

/// What a layer held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The digest of the tar.
    pub diff_id: Digest,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// Applies a layer, compressed or not, to the mounts of a snapshot that is written. Blocks: for
/// a thread that may. On an error the snapshot is to be thrown away.
///
/// Decompression has a thread of its own while this one writes files.
pub fn unpack(
    input: impl Read + Send,
    mounts: &[Mount],
    limits: &Limits,
) -> Result<Unpacked, LayerError> {
    let tree = Tree::open(mounts)?;
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::sync_channel(AHEAD);
        let reading = scope.spawn(move || -> io::Result<()> {
            let mut reader = decompress::reader(input)?;
            loop {
                let mut piece = vec![0; BUFFER];
                let length = fill(&mut reader, &mut piece)?;
                piece.truncate(length);
                if length == 0 || sender.send(piece).is_err() {
                    return Ok(());
                }
            }
        });
        let mut pieces = Pieces {
            receiver,
            piece: Vec::new(),
            at: 0,
            hash: sha2::Sha256::new(),
        };
        let result = Unpacker::new(tree, limits).run(&mut pieces);
        let Pieces { receiver, hash, .. } = pieces;
        // The other thread ends when nobody takes its pieces.
        drop(receiver);
        // What the reader met is the cause of what the tar lacks.
        match reading.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(LayerError::from_io(error)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let (entries, bytes) = result?;
        Ok(Unpacked {
            diff_id: digest_from(hash.finalize().as_slice()),
            entries,
            bytes,
        })
    })
}

/// Reads until the buffer is full or the input ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The pieces from the other thread as one stream, hashed.
struct Pieces {
    receiver: std::sync::mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hash: sha2::Sha256,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            // The end, or an error that the other thread tells.
            let Ok(piece) = self.receiver.recv() else {
                return Ok(0);
            };
            self.hash.update(&piece);
            (self.piece, self.at) = (piece, 0);
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Writes entries to a tree, as layers have them.
pub(crate) struct Unpacker {
    pub(crate) tree: Tree,
    limits: Limits,
    /// In a plain tree: what this layer has written, which its own whiteouts do not remove.
    written: HashSet<PathBuf>,
    /// The folders above those.
    above: HashSet<PathBuf>,
    buffer: Vec<u8>,
}

impl Unpacker {
    pub(crate) fn new(tree: Tree, limits: &Limits) -> Self {
        Self {
            tree,
            limits: *limits,
            written: HashSet::new(),
            above: HashSet::new(),
            buffer: vec![0; BUFFER],
        }
    }

    fn run(mut self, input: &mut Pieces) -> Result<(u64, u64), LayerError> {
        let mut archive = Archive::new(input);
        let (mut entries, mut bytes) = (0, 0u64);
        while let Some(entry) = archive.next()? {
            entries += 1;
            bytes = bytes.saturating_add(entry.size);
            let over = [
                (entries, self.limits.entries, "entries"),
                (bytes, self.limits.bytes, "bytes"),
            ];
            if let Some((_, limit, unit)) = over.into_iter().find(|(have, most, _)| have > most) {
                return Err(LayerError::Limit { limit, unit });
            }
            self.apply(&mut archive, &entry)?;
        }
        // What stands after the end is part of what the digest is of.
        io::copy(archive.into_inner(), &mut io::sink()).map_err(LayerError::from_io)?;
        self.tree.set_times()?;
        Ok((entries, bytes))
    }

    fn apply<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
    ) -> Result<(), LayerError> {
        let path = inside(&entry.path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The root itself is the snapshot's.
            return Ok(());
        };
        let fail = |error: io::Error| LayerError::entry(&path)(error);
        let folder = self.tree.folder(parent).map_err(fail)?;
        if name.as_bytes() == OPAQUE {
            return self.opaque(&folder).map_err(fail);
        }
        if let Some(gone) = name.as_bytes().strip_prefix(WHITEOUT) {
            if gone.starts_with(WHITEOUT) {
                // Bookkeeping of aufs, which says nothing here.
                return Ok(());
            }
            if matches!(gone, b"" | b"." | b"..") {
                return Err(LayerError::archive(format!(
                    "invalid whiteout name: {}",
                    name.display()
                )));
            }
            return self
                .whiteout(&folder, OsStr::from_bytes(gone))
                .map_err(fail);
        }
        match self.create(archive, entry, &folder, name) {
            Err(LayerError::Read { source }) => return Err(LayerError::Read { source }),
            Err(LayerError::Entry { source, .. }) => return Err(fail(source)),
            result => result?,
        }
        self.wrote(&folder, name);
        Ok(())
    }

    /// Notes that whiteouts of this layer do not remove `name`.
    pub(crate) fn wrote(&mut self, folder: &Folder, name: &OsStr) {
        if self.tree.overlay.is_some() {
            return;
        }
        self.written.insert(folder.path.join(name));
        let mut above = Some(folder.path.as_path());
        while let Some(path) = above.filter(|path| !self.above.contains(*path)) {
            self.above.insert(path.to_owned());
            above = path.parent();
        }
    }

    fn create<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
        folder: &Rc<Folder>,
        name: &OsStr,
    ) -> Result<(), LayerError> {
        let dir = folder.fd.as_fd();
        let fail = |error: io::Error| LayerError::entry(Path::new(name))(error);
        match entry.kind {
            Kind::Directory => {
                self.directory(folder, name).map_err(fail)?;
                self.metadata(entry, dir, name).map_err(fail)?;
                let times = times(entry);
                self.tree.times.push((folder.path.join(name), times));
                return Ok(());
            }
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let open = || rustix::fs::openat(dir, name, flags, mode);
                let file: File = self.replacing(folder, name, open).map_err(fail)?.into();
                self.content(archive, entry, &file)?;
            }
            Kind::HardLink => {
                let target = self.link_target(&entry.link).map_err(fail)?;
                let (at, last) = (target.0.fd.as_fd(), target.1.as_os_str());
                if same(at, last, dir, name) {
                    return Ok(());
                }
                let link = || rustix::fs::linkat(at, last, dir, name, AtFlags::empty());
                self.replacing(folder, name, link).map_err(fail)?;
            }
            Kind::Symlink => {
                let target = OsStr::from_bytes(&entry.link);
                let link = || rustix::fs::symlinkat(target, dir, name);
                self.replacing(folder, name, link).map_err(fail)?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                if kind != FileType::Fifo && cooper_sys::userns::inside() {
                    // Nobody can make devices in a user namespace: as in containerd, the image
                    // has none there.
                    return Ok(());
                }
                let node = || rustix::fs::mknodat(dir, name, kind, Mode::RUSR, device);
                self.replacing(folder, name, node).map_err(fail)?;
            }
        }
        self.metadata(entry, dir, name).map_err(fail)?;
        let here = AtFlags::SYMLINK_NOFOLLOW;
        let set = rustix::fs::utimensat(dir, name, &times(entry), here);
        set.map_err(|error| fail(error.into()))
    }

    /// Makes something whose name may be taken: what is there goes.
    pub(crate) fn replacing<T>(
        &mut self,
        folder: &Rc<Folder>,
        name: &OsStr,
        make: impl Fn() -> Result<T, Errno>,
    ) -> io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(folder, name)?;
                Ok(make()?)
            }
            result => Ok(result?),
        }
    }

    fn remove(&mut self, folder: &Rc<Folder>, name: &OsStr) -> io::Result<()> {
        // Folders that are known may be among what goes.
        self.tree.forget();
        self.entry(folder, name)?.remove_all()
    }

    fn entry(&self, folder: &Folder, name: &OsStr) -> io::Result<cooper_sys::Entry> {
        Ok(cooper_sys::Entry {
            dir: rustix::io::fcntl_dupfd_cloexec(&folder.fd, 0)?,
            name: name.to_owned(),
        })
    }

    /// A folder that is there stays, with what is in it.
    pub(crate) fn directory(&mut self, folder: &Rc<Folder>, name: &OsStr) -> io::Result<()> {
        let make = || rustix::fs::mkdirat(&folder.fd, name, Mode::RWXU);
        match make() {
            Err(Errno::EXIST) => {}
            result => return Ok(result?),
        }
        let entry = self.entry(folder, name)?;
        let stat = entry.stat()?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(());
        }
        self.remove(folder, name)?;
        make()?;
        if self.tree.overlay.is_some() && is_whiteout(&stat) {
            // The layer deletes what was there and begins anew.
            self.tree.hide(&entry)?;
        }
        Ok(())
    }

    fn content<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
        mut file: &File,
    ) -> Result<(), LayerError> {
        let fail = |error: io::Error| LayerError::entry(Path::new(""))(error);
        let Some(pieces) = &entry.pieces else {
            let mut left = entry.size;
            while left > 0 {
                let read = archive.read(&mut self.buffer)?;
                file.write_all(&self.buffer[..read]).map_err(fail)?;
                left -= read as u64;
            }
            return Ok(());
        };
        for (offset, length) in pieces {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(BUFFER);
                let read = archive.read(&mut self.buffer[..most])?;
                file.write_all_at(&self.buffer[..read], at).map_err(fail)?;
                at += read as u64;
            }
        }
        file.set_len(entry.size).map_err(fail)
    }

    /// The folder and the name that a hard link is to; a link there is not followed.
    fn link_target(&mut self, link: &[u8]) -> io::Result<(Rc<Folder>, PathBuf)> {
        let path = inside(link);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        Ok((self.tree.folder(parent)?, PathBuf::from(name)))
    }

    /// Owner, attributes and mode, in this order: chown(2) takes set-id bits and capabilities
    /// away.
    pub(crate) fn metadata(
        &self,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        let here = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), here)
            .map_err(|error| explain_owner(error.into(), entry.uid, entry.gid))?;
        if !entry.xattrs.is_empty() {
            use std::os::fd::AsRawFd;
            let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
            for (key, value) in &entry.xattrs {
                xattr(entry.kind, &path, key, value)?;
            }
        }
        let link = entry.kind == Kind::Symlink
            || (entry.kind == Kind::HardLink
                && rustix::fs::statat(dir, name, here)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink));
        if !link {
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Hides all that lower layers have in a folder.
    fn opaque(&mut self, folder: &Rc<Folder>) -> io::Result<()> {
        if self.tree.overlay.is_some() {
            return self.tree.hide(&self.entry(folder, OsStr::new("."))?);
        }
        for name in self.tree.root.read_dir(&folder.path)? {
            self.clear(&folder.path.join(name))?;
        }
        self.tree.forget();
        Ok(())
    }

    /// Hides what lower layers have at a name.
    pub(crate) fn whiteout(&mut self, folder: &Rc<Folder>, name: &OsStr) -> io::Result<()> {
        if self.tree.overlay.is_none() {
            self.clear(&folder.path.join(name))?;
            self.tree.forget();
            return Ok(());
        }
        let entry = self.entry(folder, name)?;
        match entry.stat() {
            // Whiteouts are about lower layers: what this one has stays.
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.tree.hide(&entry),
                _ => Ok(()),
            },
            Err(error) if is_missing(&error) => {
                // Only over something: a folder that is in this layer alone is listed with all
                // that is in it, whiteouts included.
                if self.tree.below(&folder.path.join(name))?.is_none() {
                    return Ok(());
                }
                let device = FileType::CharacterDevice;
                Ok(rustix::fs::mknodat(
                    &folder.fd,
                    name,
                    device,
                    Mode::empty(),
                    0,
                )?)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes from a plain tree what this layer has not written.
    fn clear(&self, path: &Path) -> io::Result<()> {
        let entry = match self.tree.root.entry(path) {
            Ok(entry) => entry,
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !self.written.contains(path) && !self.above.contains(path) {
            return entry.remove_all();
        }
        match entry.stat() {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                for name in self.tree.root.read_dir(path)? {
                    self.clear(&path.join(name))?;
                }
                Ok(())
            }
            Err(error) if !is_missing(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether both names are one file already.
fn same(a: BorrowedFd<'_>, a_name: &OsStr, b: BorrowedFd<'_>, b_name: &OsStr) -> bool {
    let stat = |dir, name: &OsStr| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    match (stat(a, a_name), stat(b, b_name)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

/// The path below the root: `.` and `..` are taken out, and nothing leads above it.
fn inside(path: &[u8]) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                found.pop();
            }
            name => found.push(OsStr::from_bytes(name)),
        }
    }
    found
}

/// Sets an attribute. Overlayfs's own are refused: they would change what the layers show.
fn xattr(kind: Kind, path: &Path, key: &[u8], value: &[u8]) -> io::Result<()> {
    if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
        return Ok(());
    }
    let name = OsStr::from_bytes(key);
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        // The machine's root has these to itself.
        Err(Errno::PERM)
            if (key.starts_with(b"security.") || key.starts_with(b"trusted."))
                && cooper_sys::userns::inside() =>
        {
            Ok(())
        }
        // Only files and folders have these (xattr(7)).
        Err(Errno::PERM)
            if key.starts_with(b"user.") && !matches!(kind, Kind::File | Kind::Directory) =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The times of an entry: the last access is not before the last change, as in containerd.
pub(crate) fn times(entry: &Entry) -> Timestamps {
    let spec = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds),
    };
    let accessed = entry.accessed.unwrap_or(entry.modified).max(entry.modified);
    Timestamps {
        last_access: spec(accessed),
        last_modification: spec(entry.modified),
    }
}

#[cfg(test)]
mod tests;
