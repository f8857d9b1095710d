//! The digest of one file: the header that Docker's tarsum (version 1) makes of its metadata,
//! then its content. No name, no times.

use std::collections::BTreeMap;
use std::io::Read;

use cooper_content::{Digest, Plaintext, PlaintextKind, digest_from};
use sha2::{Digest as _, Sha256};

/// Bits of a mode as Go has them, and fsutil sends them (Go, `io/fs.FileMode`).
mod go {
    pub(super) const DIR: u32 = 1 << 31;
    pub(super) const SYMLINK: u32 = 1 << 27;
    pub(super) const DEVICE: u32 = 1 << 26;
    pub(super) const NAMED_PIPE: u32 = 1 << 25;
    pub(super) const SETUID: u32 = 1 << 23;
    pub(super) const SETGID: u32 = 1 << 22;
    pub(super) const CHAR_DEVICE: u32 = 1 << 21;
    pub(super) const STICKY: u32 = 1 << 20;
}

/// The metadata that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// Type and permissions in Go's bits (`io/fs.FileMode`), as fsutil sends them.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Size in bytes; counts for regular files only.
    pub size: i64,
    /// Where a symbolic link leads. A hard link has one too, which does not count.
    pub linkname: Vec<u8>,
    /// The device that a device file stands for.
    pub devmajor: i64,
    /// The device that a device file stands for.
    pub devminor: i64,
    /// Extended attributes. Those that belong to a host and not to a file do not count.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl From<&cooper_proto::fsutil::types::Stat> for FileStat {
    fn from(stat: &cooper_proto::fsutil::types::Stat) -> Self {
        Self {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size: stat.size,
            linkname: stat.linkname.clone().into_bytes(),
            devmajor: stat.devmajor,
            devminor: stat.devminor,
            xattrs: stat
                .xattrs
                .iter()
                .map(|(name, value)| (name.clone().into_bytes(), value.to_vec()))
                .collect(),
        }
    }
}

impl FileStat {
    /// From what stat(2) gives.
    pub(crate) fn from_disk(stat: &rustix::fs::Stat) -> Self {
        use rustix::fs::FileType;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => go::DIR,
            FileType::Symlink => go::SYMLINK,
            FileType::BlockDevice => go::DEVICE,
            FileType::CharacterDevice => go::DEVICE | go::CHAR_DEVICE,
            FileType::Fifo => go::NAMED_PIPE,
            // A socket counts as an empty file.
            _ => 0,
        };
        let special = [
            (0o4000, go::SETUID),
            (0o2000, go::SETGID),
            (0o1000, go::STICKY),
        ];
        let special = special
            .iter()
            .filter(|(bit, _)| stat.st_mode & bit != 0)
            .fold(0, |all, (_, go)| all | go);
        let device = kind & go::DEVICE != 0;
        let number = |part: fn(u64) -> u32| if device { part(stat.st_rdev) } else { 0 };
        Self {
            mode: kind | special | stat.st_mode & 0o777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size,
            devmajor: number(rustix::fs::major).into(),
            devminor: number(rustix::fs::minor).into(),
            ..Self::default()
        }
    }

    fn is_regular(&self) -> bool {
        self.type_flag() == '0'
    }

    /// The type as tar has it.
    fn type_flag(&self) -> char {
        match self.mode {
            mode if mode & go::DIR != 0 => '5',
            mode if mode & go::SYMLINK != 0 => '2',
            mode if mode & go::DEVICE != 0 && mode & go::CHAR_DEVICE != 0 => '3',
            mode if mode & go::DEVICE != 0 => '4',
            mode if mode & go::NAMED_PIPE != 0 => '6',
            _ => '0',
        }
    }

    /// What of it counts, in parts: names and values without anything between them, the name of
    /// the file empty.
    fn header(&self, mut put: impl FnMut(&[u8])) {
        let size = if self.is_regular() { self.size } else { 0 };
        let flag = self.type_flag();
        let begin = format!(
            "namemode{}uid{}gid{}size{size}typeflag{flag}linkname",
            self.permissions(),
            self.uid,
            self.gid,
        );
        put(begin.as_bytes());
        if flag == '2' {
            put(&self.linkname);
        }
        let end = format!(
            "unamegnamedevmajor{}devminor{}",
            self.devmajor, self.devminor
        );
        put(end.as_bytes());
        for (name, value) in self.xattrs.iter().filter(|(name, _)| counts(name)) {
            put(name);
            put(value);
        }
    }

    /// What the digest of the file is computed from; the content is only counted.
    pub fn plaintext(&self) -> Plaintext {
        let mut plaintext = Plaintext::new(PlaintextKind::File);
        self.header(|part| plaintext.data(part));
        if self.is_regular() {
            plaintext.skip(u64::try_from(self.size).unwrap_or_default());
        }
        plaintext
    }

    /// The permissions as chmod(2) has them, at most `0o7777`.
    pub fn permissions(&self) -> u32 {
        let special = [
            (go::SETUID, 0o4000),
            (go::SETGID, 0o2000),
            (go::STICKY, 0o1000),
        ];
        let special = special.iter().filter(|(bit, _)| self.mode & bit != 0);
        special.fold(self.mode & 0o777, |mode, (_, bit)| mode | bit)
    }
}

/// Hashes one file as its bytes arrive.
#[derive(Clone, Debug)]
pub struct FileHasher(Sha256);

impl FileHasher {
    /// Begins with the metadata of a file.
    pub fn new(stat: &FileStat) -> Self {
        let mut hash = Sha256::new();
        stat.header(|part| hash.update(part));
        Self(hash)
    }

    /// Goes on with content. Only regular files have any.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest.
    pub fn finish(self) -> Digest {
        digest_from(&self.0.finalize())
    }

    pub(crate) fn finish_raw(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The hash as it stands after the metadata, for who hashes content by himself.
impl From<FileHasher> for Sha256 {
    fn from(hasher: FileHasher) -> Self {
        hasher.0
    }
}

/// Whether an extended attribute belongs to the file, and not to the host that it is on.
fn counts(name: &[u8]) -> bool {
    let host: [&[u8]; 3] = [b"security.", b"system.", b"com.apple."];
    name == b"security.capability" || !host.iter().any(|prefix| name.starts_with(prefix))
}

/// The digest of a whole file. Blocks while it reads.
pub fn file_digest(stat: &FileStat, content: &mut dyn Read) -> std::io::Result<Digest> {
    Ok(digest_from(&hash(stat, content)?))
}

fn hash(stat: &FileStat, content: &mut dyn Read) -> std::io::Result<[u8; 32]> {
    let mut hasher = FileHasher::new(stat);
    if stat.is_regular() && stat.size > 0 {
        let mut buffer = vec![
            0;
            usize::try_from(stat.size)
                .unwrap_or(usize::MAX)
                .min(128 << 10)
        ];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(hasher.finish_raw())
}
