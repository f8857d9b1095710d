//! What another end sends, written into a directory. That end is not trusted: names stay below
//! the directory and come in order, content comes only for what was asked.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cooper_proto::fsutil::{Packet, Stat, packet::PacketType};
use cooper_sys::Root;
use prost::Message as _;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::SessionError;
use crate::order::Order;
use crate::pattern::Matcher;
use crate::stat::{self, is_dir, is_regular, mode, permissions};

/// Files whose content is under way at one time: fewer than an fsutil sender queues (128), so
/// that a request never has to wait for the sender while the sender waits for us.
const MOST_REQUESTS: usize = 64;
/// What tells of all files where only some are taken (fsutil's `metadataPath`): each file's
/// metadata, with its length in four bytes, the lowest first, before it.
const LISTING: &str = ".fsutil-metadata";
/// The most bytes of such a listing: a million files have about 60 MiB.
const MOST_LISTED: usize = 256 << 20;

/// What changed in the directory.
#[derive(Debug)]
#[non_exhaustive]
pub enum Change<'a> {
    /// A file was made, replaced, or got other metadata.
    Set {
        /// Below the directory, slash-separated.
        path: &'a str,
        /// Its metadata.
        stat: &'a Stat,
        /// What the hasher made of its content; of a file without content, of nothing.
        digest: [u8; 32],
    },
    /// It is gone, with all below it.
    Removed {
        /// Below the directory, slash-separated.
        path: &'a str,
    },
}

/// Is told what a transfer does. All calls come from one thread that may block.
pub trait Watch: Send + Sync {
    /// Begins the digest of a file's content.
    fn hasher(&self, stat: &Stat) -> Sha256 {
        let _ = stat;
        Sha256::new()
    }

    /// Something changed.
    fn changed(&self, change: Change<'_>) {
        let _ = change;
    }

    /// So many bytes of packets arrived, or were sent, so far.
    fn transferred(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// Nobody watches.
impl Watch for () {}

/// What is taken for a change of a file that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Differ {
    /// Other metadata: size, modification time, mode, owner, link.
    #[default]
    Metadata,
    /// Anything: every file is sent again.
    None,
}

/// How a directory is written to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) differ: Differ,
    /// Only what this matches is taken, with the directories that it is in; all files are
    /// listed in a file of their own.
    pub(crate) only: Option<Matcher>,
    /// What was there and is not sent stays.
    pub(crate) merge: bool,
    /// Devices are made.
    pub(crate) devices: bool,
    /// Everything belongs to this process's user.
    pub(crate) own: bool,
}

pub(crate) enum Event {
    Stat(Stat),
    /// There are no more files.
    LastStat,
    Data(u32, Bytes),
}

pub(crate) struct Writer {
    root: Root,
    path: PathBuf,
    options: Options,
    watch: Arc<dyn Watch>,
    outgoing: mpsc::Sender<Packet>,
    /// What is in the directory and was not met yet, in order.
    before: std::iter::Peekable<std::vec::IntoIter<Stat>>,
    order: Order,
    next_id: u32,
    /// Regular files that were sent so far: what hard links may lead to.
    files: HashSet<String>,
    /// Those of them that were made anew.
    renewed: HashSet<String>,
    requested: HashMap<u32, Content>,
    waiting: VecDeque<(u32, Stat)>,
    /// Directories whose metadata is to be set when everything is in them.
    dirs: Vec<Stat>,
    /// The metadata of all files, where only some are taken.
    listing: Vec<u8>,
    /// Directories that are made when there is something to take in them.
    unmade: Vec<(u32, Stat)>,
    /// The directory of the last file: the next one is likely to be in it.
    parent: Option<(String, Arc<OwnedFd>)>,
}

/// A file whose content is under way.
struct Content {
    stat: Stat,
    file: File,
    hasher: Sha256,
}

impl Writer {
    pub(crate) fn new(
        path: &Path,
        options: Options,
        watch: Arc<dyn Watch>,
        outgoing: mpsc::Sender<Packet>,
    ) -> Result<Self, SessionError> {
        let before = if options.merge {
            Vec::new()
        } else {
            let mut before = Vec::new();
            let lists = options.only.is_some();
            crate::Tree::new(path).walk(&mut |stat| {
                // It is written anew each time.
                if !(lists && stat.path == LISTING) {
                    before.push(stat);
                }
                Ok(())
            })?;
            before
        };
        Ok(Self {
            root: Root::open(path).map_err(SessionError::io("open", path))?,
            path: path.to_owned(),
            options,
            watch,
            outgoing,
            before: before.into_iter().peekable(),
            order: Order::default(),
            next_id: 0,
            files: HashSet::new(),
            renewed: HashSet::new(),
            requested: HashMap::new(),
            waiting: VecDeque::new(),
            dirs: Vec::new(),
            listing: Vec::new(),
            unmade: Vec::new(),
            parent: None,
        })
    }

