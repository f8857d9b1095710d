//! A folder as a tar, in the way that fsutil writes one: paths in order, PAX records for what a
//! plain header has no place for.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cooper_sys::Root;
use tar::{EntryType, Header};
use time::OffsetDateTime;

use crate::ExportError;

/// Something below a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the folder.
    pub(crate) path: PathBuf,
    pub(crate) is_dir: bool,
}

/// Everything below `root`, a folder before what is in it, names in the order of their bytes.
pub(crate) fn walk(root: &Path) -> Result<Vec<Entry>, ExportError> {
    let tree = Root::open(root).map_err(ExportError::io("open", root))?;
    let mut found = Vec::new();
    // The next name to look at is the last one here.
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let failed = |error| ExportError::io("list", root.join(&path))(error);
        let is_dir = path.as_os_str().is_empty() || {
            let mode = tree.lstat(&path).map_err(failed)?.st_mode;
            mode & 0o170_000 == 0o040_000
        };
        if is_dir {
            let mut names = tree.read_dir(&path).map_err(failed)?;
            names.sort();
            open.extend(names.iter().rev().map(|name| path.join(name)));
        }
        if !path.as_os_str().is_empty() {
            found.push(Entry { path, is_dir });
        }
    }
    Ok(found)
}

/// Writes folders into one tar.
pub(crate) struct TarWriter<W: Write> {
    tar: tar::Builder<W>,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            tar: tar::Builder::new(out),
        }
    }

    /// Adds what is below `root`, in the folder `under` unless that is empty. With `epoch` all
    /// times are that time.
    pub(crate) fn append(
        &mut self,
        root: &Path,
        under: &str,
        epoch: Option<OffsetDateTime>,
    ) -> Result<(), ExportError> {
        let time = epoch.map(|epoch| (epoch.unix_timestamp(), 0));
        if !under.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            set_time(&mut header, time.unwrap_or_default().0);
            let name = format!("{under}/");
            let added = self.tar.append_data(&mut header, &name, io::empty());
            added.map_err(ExportError::io("send", under))?;
        }
        // The first name of each file that has several.
        let mut links = HashMap::new();
        for entry in walk(root)? {
            let path = root.join(&entry.path);
            self.entry(&path, &Path::new(under).join(&entry.path), time, &mut links)
                .map_err(ExportError::io("send", &entry.path))?;
        }
        Ok(())
    }

    /// Writes the end of the tar.
    pub(crate) fn finish(&mut self) -> Result<(), ExportError> {
        self.tar
            .finish()
            .map_err(ExportError::io("send", "the end of the archive"))
    }

    fn entry(
        &mut self,
        path: &Path,
        name: &Path,
        time: Option<(i64, i64)>,
        links: &mut HashMap<(u64, u64), PathBuf>,
    ) -> io::Result<()> {
        let meta = path.symlink_metadata()?;
        let kind = meta.file_type();
        let mut header = Header::new_ustar();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_size(0);
        let (seconds, nanos) = time.unwrap_or((meta.mtime(), meta.mtime_nsec()));
        set_time(&mut header, seconds);
        let mut records = Vec::new();
        if nanos != 0 || seconds < 0 {
            records.push(("mtime".to_owned(), pax_time(seconds, nanos).into_bytes()));
        }
        for (key, value) in cooper_sys::copy::xattrs(path)? {
            records.push((
                format!("SCHILY.xattr.{}", String::from_utf8_lossy(&key)),
                value,
            ));
        }
        let first = match meta.nlink() > 1 && !kind.is_dir() {
            true => links.get(&(meta.dev(), meta.ino())).cloned(),
            false => None,
        };
        if !records.is_empty() && first.is_none() {
            let records = records.iter().map(|(key, value)| (key.as_str(), &**value));
            self.tar.append_pax_extensions(records)?;
        }
        if let Some(first) = first {
            header.set_entry_type(EntryType::Link);
            return self.tar.append_link(&mut header, name, first);
        }
        if meta.nlink() > 1 {
            links.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            // Only a name tells programs of old that it is a folder.
            let mut folder = name.as_os_str().as_bytes().to_vec();
            folder.push(b'/');
            return self
                .tar
                .append_data(&mut header, OsStr::from_bytes(&folder), io::empty());
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = std::fs::read_link(path)?;
            return self.tar.append_link(&mut header, name, target);
        }
        if kind.is_file() {
            let file = std::fs::File::open(path)?;
            header.set_entry_type(EntryType::Regular);
            header.set_size(meta.len());
            return self.tar.append_data(&mut header, name, file);
        }
        if kind.is_socket() {
            // Tar has no form for a socket, and a dead one is of no use.
            return Ok(());
        }
        header.set_entry_type(match () {
            () if kind.is_fifo() => EntryType::Fifo,
            () if kind.is_char_device() => EntryType::Char,
            () => EntryType::Block,
        });
        header.set_device_major(major(meta.rdev()))?;
        header.set_device_minor(minor(meta.rdev()))?;
        self.tar.append_data(&mut header, name, io::empty())
    }
}

