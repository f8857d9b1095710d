//! fsutil's FollowPaths: paths with all the links that lead to what they name.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::SessionError;
use crate::pattern::{clean, has_wildcards, wildcard_match};

/// The paths below `root`, relative, that have to be there so that each of `paths` leads to
/// what it leads to: the links on the way and their ends, seen from `root` as the top. A last
/// component may hold wildcards. `None` when the whole of `root` is needed.
///
/// # Errors
/// A directory or a link cannot be read; that something is missing is none.
pub(crate) fn links(root: &Path, paths: &[String]) -> Result<Option<Vec<String>>, SessionError> {
    let mut found = BTreeSet::new();
    let mut open: Vec<String> = paths.to_vec();
    // Each link is gone through once, so circles end.
    while let Some(path) = open.pop() {
        let rooted = clean(&format!("/{path}"));
        let mut current = String::new();
        let mut parts = rooted.split('/').skip(1).filter(|part| !part.is_empty());
        loop {
            let Some(part) = parts.next() else {
                found.insert(if current.is_empty() {
                    ".".to_owned()
                } else {
                    current
                });
                break;
            };
            if !current.is_empty() {
                current.push('/');
            }
            current.push_str(part);
            let Some(targets) = targets(root, &current, true)? else {
                continue;
            };
            if found.insert(current) {
                let rest = parts.collect::<Vec<_>>().join("/");
                open.extend(targets.iter().map(|target| format!("{target}/{rest}")));
            }
            break;
        }
    }
    if found.contains(".") {
        return Ok(None);
    }
    let mut least: Vec<String> = Vec::new();
    // What is below a path that is taken comes with it. Not the order of bytes: `a-b` would
    // stand between `a` and `a/b`.
    let mut ordered: Vec<String> = found.into_iter().collect();
    ordered.sort_by(|a, b| a.split('/').cmp(b.split('/')));
    for path in ordered {
        let covered = least
            .last()
            .and_then(|last| path.strip_prefix(last.as_str()))
            .is_some_and(|rest| rest.starts_with('/'));
        if !covered {
            least.push(path);
        }
    }
    Ok(Some(least))
}

/// Where the link at `path` leads, seen from the root; those of all links that a wildcard in
/// the last component stands for. `None` when there is no link.
fn targets(root: &Path, path: &str, wildcards: bool) -> Result<Option<Vec<String>>, SessionError> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let real: PathBuf = root.join(path);
    if wildcards && has_wildcards(name) {
        let entries = match std::fs::read_dir(root.join(dir)) {
            Ok(entries) => entries,
            Err(error) if missing(&error) => return Ok(None),
            Err(error) => return Err(SessionError::io("read directory", root.join(dir))(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(SessionError::io("read directory", root.join(dir)))?;
            let Ok(found) = entry.file_name().into_string() else {
                continue;
            };
            if wildcard_match(name, &found).unwrap_or(false) {
                let path = clean(&format!("{dir}/{found}"));
                let path = path.trim_start_matches('/');
                all.extend(targets(root, path, false)?.unwrap_or_default());
            }
        }
        return Ok(Some(all).filter(|all| !all.is_empty()));
    }
    let link = match std::fs::read_link(&real) {
        Ok(link) => link,
        // Not a link (EINVAL), or nothing there.
        Err(error) if missing(&error) || error.kind() == io::ErrorKind::InvalidInput => {
            return Ok(None);
        }
        Err(error) => return Err(SessionError::io("read link", real)(error)),
    };
    let link = link.to_string_lossy();
    Ok(Some(vec![if link.starts_with('/') {
        clean(&link)
    } else {
        clean(&format!("/{dir}/{link}"))
    }]))
}

fn missing(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_below_the_root_and_circles_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        std::fs::write(root.join("real/deep/file"), "").unwrap();
        let link = |target: &str, name: &str| symlink(target, root.join(name)).unwrap();
        link("real", "dir");
        link("/dir/deep/file", "abs");
        link("../../../../abs", "up");
        link("loop2", "loop1");
        link("/loop1/x", "loop2");
        link("self/self", "self");
        link("/", "top");
        link("gone", "dangling");
        let cases: [(&[&str], Option<&[&str]>); 12] = [
            (&["plain"], Some(&["plain"])),
            (&["dir/deep"], Some(&["dir", "real/deep"])),
            (&["abs"], Some(&["abs", "dir", "real/deep/file"])),
            (&["up"], Some(&["abs", "dir", "real/deep/file", "up"])),
            (&["loop1/y"], Some(&["loop1", "loop2"])),
            (&["self"], Some(&["self"])),
            (&["top/real"], Some(&["real", "top"])),
            (&["top"], None),
            (&["dangling"], Some(&["dangling", "gone"])),
            (&["real", "real/deep", "real-x"], Some(&["real", "real-x"])),
            (&["dangl*"], Some(&["dangl*", "gone"])),
            (&["../../real"], Some(&["real"])),
        ];
        for (paths, expected) in cases {
            let paths: Vec<String> = paths.iter().map(|path| path.to_string()).collect();
            let found = links(root, &paths).unwrap();
            assert_eq!(
                found.as_deref(),
                expected
                    .map(|e| { e.iter().map(|s| s.to_string()).collect::<Vec<_>>() })
                    .as_deref(),
                "{paths:?}"
            );
        }
    }
}
