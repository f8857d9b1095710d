//! The files behind a key of content, as far as they are kept.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// Files in one list at most. Of a tree with more, whole directories stand for what is in them.
pub const MAX_FILES: usize = 2048;
/// Bytes of a list at most.
const MAX_BYTES: usize = 192 << 10;

/// One file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// From the root of the input.
    pub path: String,
    /// The begin of the digest of its metadata and content; of a directory that of all that is
    /// in it, or of its metadata alone.
    pub digest: u64,
    /// Its permissions, when they are known.
    pub mode: Option<u32>,
    /// Whether it is a directory whose files are not in the list: there are too many.
    pub closed: bool,
}

/// A list of files, kept as text: a line for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileList(String);

impl FileList {
    /// Takes the entries; `None` when they are more or longer than a list may be.
    pub fn new(entries: impl IntoIterator<Item = FileEntry>) -> Option<Self> {
        let mut text = String::new();
        for (count, entry) in entries.into_iter().enumerate() {
            let mode = entry.mode.map(|mode| format!("{mode:o}"));
            let mode = mode.as_deref().unwrap_or("-");
            let closed = if entry.closed { "+" } else { "" };
            let path = entry.path.replace('\n', "\u{fffd}");
            if count >= MAX_FILES || text.len() + path.len() > MAX_BYTES {
                return None;
            }
            let _ = writeln!(text, "{:016x}{closed} {mode} {path}", entry.digest);
        }
        Some(Self(text))
    }

    /// A name that no other list has.
    pub fn name(&self) -> String {
        super::short_digest(self.0.as_bytes())
    }

    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// The entries.
    pub fn entries(&self) -> impl Iterator<Item = FileEntry> + '_ {
        self.0.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ' ');
            let (digest, mode) = (fields.next()?, fields.next()?);
            Some(FileEntry {
                path: fields.next()?.to_owned(),
                digest: u64::from_str_radix(digest.trim_end_matches('+'), 16).ok()?,
                mode: u32::from_str_radix(mode, 8).ok(),
                closed: digest.ends_with('+'),
            })
        })
    }

    /// The first difference between two lists, and how many others there are. A file is named
    /// before the directories that it is in, which differ with it.
    pub fn difference(old: &Self, new: &Self) -> Option<(FileChange, usize)> {
        let by_path = |list: &Self| -> BTreeMap<String, FileEntry> {
            let entries = list.entries();
            entries.map(|entry| (entry.path.clone(), entry)).collect()
        };
        let (old, new) = (by_path(old), by_path(new));
        let closed = |path: &str| {
            let above = above(path);
            above.into_iter().any(|dir| {
                let is_closed =
                    |list: &BTreeMap<String, FileEntry>| list.get(dir).is_some_and(|e| e.closed);
                is_closed(&old) || is_closed(&new)
            })
        };
        let mut changes: Vec<FileChange> = Vec::new();
        for (path, entry) in &new {
            // What only one of the lists can name is no change: the directory is one.
            if closed(path) {
                continue;
            }
            let kind = match old.get(path) {
                None => FileChangeKind::Added,
                Some(before) if before.mode != entry.mode => match (before.mode, entry.mode) {
                    (Some(old), Some(new)) => FileChangeKind::Mode { old, new },
                    _ => FileChangeKind::Changed,
                },
                Some(before) if before.digest != entry.digest => FileChangeKind::Changed,
                Some(_) => continue,
            };
            let directory = entry.closed || old.get(path).is_some_and(|before| before.closed);
            changes.push(FileChange {
                path: path.clone(),
                kind,
                directory,
            });
        }
        let gone = old
            .keys()
            .filter(|path| !new.contains_key(*path) && !closed(path));
        changes.extend(gone.map(|path| FileChange {
            path: path.clone(),
            kind: FileChangeKind::Removed,
            directory: false,
        }));
        // A directory right before what is in it.
        changes.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
        // A directory's change is that of what is in it, unless its own mode is another one; an
        // added or removed one is named, and what is in it is not.
        let is_above = |dir: &FileChange, other: &FileChange| {
            let inside = other.path.strip_prefix(dir.path.trim_end_matches('/'));
            dir.path != other.path && inside.is_some_and(|rest| rest.starts_with('/'))
        };
        let whole = |change: &FileChange| {
            matches!(change.kind, FileChangeKind::Added | FileChangeKind::Removed)
        };
        let mut named: Vec<&FileChange> = Vec::new();
        for (place, change) in changes.iter().enumerate() {
            let inside_of_whole = named.last().is_some_and(|last| {
                whole(last) && is_above(last, change) && last.kind == change.kind
            });
            let next = changes.get(place + 1);
            let only_holds = change.kind == FileChangeKind::Changed
                && next.is_some_and(|next| is_above(change, next));
            if !inside_of_whole && !only_holds {
                named.push(change);
            }
        }
        let first = (*named.first()?).clone();
        Some((first, named.len() - 1))
    }
}

