//! A local tree as it is sent: which of its files, in which order, with which metadata.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_proto::fsutil::Stat;
use cooper_sys::Root;
use rustix::fs::{Mode, OFlags};

use crate::pattern::{Matched, Matcher};
use crate::stat::{self, errno_text};
use crate::{SessionError, follow};

/// Changes the metadata of a file before it is sent.
pub type MapStat = Arc<dyn Fn(&mut Stat) + Send + Sync>;

/// A directory whose files are sent.
#[derive(Clone, Default)]
pub struct Tree {
    /// Where it is.
    pub path: PathBuf,
    /// The name of the directory that it is sent as; empty: its members are sent at the top.
    pub under: String,
    /// Only what these patterns match is sent, with the directories above it; none: all.
    pub include: Vec<String>,
    /// What these patterns match is not sent.
    pub exclude: Vec<String>,
    /// Paths that are included with all the links that they lead through (fsutil's
    /// FollowPaths).
    pub follow: Vec<String>,
    /// Changes metadata on the way.
    pub map: Option<MapStat>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree")
            .field("path", &self.path)
            .field("under", &self.under)
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// All of `path`, as it is.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }

    /// Every file as root's, as the files of a build context are sent.
    pub fn owned_by_root(mut self) -> Self {
        self.map = Some(Arc::new(|stat: &mut Stat| {
            (stat.uid, stat.gid) = (0, 0);
        }));
        self
    }

    /// Calls `visit` with what is to be sent, each directory before its members, names in the
    /// order of their bytes. What vanishes meanwhile is left out.
    pub(crate) fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let mut include = self.include.clone();
        if !self.follow.is_empty() {
            include.extend(follow::links(&self.path, &self.follow)?.unwrap_or_default());
        }
        let matcher = |patterns: &[String]| {
            let matcher = Matcher::new(patterns)?;
            Ok::<_, SessionError>(Some(matcher).filter(|matcher| !matcher.is_empty()))
        };
        let walk = Walk {
            tree: self,
            include: matcher(&include)?,
            exclude: matcher(&self.exclude)?,
            links: HashMap::new(),
            visit,
        };
        walk.run()
    }

    /// Opens a file that [`walk`](Self::walk) showed under `path`.
    pub(crate) fn open(&self, path: &str) -> io::Result<File> {
        let path = match self.under.as_str() {
            "" => path,
            under => path
                .strip_prefix(under)
                .and_then(|rest| rest.strip_prefix('/'))
                .ok_or(io::ErrorKind::NotFound)?,
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file: File = Root::open(&self.path)?
            .open_with(path, flags, Mode::empty())?
            .into();
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(file)
    }
}

struct Walk<'a> {
    tree: &'a Tree,
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    /// The first name of each file that has several, by device and inode.
    links: HashMap<(u64, u64), String>,
    visit: &'a mut dyn FnMut(Stat) -> Result<(), SessionError>,
}

/// A directory that the walk is in.
struct Level {
    names: std::vec::IntoIter<OsString>,
    /// Relative; empty at the top.
    path: PathBuf,
    include: Option<Matched>,
    exclude: Option<Matched>,
    sent: bool,
}

