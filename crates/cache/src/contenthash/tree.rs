//! What is known of the files of a ref, by path.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cooper_content::Digest;
use sha2::{Digest as _, Sha256};

/// The 32 bytes of a sha256.
pub(crate) type Raw = [u8; 32];

/// A path with a zero byte before each name: `""` is the root, `"\0a\0b"` is `/a/b`. In the
/// order of the bytes a directory comes right before what is in it.
pub(crate) type Key = Vec<u8>;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryKind {
    /// A regular file, a device, a pipe.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: Vec<u8>,
    },
    /// Another name of a file.
    Hardlink {
        /// The name that was there before, from the root.
        target: PathBuf,
    },
}

/// A change to the files of a ref, by who made it and has hashed what it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashedChange {
    /// It is there now, new or in another form.
    Set {
        /// From the root.
        path: PathBuf,
        /// What it is.
        kind: EntryKind,
        /// What [`crate::FileHasher`] gives of it; for a directory of its metadata alone.
        digest: Digest,
        /// Its permissions ([`crate::FileStat::permissions`]), for who is told of the change.
        mode: u32,
    },
    /// It is not there any more, nor what was below it.
    Delete {
        /// From the root.
        path: PathBuf,
    },
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// The digest, when it is known; of a directory that of all that is in it.
    pub(crate) digest: Option<Raw>,
    /// The permissions, when they are known. Part of the digest, and here to tell users of a
    /// change.
    pub(crate) mode: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Symlink {
        target: Vec<u8>,
    },
    Directory {
        /// The digest of its own metadata.
        header: Option<Raw>,
        /// Whether all names in it are known.
        listed: bool,
    },
}

impl Node {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            digest: None,
            mode: None,
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }
}

/// All that is known.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    nodes: BTreeMap<Key, Node>,
    /// Whether something is known that is not stored.
    pub(crate) dirty: bool,
}

impl Tree {
    /// Nothing is known.
    pub(crate) fn unknown() -> Self {
        let root = Kind::Directory {
            header: None,
            listed: false,
        };
        Self::with_root(root)
    }

    /// For files that are received: a change never names the root, so its metadata counts as
    /// empty. `empty` when nothing has been received yet.
    pub(crate) fn received(empty: bool) -> Self {
        let root = Kind::Directory {
            header: Some(Sha256::digest(b"").into()),
            listed: empty,
        };
        Self::with_root(root)
    }

    fn with_root(root: Kind) -> Self {
        Self {
            nodes: BTreeMap::from([(Key::new(), Node::new(root))]),
            dirty: false,
        }
    }

    pub(crate) fn from_nodes(nodes: BTreeMap<Key, Node>) -> Self {
        Self {
            nodes,
            dirty: false,
        }
    }

