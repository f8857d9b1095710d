//! Checksums over the paths that wildcards and patterns choose.

use std::path::Path;

use cooper_content::{Digest, Plaintext, PlaintextKind, digest_from, digest_of};
use cooper_session::pattern::{Matched, Matcher, clean, has_wildcards, wildcard_match};
use sha2::{Digest as _, Sha256};

use super::scan::{Failure, Scan};
use super::tree::{Key, Kind, Raw, Tree, key_of, path_of, text};
use super::{ChecksumOptions, noting};
use crate::CacheError;

/// A path that may count.
pub(crate) struct Candidate {
    /// As it is asked for, not as links lead to it.
    pub(crate) path: String,
    /// Of a directory that of its metadata.
    pub(crate) digest: Raw,
    key: Key,
    /// Whether it is a symbolic link that is followed.
    link: bool,
    counted: bool,
    included: Option<Matched>,
    excluded: Option<Matched>,
}

/// The patterns of a checksum.
struct Patterns {
    include: Option<Matcher>,
    exclude: Option<Matcher>,
}

impl Patterns {
    fn new(options: &ChecksumOptions) -> Result<Self, CacheError> {
        let read = |kind, patterns: &[String]| match patterns {
            [] => Ok(None),
            patterns => Matcher::new(patterns)
                .map(Some)
                .map_err(|error| CacheError::Pattern {
                    kind,
                    pattern: patterns.join(" "),
                    detail: error.to_string(),
                }),
        };
        Ok(Self {
            include: read("includepatterns", &options.include)?,
            exclude: read("excludepatterns", &options.exclude)?,
        })
    }

    /// Whether `path` counts, and what that says of the paths below it.
    fn choose(
        &self,
        path: &str,
        above: Option<&Candidate>,
    ) -> (bool, Option<Matched>, Option<Matched>) {
        let mut included = None;
        if let Some(include) = &self.include {
            let above = above.and_then(|above| above.included.as_ref());
            let (hit, matched) = include.step(path, above);
            included = Some(matched);
            if !hit {
                return (false, included, None);
            }
        }
        let mut excluded = None;
        if let Some(exclude) = &self.exclude {
            let above = above.and_then(|above| above.excluded.as_ref());
            let (hit, matched) = exclude.step(path, above);
            excluded = Some(matched);
            if hit {
                return (false, included, excluded);
            }
        }
        (true, included, excluded)
    }
}

/// The digest over all chosen paths: for each its path below the fixed part of what was asked
/// for, and its digest. A directory counts with its metadata, and when something in it counts.
pub(crate) fn checksum(
    tree: &mut Tree,
    scan: &mut Scan,
    path: &Path,
    options: &ChecksumOptions,
) -> Result<Digest, Failure> {
    let (prefix, mut chosen) = choose(tree, scan, path, options)?;
    if options.follow_links {
        // Those that the path itself names; what lies in a directory is copied as it is.
        for one in chosen.iter_mut().filter(|one| one.link) {
            let key = key_of(Path::new(&one.path));
            let (found, there) = scan.resolve(tree, &key, true)?;
            if !there {
                let path = path_of(&key);
                return Err(CacheError::PathNotFound { path }.into());
            }
            one.digest = scan.digest(tree, &found)?;
            if let Some(plaintexts) = scan.plaintexts() {
                noting::tree(tree, &found, plaintexts);
            }
        }
    }
    if let [only] = chosen.as_slice()
        && base(&path_of(&key_of(path))) == base(&only.path)
    {
        return Ok(digest_from(&only.digest));
    }
    if chosen.is_empty() {
        return Ok(digest_of(b""));
    }
    let mut hash = Sha256::new();
    let mut plaintext = scan
        .plaintexts()
        .map(|_| Plaintext::new(PlaintextKind::FileList));
    let mut put = |part: &[u8]| {
        hash.update(part);
        if let Some(plaintext) = &mut plaintext {
            plaintext.data(part);
        }
    };
    for one in &chosen {
        let below = one.path.strip_prefix(&prefix).unwrap_or(&one.path);
        match below {
            "" => put(&[0]),
            below => put(below.replace('/', "\0").as_bytes()),
        }
        put(&text(&one.digest));
    }
    let digest = digest_from(&hash.finalize());
    if let (Some(plaintexts), Some(plaintext)) = (scan.plaintexts(), plaintext) {
        plaintexts.note(&digest, plaintext);
    }
    Ok(digest)
}

/// The last name of a path, as Go's `path.Base` has it.
fn base(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit('/').next() {
        Some("") | None if path.is_empty() => ".",
        Some("") | None => "/",
        Some(name) => name,
    }
}