impl Walk<'_> {
    fn run(mut self) -> Result<(), SessionError> {
        if !self.tree.under.is_empty() {
            let mut stat = Stat {
                path: self.tree.under.clone(),
                mode: stat::mode::DIR | 0o755,
                ..Stat::default()
            };
            if let Some(map) = &self.tree.map {
                map(&mut stat);
            }
            (self.visit)(stat)?;
        }
        let top = Level {
            names: self.names(Path::new(""))?.into_iter(),
            path: PathBuf::new(),
            include: None,
            exclude: None,
            sent: true,
        };
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            match level.names.next() {
                Some(name) => {
                    if let Some(below) = self.file(&mut levels, &name)? {
                        levels.push(below);
                    }
                }
                None => drop(levels.pop()),
            }
        }
        Ok(())
    }

    /// Looks at one file; a directory to go into is returned.
    fn file(
        &mut self,
        levels: &mut [Level],
        name: &OsString,
    ) -> Result<Option<Level>, SessionError> {
        let level = &levels[levels.len() - 1];
        let path = level.path.join(name);
        let text = path.to_string_lossy();
        let step = |matcher: &Option<Matcher>, above: &Option<Matched>| {
            matcher
                .as_ref()
                .map(|matcher| matcher.step(&text, above.as_ref()))
        };
        let include = step(&self.include, &level.include);
        let exclude = step(&self.exclude, &level.exclude);
        let wanted = include.as_ref().is_none_or(|(hit, _)| *hit);
        let refused = exclude.as_ref().is_some_and(|(hit, _)| *hit);
        let metadata = match std::fs::symlink_metadata(self.tree.path.join(&path)) {
            Ok(metadata) => metadata,
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(failed("lstat", &path, &error)),
        };
        let dir = metadata.is_dir();
        if dir && (!wanted && !self.may_include(&text) || refused && !self.may_except(&text)) {
            return Ok(None);
        }
        let take = wanted && !refused;
        if take {
            for above in levels.iter_mut().filter(|level| !level.sent) {
                above.sent = true;
                self.send(&above.path)?;
            }
            if !self.send(&path)? {
                return Ok(None);
            }
        }
        if !dir {
            return Ok(None);
        }
        let names = match self.names(&path) {
            Ok(names) => names,
            Err(_) if !take => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Level {
            names: names.into_iter(),
            path,
            include: include.map(|(_, matched)| matched),
            exclude: exclude.map(|(_, matched)| matched),
            sent: take,
        }))
    }

    /// Whether something below a directory that is not included may be.
    fn may_include(&self, dir: &str) -> bool {
        let Some(matcher) = &self.include else {
            return true;
        };
        let patterns = matcher.patterns().iter();
        let mut patterns = patterns.filter(|pattern| !pattern.is_exception());
        patterns
            .any(|pattern| !pattern.is_prefix() || is_below(pattern.without_trailing_glob(), dir))
    }

    /// Whether something below an excluded directory may be taken back.
    fn may_except(&self, dir: &str) -> bool {
        let Some(matcher) = &self.exclude else {
            return true;
        };
        let patterns = matcher.patterns().iter();
        let mut patterns = patterns.filter(|pattern| pattern.is_exception());
        patterns
            .any(|pattern| !pattern.is_prefix() || is_below(pattern.without_trailing_glob(), dir))
    }

    /// Shows the metadata of `path`; false when it vanished.
    fn send(&mut self, path: &Path) -> Result<bool, SessionError> {
        let file = self.tree.path.join(path);
        let Some(name) = path.to_str() else {
            let error = stat::not_utf8(path.into());
            return Err(failed("send", path, &error));
        };
        let name = match self.tree.under.as_str() {
            "" => name.to_owned(),
            under => format!("{under}/{name}"),
        };
        let read = stat::read(&file, name.clone()).and_then(|stat| {
            let metadata = std::fs::symlink_metadata(&file)?;
            Ok((stat, metadata))
        });
        let (mut stat, metadata) = match read {
            Ok(read) => read,
            Err(error) if gone(&error) => return Ok(false),
            Err(error) => return Err(failed("lstat", path, &error)),
        };
        if !metadata.is_dir() && metadata.nlink() > 1 {
            let first = self.links.entry((metadata.dev(), metadata.ino()));
            match first {
                std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert(name)),
                std::collections::hash_map::Entry::Occupied(entry) if !metadata.is_symlink() => {
                    stat.linkname = entry.get().clone();
                    stat.size = 0;
                }
                std::collections::hash_map::Entry::Occupied(_) => {}
            }
        }
        if let Some(map) = &self.tree.map {
            map(&mut stat);
        }
        (self.visit)(stat)?;
        Ok(true)
    }

    fn names(&self, dir: &Path) -> Result<Vec<OsString>, SessionError> {
        let read = || {
            let entries = std::fs::read_dir(self.tree.path.join(dir))?;
            let mut names = entries
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        match read() {
            Err(error) if gone(&error) && !dir.as_os_str().is_empty() => Ok(Vec::new()),
            Err(error) => Err(failed("open", dir, &error)),
            Ok(names) => Ok(names),
        }
    }
}