    pub(crate) fn nodes(&self) -> &BTreeMap<Key, Node> {
        &self.nodes
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Node> {
        self.nodes.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut Node> {
        self.nodes.get_mut(key)
    }

    /// Adds what was found on disk, unless it is known.
    pub(crate) fn learn(&mut self, key: Key, kind: Kind) {
        self.nodes.entry(key).or_insert_with(|| Node::new(kind));
    }

    /// Notes the digests, of directories those of their metadata, and the permissions of paths,
    /// which come in order.
    pub(crate) fn set_hashes<'a>(
        &mut self,
        hashes: impl IntoIterator<Item = (&'a Key, (Raw, u16))>,
    ) {
        let mut hashes = hashes.into_iter().peekable();
        let Some((first, _)) = hashes.peek() else {
            return;
        };
        // Side by side: to look each of many up takes longer.
        for (key, node) in self.nodes.range_mut(Key::clone(first)..) {
            while hashes.next_if(|(wanted, _)| *wanted < key).is_some() {}
            let Some((_, (digest, mode))) = hashes.next_if(|(wanted, _)| *wanted == key) else {
                match hashes.peek() {
                    Some(_) => continue,
                    None => return,
                }
            };
            node.mode = Some(mode);
            match &mut node.kind {
                Kind::Directory { header, .. } => *header = Some(digest),
                _ => node.digest = Some(digest),
            }
        }
    }

    /// `key` and all that is below it, in order.
    pub(crate) fn subtree(&self, key: &[u8]) -> impl Iterator<Item = (&Key, &Node)> {
        self.nodes.range(key.to_vec()..past(key))
    }

    /// Adds what `other` knows, unless it is known.
    pub(crate) fn take_over(&mut self, other: Self) {
        for (key, node) in other.nodes {
            self.nodes.entry(key).or_insert(node);
        }
    }

    /// The metadata of the directory `key` may be others, and there may be other names in it.
    pub(crate) fn unlist(&mut self, key: &[u8]) {
        if let Some(node) = self.get_mut(key)
            && let Kind::Directory { header, listed } = &mut node.kind
        {
            (*header, *listed) = (None, false);
            node.digest = None;
        }
        self.forget_above(key);
    }

    /// Nothing is known any more of `key` and what is below it.
    pub(crate) fn forget(&mut self, key: &[u8]) {
        self.remove(key);
        self.forget_above(key);
    }

    /// Applies changes in their order.
    pub(crate) fn change(&mut self, changes: impl IntoIterator<Item = HashedChange>) {
        // Names of files whose content may be told after them: it is written concurrently.
        let mut links: HashMap<Key, Vec<Key>> = HashMap::new();
        for change in changes {
            self.dirty = true;
            match change {
                HashedChange::Delete { path } => {
                    let key = key_of(&path);
                    self.remove(&key);
                    self.forget_above(&key);
                }
                HashedChange::Set {
                    path,
                    kind,
                    digest,
                    mode,
                } => {
                    let digest = raw_of(&digest);
                    let mode = u16::try_from(mode).ok();
                    self.set(&mut links, key_of(&path), kind, (digest, mode));
                }
            }
        }
    }

    fn set(
        &mut self,
        links: &mut HashMap<Key, Vec<Key>>,
        key: Key,
        kind: EntryKind,
        (digest, mode): (Option<Raw>, Option<u16>),
    ) {
        let was_directory = self.get(&key).is_some_and(Node::is_directory);
        if was_directory && kind != EntryKind::Directory {
            self.remove(&key);
        }
        let node = match kind {
            EntryKind::Directory => {
                if was_directory {
                    if let Some(node) = self.get_mut(&key) {
                        node.digest = None;
                        node.mode = mode;
                        if let Kind::Directory { header, .. } = &mut node.kind {
                            *header = digest;
                        }
                    }
                    self.forget_above(&key);
                    return;
                }
                // A new directory is empty until something in it is named.
                Node {
                    mode,
                    ..Node::new(Kind::Directory {
                        header: digest,
                        listed: true,
                    })
                }
            }
            EntryKind::Symlink { target } => Node {
                kind: Kind::Symlink { target },
                digest,
                mode,
            },
            EntryKind::Hardlink { target } => {
                let target = key_of(&target);
                let known = self.get(&target).filter(|node| !node.is_directory());
                let node = known.cloned().unwrap_or(Node {
                    kind: Kind::File,
                    digest,
                    mode,
                });
                links.entry(target).or_default().push(key.clone());
                node
            }
            EntryKind::File => Node {
                kind: Kind::File,
                digest,
                mode,
            },
        };
        if !node.is_directory() {
            for link in links.remove(&key).unwrap_or_default() {
                self.forget_above(&link);
                self.nodes.insert(link, node.clone());
            }
        }
        self.forget_above(&key);
        self.nodes.insert(key, node);
    }

    fn remove(&mut self, key: &[u8]) {
        let gone: Vec<Key> = self.subtree(key).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.nodes.remove(&key);
        }
    }

    /// The directories that `key` is in have another content.
    fn forget_above(&mut self, key: &[u8]) {
        let mut key = key;
        while let Some(parent) = parent_of(key) {
            if let Some(node) = self.nodes.get_mut(parent) {
                node.digest = None;
            }
            key = parent;
        }
    }

    /// Computes the digest of the directory `key` from what is in it, all of which is known:
    /// its own header, then for each name in it the name and the digest. Keeps those of the
    /// directories below too.
    pub(crate) fn fold(&mut self, key: &[u8]) -> Option<Raw> {
        let mut open: Vec<(Key, Sha256)> = Vec::new();
        let mut done: Vec<(Key, Raw)> = Vec::new();
        let mut from = key.to_vec();
        let end = past(key);
        'walk: loop {
            for (key, node) in self.nodes.range(from.clone()..end.clone()) {
                close(&mut open, &mut done, Some(key));
                match (&node.kind, node.digest) {
                    (Kind::Directory { .. }, Some(digest)) => {
                        feed(&mut open, key, &digest);
                        // What is in it is part of its digest.
                        from = past(key);
                        if from >= end {
                            break;
                        }
                        continue 'walk;
                    }
                    (Kind::Directory { header, .. }, None) => {
                        let mut hash = Sha256::new();
                        hash.update([0]);
                        hash.update(text(&(*header)?));
                        open.push((key.clone(), hash));
                    }
                    (_, digest) => feed(&mut open, key, &digest?),
                }
            }
            break;
        }
        close(&mut open, &mut done, None);
        let digest = done.last().map(|(_, digest)| *digest);
        for (key, digest) in done {
            if let Some(node) = self.nodes.get_mut(&key) {
                node.digest = Some(digest);
            }
        }
        digest
    }
}