/// The directories that a path is in.
fn above(path: &str) -> Vec<&str> {
    let ends = path.match_indices('/').map(|(at, _)| &path[..at]);
    ends.map(|dir| if dir.is_empty() { "/" } else { dir })
        .collect()
}

/// A difference between two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Where.
    pub path: String,
    /// What happened.
    pub kind: FileChangeKind,
    /// Whether it stands for a directory with many files.
    pub directory: bool,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChangeKind {
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
    /// Its content or its metadata is another one.
    Changed,
    /// Its permissions are others.
    Mode {
        /// What they were.
        old: u32,
        /// What they are.
        new: u32,
    },
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.directory {
            "something below "
        } else {
            "file "
        };
        let path = &self.path;
        match self.kind {
            FileChangeKind::Added => write!(f, "{what}{path} was added"),
            FileChangeKind::Removed => write!(f, "{what}{path} was removed"),
            FileChangeKind::Changed => write!(f, "{what}{path} changed"),
            FileChangeKind::Mode { old, new } => {
                write!(f, "mode of {path} changed from {old:04o} to {new:04o}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(entries: &[(&str, u64, u32, bool)]) -> FileList {
        let list = FileList::new(
            entries
                .iter()
                .map(|(path, digest, mode, closed)| FileEntry {
                    path: (*path).to_owned(),
                    digest: *digest,
                    mode: (*mode != 0).then_some(*mode),
                    closed: *closed,
                }),
        );
        list.unwrap()
    }

    #[test]
    fn the_file_is_named_and_not_the_directories_above() {
        let old = [
            ("/", 1, 0, false),
            ("/d", 2, 0o755, false),
            ("/d/a", 3, 0o644, false),
            ("/d/b c", 4, 0o644, false),
        ];
        type Change = fn(&mut Vec<(&str, u64, u32, bool)>);
        let cases: [(Change, &str); 6] = [
            (|l| l[3].1 = 9, "file /d/b c changed"),
            (
                |l| l[3].2 = 0o755,
                "mode of /d/b c changed from 0644 to 0755",
            ),
            (
                |l| {
                    l.remove(2);
                },
                "file /d/a was removed",
            ),
            (|l| l.push(("/d/z", 7, 0o644, false)), "file /d/z was added"),
            (|l| l.truncate(1), "file /d was removed"),
            (
                |l| {
                    l.truncate(2);
                    l[1].3 = true;
                },
                "something below /d changed",
            ),
        ];
        for (change, expected) in cases {
            let mut new = old.to_vec();
            change(&mut new);
            // Whatever is inside, the directories above have another digest.
            new[0].1 = 100;
            if let Some(dir) = new.get_mut(1) {
                dir.1 = 200;
            }
            let (found, more) = FileList::difference(&list(&old), &list(&new)).unwrap();
            assert_eq!((found.to_string().as_str(), more), (expected, 0));
        }
        assert_eq!(FileList::difference(&list(&old), &list(&old)), None);
    }

    #[test]
    fn a_list_is_bounded_and_reads_as_it_was_written() {
        let all = list(&[("/a\nb", 1, 0, true), ("/c", u64::MAX, 0o4755, false)]);
        let read: Vec<_> = all.entries().collect();
        assert_eq!(read[0].path, "/a\u{fffd}b");
        assert!(read[0].closed && read[0].mode.is_none());
        assert_eq!((read[1].digest, read[1].mode), (u64::MAX, Some(0o4755)));
        let many = |count: usize, length: usize| {
            FileList::new((0..count).map(|n| FileEntry {
                path: format!("/{n}/{}", "x".repeat(length)),
                digest: 0,
                mode: None,
                closed: false,
            }))
        };
        assert!(many(MAX_FILES, 20).is_some());
        assert!(many(MAX_FILES + 1, 20).is_none() && many(1500, 200).is_none());
    }
}
