//! Paths as BuildKit understands them, and errors as Go words them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use cooper_session::pattern;
use cooper_sys::Root;
use rustix::fs::FileType;

/// As many links as Linux follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// How many files a wildcard may match.
const MAX_MATCHES: usize = 1_000_000;

/// A failure in Go's words: `lstat /x: no such file or directory`.
pub(super) type Failure = String;

/// `attempt path: reason`.
pub(super) fn failed<'a>(
    attempt: &'a str,
    path: &'a Path,
) -> impl Fn(io::Error) -> Failure + use<'a> {
    move |error| {
        let path = Path::new("/").join(path);
        format!("{attempt} {}: {}", path.display(), reason(&error))
    }
}

/// The system's message as Go writes it: lower case, without the number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match (error.raw_os_error(), chars.next()) {
        (Some(_), Some(first)) => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// Where `path` leads when links are followed inside `root`: relative to it. What is not there
/// is taken as it stands. With `last` a link at the end is followed as well.
pub(super) fn follow(root: &Root, path: &Path, last: bool) -> io::Result<PathBuf> {
    let mut open: VecDeque<OsString> = VecDeque::new();
    let push = |open: &mut VecDeque<OsString>, path: &Path| {
        let parts: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_owned()),
                Component::ParentDir => Some("..".into()),
                _ => None,
            })
            .collect();
        for part in parts.into_iter().rev() {
            open.push_front(part);
        }
    };
    push(&mut open, path);
    let mut found = PathBuf::new();
    let mut links = 0;
    while let Some(name) = open.pop_front() {
        if name == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&name);
        let link = match root.entry(&next) {
            Ok(entry) if last || !open.is_empty() => entry.read_link().ok(),
            _ => None,
        };
        match link {
            None => found = next,
            Some(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(
                        rustix::io::Errno::LOOP.raw_os_error(),
                    ));
                }
                if target.is_absolute() {
                    found = PathBuf::new();
                }
                push(&mut open, &target);
            }
        }
    }
    Ok(found)
}

/// The last name of a path, as Go's `path.Base`.
pub(super) fn base(path: &str) -> String {
    if path.is_empty() {
        return ".".into();
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        Some("") | None => "/".into(),
        Some(name) => name.to_owned(),
    }
}

/// The paths in `root` that `path` matches, ordered as a walk meets them; what is below a match
/// is not looked at. A path without wildcards is itself.
///
/// # Errors
/// A failure, worded.
pub(super) fn wildcards(
    root: &Root,
    path: &str,
    follow_links: bool,
) -> Result<Vec<String>, Failure> {
    let path = pattern::clean(&format!("/{path}"));
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let Some(first) = parts.iter().position(|part| pattern::has_wildcards(part)) else {
        return Ok(vec![path]);
    };
    let plain = parts[..first].join("/");
    let wild = parts[first..].join("/");
    let depth = parts.len() - first;
    let base = follow(root, Path::new(&plain), follow_links)
        .map_err(failed("lstat", Path::new(&plain)))?;
    let mut found = Vec::new();
    match root.lstat(&base) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
            return Ok(found);
        }
        Ok(_) => {}
        Err(error) => return Err(failed("lstat", &base)(error)),
    }
    walk(root, &base, "", &wild, depth, &mut found)?;
    Ok(found)
}

fn walk(
    root: &Root,
    base: &Path,
    below: &str,
    wild: &str,
    depth: usize,
    found: &mut Vec<String>,
) -> Result<(), Failure> {
    let dir = base.join(below);
    let names = root.read_dir(&dir).map_err(failed("open", &dir))?;
    for name in names {
        let Some(name) = name.to_str() else { continue };
        let path = if below.is_empty() {
            name.to_owned()
        } else {
            format!("{below}/{name}")
        };
        let full = base.join(&path);
        if pattern::wildcard_match(wild, &path).unwrap_or(false) {
            if found.len() == MAX_MATCHES {
                return Err(format!("{wild} matches too many files"));
            }
            found.push(full.to_string_lossy().into_owned());
            continue;
        }
        // A match has as many names as the pattern: nothing deeper can be one.
        if depth > 1 {
            let stat = root.lstat(&full).map_err(failed("lstat", &full))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                walk(root, base, &path, wild, depth - 1, found)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_and_missing_parts_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("real/sub")).unwrap();
        symlink("/real", dir.path().join("link")).unwrap();
        symlink("../../../etc", dir.path().join("out")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let followed = |path: &str, last| follow(&root, Path::new(path), last);
        for (path, last, expected) in [
            ("/link/new/file", true, "real/new/file"),
            ("link", true, "real"),
            ("link", false, "link"),
            ("/link/sub/../x", true, "real/x"),
            ("out/passwd", true, "etc/passwd"),
            ("../../x", true, "x"),
            ("/", true, ""),
        ] {
            assert_eq!(followed(path, last).unwrap(), Path::new(expected), "{path}");
        }
        assert!(followed("loop/x", true).is_err());
    }

    #[test]
    fn wildcards_match_names_and_not_slashes() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["a/x.txt", "a/y.bin", "b/x.txt", "b/deep/x.txt"] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        for (path, expected) in [
            ("/a/*.txt", &["a/x.txt"][..]),
            ("*/x.txt", &["a/x.txt", "b/x.txt"]),
            ("/*", &["a", "b"]),
            ("b/*/*", &["b/deep/x.txt"]),
            ("/a/none*", &[]),
            ("plain", &["/plain"]),
        ] {
            assert_eq!(wildcards(&root, path, true).unwrap(), expected, "{path}");
        }
        let error = wildcards(&root, "/none/*", true).unwrap_err();
        assert_eq!(error, "lstat /none: no such file or directory");
    }

    #[test]
    fn bases_are_those_of_go() {
        for (path, expected) in [
            ("", "."),
            ("/", "/"),
            ("//", "/"),
            ("/a/b/", "b"),
            ("a", "a"),
            ("..", ".."),
        ] {
            assert_eq!(base(path), expected, "{path:?}");
        }
    }
}
