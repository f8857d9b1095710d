//! Trees as bytes, to be stored in a file of their own: rows of the metadata of many megabytes
//! would be in the way of all others.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::tree::{Key, Kind, Node, Raw, Tree};

/// The form of the bytes, which begin with it; another one is not read. The digest of the rest
/// follows: a file that did not survive the death of the machine whole is none.
const FORM: &[u8; 16] = b"cooper hashes 2\n";
const SUM: usize = 32;

/// What a byte before each path says of it.
const KIND: u8 = 0b11;
const FILE: u8 = 0;
const SYMLINK: u8 = 1;
const UNLISTED: u8 = 2;
const LISTED: u8 = 3;
const HAS_DIGEST: u8 = 1 << 2;
const HAS_HEADER: u8 = 1 << 3;
const HAS_MODE: u8 = 1 << 4;

pub(crate) fn write(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(tree.nodes().len() * 64);
    bytes.extend_from_slice(FORM);
    bytes.extend_from_slice(&[0; SUM]);
    let mut before: &[u8] = &[];
    for (key, node) in tree.nodes() {
        let (kind, header, target) = match &node.kind {
            Kind::File => (FILE, None, None),
            Kind::Symlink { target } => (SYMLINK, None, Some(target)),
            Kind::Directory { header, listed } => {
                let kind = if *listed { LISTED } else { UNLISTED };
                (kind, header.as_ref(), None)
            }
        };
        let has = |there: bool, bit: u8| if there { bit } else { 0 };
        let digest = has(node.digest.is_some(), HAS_DIGEST);
        let mode = has(node.mode.is_some(), HAS_MODE);
        bytes.push(kind | digest | has(header.is_some(), HAS_HEADER) | mode);
        // What a path has in common with the one before it is not written again.
        let common = before.iter().zip(key).take_while(|(a, b)| a == b).count();
        number(&mut bytes, common);
        text(&mut bytes, &key[common..]);
        before = key;
        for digest in [node.digest.as_ref(), header].into_iter().flatten() {
            bytes.extend_from_slice(digest);
        }
        if let Some(mode) = node.mode {
            bytes.extend_from_slice(&mode.to_le_bytes());
        }
        if let Some(target) = target {
            text(&mut bytes, target);
        }
    }
    let sum = Sha256::digest(&bytes[FORM.len() + SUM..]);
    bytes[FORM.len()..FORM.len() + SUM].copy_from_slice(&sum);
    bytes
}

/// Seven bits in each byte, the lowest first; the eighth says that more follow.
fn number(bytes: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn text(bytes: &mut Vec<u8>, text: &[u8]) {
    number(bytes, text.len());
    bytes.extend_from_slice(text);
}

/// Reads what [`write`] wrote; nothing when it is anything else.
pub(crate) fn read(bytes: &[u8]) -> Option<Tree> {
    let rest = bytes.strip_prefix(FORM)?;
    let (sum, rest) = rest.split_at_checked(SUM)?;
    if sum != &Sha256::digest(rest)[..] {
        return None;
    }
    let mut rest = Rest(rest);
    let mut nodes: Vec<(Key, Node)> = Vec::with_capacity(rest.0.len() / 48);
    while !rest.0.is_empty() {
        let flags = rest.take(1)?[0];
        let common = rest.number()?;
        let before = nodes.last().map_or(&[][..], |(key, _)| key);
        let mut key: Key = before.get(..common)?.to_vec();
        key.extend_from_slice(rest.text()?);
        let digest = rest.digest(flags & HAS_DIGEST != 0)?;
        let header = rest.digest(flags & HAS_HEADER != 0)?;
        let mode = match flags & HAS_MODE {
            0 => None,
            _ => Some(u16::from_le_bytes(rest.take(2)?.try_into().ok()?)),
        };
        let kind = match flags & KIND {
            FILE => Kind::File,
            SYMLINK => Kind::Symlink {
                target: rest.text()?.to_vec(),
            },
            kind => Kind::Directory {
                header,
                listed: kind == LISTED,
            },
        };
        nodes.push((key, Node { kind, digest, mode }));
    }
    let nodes: BTreeMap<Key, Node> = nodes.into_iter().collect();
    nodes
        .contains_key(&Key::new())
        .then(|| Tree::from_nodes(nodes))
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length)
    }

    #[allow(clippy::option_option)]
    fn digest(&mut self, there: bool) -> Option<Option<Raw>> {
        match there {
            true => Some(Some(self.take(32)?.try_into().ok()?)),
            false => Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw() -> impl Strategy<Value = Option<Raw>> {
        proptest::option::of(any::<Raw>())
    }

    fn node() -> impl Strategy<Value = Node> {
        let kind = prop_oneof![
            Just(Kind::File),
            proptest::collection::vec(any::<u8>(), 0..300)
                .prop_map(|target| Kind::Symlink { target }),
            (raw(), any::<bool>()).prop_map(|(header, listed)| Kind::Directory { header, listed }),
        ];
        let node = (kind, raw(), proptest::option::of(0..0o10000_u16));
        node.prop_map(|(kind, digest, mode)| Node { kind, digest, mode })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read_and_nothing_else(
            nodes in proptest::collection::btree_map("(\0[a-c\u{e9}]{1,200}){0,3}", node(), 0..40),
            place in any::<prop::sample::Index>(),
            flip in 1..=255_u8,
        ) {
            let nodes = nodes.into_iter().map(|(key, node)| (key.into_bytes(), node));
            let mut nodes: BTreeMap<Key, Node> = nodes.collect();
            nodes.insert(Key::new(), Node::new(Kind::File));
            let mut bytes = write(&Tree::from_nodes(nodes.clone()));
            let back = read(&bytes).unwrap();
            prop_assert_eq!(back.nodes(), &nodes);
            prop_assert!(read(&bytes[..place.index(bytes.len())]).is_none());
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            prop_assert!(read(&bytes).is_none());
        }
    }
}
