//! The files behind a checksum, to tell a user later which of them changed. Only what is known
//! is listed: the disk is not looked at.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::PoisonError;

use sha2::{Digest as _, Sha256};

use super::scan::{Failure, Scan};
use super::select::{self, Candidate};
use super::tree::{Key, Node, Raw, Tree, is_inside, key_of, past, path_of};
use super::{ChecksumOptions, slot};
use crate::{CacheError, LocalRef};

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// From the root; `/` for the root itself.
    pub path: String,
    /// The first 8 bytes of the digest, big-endian; of a directory that of all in it or of its
    /// metadata, 0 when it is not known.
    pub digest: u64,
    /// Its permissions, when they are known.
    pub mode: Option<u32>,
    /// Whether it is a directory of which nothing else is listed.
    pub closed: bool,
}

/// What is behind the checksum of `path`, at most about `most` paths: where there are more,
/// directories stand for what is in them. `None` when it was not computed.
pub(crate) async fn list(
    local: &LocalRef,
    path: &Path,
    options: &ChecksumOptions,
    most: usize,
) -> Result<Option<Vec<ListedFile>>, CacheError> {
    let slot = slot(local)?;
    let (path, options) = (path.to_owned(), options.clone());
    // A tree may be large, or another thread be hashing it.
    let listing = tokio::task::spawn_blocking(move || {
        let mut tree = slot.tree.lock().unwrap_or_else(PoisonError::into_inner);
        files(&mut tree, &path, &options, most)
    });
    let listed = listing.await.map_err(|source| CacheError::Thread {
        id: local.id().to_string(),
        source,
    })?;
    match listed {
        Ok(listed) => Ok(Some(listed)),
        Err(Failure::NeedsDisk) => Ok(None),
        Err(Failure::Cache(error)) => Err(error),
    }
}

pub(super) fn files(
    tree: &mut Tree,
    path: &Path,
    options: &ChecksumOptions,
    most: usize,
) -> Result<Vec<ListedFile>, Failure> {
    let mut scan = Scan::without_disk();
    if options.is_plain() {
        let key = key_of(path);
        let (found, there) = scan.resolve(tree, &key, options.follow_links)?;
        return Ok(match there {
            true => below(tree, &found, &key, most),
            false => Vec::new(),
        });
    }
    let (_, chosen) = select::choose(tree, &mut scan, path, options)?;
    Ok(folded(tree, &chosen, most))
}

/// `top` and what is below it, a level after the other as long as there is room, under the
/// name `shown`.
fn below(tree: &Tree, top: &[u8], shown: &[u8], most: usize) -> Vec<ListedFile> {
    let listed = |key: &[u8], node: &Node| {
        let below = key.get(top.len()..).unwrap_or_default();
        ListedFile {
            path: rooted(path_of(&[shown, below].concat())),
            digest: short(node.digest.as_ref()),
            mode: node.mode.map(u32::from),
            closed: false,
        }
    };
    let Some(node) = tree.get(top) else {
        return Vec::new();
    };
    let mut found = vec![listed(top, node)];
    let mut open = VecDeque::new();
    if node.is_directory() {
        open.push_back((0, top.to_vec()));
    }
    while let Some((place, dir)) = open.pop_front() {
        let room = most.saturating_sub(found.len());
        let inside = children(tree, &dir, room + 1);
        if inside.len() > room {
            found[place].closed = true;
            continue;
        }
        for (key, node) in inside {
            if node.is_directory() {
                open.push_back((found.len(), key.clone()));
            }
            found.push(listed(key, node));
        }
    }
    found
}

/// What is right in a directory, at most `most`.
fn children<'a>(tree: &'a Tree, dir: &[u8], most: usize) -> Vec<(&'a Key, &'a Node)> {
    let mut found = Vec::new();
    let mut next: Key = [dir, &[0]].concat();
    while found.len() < most
        && let Some((key, node)) = tree.nodes().range(next..).next()
        && is_inside(key, dir)
    {
        found.push((key, node));
        next = past(key);
    }
    found
}

/// The chosen paths; where there are too many, the deepest directories stand for theirs.
fn folded(tree: &Tree, chosen: &[Candidate], most: usize) -> Vec<ListedFile> {
    let all = chosen.iter().map(|one| ListedFile {
        path: rooted(one.path.clone()),
        digest: short(Some(&one.digest)),
        mode: tree
            .get(&key_of(Path::new(&one.path)))
            .and_then(|node| node.mode.map(u32::from)),
        closed: false,
    });
    let mut all: Vec<ListedFile> = all.collect();
    let depth = |path: &str| path.matches('/').count();
    let mut deepest = all.iter().map(|one| depth(&one.path)).max().unwrap_or(0);
    while all.len() > most && deepest > 1 {
        deepest -= 1;
        let mut kept: Vec<ListedFile> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for one in all {
            let cut = one.path.match_indices('/').nth(deepest);
            let dir = match cut {
                Some((end, _)) => one.path[..end].to_owned(),
                None => {
                    places.insert(one.path.clone(), kept.len());
                    kept.push(one);
                    continue;
                }
            };
            let place = *places.entry(dir.clone()).or_insert_with(|| {
                kept.push(ListedFile {
                    path: dir,
                    digest: 0,
                    mode: None,
                    closed: true,
                });
                kept.len() - 1
            });
            let dir = &mut kept[place];
            dir.closed = true;
            let mut hash = Sha256::new();
            hash.update(dir.digest.to_be_bytes());
            hash.update(&one.path);
            hash.update(one.digest.to_be_bytes());
            dir.digest = short(Some(&hash.finalize().into()));
        }
        all = kept;
    }
    all
}

fn short(digest: Option<&Raw>) -> u64 {
    let begin = digest.and_then(|digest| digest.first_chunk::<8>());
    begin.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn rooted(path: String) -> String {
    match path.as_str() {
        "" => "/".to_owned(),
        _ => path,
    }
}
