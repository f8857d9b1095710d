//! Unpacking archives where a Dockerfile's `ADD` names one: tar, plain or compressed with
//! gzip, bzip2, xz or zstd. For bzip2 and xz the programs of these names are used.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use cooper_proto::pb;
use cooper_sys::{Entry, Root};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use tar::{EntryType, Header};

use super::act::{Scene, make_dirs, set_time};
use super::paths::{Failure, failed, follow, reason};

const XATTR: &str = "SCHILY.xattr.";
/// Links on the way to one entry (BuildKit's bound).
const MAX_LINKS: usize = 255;

/// Unpacks `path` of `source` into the destination of the action if it is an archive; says
/// whether it was one.
pub(super) fn unpack(
    scene: &Scene<'_>,
    source: &Root,
    path: &str,
    action: &pb::FileActionCopy,
) -> Result<bool, Failure> {
    let named = Path::new(path);
    let path = follow(source, named, true).map_err(failed("lstat", named))?;
    let Ok(stat) = source.lstat(&path) else {
        return Ok(false);
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    let open = || source.open_file(&path).map_err(failed("open", &path));
    if !is_archive(open()?) {
        return Ok(false);
    }
    let named = Path::new(&action.dest);
    let dest = follow(scene.target, named, true).map_err(failed("mkdir", named))?;
    make_dirs(scene, &dest, 0o755, action.timestamp)?;
    let target = scene.target.sub(&dest).map_err(failed("open", &dest))?;
    let reader = Decompressed::new(open()?).map_err(failed("open", &path))?;
    let unpacked = Unpack {
        scene,
        target,
        times: Vec::new(),
        known: None,
    }
    .all(reader);
    unpacked.map_err(|error| format!("failed to unpack {}: {}", path.display(), reason(&error)))?;
    Ok(true)
}

fn is_archive(file: File) -> bool {
    let Ok(reader) = Decompressed::new(file) else {
        return false;
    };
    let mut archive = tar::Archive::new(reader);
    archive
        .entries()
        .is_ok_and(|mut entries| matches!(entries.next(), Some(Ok(_))))
}

/// A file as it was before it was compressed.
enum Decompressed {
    Plain(BufReader<File>),
    Gzip(Box<flate2::read::MultiGzDecoder<BufReader<File>>>),
    Zstd(zstd::Decoder<'static, BufReader<File>>),
    Program(Child),
}

impl Decompressed {
    fn new(mut file: File) -> io::Result<Self> {
        let mut magic = [0; 6];
        let mut length = 0;
        while length < magic.len() {
            match file.read(&mut magic[length..])? {
                0 => break,
                read => length += read,
            }
        }
        file.seek(SeekFrom::Start(0))?;
        let magic = &magic[..length];
        Ok(if magic.starts_with(&[0x1f, 0x8b, 0x08]) {
            let decoder = flate2::read::MultiGzDecoder::new(BufReader::new(file));
            Self::Gzip(Box::new(decoder))
        } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd(zstd::Decoder::new(file)?)
        } else if magic.starts_with(b"BZh") {
            Self::program("bzip2", file)?
        } else if magic.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            Self::program("xz", file)?
        } else {
            Self::Plain(BufReader::new(file))
        })
    }

    fn program(name: &str, file: File) -> io::Result<Self> {
        let child = Command::new(name)
            .args(["-d", "-c", "-q"])
            .stdin(file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self::Program(child))
    }
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
            Self::Program(child) => {
                let output = child.stdout.as_mut();
                output.map_or(Ok(0), |output| output.read(buffer))
            }
        }
    }
}