fn set_time(header: &mut Header, seconds: i64) {
    header.set_mtime(u64::try_from(seconds).unwrap_or_default());
}

/// A time as a PAX record: seconds with a fraction (pax(1), "mtime").
fn pax_time(seconds: i64, nanos: i64) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, part) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    match part {
        0 => format!("{sign}{whole}"),
        part => {
            let part = format!("{part:09}");
            format!("{sign}{whole}.{}", part.trim_end_matches('0'))
        }
    }
}

/// The parts of a device's number (makedev(3)).
fn major(device: u64) -> u32 {
    (((device >> 8) & 0xfff) | ((device >> 32) & !0xfff)) as u32
}

fn minor(device: u64) -> u32 {
    ((device & 0xff) | ((device >> 12) & !0xff)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_tree_goes_through_a_tar_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("b/deep")).unwrap();
        std::fs::write(root.join("b/deep/file"), "content").unwrap();
        std::fs::write(root.join("a.txt"), "a").unwrap();
        std::fs::write(root.join("b.txt"), "b").unwrap();
        std::fs::hard_link(root.join("a.txt"), root.join("c.txt")).unwrap();
        std::os::unix::fs::symlink("../x/y", root.join("link")).unwrap();
        let long = "n".repeat(180);
        std::fs::write(root.join(&long), "long").unwrap();

        let mut bytes = Vec::new();
        let mut tar = TarWriter::new(&mut bytes);
        let epoch = OffsetDateTime::from_unix_timestamp(7).unwrap();
        tar.append(root, "linux_amd64", Some(epoch)).unwrap();
        tar.finish().unwrap();
        drop(tar);

        let mut archive = tar::Archive::new(&*bytes);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 7);
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let link = entry.link_name().unwrap();
            let link = link.map(|link| link.display().to_string());
            let path = entry.path().unwrap().display().to_string();
            found.push((path, link.unwrap_or(text)));
        }
        let expected = [
            ("linux_amd64/", ""),
            ("linux_amd64/a.txt", "a"),
            ("linux_amd64/b/", ""),
            ("linux_amd64/b/deep/", ""),
            ("linux_amd64/b/deep/file", "content"),
            ("linux_amd64/b.txt", "b"),
            ("linux_amd64/c.txt", "linux_amd64/a.txt"),
            ("linux_amd64/link", "../x/y"),
            (&format!("linux_amd64/{long}"), "long"),
        ];
        let expected = expected.map(|(path, text)| (path.to_owned(), text.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn times_keep_their_fraction() {
        for (seconds, nanos, text) in [
            (5, 0, "5"),
            (5, 500_000_000, "5.5"),
            (5, 1, "5.000000001"),
            (-1, 500_000_000, "-0.5"),
            (-2, 0, "-2"),
        ] {
            assert_eq!(pax_time(seconds, nanos), text);
        }
    }

    #[test]
    fn device_numbers_come_apart() {
        assert_eq!((major(0x0501), minor(0x0501)), (5, 1));
        assert_eq!((major(0x1234_5678), minor(0x1234_5678)), (0x456, 0x12378));
    }
}
