//! Making a layer of the changes between two states (OCI image specification, "Representing
//! Changes"), with the entries and headers that containerd's differ writes.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_content::ContentStore;
use cooper_snapshot::diff::{Change, ChangeKind, upper_changes, walk_changes};
use cooper_snapshot::{Mount, MountedDir};
use cooper_sys::Root;
use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::compress::{self, Made};
use crate::{CompressionOptions, Layer, LayerError, decompress};

/// The diff id of a layer with nothing in it: two empty blocks.
pub const EMPTY_DIFF_ID: &str =
    "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
/// The blob of a layer with nothing in it as Go's gzip writes it: its digest,
/// `sha256:4f4fb700…`, is known to many tools.
pub const EMPTY_GZIP: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0x62, 0x18, 0x05, 0xa3, 0x60, 0x14,
    0x8c, 0x58, 0x00, 0x08, 0x00, 0x00, 0xff, 0xff, 0x2e, 0xaf, 0xb5, 0xef, 0x00, 0x04, 0x00, 0x00,
];
const BLOCK: usize = 512;
/// What eleven octal digits hold, and seven.
const MAX_OCTAL_11: u64 = (1 << 33) - 1;
const MAX_OCTAL_7: u64 = (1 << 21) - 1;
const NAME: usize = 100;
const BUFFER: usize = 256 << 10;

/// Packs the changes from the state that `lower` shows (none: from nothing) to the one that
/// `upper` shows, as a layer in `content`. `name` is the name of the ingest.
///
/// When `upper` is an overlay of one folder more than `lower`, only that folder is read;
/// else both trees are compared. What has to be mounted for that is mounted in the system's
/// folder for temporary files.
///
/// # Cancel safety
/// When the future is dropped nothing is stored.
pub async fn pack(
    content: &Arc<dyn ContentStore>,
    name: &str,
    lower: Vec<Mount>,
    upper: Vec<Mount>,
    options: &CompressionOptions,
) -> Result<Layer, LayerError> {
    let scratch = std::env::temp_dir();
    pack_in(content, name, lower, upper, options, &scratch).await
}

/// As [`pack()`], with mounts in `scratch`: a folder that somebody sweeps if this process dies.
///
/// # Cancel safety
/// When the future is dropped nothing is stored.
pub async fn pack_in(
    content: &Arc<dyn ContentStore>,
    name: &str,
    lower: Vec<Mount>,
    upper: Vec<Mount>,
    options: &CompressionOptions,
    scratch: &Path,
) -> Result<Layer, LayerError> {
    let scratch = scratch.to_owned();
    let made = compress::store(content, name, options, move |output| {
        let trees = Trees::open(&lower, &upper, &scratch)?;
        trees.write(&mut *output)
    });
    Ok(layer(made.await?))
}

/// Packs a blob that is in the store anew, compressed otherwise.
///
/// # Cancel safety
/// When the future is dropped nothing is stored.
pub async fn convert(
    content: &Arc<dyn ContentStore>,
    layer: &Layer,
    options: &CompressionOptions,
) -> Result<Layer, LayerError> {
    let digest = layer.descriptor.digest();
    let blob = content.open(digest).await?;
    let name = format!("convert-{}-from-{digest}", options.kind.as_str());
    let made = compress::store(content, &name, options, move |output| {
        let blob = cooper_content::BlobReader::new(&*blob);
        let mut reader = decompress::reader(blob).map_err(LayerError::from_io)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = reader.read(&mut buffer).map_err(LayerError::from_io)?;
            if read == 0 {
                return Ok(());
            }
            output
                .write_all(&buffer[..read])
                .map_err(LayerError::from_io)?;
        }
    });
    let mut made = made.await?;
    if made.diff_id != layer.diff_id {
        return Err(LayerError::DiffId {
            found: made.diff_id,
            expected: layer.diff_id.clone(),
        });
    }
    let media_type = options.kind.instead_of(layer.descriptor.media_type());
    made.descriptor.set_media_type(media_type);
    Ok(self::layer(made))
}

fn layer(made: Made) -> Layer {
    Layer {
        descriptor: made.descriptor,
        diff_id: made.diff_id,
        sources: Vec::new(),
    }
}

/// Two states, open for reading.
pub(crate) struct Trees {
    lower: Option<Root>,
    upper: Root,
    /// Whether `upper` is the folder of an overlay that holds just the changes.
    changes_only: bool,
    /// Unmounted last.
    _mounted: Vec<MountedDir>,
}

impl Trees {
    pub(crate) fn open(
        lower: &[Mount],
        upper: &[Mount],
        scratch: &Path,
    ) -> Result<Self, LayerError> {
        let mut mounted = Vec::new();
        let mut show = |mounts: &[Mount]| -> Result<PathBuf, LayerError> {
            if let [only] = mounts
                && only.kind == "bind"
            {
                return Ok(only.source.clone());
            }
            let mounts: Vec<_> = mounts.iter().cloned().map(Mount::read_only).collect();
            mounted.push(MountedDir::mount(&mounts, scratch)?);
            Ok(mounted[mounted.len() - 1].path().to_owned())
        };
        let open = |path: PathBuf| Root::open(&path).map_err(LayerError::io("open", &path));
        let changed = changed_folder(lower, upper);
        let lower = match lower {
            [] => None,
            mounts => Some(open(show(mounts)?)?),
        };
        let changes_only = changed.is_some();
        let upper = open(match changed {
            Some(folder) => folder,
            None => show(upper)?,
        })?;
        Ok(Self {
            lower,
            upper,
            changes_only,
            _mounted: mounted,
        })
    }