/// Whether `path` is `dir` or below it.
fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn failed(attempt: &str, path: &Path, error: &io::Error) -> SessionError {
    let error = errno_text(error);
    SessionError::Protocol(format!("{attempt} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(tree: &Tree) -> Vec<String> {
        let mut paths = Vec::new();
        let walked = tree.walk(&mut |stat| {
            paths.push(match stat.linkname.as_str() {
                "" => stat.path,
                link => format!("{} -> {link}", stat.path),
            });
            Ok(())
        });
        walked.unwrap();
        paths
    }

    fn tree(files: &[&str]) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        let tree = Tree::new(dir.path());
        (dir, tree)
    }

    #[test]
    fn order_is_by_component() {
        let (_dir, tree) = tree(&["a/b", "a.b", "a-b", "b"]);
        assert_eq!(sent(&tree), ["a", "a/b", "a-b", "a.b", "b"]);
    }

    #[test]
    fn directories_come_when_a_member_does() {
        let (_dir, tree) = tree(&["a/b/c.go", "a/b/d.rs", "a/x", "docs/README.md", "docs/y"]);
        let with = |include: &[&str], exclude: &[&str]| Tree {
            include: include.iter().map(|text| text.to_string()).collect(),
            exclude: exclude.iter().map(|text| text.to_string()).collect(),
            ..tree.clone()
        };
        let cases: [(&[&str], &[&str], &[&str]); 6] = [
            (&["**/*.go"], &[], &["a", "a/b", "a/b/c.go"]),
            (&["a/b"], &[], &["a", "a/b", "a/b/c.go", "a/b/d.rs"]),
            (&["nothing"], &[], &[]),
            (
                &[],
                &["a", "docs", "!docs/README.md"],
                &["docs", "docs/README.md"],
            ),
            (&["a"], &["a/b"], &["a", "a/x"]),
            (&[], &["*", "!a/*/*.rs"], &["a", "a/b", "a/b/d.rs"]),
        ];
        for (include, exclude, expected) in cases {
            let found = sent(&with(include, exclude));
            assert_eq!(found, expected, "include {include:?} exclude {exclude:?}");
        }
    }

    #[test]
    fn a_second_name_is_a_link_to_the_first_that_is_sent() {
        let (dir, tree) = tree(&["a/one", "b/two"]);
        std::fs::hard_link(dir.path().join("a/one"), dir.path().join("b/three")).unwrap();
        std::fs::hard_link(dir.path().join("a/one"), dir.path().join("c")).unwrap();
        let all = ["a", "a/one", "b", "b/three -> a/one", "b/two", "c -> a/one"];
        assert_eq!(sent(&tree), all);
        let exclude = Tree {
            exclude: vec!["a".into()],
            under: "linux_amd64".into(),
            ..tree
        };
        let rest = [
            "linux_amd64",
            "linux_amd64/b",
            "linux_amd64/b/three",
            "linux_amd64/b/two",
            "linux_amd64/c -> linux_amd64/b/three",
        ];
        assert_eq!(sent(&exclude), rest);
        assert!(exclude.open("linux_amd64/b/two").is_ok());
        assert!(exclude.open("b/two").is_err());
    }

    #[test]
    fn a_name_that_is_no_text_is_an_error_that_says_so() {
        use std::os::unix::ffi::OsStringExt;
        let (dir, tree) = tree(&["a"]);
        let name = OsString::from_vec(b"caf\xe9".to_vec());
        std::fs::write(dir.path().join(name), "x").unwrap();
        let error = tree.walk(&mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("not valid UTF-8"), "{error}");
        let exclude = vec!["caf*".to_owned()];
        assert_eq!(sent(&Tree { exclude, ..tree }), ["a"]);
    }
}
