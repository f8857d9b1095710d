//! Telling what the digests of directories were computed from.
//!
//! It is told of what is known of a tree, after the digest: who computes one does not look at
//! everything, because much was computed before.

use cooper_content::{Plaintext, PlaintextKind, Plaintexts, digest_from};
use sha2::{Digest as _, Sha256};

use super::tree::{Key, Kind, Raw, Tree, is_inside, text};

/// A directory whose end is not there yet.
struct Open {
    key: Key,
    hash: Sha256,
    plaintext: Plaintext,
    /// Whether all that is in it is known.
    whole: bool,
    /// Its digest, if that is known.
    digest: Option<Raw>,
}

impl Open {
    fn put(&mut self, part: &[u8]) {
        self.hash.update(part);
        self.plaintext.data(part);
    }

    /// Something right in it.
    fn feed(&mut self, key: &[u8], digest: Option<&Raw>) {
        match digest {
            Some(digest) => {
                self.put(&key[self.key.len()..]);
                self.put(&text(digest));
            }
            None => self.whole = false,
        }
    }
}

/// Tells `plaintexts` of the directories at and below `key`, as far as all that is in them is
/// known.
pub(super) fn tree(tree: &Tree, key: &[u8], plaintexts: &dyn Plaintexts) {
    let Some(top) = tree.get(key) else { return };
    // Then what is below it was told of as well.
    if let Some(digest) = &top.digest
        && !plaintexts.wants(&digest_from(digest))
    {
        return;
    }
    let mut open: Vec<Open> = Vec::new();
    for (key, node) in tree.subtree(key) {
        close(&mut open, Some(key), plaintexts);
        let Kind::Directory { header, listed } = &node.kind else {
            if let Some(dir) = open.last_mut() {
                dir.feed(key, node.digest.as_ref());
            }
            continue;
        };
        let mut dir = Open {
            key: key.clone(),
            hash: Sha256::new(),
            plaintext: Plaintext::new(PlaintextKind::FileList),
            whole: *listed,
            digest: node.digest,
        };
        match header {
            Some(header) => {
                dir.put(&[0]);
                dir.put(&text(header));
            }
            None => dir.whole = false,
        }
        open.push(dir);
    }
    close(&mut open, None, plaintexts);
}

/// Ends the directories that `next` is not in.
fn close(open: &mut Vec<Open>, next: Option<&[u8]>, plaintexts: &dyn Plaintexts) {
    while let Some(dir) = open.pop_if(|top| !next.is_some_and(|next| is_inside(next, &top.key))) {
        // A digest that nobody has asked for is not computed for this.
        if let (Some(digest), true) = (&dir.digest, dir.whole) {
            let computed: Raw = dir.hash.finalize().into();
            // What was learned since is not what it was computed from.
            if computed == *digest {
                plaintexts.note(&digest_from(digest), dir.plaintext);
            }
        }
        if let Some(parent) = open.last_mut() {
            parent.feed(&dir.key, dir.digest.as_ref());
        }
    }
}