impl Drop for Decompressed {
    fn drop(&mut self) {
        if let Self::Program(child) = self {
            // It may not have been read to its end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Unpack<'a> {
    scene: &'a Scene<'a>,
    target: Root,
    /// Directories and their times, set at the end: making members changes them.
    times: Vec<(PathBuf, i64)>,
    /// A folder of the archive and where it is, as long as no link can have changed that: the
    /// next entry is likely to be in it.
    known: Option<(PathBuf, PathBuf)>,
}

impl Unpack<'_> {
    fn all(mut self, reader: Decompressed) -> io::Result<()> {
        let mut archive = tar::Archive::new(reader);
        for entry in archive.entries()? {
            if self.scene.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("context canceled"));
            }
            let entry = entry?;
            let path = entry.path()?.into_owned();
            self.one(entry).map_err(|error| named(&path, error))?;
        }
        for (path, time) in std::mem::take(&mut self.times) {
            set_time(&self.target.entry(path)?, time)?;
        }
        Ok(())
    }

    fn one<R: Read>(&mut self, mut from: tar::Entry<'_, R>) -> io::Result<()> {
        let kind = from.header().entry_type();
        if matches!(
            kind,
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName
        ) {
            return Ok(());
        }
        let path = inside(&from.path()?)?;
        if matches!(kind, EntryType::Char | EntryType::Block | EntryType::Fifo) {
            // As BuildKit: an archive brings files, and no ways to the machine.
            return Ok(());
        }
        let xattrs = xattrs(&mut from)?;
        let path = self.resolve(&path)?;
        if path.as_os_str().is_empty() {
            // The destination itself keeps what it is.
            return Ok(());
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        self.target.mkdir_all(parent, 0o755)?;
        let to = self.target.entry(&path)?;
        self.make_room(&to, kind)?;
        match kind {
            EntryType::Directory => match rustix::fs::mkdirat(&to.dir, &to.name, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            },
            EntryType::Symlink => {
                let link = link_name(&from)?;
                rustix::fs::symlinkat(&link, &to.dir, &to.name)?;
            }
            EntryType::Link => {
                let old = inside(&link_name(&from)?)?;
                if old.as_os_str().is_empty() {
                    let text = format!("archive hardlink {path:?} targets extraction root");
                    return Err(io::Error::other(text));
                }
                let old = self.resolve(&old)?;
                let old = self.target.entry(old)?;
                let flags = AtFlags::empty();
                rustix::fs::linkat(&old.dir, &old.name, &to.dir, &to.name, flags)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let mut file: File = rustix::fs::openat(&to.dir, &to.name, flags, mode)?.into();
                io::copy(&mut from, &mut file)?;
            }
            other => {
                let text = format!(
                    "unsupported tar entry {path:?} type {}",
                    char::from(other.as_byte())
                );
                return Err(io::Error::other(text));
            }
        }
        self.metadata(from.header(), &to, kind, &xattrs)?;
        let header = from.header();
        let time = or_zero(&header.as_old().mtime, header.mtime())?;
        let time = i64::try_from(time).unwrap_or(0);
        let time = time.saturating_mul(1_000_000_000);
        if kind == EntryType::Directory {
            self.times.push((path, time));
            return Ok(());
        }
        set_time(&to, time)
    }

    /// The path with the links on the way to its last name followed, as they lead inside the
    /// destination: absolute ones begin there.
    ///
    /// # Errors
    /// One of them leads out of the destination, or there are too many.
    fn resolve(&mut self, path: &Path) -> io::Result<PathBuf> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(PathBuf::new());
        };
        if let Some((known, there)) = &self.known
            && known == parent
        {
            return Ok(there.join(name));
        }
        let there = self.follow(path)?;
        self.known = Some((
            parent.to_owned(),
            there.parent().unwrap_or(parent).to_owned(),
        ));
        Ok(there)
    }

    fn follow(&self, path: &Path) -> io::Result<PathBuf> {
        let mut open: VecDeque<OsString> = path.iter().map(ToOwned::to_owned).collect();
        let mut found = PathBuf::new();
        let mut links = 0;
        while let Some(name) = open.pop_front() {
            if name == ".." {
                if !found.pop() {
                    let text = format!("archive path {path:?} points outside extraction root");
                    return Err(io::Error::other(text));
                }
                continue;
            }
            found.push(name);
            if open.is_empty() {
                break;
            }
            let entry = match self.target.entry(&found) {
                Ok(entry) => entry,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let Ok(target) = entry.read_link() else {
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                let text = format!("too many symlinks resolving archive path {path:?}");
                return Err(io::Error::other(text));
            }
            found.pop();
            for part in target.components().rev() {
                match part {
                    Component::Normal(name) => open.push_front(name.to_owned()),
                    Component::ParentDir => open.push_front("..".into()),
                    Component::RootDir => found = PathBuf::new(),
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// Removes what is in the way; directories are merged.
    fn make_room(&mut self, to: &Entry, kind: EntryType) -> io::Result<()> {
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            self.known = None;
        }
        match to.stat() {
            Ok(there) => {
                let directory = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
                if directory && kind == EntryType::Directory {
                    return Ok(());
                }
                self.known = None;
                to.remove_all()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn metadata(
        &self,
        header: &Header,
        to: &Entry,
        kind: EntryType,
        xattrs: &[(String, Vec<u8>)],
    ) -> io::Result<()> {
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("invalid owner"));
        let (uid, gid) = match self.scene.owner {
            Some(owner) => owner,
            None => {
                let fields = header.as_old();
                let uid = or_zero(&fields.uid, header.uid())?;
                (id(uid)?, id(or_zero(&fields.gid, header.gid())?)?)
            }
        };
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let here = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&to.dir, &to.name, owner.0, owner.1, here)
            .map_err(|error| cooper_sys::userns::explain_owner(error.into(), uid, gid))?;
        // Another name of a link is a link, whatever its own entry says.
        let is_link = match kind {
            EntryType::Symlink => true,
            EntryType::Link => FileType::from_raw_mode(to.stat()?.st_mode) == FileType::Symlink,
            _ => false,
        };
        if !is_link {
            let mode = or_zero(&header.as_old().mode, header.mode())?;
            let mode = Mode::from_raw_mode(mode & 0o7777);
            rustix::fs::chmodat(&to.dir, &to.name, mode, AtFlags::empty())?;
        }
        for (name, value) in xattrs {
            let path = to.proc_path();
            match rustix::fs::lsetxattr(&path, name.as_str(), value, XattrFlags::empty()) {
                // As `tar` does without privileges: better the file alone than nothing.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A number of a header. One that was left out is 0, as Go and GNU tar read it.
fn or_zero<T: Default>(field: &[u8], number: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(T::default());
    }
    number
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> io::Result<PathBuf> {
    let name = entry.link_name()?;
    let name = name.ok_or_else(|| io::Error::other("a link without a target"))?;
    Ok(name.into_owned())
}

fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let Some(extensions) = entry.pax_extensions()? else {
        return Ok(found);
    };
    for extension in extensions {
        let extension = extension?;
        if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(XATTR)) {
            found.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// A path of an archive, as it is inside the destination: an absolute one begins there.
///
/// # Errors
/// It leads out of the destination.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut found = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => found.push(name),
            Component::ParentDir if !found.pop() => {
                let text = format!("archive path {path:?} is outside extraction root");
                return Err(io::Error::other(text));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// An error of the system with the entry that it is about; the others name it themselves.
fn named(path: &Path, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => io::Error::other(format!("{}: {}", path.display(), reason(&error))),
        None => error,
    }
}
