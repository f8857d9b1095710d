//! The files of a ref, read by as many threads as there are processors.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cooper_content::{Plaintexts, digest_from};
use cooper_snapshot::{Mount, MountedDir};
use cooper_sys::Root;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::file::{FileHasher, FileStat};
use super::tree::{Key, Kind, Raw, parent_of};
use crate::CacheError;
use crate::error::{io, snapshot};

/// Bytes that are read at once. A file that is shorter takes one call, and the names or a value of
/// the extended attributes of a file fit (xattr(7): 64 KiB).
const BUFFER: usize = 128 << 10;
/// Neighbours that a thread takes at once: most lie in one directory, which is then opened once.
const CHUNK: usize = 16;
/// Bytes that one thread may have read before others are started: they cost more than small
/// files do.
const ALONE: u64 = 1 << 20;
/// What a file counts beside its bytes, in bytes that are read and hashed in the same time.
const EACH: u64 = 8 << 10;
/// How files are opened.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// A digest, and the permissions.
pub(super) type Hashed = (Raw, u16);

/// What is in a directory.
pub(super) struct Name {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Whether it is a regular file, and no device or pipe.
    pub(super) regular: bool,
}

/// What was listed by who asks for digests: of that it is known what may be opened.
#[derive(Default)]
pub(super) struct Seen {
    /// The directories.
    pub(super) listed: HashSet<Key>,
    /// What in them is no regular file.
    pub(super) others: HashSet<Key>,
}

pub(super) struct Disk {
    root: Root,
    mounted: MountedDir,
    cancelled: Arc<AtomicBool>,
    /// Who is told what digests are computed from.
    pub(super) plaintexts: Option<Arc<dyn Plaintexts>>,
}

