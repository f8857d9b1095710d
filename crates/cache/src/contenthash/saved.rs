//! Trees as text, to be stored: a line for each path.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::tree::{Key, Kind, Node, Raw, Tree};

/// The form of the text, raised when it changes: another one is not read.
const FORM: &str = "1\n";

pub(crate) fn write(tree: &Tree) -> String {
    let mut text = String::from(FORM);
    for (key, node) in tree.nodes() {
        let kind = match &node.kind {
            Kind::File => 'f',
            Kind::Symlink { .. } => 'l',
            Kind::Directory { listed: true, .. } => 'D',
            Kind::Directory { listed: false, .. } => 'd',
        };
        text.push(kind);
        digest(&mut text, node.digest.as_ref());
        escape(&mut text, key);
        match &node.kind {
            Kind::Symlink { target } => escape(&mut text, target),
            Kind::Directory { header, .. } => digest(&mut text, header.as_ref()),
            Kind::File => {}
        }
        // At the end, where those who do not know it do not look.
        if let Some(mode) = node.mode {
            let _ = write!(text, " {mode:o}");
        }
        text.push('\n');
    }
    text
}

fn digest(text: &mut String, digest: Option<&Raw>) {
    match digest {
        Some(digest) => {
            let _ = write!(text, " {}", hex::encode(digest));
        }
        None => text.push_str(" -"),
    }
}

fn escape(text: &mut String, bytes: &[u8]) {
    text.push(' ');
    for byte in bytes {
        match byte {
            0 => text.push('/'),
            b'!'..=b'~' if !matches!(byte, b'%' | b'/') => text.push(char::from(*byte)),
            byte => {
                let _ = write!(text, "%{byte:02x}");
            }
        }
    }
}

/// Reads what [`write`] wrote; nothing when it is anything else.
pub(crate) fn read(text: &str) -> Option<Tree> {
    let mut nodes = BTreeMap::new();
    for line in text.strip_prefix(FORM)?.lines() {
        let mut fields = line.split(' ');
        let kind = fields.next()?;
        let digest = raw(fields.next()?)?;
        let key: Key = unescape(fields.next()?)?;
        let kind = match kind {
            "f" => Kind::File,
            "l" => Kind::Symlink {
                target: unescape(fields.next()?)?,
            },
            "d" | "D" => Kind::Directory {
                header: raw(fields.next()?)?,
                listed: kind == "D",
            },
            _ => return None,
        };
        let mode = fields
            .next()
            .and_then(|mode| u16::from_str_radix(mode, 8).ok());
        nodes.insert(key, Node { kind, digest, mode });
    }
    nodes
        .contains_key(&Key::new())
        .then(|| Tree::from_nodes(nodes))
}

#[allow(clippy::option_option)]
fn raw(text: &str) -> Option<Option<Raw>> {
    if text == "-" {
        return Some(None);
    }
    let mut raw = Raw::default();
    hex::decode_to_slice(text, &mut raw).ok()?;
    Some(Some(raw))
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        bytes.push(match first {
            b'/' => 0,
            b'%' => {
                let code = str::from_utf8(tail.get(..2)?).ok()?;
                rest = &tail[2..];
                u8::from_str_radix(code, 16).ok()?
            }
            byte => *byte,
        });
    }
    Some(bytes)
}
