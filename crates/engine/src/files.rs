//! Looking at files of a result. Links never lead out of it. The behaviour is BuildKit's
//! (`cache/util/fsutil.go`); no root is an empty file system.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use cooper_frontend::{FileRange, FrontendError};
use cooper_proto::{MAX_MESSAGE_SIZE, fsutil};
use cooper_session::pattern::Matcher;
use cooper_session::stat;
use cooper_sys::Root;

/// The largest piece of a file that is read, in bytes: no message carries more.
const MAX_SIZE: u64 = MAX_MESSAGE_SIZE as u64;

pub(crate) fn read_file(
    root: Option<&Path>,
    path: &str,
    range: Option<FileRange>,
) -> Result<Vec<u8>, FrontendError> {
    let root = open(root, path)?;
    let read = || -> io::Result<Result<Vec<u8>, FrontendError>> {
        let mut file = root.open_file(path)?;
        if !file.metadata()?.is_file() {
            let message = format!("{path} is not a regular file");
            return Ok(Err(FrontendError::invalid(message)));
        }
        let mut length = MAX_SIZE + 1;
        if let Some(range) = range {
            file.seek(SeekFrom::Start(range.offset))?;
            if range.length != 0 {
                length = range.length.min(length);
            }
        }
        let mut data = Vec::new();
        file.take(length).read_to_end(&mut data)?;
        if data.len() as u64 > MAX_SIZE {
            let message = format!("{path} is larger than {MAX_SIZE} bytes");
            return Ok(Err(FrontendError::invalid(message)));
        }
        Ok(Ok(data))
    };
    read().map_err(|error| failed("open", path, error))?
}

/// The entries by name; of their paths only the name.
pub(crate) fn read_dir(
    root: Option<&Path>,
    path: &str,
    include: &str,
) -> Result<Vec<fsutil::Stat>, FrontendError> {
    if root.is_none() && matches!(path.trim_matches(['/', '.']), "") {
        return Ok(Vec::new());
    }
    let host = open(root, path)?;
    let matcher = match include {
        "" => None,
        pattern => Some(
            Matcher::new([pattern])
                .map_err(|error| FrontendError::bridge("invalid include pattern", error))?,
        ),
    };
    let read = || -> io::Result<Vec<fsutil::Stat>> {
        let dir = below(root, &host.resolve(path)?);
        let mut names: Vec<String> = Vec::new();
        for name in host.read_dir(path)? {
            // A message carries only text.
            if let Ok(name) = name.into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        let wanted = |name: &String| {
            matcher
                .as_ref()
                .is_none_or(|matcher| matcher.is_match(name))
        };
        let stat = |name: String| stat::read(&dir.join(&name), name);
        names.into_iter().filter(wanted).map(stat).collect()
    };
    read().map_err(|error| failed("open", path, error))
}

/// What the path leads to, with its own name.
pub(crate) fn stat_file(root: Option<&Path>, path: &str) -> Result<fsutil::Stat, FrontendError> {
    let host = open(root, path)?;
    let read = || -> io::Result<fsutil::Stat> {
        let found = host.resolve(path)?;
        let name = found.file_name().unwrap_or(found.as_os_str());
        stat::read(&below(root, &found), name.to_string_lossy().into_owned())
    };
    read().map_err(|error| failed("lstat", path, error))
}

fn open(root: Option<&Path>, path: &str) -> Result<Root, FrontendError> {
    let root = root.ok_or_else(|| FrontendError::NotFound {
        path: path.to_owned(),
    })?;
    Root::open(root).map_err(|error| failed("open", path, error))
}

/// A resolved path on the host. Nothing changes below a result, so it stays what it was.
fn below(root: Option<&Path>, resolved: &Path) -> std::path::PathBuf {
    let inside = resolved.strip_prefix("/").unwrap_or(resolved);
    root.map(|root| root.join(inside)).unwrap_or_default()
}

fn failed(attempt: &str, path: &str, error: io::Error) -> FrontendError {
    if error.kind() == io::ErrorKind::NotFound {
        return FrontendError::NotFound {
            path: path.to_owned(),
        };
    }
    FrontendError::bridge(format!("{attempt} {path}"), error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/name"), "0123456789").unwrap();
        std::fs::write(root.join("etc/other"), "").unwrap();
        // Out of the result, as seen from the host.
        std::os::unix::fs::symlink("/etc/name", root.join("link")).unwrap();
        std::os::unix::fs::symlink("../../../../etc", root.join("out")).unwrap();
        dir
    }

    #[test]
    fn files_are_read_whole_and_in_part_and_links_stay_inside() {
        let dir = tree();
        let read = |path, range| read_file(Some(dir.path()), path, range);
        let range = |offset, length| Some(FileRange { offset, length });
        assert_eq!(read("link", None).unwrap(), b"0123456789");
        assert_eq!(read("/out/name", range(2, 3)).unwrap(), b"234");
        assert_eq!(read("etc/name", range(8, 0)).unwrap(), b"89");
        assert_eq!(read("etc/name", range(80, 2)).unwrap(), b"");
        let error = read("etc", None).unwrap_err().to_string();
        assert_eq!(error, "etc is not a regular file");
        for path in ["etc/passwd", "none/x"] {
            let error = read(path, None).unwrap_err();
            assert!(matches!(error, FrontendError::NotFound { .. }), "{error:?}");
        }
        let error = read_file(None, "x", None).unwrap_err();
        assert_eq!(error.to_string(), "open x: no such file or directory");
    }

    #[test]
    fn folders_are_listed_in_order_with_a_pattern() {
        let dir = tree();
        let list = |path, include| -> Vec<String> {
            let entries = read_dir(Some(dir.path()), path, include).unwrap();
            entries.into_iter().map(|stat| stat.path).collect()
        };
        assert_eq!(list("/", ""), ["etc", "link", "out"]);
        assert_eq!(list("out", ""), ["name", "other"]);
        assert_eq!(list("etc", "na*"), ["name"]);
        assert!(read_dir(Some(dir.path()), "no", "").is_err());
        assert!(read_dir(None, "/", "").unwrap().is_empty());
    }

    #[test]
    fn a_stat_follows_links_and_names_what_it_found() {
        let dir = tree();
        let stat = stat_file(Some(dir.path()), "link").unwrap();
        assert_eq!((stat.path.as_str(), stat.size), ("name", 10));
        let stat = stat_file(Some(dir.path()), "/").unwrap();
        assert!(stat::is_dir(stat.mode));
    }
}