    fn write(&self, output: impl Write) -> Result<(), LayerError> {
        let mut writer = Writer {
            output,
            upper: &self.upper,
            links: HashMap::new(),
            folders: HashSet::new(),
            buffer: vec![0; BUFFER],
        };
        self.walk(&mut |change| writer.change(&change))?;
        // The end of an archive: two empty blocks.
        writer.put(&[0; 2 * BLOCK])
    }

    /// The second one, or the folder that holds just its changes.
    pub(crate) fn upper(&self) -> &Root {
        &self.upper
    }

    /// Calls `visit` for each change from the first one to the second.
    pub(crate) fn walk(
        &self,
        visit: &mut dyn FnMut(Change) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let mut visit = |change| visit(change).map_err(io::Error::other);
        let walk = if self.changes_only {
            upper_changes
        } else {
            walk_changes
        };
        let walked = walk(self.lower.as_ref(), &self.upper, &mut visit);
        walked.map_err(|error| match error.downcast::<LayerError>() {
            Ok(own) => own,
            Err(error) => LayerError::io("compare", Path::new("/"))(error),
        })
    }
}

/// The folder that holds just what `upper` changes over `lower`, when the mounts say so.
fn changed_folder(lower: &[Mount], upper: &[Mount]) -> Option<PathBuf> {
    let [upper] = upper else { return None };
    if lower.is_empty() || upper.kind != "overlay" {
        return None;
    }
    let stack = |mount: &Mount| -> Option<Vec<PathBuf>> {
        match mount.kind.as_str() {
            "bind" => Some(vec![mount.source.clone()]),
            "overlay" => {
                let lower = mount.option("lowerdir")?.split(':').map(PathBuf::from);
                let upper = mount.option("upperdir").map(PathBuf::from);
                Some(upper.into_iter().chain(lower).collect())
            }
            _ => None,
        }
    };
    let [lower] = lower else { return None };
    let (lower, mut upper) = (stack(lower)?, stack(upper)?);
    (upper.len() == lower.len() + 1 && upper[1..] == lower[..]).then(|| upper.swap_remove(0))
}

struct Writer<'a, W> {
    output: W,
    upper: &'a Root,
    /// The first name of each file with several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Folders that have an entry.
    folders: HashSet<PathBuf>,
    buffer: Vec<u8>,
}

