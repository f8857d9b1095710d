//! A file's metadata as fsutil has it on the wire, and the mode bits of Go's `fs.FileMode`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cooper_proto::fsutil::Stat;
use rustix::fs::FileType;

/// Bits of Go's `fs.FileMode`; the lowest nine are the permissions.
pub mod mode {
    /// A directory.
    pub const DIR: u32 = 1 << 31;
    /// A symbolic link.
    pub const SYMLINK: u32 = 1 << 27;
    /// A device; with [`CHAR_DEVICE`] a character device.
    pub const DEVICE: u32 = 1 << 26;
    /// A FIFO.
    pub const NAMED_PIPE: u32 = 1 << 25;
    /// A socket.
    pub const SOCKET: u32 = 1 << 24;
    /// Set-user-id.
    pub const SETUID: u32 = 1 << 23;
    /// Set-group-id.
    pub const SETGID: u32 = 1 << 22;
    /// A character device, together with [`DEVICE`].
    pub const CHAR_DEVICE: u32 = 1 << 21;
    /// Sticky.
    pub const STICKY: u32 = 1 << 20;
    /// Something else that is no regular file.
    pub const IRREGULAR: u32 = 1 << 19;
    /// The bits that make up the type; none of them is a regular file's.
    pub const TYPE: u32 = DIR | SYMLINK | NAMED_PIPE | SOCKET | DEVICE | CHAR_DEVICE | IRREGULAR;
}

/// Go's mode of the mode in stat(2).
pub fn go_mode(unix: u32) -> u32 {
    let kind = match FileType::from_raw_mode(unix) {
        FileType::Directory => mode::DIR,
        FileType::Symlink => mode::SYMLINK,
        FileType::BlockDevice => mode::DEVICE,
        FileType::CharacterDevice => mode::DEVICE | mode::CHAR_DEVICE,
        FileType::Fifo => mode::NAMED_PIPE,
        FileType::Socket => mode::SOCKET,
        _ => 0,
    };
    let special = [
        (0o4000, mode::SETUID),
        (0o2000, mode::SETGID),
        (0o1000, mode::STICKY),
    ];
    let special = special.iter().filter(|(bit, _)| unix & bit != 0);
    kind | unix & 0o777 | special.fold(0, |all, (_, bit)| all | bit)
}

/// The permissions with set-user-id, set-group-id and sticky (twelve bits, as chmod(2) takes
/// them) of Go's mode.
pub fn permissions(go: u32) -> u32 {
    let special = [
        (0o4000, mode::SETUID),
        (0o2000, mode::SETGID),
        (0o1000, mode::STICKY),
    ];
    let special = special.iter().filter(|(_, bit)| go & bit != 0);
    go & 0o777 | special.fold(0, |all, (bit, _)| all | bit)
}

/// The mode in stat(2), type included, of Go's mode.
pub fn unix_mode(go: u32) -> u32 {
    let kind = if go & mode::DIR != 0 {
        FileType::Directory
    } else if go & mode::SYMLINK != 0 {
        FileType::Symlink
    } else if go & mode::CHAR_DEVICE != 0 {
        FileType::CharacterDevice
    } else if go & mode::DEVICE != 0 {
        FileType::BlockDevice
    } else if go & mode::NAMED_PIPE != 0 {
        FileType::Fifo
    } else if go & mode::SOCKET != 0 {
        FileType::Socket
    } else {
        FileType::RegularFile
    };
    kind.as_raw_mode() | permissions(go)
}

/// Whether the mode is a directory's.
pub fn is_dir(go: u32) -> bool {
    go & mode::DIR != 0
}

/// Whether the mode is a regular file's: one whose content can be asked for.
pub fn is_regular(go: u32) -> bool {
    go & mode::TYPE == 0
}

/// The metadata of what is at `file`, a link not followed, under the name `path`. Hard links
/// are for the caller to find. A socket looks like an empty file, as in fsutil.
pub fn read(file: &Path, path: String) -> io::Result<Stat> {
    let metadata = std::fs::symlink_metadata(file)?;
    let mut stat = of(&metadata, path);
    if metadata.file_type().is_symlink() {
        let target = std::fs::read_link(file)?.into_os_string();
        stat.linkname = target.into_string().map_err(not_utf8)?;
    }
    stat.xattrs = xattrs(file)?;
    Ok(stat)
}

/// The part of it that stat(2) tells.
pub(crate) fn of(metadata: &Metadata, path: String) -> Stat {
    let mode = go_mode(metadata.mode());
    let device = mode & mode::DEVICE != 0;
    let number = |part: fn(u64) -> u32| {
        if device {
            i64::from(part(metadata.rdev()))
        } else {
            0
        }
    };
    let size = i64::try_from(metadata.len()).unwrap_or(i64::MAX);
    Stat {
        path,
        mode: mode & !mode::SOCKET,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if is_dir(mode) { 0 } else { size },
        mod_time: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
        linkname: String::new(),
        devmajor: number(rustix::fs::major),
        devminor: number(rustix::fs::minor),
        xattrs: BTreeMap::new(),
    }
}

fn xattrs(file: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let listed = match cooper_sys::copy::xattrs(file) {
        Ok(listed) => listed,
        // Some file systems have none at all.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let names = listed.into_iter().map(|(name, value)| {
        let name = OsStr::from_bytes(&name).to_string_lossy().into_owned();
        (name, value)
    });
    Ok(names
        .filter(|(name, _)| !name.starts_with("com.apple."))
        .collect())
}

pub(crate) fn not_utf8(name: std::ffi::OsString) -> io::Error {
    let text = format!("{name:?} is not valid UTF-8");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The text of an operating system's error as Go has it: lower case and without the number.
pub(crate) fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    if error.raw_os_error().is_none() {
        return text;
    }
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_go_there_and_back() {
        let cases = [
            (0o100_644, 0o644),
            (0o104_755, mode::SETUID | 0o755),
            (0o042_775, mode::DIR | mode::SETGID | 0o775),
            (0o041_777, mode::DIR | mode::STICKY | 0o777),
            (0o120_777, mode::SYMLINK | 0o777),
            (0o010_600, mode::NAMED_PIPE | 0o600),
            (0o060_660, mode::DEVICE | 0o660),
            (0o020_666, mode::DEVICE | mode::CHAR_DEVICE | 0o666),
            (0o140_755, mode::SOCKET | 0o755),
        ];
        for (unix, go) in cases {
            assert_eq!(go_mode(unix), go, "{unix:o}");
            assert_eq!(unix_mode(go), unix, "{unix:o}");
            assert_eq!(permissions(go), unix & 0o7777);
        }
    }

    #[test]
    fn errors_read_as_in_go() {
        let error = io::Error::from_raw_os_error(13);
        assert_eq!(errno_text(&error), "permission denied");
        assert_eq!(errno_text(&io::Error::other("x")), "x");
    }
}