impl Disk {
    /// The files that `mounts` show, mounted below `folder`.
    pub(super) fn mount(
        mounts: &[Mount],
        folder: &Path,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self, CacheError> {
        let mounted = MountedDir::mount(mounts, folder);
        let mounted = mounted.map_err(snapshot("mount the files", &folder.display()))?;
        let root = Root::open(mounted.path()).map_err(io("open", mounted.path()))?;
        Ok(Self {
            root,
            mounted,
            cancelled,
            plaintexts: None,
        })
    }

    /// The names in each of the directories `keys`, in their order.
    pub(super) fn list_all(&self, keys: &[Key]) -> Result<Vec<Vec<Name>>, CacheError> {
        self.share(keys, &Seen::default(), |worker, key| {
            // Of its entries one knows nothing before.
            worker.spend(CHUNK as u64 * EACH);
            worker.list(key)
        })
    }

    /// The digests of the files and of the metadata of the directories `keys`, in their order.
    pub(super) fn hash_all(&self, keys: &[Key], seen: &Seen) -> Result<Vec<Hashed>, CacheError> {
        self.share(keys, seen, |worker, key| worker.hash(key))
    }

    /// Calls `work` with each of `keys`, on more than one thread when there is much to do.
    fn share<T: Send>(
        &self,
        keys: &[Key],
        seen: &Seen,
        work: impl Fn(&mut Worker<'_>, &[u8]) -> Result<T, CacheError> + Sync,
    ) -> Result<Vec<T>, CacheError> {
        let next = AtomicUsize::new(0);
        let run = |worker: &mut Worker<'_>| -> Result<Vec<(usize, Vec<T>)>, CacheError> {
            let mut done = Vec::new();
            loop {
                let from = next.fetch_add(CHUNK, Ordering::Relaxed);
                if from >= keys.len() {
                    return Ok(done);
                }
                let chunk = &keys[from..keys.len().min(from + CHUNK)];
                let results: Result<_, _> = chunk.iter().map(|key| work(worker, key)).collect();
                // The others need not go on.
                let results = results.inspect_err(|_| next.store(keys.len(), Ordering::Relaxed))?;
                done.push((from, results));
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let parts = std::thread::scope(|scope| {
            let mut others = Vec::new();
            let mut start = || {
                let left = keys.len().saturating_sub(next.load(Ordering::Relaxed));
                for _ in 0..(processors - 1).min(left.div_ceil(CHUNK)) {
                    others.push(scope.spawn(|| run(&mut Worker::new(self, seen, None))));
                }
            };
            let mut parts = vec![run(&mut Worker::new(self, seen, Some(&mut start)))];
            parts.extend(others.into_iter().map(|other| match other.join() {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
            parts
        });
        let mut all = Vec::new();
        for part in parts {
            all.extend(part?);
        }
        all.sort_unstable_by_key(|(from, _)| *from);
        Ok(all.into_iter().flat_map(|(_, results)| results).collect())
    }
}

/// One of the threads.
struct Worker<'a> {
    disk: &'a Disk,
    seen: &'a Seen,
    /// The directory that was looked at last, and whether it was listed.
    folder: Option<(Key, OwnedFd, bool)>,
    buffer: Vec<u8>,
    /// How much it has done, in bytes.
    spent: u64,
    /// Starts the others, once.
    start: Option<&'a mut dyn FnMut()>,
}

impl<'a> Worker<'a> {
    fn new(disk: &'a Disk, seen: &'a Seen, start: Option<&'a mut dyn FnMut()>) -> Self {
        Self {
            disk,
            seen,
            folder: None,
            buffer: vec![0; BUFFER],
            spent: 0,
            start,
        }
    }

    /// Counts what is about to be done, and gets help when that becomes much.
    fn spend(&mut self, bytes: u64) {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > ALONE
            && let Some(start) = self.start.take()
        {
            start();
        }
    }

    fn check(&self) -> Result<(), CacheError> {
        match self.disk.cancelled.load(Ordering::Relaxed) {
            true => Err(CacheError::Closed),
            false => Ok(()),
        }
    }

    /// The digest is that of a file, or of metadata alone, with these metadata.
    fn hashed(&self, hasher: FileHasher, stat: &FileStat, mode: u16) -> Hashed {
        let raw = hasher.finish_raw();
        if let Some(plaintexts) = &self.disk.plaintexts {
            let digest = digest_from(&raw);
            if plaintexts.wants(&digest) {
                plaintexts.note(&digest, stat.plaintext());
            }
        }
        (raw, mode)
    }

    /// Where `key` is on the host, for messages.
    fn shown(&self, key: &[u8]) -> PathBuf {
        self.disk.mounted.path().join(path_on_disk(key))
    }

    /// The names in the directory `key`.
    fn list(&mut self, key: &[u8]) -> Result<Vec<Name>, CacheError> {
        self.check()?;
        let failed = |error: std::io::Error| io("list", &self.shown(key))(error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = self
            .disk
            .root
            .open_with(path_on_disk(key), flags, Mode::empty());
        let dir = opened.map_err(failed)?;
        let mut names = Vec::new();
        let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = entries.next() {
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
            let regular = kind == FileType::RegularFile;
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
            names.push(Name {
                name: name.to_bytes().to_vec(),
                kind,
                regular,
            });
        }
        names.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(names)
    }

    /// The digest of the file, or of the metadata of the directory, `key`.
    fn hash(&mut self, key: &[u8]) -> Result<Hashed, CacheError> {
        self.check()?;
        let (parent, name) = match parent_of(key) {
            Some(parent) => (parent, &key[parent.len() + 1..]),
            None => (key, &b"."[..]),
        };
        let known = self.folder.take().filter(|(known, ..)| known == parent);
        let (folder, listed) = match known {
            Some((_, folder, listed)) => (folder, listed),
            None => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                let path = path_on_disk(parent);
                let opened = self.disk.root.open_with(path, flags, Mode::empty());
                let folder = opened.map_err(|error| io("open", &self.shown(parent))(error))?;
                (folder, self.seen.listed.contains(parent))
            }
        };
        let hashed = match listed && !self.seen.others.contains(key) {
            true => self.hash_regular(&folder, name, key),
            false => self.hash_in(&folder, name, key),
        };
        self.folder = Some((parent.to_vec(), folder, listed));
        hashed
    }

    /// As [`Worker::hash_in`], of what was a regular file when its directory was listed: that may
    /// be opened without a look at it before.
    fn hash_regular(
        &mut self,
        folder: &OwnedFd,
        name: &[u8],
        key: &[u8],
    ) -> Result<Hashed, CacheError> {
        if let Ok(file) = rustix::fs::openat(folder, name, FILE, Mode::empty())
            && let Ok(found) = rustix::fs::fstat(&file)
            && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
        {
            return self.hash_file(&File::from(file), &found, key);
        }
        // It is something else by now, or cannot be opened: that is said there.
        self.hash_in(folder, name, key)
    }

    fn hash_in(&mut self, folder: &OwnedFd, name: &[u8], key: &[u8]) -> Result<Hashed, CacheError> {
        let shown = || self.disk.mounted.path().join(path_on_disk(key));
        let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| io("stat", &shown())(error.into()))?;
        // What is no regular file is not opened: that means something to devices and pipes.
        if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
            let file = rustix::fs::openat(folder, name, FILE, Mode::empty());
            let file = file.map_err(|error| io("open", &shown())(error.into()))?;
            return self.hash_file(&File::from(file), &found, key);
        }
        self.spend(EACH);
        let mut stat = FileStat::from_disk(&found);
        if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
            let target = rustix::fs::readlinkat(folder, name, Vec::new());
            let target = target.map_err(|error| io("read the link", &shown())(error.into()))?;
            stat.linkname = target.into_bytes();
            // Links have no permissions of their own.
            stat.mode |= 0o777;
        }
        let mode = u16::try_from(stat.permissions()).unwrap_or_default();
        // For calls that take no directory: through `/proc`, so that it stays in the directory.
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
            .join(OsStr::from_bytes(name));
        stat.xattrs = xattrs(&Place::Path(&path), &mut self.buffer)
            .map_err(|error| io("read the attributes of", &shown())(error))?;
        Ok(self.hashed(FileHasher::new(&stat), &stat, mode))
    }

    /// A file that changes meanwhile is an error: the files of a ref do not, so it is somebody
    /// else who writes them, and what was read is neither the one state nor the other.
    fn hash_file(&mut self, file: &File, found: &Stat, key: &[u8]) -> Result<Hashed, CacheError> {
        let shown = || self.disk.mounted.path().join(path_on_disk(key));
        let mut stat = FileStat::from_disk(found);
        let mode = u16::try_from(stat.permissions()).unwrap_or_default();
        stat.xattrs = xattrs(&Place::File(file), &mut self.buffer)
            .map_err(|error| io("read the attributes of", &shown())(error))?;
        let mut hasher = FileHasher::new(&stat);
        let size = u64::try_from(found.st_size).unwrap_or_default();
        self.spend(EACH.saturating_add(size));
        let (mut file, mut read) = (file, 0);
        while read < size {
            let count = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io("read", &self.shown(key))(error)),
            };
            hasher.update(&self.buffer[..count]);
            read += count as u64;
            self.check()?;
        }
        let after = rustix::fs::fstat(file);
        let after = after.map_err(|error| io("stat", &self.shown(key))(error.into()))?;
        if read != size || !is_same(found, &after) {
            let path = super::tree::path_of(key);
            return Err(CacheError::Changed { path });
        }
        Ok(self.hashed(hasher, &stat, mode))
    }
}