/// Splits off the part of a clean path before the first name with a wildcard.
fn split(path: &str) -> (String, bool) {
    let mut fixed = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if has_wildcards(name) {
            return (fixed, true);
        }
        fixed.push('/');
        fixed.push_str(name);
    }
    (fixed, false)
}

/// Walks below the fixed part of the path. Gives that part and what is chosen, in order.
pub(crate) fn choose(
    tree: &mut Tree,
    scan: &mut Scan,
    path: &Path,
    options: &ChecksumOptions,
) -> Result<(String, Vec<Candidate>), Failure> {
    let text = path.to_string_lossy();
    let ends_in_slash = text.ends_with('/');
    let asked = match clean(&format!("/{text}")) {
        root if root == "/" => String::new(),
        path => path,
    };
    let patterns = Patterns::new(options)?;
    let (prefix, below) = if options.wildcard {
        split(&asked)
    } else {
        (asked.clone(), false)
    };
    // Links on the way are followed; one that the fixed part ends in only to get below it.
    let (top, there) = scan.resolve(tree, &key_of(Path::new(&prefix)), below)?;
    if !there {
        return Ok((prefix, Vec::new()));
    }
    scan.list_all(tree, &top, false)?;
    let keys: Vec<Key> = tree.subtree(&top).map(|(key, _)| key.clone()).collect();
    let mut chosen: Vec<Candidate> = Vec::new();
    // The directories that the current path is in, the innermost last.
    let mut above: Vec<Candidate> = Vec::new();
    // The last path that the wildcard matched: all below it counts.
    let mut matched = String::new();
    for key in keys {
        let path = format!("{prefix}{}", path_of(&key[top.len()..]));
        while let Some(last) = above.last()
            && !path.starts_with(&format!("{}/", last.path))
        {
            above.pop();
        }
        let Some((directory, link)) = tree.get(&key).map(|node| {
            let link = matches!(node.kind, Kind::Symlink { .. });
            (node.is_directory(), link)
        }) else {
            continue;
        };
        let root = if options.wildcard {
            let inside = !matched.is_empty() && path.starts_with(&format!("{matched}/"));
            if !asked.is_empty() && !inside {
                let hit = wildcard_match(&asked, &path).map_err(|error| CacheError::Pattern {
                    kind: "wildcard",
                    pattern: asked.clone(),
                    detail: error.to_string(),
                })?;
                if !hit {
                    continue;
                }
                matched.clone_from(&path);
            }
            &matched
        } else {
            &asked
        };
        if directory && path == asked && ends_in_slash {
            // The content of a directory, without the directory.
            continue;
        }
        let full = format!("{path}/");
        let relative = full.strip_prefix(&format!("{root}/")).unwrap_or(&full);
        let relative = relative.strip_suffix('/').unwrap_or(relative);
        let (counts, included, excluded) = patterns.choose(relative, above.last());
        if !counts && !directory {
            continue;
        }
        let one = Candidate {
            path,
            digest: Raw::default(),
            key,
            link: link && above.is_empty(),
            counted: counts,
            included,
            excluded,
        };
        if counts {
            for parent in above.iter_mut().filter(|parent| !parent.counted) {
                parent.counted = true;
                chosen.push(parent.bare());
            }
            chosen.push(one.bare());
        }
        if directory {
            above.push(one);
        }
    }
    // All at once: that takes more than one thread where there are many.
    let keys: Vec<&[u8]> = chosen.iter().map(|one| one.key.as_slice()).collect();
    let digests = scan.headers(tree, &keys)?;
    for (one, digest) in chosen.iter_mut().zip(digests) {
        one.digest = digest;
    }
    Ok((prefix, chosen))
}

impl Candidate {
    /// Without what is only needed on the way.
    fn bare(&self) -> Self {
        Self {
            path: self.path.clone(),
            digest: self.digest,
            key: self.key.clone(),
            link: self.link,
            counted: true,
            included: None,
            excluded: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_part_ends_before_the_first_wildcard() {
        for (path, fixed, below) in [
            ("/a/b*/c", "/a", true),
            ("/a/b", "/a/b", false),
            ("", "", false),
            ("/*", "", true),
            ("/a\\*/b?", "/a\\*", true),
        ] {
            assert_eq!(split(path), (fixed.to_owned(), below), "{path}");
        }
    }

    #[test]
    fn the_last_name_is_that_of_go() {
        for (path, name) in [("", "."), ("/", "/"), ("/a", "a"), ("/a/b", "b")] {
            assert_eq!(base(path), name, "{path}");
        }
    }

    #[test]
    fn keys_and_paths() {
        assert_eq!(key_of(Path::new("/a/../b//c/.")), b"\0b\0c");
        assert_eq!(key_of(Path::new("..")), b"");
    }
}