    /// Works until everything is there, then says so to the other end.
    pub(crate) fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), SessionError> {
        let mut listed = false;
        while !(listed && self.requested.is_empty()) {
            match events.blocking_recv().ok_or(SessionError::Closed)? {
                Event::Stat(_) | Event::LastStat if listed => {
                    let text = "a file after the last one";
                    return Err(SessionError::Protocol(text.to_owned()));
                }
                Event::Stat(stat) => self.stat(stat)?,
                Event::LastStat => {
                    self.remove_before(None)?;
                    listed = true;
                }
                Event::Data(id, data) => self.data(id, &data)?,
            }
        }
        if self.options.only.is_some() {
            self.list()?;
        }
        self.parent = None;
        for stat in std::mem::take(&mut self.dirs).into_iter().rev() {
            self.set_by_path(&stat)?;
        }
        self.send(PacketType::PacketFin, 0)
    }

    fn stat(&mut self, mut stat: Stat) -> Result<(), SessionError> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or_else(|| {
            SessionError::Protocol("more files than a transfer can number".to_owned())
        })?;
        self.order.check(&stat)?;
        if self.options.own {
            stat.uid = rustix::process::getuid().as_raw();
            stat.gid = rustix::process::getgid().as_raw();
        }
        if stat.mode & mode::DEVICE != 0 && !self.options.devices {
            let text = format!(
                "device {} is not allowed among the client's files: name it in the ignore file",
                stat.path
            );
            return Err(SessionError::Protocol(text));
        }
        if self.options.only.is_none() {
            return self.place(id, stat);
        }
        if !self.is_wanted(id, &stat)? {
            return Ok(());
        }
        for (id, dir) in std::mem::take(&mut self.unmade) {
            self.place(id, dir)?;
        }
        self.place(id, stat)
    }

    /// Lists a file, and says whether it is taken: a directory is when something in it is.
    fn is_wanted(&mut self, id: u32, stat: &Stat) -> Result<bool, SessionError> {
        if stat.path == LISTING {
            return Ok(false);
        }
        let size = stat.encoded_len();
        if self.listing.len().saturating_add(size) > MOST_LISTED {
            let text = format!("the metadata of the files has more than {MOST_LISTED} bytes");
            return Err(SessionError::Protocol(text));
        }
        let length = u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes();
        self.listing.extend_from_slice(&length);
        self.listing.extend_from_slice(&stat.encode_to_vec());
        let above = |dir: &Stat| is_in(&stat.path, &dir.path);
        self.unmade.retain(|(_, dir)| above(dir));
        if is_dir(stat.mode) {
            self.unmade.push((id, stat.clone()));
            return Ok(false);
        }
        let only = self.options.only.as_ref();
        Ok(only.is_none_or(|only| only.is_match(&stat.path)))
    }

    /// Writes down what was listed.
    fn list(&mut self) -> Result<(), SessionError> {
        let listing = std::mem::take(&mut self.listing);
        let dir = self.dir("")?;
        let write = || {
            let flags = OFlags::CREATE | OFlags::TRUNC;
            let mut file = open(&dir, LISTING, flags)?;
            file.write_all(&listing)
        };
        write().map_err(self.io("write", LISTING))?;
        let stat = Stat {
            path: LISTING.to_owned(),
            mode: 0o600,
            size: i64::try_from(listing.len()).unwrap_or(i64::MAX),
            ..Stat::default()
        };
        let mut hasher = self.watch.hasher(&stat);
        hasher.update(&listing);
        self.watch.changed(Change::Set {
            path: LISTING,
            stat: &stat,
            digest: hasher.finalize().into(),
        });
        Ok(())
    }

    /// Makes what is there what `stat` says, if it is not.
    fn place(&mut self, id: u32, stat: Stat) -> Result<(), SessionError> {
        let link = stat.mode & mode::SYMLINK == 0 && !stat.linkname.is_empty();
        if link && !is_dir(stat.mode) && !self.files.contains(&stat.linkname) {
            return Err(SessionError::Protocol(format!(
                "invalid link {} to unknown path: {:?}",
                stat.path, stat.linkname
            )));
        }
        self.remove_before(Some(&stat.path))?;
        let before = self.before.next_if(|before| before.path == stat.path);
        if is_regular(stat.mode) && !link {
            self.files.insert(stat.path.clone());
        }
        if let Some(before) = &before {
            if is_dir(before.mode) && !is_dir(stat.mode) {
                self.skip_below(&before.path);
            }
            if self.same(before, &stat) {
                if is_dir(stat.mode) {
                    self.dirs.push(stat);
                }
                return Ok(());
            }
        }
        self.make(id, stat)
    }

    fn same(&self, before: &Stat, stat: &Stat) -> bool {
        self.options.differ == Differ::Metadata
            && (is_dir(stat.mode) || before.size == stat.size && before.mod_time == stat.mod_time)
            && before.mode == stat.mode
            && (before.uid, before.gid) == (stat.uid, stat.gid)
            && (before.devmajor, before.devminor) == (stat.devmajor, stat.devminor)
            && before.linkname == stat.linkname
            // The other names of a file that was made anew have to lead to the new one.
            && !self.renewed.contains(&stat.linkname)
    }

    /// Removes what was there and would have come before `path`: all of it for `None`.
    fn remove_before(&mut self, path: Option<&str>) -> Result<(), SessionError> {
        let comes_before =
            |stat: &Stat| path.is_none_or(|path| stat.path.split('/').lt(path.split('/')));
        while let Some(old) = self.before.next_if(comes_before) {
            if is_dir(old.mode) {
                self.skip_below(&old.path);
            }
            let removed = self.root.remove_all(&old.path);
            removed.map_err(self.io("remove", &old.path))?;
            self.watch.changed(Change::Removed { path: &old.path });
            if self
                .parent
                .as_ref()
                .is_some_and(|(dir, _)| is_in(dir, &old.path))
            {
                self.parent = None;
            }
        }
        Ok(())
    }

    fn skip_below(&mut self, dir: &str) {
        while self.before.next_if(|stat| is_in(&stat.path, dir)).is_some() {}
    }

    /// Makes what `stat` describes in place of what is there.
    fn make(&mut self, id: u32, stat: Stat) -> Result<(), SessionError> {
        let (dir, name) = stat.path.rsplit_once('/').unwrap_or(("", &stat.path));
        let dir = self.dir(dir)?;
        let failed = self.io("make", &stat.path);
        let there = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Some(FileType::from_raw_mode(there.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error.into())),
        };
        match there {
            Some(FileType::Directory) if is_dir(stat.mode) => {}
            Some(_) => {
                let removed = self.root.remove_all(&stat.path);
                removed.map_err(self.io("remove", &stat.path))?;
                self.renewed.insert(stat.path.clone());
            }
            None => {}
        }
        let result = if is_dir(stat.mode) {
            // Open to its owner until everything is in it.
            match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                Err(Errno::EXIST) => Ok(()),
                made => made,
            }
        } else if stat.mode & (mode::DEVICE | mode::NAMED_PIPE) != 0 {
            let device = rustix::fs::makedev(stat.devmajor as u32, stat.devminor as u32);
            let kind = FileType::from_raw_mode(stat::unix_mode(stat.mode));
            rustix::fs::mknodat(&dir, name, kind, Mode::RUSR | Mode::WUSR, device)
        } else if stat.mode & mode::SYMLINK != 0 {
            rustix::fs::symlinkat(stat.linkname.as_str(), &dir, name)
        } else if !stat.linkname.is_empty() {
            let target = self.root.entry(&stat.linkname);
            let target = target.map_err(self.io("link to", &stat.linkname))?;
            let flags = AtFlags::empty();
            rustix::fs::linkat(&target.dir, &target.name, &dir, name, flags)
        } else {
            let file = open(&dir, name, OFlags::CREATE | OFlags::EXCL).map_err(failed)?;
            return self.request(id, stat, Some(file));
        };
        result.map_err(|error| failed(error.into()))?;
        let hasher = self.watch.hasher(&stat);
        let digest = hasher.finalize().into();
        let path = &stat.path;
        self.watch.changed(Change::Set {
            path,
            stat: &stat,
            digest,
        });
        if is_dir(stat.mode) {
            self.dirs.push(stat);
        } else if stat.mode & mode::SYMLINK != 0 || stat.linkname.is_empty() {
            self.set_by_path(&stat)?;
        }
        Ok(())
    }

    /// Asks for the content of a file, now or when others have come.
    fn request(&mut self, id: u32, stat: Stat, file: Option<File>) -> Result<(), SessionError> {
        if self.requested.len() >= MOST_REQUESTS {
            self.waiting.push_back((id, stat));
            return Ok(());
        }
        let file = match file {
            Some(file) => file,
            None => {
                let (dir, name) = stat.path.rsplit_once('/').unwrap_or(("", &stat.path));
                let dir = self.dir(dir)?;
                open(&dir, name, OFlags::empty()).map_err(self.io("open", &stat.path))?
            }
        };
        let hasher = self.watch.hasher(&stat);
        self.requested.insert(id, Content { stat, file, hasher });
        self.send(PacketType::PacketReq, id)
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<(), SessionError> {
        if !data.is_empty() {
            let Some(content) = self.requested.get_mut(&id) else {
                return Err(unasked(id));
            };
            content.hasher.update(data);
            let written = content.file.write_all(data);
            return written.map_err(|error| {
                let path = self
                    .requested
                    .get(&id)
                    .map(|content| content.stat.path.as_str());
                self.io("write", path.unwrap_or_default())(error)
            });
        }
        let Some(content) = self.requested.remove(&id) else {
            return Err(unasked(id));
        };
        let stat = content.stat;
        let path = &stat.path;
        set_by_file(&content.file, &stat).map_err(self.io("set metadata of", path))?;
        let digest = content.hasher.finalize().into();
        self.watch.changed(Change::Set {
            path,
            stat: &stat,
            digest,
        });
        match self.waiting.pop_front() {
            Some((id, stat)) => self.request(id, stat, None),
            None => Ok(()),
        }
    }

    /// The directory `dir`, which was sent as one.
    fn dir(&mut self, dir: &str) -> Result<Arc<OwnedFd>, SessionError> {
        if let Some((known, open)) = &self.parent
            && known == dir
        {
            return Ok(open.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let open = self.root.open_with(dir, flags, Mode::empty());
        let open = Arc::new(open.map_err(self.io("open", dir))?);
        self.parent = Some((dir.to_owned(), open.clone()));
        Ok(open)
    }

    /// Sets the metadata of what is no regular file.
    fn set_by_path(&self, stat: &Stat) -> Result<(), SessionError> {
        let set = || {
            let entry = self.root.entry(&stat.path)?;
            let (dir, name) = (&entry.dir, &entry.name);
            let (owner, group) = owner(stat);
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(dir, name, owner, group, flags)?;
            let path = entry.proc_path();
            for (name, value) in attributes(stat) {
                let flags = XattrFlags::empty();
                let _ = rustix::fs::lsetxattr(&path, name, value, flags);
            }
            if stat.mode & mode::SYMLINK == 0 {
                let mode = Mode::from_raw_mode(permissions(stat.mode));
                rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?;
            }
            rustix::fs::utimensat(dir, name, &times(stat), flags)?;
            Ok(())
        };
        set().map_err(self.io("set metadata of", &stat.path))
    }

    fn send(&self, kind: PacketType, id: u32) -> Result<(), SessionError> {
        let packet = Packet {
            r#type: kind.into(),
            id,
            ..Packet::default()
        };
        let sent = self.outgoing.blocking_send(packet);
        sent.map_err(|_| SessionError::Closed)
    }

    fn io(
        &self,
        attempt: &'static str,
        path: &str,
    ) -> impl FnOnce(io::Error) -> SessionError + use<> {
        SessionError::io(attempt, self.path.join(path))
    }
}

fn unasked(id: u32) -> SessionError {
    SessionError::Protocol(format!("invalid file request {id}"))
}

fn open(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(file.into())
}

/// Sets the metadata of a regular file. A change of the owner takes capabilities and set-id
/// bits away, so it comes first.
fn set_by_file(file: &File, stat: &Stat) -> io::Result<()> {
    let (owner, group) = owner(stat);
    rustix::fs::fchown(file, owner, group)?;
    for (name, value) in attributes(stat) {
        // As in fsutil: not every file system, and not every user, can have them.
        let _ = rustix::fs::fsetxattr(file.as_fd(), name, value, XattrFlags::empty());
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(permissions(stat.mode)))?;
    rustix::fs::futimens(file, &times(stat))?;
    Ok(())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    // All bits set means "leave it" to chown(2).
    let id = |raw: u32| Some(raw).filter(|raw| *raw != u32::MAX);
    (
        id(stat.uid).map(Uid::from_raw),
        id(stat.gid).map(Gid::from_raw),
    )
}

/// The extended attributes that may be set: overlayfs's own would change what a layer means.
fn attributes(stat: &Stat) -> impl Iterator<Item = (&OsStr, &[u8])> {
    let marks = ["trusted.overlay.", "user.overlay."];
    let all = stat.xattrs.iter();
    all.filter(move |(name, _)| {
        !name.contains('\0') && !marks.iter().any(|mark| name.starts_with(mark))
    })
    .map(|(name, value)| (OsStr::new(name), value.as_slice()))
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.mod_time.div_euclid(1_000_000_000),
        tv_nsec: stat.mod_time.rem_euclid(1_000_000_000) as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Whether `path` is `dir` or below it.
fn is_in(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