/// Whether nobody has written a file between two looks. Another name of it, which a merge makes,
/// changes its ctime and nothing else.
fn is_same(one: &Stat, other: &Stat) -> bool {
    let of = |stat: &Stat| {
        let times = (stat.st_mtime, stat.st_mtime_nsec);
        (
            stat.st_ino,
            stat.st_size,
            times,
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
        )
    };
    of(one) == of(other)
}

/// What has extended attributes.
enum Place<'a> {
    File(&'a File),
    /// A link is not followed.
    Path(&'a Path),
}

impl Place<'_> {
    fn list(&self, names: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::File(file) => rustix::fs::flistxattr(file, names),
            Self::Path(path) => rustix::fs::llistxattr(*path, names),
        }
    }

    fn get(&self, name: &[u8], value: &mut [u8]) -> rustix::io::Result<usize> {
        let name = OsStr::from_bytes(name);
        match self {
            Self::File(file) => rustix::fs::fgetxattr(file, name, value),
            Self::Path(path) => rustix::fs::lgetxattr(*path, name, value),
        }
    }
}

/// The extended attributes of a file. A file system without them has none. `buffer` is larger
/// than what a file may have of them.
fn xattrs(place: &Place<'_>, buffer: &mut [u8]) -> std::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let count = match place.list(buffer) {
        // Of nearly all files.
        Ok(0) | Err(Errno::NOTSUP) => return Ok(found),
        Ok(count) => count,
        Err(error) => return Err(error.into()),
    };
    let names = buffer[..count].to_vec();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // One that cannot be read does not count.
        if let Ok(count) = place.get(name, buffer) {
            found.insert(name.to_vec(), buffer[..count].to_vec());
        }
    }
    Ok(found)
}