/// Ends the directories that `next` is not in, and tells each to the one it is in.
fn close(open: &mut Vec<(Key, Sha256)>, done: &mut Vec<(Key, Raw)>, next: Option<&[u8]>) {
    while let Some((top, hash)) = open.pop() {
        if next.is_some_and(|next| is_inside(next, &top)) {
            open.push((top, hash));
            return;
        }
        let digest: Raw = hash.finalize().into();
        feed(open, &top, &digest);
        done.push((top, digest));
    }
}

fn feed(open: &mut [(Key, Sha256)], key: &[u8], digest: &Raw) {
    if let Some((dir, hash)) = open.last_mut() {
        hash.update(&key[dir.len()..]);
        hash.update(text(digest));
    }
}

/// Whether `key` is below `dir`.
pub(crate) fn is_inside(key: &[u8], dir: &[u8]) -> bool {
    key.strip_prefix(dir)
        .is_some_and(|rest| rest.first() == Some(&0))
}

/// What comes after `key` and all that is below it.
pub(crate) fn past(key: &[u8]) -> Key {
    let mut past = key.to_vec();
    past.push(1);
    past
}

pub(crate) fn parent_of(key: &[u8]) -> Option<&[u8]> {
    let at = key.iter().rposition(|byte| *byte == 0)?;
    Some(&key[..at])
}

/// The key of a path, cleaned as text: `..` takes a name away, at the top it stays.
pub(crate) fn key_of(path: &Path) -> Key {
    let mut key = Key::new();
    for name in path.as_os_str().as_bytes().split(|byte| *byte == b'/') {
        step(&mut key, name);
    }
    key
}

/// Goes from `key` to the `name` in it.
pub(crate) fn step(key: &mut Key, name: &[u8]) {
    match name {
        b"" | b"." => {}
        b".." => {
            let parent = parent_of(key).map_or(0, <[u8]>::len);
            key.truncate(parent);
        }
        name => {
            key.push(0);
            key.extend_from_slice(name);
        }
    }
}

/// The path of a key as text: empty for the root, as BuildKit's messages have it.
pub(crate) fn path_of(key: &[u8]) -> String {
    let path: Vec<u8> = key
        .iter()
        .map(|byte| if *byte == 0 { b'/' } else { *byte })
        .collect();
    String::from_utf8_lossy(&path).into_owned()
}

/// The digest as text: `sha256:` and 64 hexadecimal digits.
pub(crate) fn text(digest: &Raw) -> [u8; 71] {
    let mut text = [0; 71];
    let (begin, digits) = text.split_at_mut(7);
    begin.copy_from_slice(b"sha256:");
    hex::encode_to_slice(digest, digits).expect("64 digits are as many as 32 bytes need");
    text
}

fn raw_of(digest: &Digest) -> Option<Raw> {
    let mut raw = Raw::default();
    hex::decode_to_slice(digest.digest(), &mut raw).ok()?;
    Some(raw)
}