/// What goes into a header.
struct Header<'a> {
    path: Vec<u8>,
    link: &'a [u8],
    flag: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// Seconds: fractions are cut off, as containerd does.
    modified: i64,
    device: u64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<W: Write> Writer<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.output.write_all(bytes).map_err(LayerError::from_io)
    }

    fn change(&mut self, change: &Change) -> Result<(), LayerError> {
        let path = &change.path;
        self.parents(path)?;
        if change.kind != ChangeKind::Delete {
            return self.file(path);
        }
        let mut name = b".wh.".to_vec();
        name.extend(path.file_name().unwrap_or_default().as_bytes());
        let gone = path.with_file_name(std::ffi::OsStr::from_bytes(&name));
        self.header(&Header {
            path: gone.as_os_str().as_bytes().to_vec(),
            link: b"",
            flag: b'0',
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            modified: 0,
            device: 0,
            xattrs: Vec::new(),
        })
    }

    /// Entries of the folders above `path`, so that what unpacks them gives them what they are.
    fn parents(&mut self, path: &Path) -> Result<(), LayerError> {
        let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        else {
            return Ok(());
        };
        if self.folders.contains(parent) {
            return Ok(());
        }
        let parent = parent.to_owned();
        self.parents(&parent)?;
        self.file(&parent)
    }

    fn file(&mut self, path: &Path) -> Result<(), LayerError> {
        let fail = || LayerError::io("read", path);
        let entry = self.upper.entry(path).map_err(fail())?;
        let stat = entry.stat().map_err(fail())?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut name = path.as_os_str().as_bytes().to_vec();
        let flag = match kind {
            FileType::RegularFile => b'0',
            FileType::Symlink => b'2',
            FileType::CharacterDevice => b'3',
            FileType::BlockDevice => b'4',
            FileType::Directory => b'5',
            FileType::Fifo => b'6',
            // A socket without its server is nothing.
            _ => return Ok(()),
        };
        if kind == FileType::Directory {
            if !self.folders.insert(path.to_owned()) {
                return Ok(());
            }
            name.push(b'/');
        }
        let target = match kind {
            FileType::Symlink => entry.read_link().map_err(fail())?,
            _ => PathBuf::new(),
        };
        let mut header = Header {
            path: name,
            link: target.as_os_str().as_bytes(),
            flag,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: 0,
            modified: stat.st_mtime,
            device: match kind {
                FileType::CharacterDevice | FileType::BlockDevice => stat.st_rdev,
                _ => 0,
            },
            xattrs: Vec::new(),
        };
        let first = self.first_name(&stat, kind, &header.path);
        if let Some(first) = &first {
            (header.flag, header.link) = (b'1', first);
        }
        header.xattrs = kept_xattrs(&entry.proc_path()).map_err(fail())?;
        if header.flag != b'0' {
            return self.header(&header);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = self.upper.open_with(path, flags, Mode::empty());
        let mut file = std::fs::File::from(file.map_err(fail())?);
        header.size = u64::try_from(stat.st_size).unwrap_or_default();
        self.header(&header)?;
        self.content(path, &mut file, header.size)
    }

    /// The name under which this file is in the archive already.
    fn first_name(&mut self, stat: &Stat, kind: FileType, name: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 || kind == FileType::Directory {
            return None;
        }
        #[allow(clippy::unnecessary_cast)]
        let id = (stat.st_dev as u64, stat.st_ino as u64);
        if let Some(first) = self.links.get(&id) {
            return Some(first.clone());
        }
        self.links.insert(id, name.to_vec());
        None
    }

    fn content(
        &mut self,
        path: &Path,
        file: &mut std::fs::File,
        size: u64,
    ) -> Result<(), LayerError> {
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            let read = file.read(&mut self.buffer[..most]);
            let read = read.map_err(LayerError::io("read", path))?;
            if read == 0 {
                let shrunk = io::Error::other("the file became shorter while it was read");
                return Err(LayerError::io("read", path)(shrunk));
            }
            let piece = self.output.write_all(&self.buffer[..read]);
            piece.map_err(LayerError::from_io)?;
            left -= read as u64;
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> Result<(), LayerError> {
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.put(&[0; BLOCK][..usize::try_from(padding).unwrap_or_default()])
    }

    /// Writes a header, after an extended one with what does not fit into it.
    fn header(&mut self, header: &Header<'_>) -> Result<(), LayerError> {
        let mut extended = Vec::new();
        let fits = |text: &[u8]| text.len() <= NAME && text.is_ascii();
        if !fits(&header.path) {
            record(&mut extended, b"path", &header.path);
        }
        if !fits(header.link) {
            record(&mut extended, b"linkpath", header.link);
        }
        if header.size > MAX_OCTAL_11 {
            record(&mut extended, b"size", header.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", header.uid), ("gid", header.gid)] {
            if u64::from(id) > MAX_OCTAL_7 {
                record(&mut extended, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if !(0..=MAX_OCTAL_11.cast_signed()).contains(&header.modified) {
            let seconds = header.modified.to_string();
            record(&mut extended, b"mtime", seconds.as_bytes());
        }
        for (name, value) in &header.xattrs {
            record(
                &mut extended,
                &[b"SCHILY.xattr.", &name[..]].concat(),
                value,
            );
        }
        if !extended.is_empty() {
            let name = std::ffi::OsStr::from_bytes(&header.path);
            let base = Path::new(name).file_name().unwrap_or_default();
            let path = [b"PaxHeaders.0/", base.as_bytes()].concat();
            let size = extended.len() as u64;
            self.put(&block(&Header {
                path,
                link: b"",
                flag: b'x',
                mode: 0o644,
                uid: 0,
                gid: 0,
                size,
                modified: 0,
                device: 0,
                xattrs: Vec::new(),
            }))?;
            self.put(&extended)?;
            self.pad(size)?;
        }
        self.put(&block(header))
    }
}

/// The attributes that go into a layer: a file's capabilities, and what users set. Others are
/// the host's (labels of its security modules) or the file system's.
pub(crate) fn kept_xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = cooper_sys::copy::xattrs(path)?;
    all.retain(|(name, _)| name == b"security.capability" || name.starts_with(b"user."));
    Ok(all)
}

/// Appends `length key=value\n`, whose length counts itself.
fn record(extended: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    extended.extend(format!("{length} ").as_bytes());
    extended.extend(key);
    extended.push(b'=');
    extended.extend(value);
    extended.push(b'\n');
}

/// The block of a header. What does not fit is cut: an extended header says it whole.
fn block(header: &Header<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut text = |at: usize, bytes: &[u8]| {
        let length = bytes.len().min(NAME);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    text(0, &header.path);
    text(157, header.link);
    let mut octal = |at: usize, digits: usize, value: u64| {
        let most = (1u64 << (3 * digits)) - 1;
        let value = if value > most { 0 } else { value };
        let text = format!("{value:0digits$o}");
        block[at..at + digits].copy_from_slice(text.as_bytes());
    };
    octal(100, 7, header.mode.into());
    octal(108, 7, header.uid.into());
    octal(116, 7, header.gid.into());
    octal(124, 11, header.size);
    octal(136, 11, u64::try_from(header.modified).unwrap_or(0));
    octal(329, 7, rustix::fs::major(header.device).into());
    octal(337, 7, rustix::fs::minor(header.device).into());
    block[156] = header.flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block[154] = 0;
    block
}

#[cfg(test)]
mod tests;