fn path_on_disk(key: &[u8]) -> PathBuf {
    let text: Vec<u8> = key
        .iter()
        .skip(1)
        .map(|byte| if *byte == 0 { b'/' } else { *byte })
        .collect();
    OsString::from_vec(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(dir: &Path) -> Disk {
        Disk::mount(&[Mount::bind(dir, false)], dir, Arc::default()).unwrap()
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_has_no_digest() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("grows", |path| std::fs::write(path, "much more").unwrap()),
            ("shrinks", |path| std::fs::write(path, "").unwrap()),
            ("is written", |path| {
                // As on a clock that is coarse: later.
                std::fs::write(path, "other").unwrap();
                let file = File::options().write(true).open(path).unwrap();
                let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
                file.set_modified(later).unwrap();
            }),
            ("is another", |path| {
                std::fs::write(path.with_extension("new"), "first").unwrap();
                std::fs::rename(path.with_extension("new"), path).unwrap();
            }),
        ];
        for (how, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            std::fs::write(&path, "first").unwrap();
            let disk = disk(dir.path());
            let found = rustix::fs::lstat(&path).unwrap();
            change(&path);
            let file = File::open(&path).unwrap();
            let hashed =
                Worker::new(&disk, &Seen::default(), None).hash_file(&file, &found, b"\0file");
            let error = hashed.expect_err(how).to_string();
            assert_eq!(error, "\"/file\": changed while it was read", "{how}");
        }
    }

    #[test]
    fn another_name_that_a_file_gets_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "text").unwrap();
        let found = rustix::fs::lstat(&path).unwrap();
        std::fs::hard_link(&path, dir.path().join("link")).unwrap();
        let (disk, file) = (disk(dir.path()), File::open(&path).unwrap());
        let hashed = Worker::new(&disk, &Seen::default(), None).hash_file(&file, &found, b"\0file");
        let all = disk.hash_all(&[b"\0file".to_vec(), b"\0link".to_vec()], &Seen::default());
        assert_eq!(all.unwrap(), vec![hashed.unwrap(); 2]);
    }

    #[test]
    fn many_files_are_shared_among_threads_and_come_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Vec::new();
        for number in 0..2000 {
            let name = format!("f{number:04}");
            std::fs::write(dir.path().join(&name), format!("text {number}")).unwrap();
            keys.push([b"\0", name.as_bytes()].concat());
        }
        let disk = disk(dir.path());
        let unseen = Seen::default();
        let all = disk.hash_all(&keys, &unseen).unwrap();
        for (key, hashed) in keys.iter().zip(&all).step_by(97) {
            let alone = disk.hash_all(std::slice::from_ref(key), &unseen).unwrap();
            assert_eq!(alone, [*hashed]);
        }
        // What was seen to be regular is opened at once, also when it is not that any more.
        let mut seen = Seen::default();
        seen.listed.insert(Key::new());
        assert_eq!(disk.hash_all(&keys, &seen).unwrap(), all);
        let path = dir.path().join("f0000");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        let link = disk.hash_all(&keys[..1], &seen).unwrap();
        assert_eq!(link, disk.hash_all(&keys[..1], &unseen).unwrap());
        assert_ne!(link[0], all[0]);
        // One that is missing ends it.
        keys.insert(777, b"\0missing".to_vec());
        assert!(disk.hash_all(&keys, &unseen).is_err());
        assert!(disk.hash_all(&keys, &seen).is_err());
    }
}
