//! What a digest was computed from, and what the digests in that were computed from: BuildKit's
//! `cachedigest.Record`.

use std::collections::HashSet;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cooper_content::{Frame, Plaintext, PlaintextKind};
use regex::bytes::Regex;
use serde_json::{Map, Value, json};

use super::answer::Shown;

/// A digest in a text.
static DIGEST: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)\bsha256:[a-f0-9]{64}\b").expect("the expression is a constant")
});
/// The length of a sha256 digest in characters.
const LENGTH: usize = 71;
/// Bytes of all that is shown in one record, at least which it may be before more is left out.
const MOST_BYTES: usize = 8 << 20;
/// `FrameIDData` and `FrameIDSkip`.
const DATA: u32 = 2;
const SKIP: u32 = 3;

/// One digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    digest: String,
    plaintext: Plaintext,
    /// Those of the digests in it that are known; they have none of their own.
    parts: Vec<Record>,
}

/// Finds the plaintext of a digest.
pub(super) trait Find {
    /// `None` for one that is not known.
    fn find(&self, digest: &str) -> Result<Option<Plaintext>, String>;
}

impl Record {
    /// `digest` and what is known of the digests in its plaintext.
    ///
    /// # Errors
    /// The plaintexts cannot be read.
    pub(super) fn of(digest: &str, plaintext: Plaintext, find: &impl Find) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut bytes = 0;
        for digest in named(&plaintext) {
            // A directory with large ones in it would be without bounds.
            if bytes > MOST_BYTES {
                break;
            }
            if let Some(plaintext) = find.find(&digest)? {
                bytes += plaintext.kept();
                parts.push(Self {
                    digest,
                    plaintext,
                    parts: Vec::new(),
                });
            }
        }
        Ok(Self {
            digest: digest.to_owned(),
            plaintext,
            parts,
        })
    }

    fn title(&self, indent: &str, out: &mut Vec<u8>) {
        let kind = self.plaintext.kind().name();
        out.extend(format!("{indent}{} ({kind}):\n", self.digest).into_bytes());
    }
}

/// The digests that are named in a plaintext, each once.
fn named(plaintext: &Plaintext) -> Vec<String> {
    let mut bytes = Vec::with_capacity(plaintext.kept());
    for frame in plaintext.frames() {
        if let Frame::Data(data) = frame {
            bytes.extend_from_slice(data);
        }
    }
    let parts = || bytes.split(|byte| *byte == 0);
    let found: Vec<&[u8]> = match plaintext.kind() {
        PlaintextKind::String => DIGEST.find_iter(&bytes).map(|it| it.as_bytes()).collect(),
        PlaintextKind::DigestList => parts().collect(),
        // Names may be anything, and a digest ends each of them.
        PlaintextKind::FileList => parts()
            .filter_map(|part| part.split_at_checked(part.len().checked_sub(LENGTH)?))
            .map(|(_, digest)| digest)
            .collect(),
        PlaintextKind::Json | PlaintextKind::StringList | PlaintextKind::File => Vec::new(),
    };
    let mut seen = HashSet::new();
    let mut digests = Vec::new();
    for digest in found {
        let whole = digest.len() == LENGTH && DIGEST.is_match(digest);
        if whole && seen.insert(digest) {
            digests.push(String::from_utf8_lossy(digest).into_owned());
        }
    }
    digests
}

impl Shown for Record {
    fn json(&self) -> Value {
        let frames = self.plaintext.frames().iter().map(|frame| match frame {
            Frame::Data(data) => json!({ "type": DATA, "data": STANDARD.encode(data) }),
            Frame::Skip(count) => {
                let count = u32::try_from(*count).unwrap_or(u32::MAX).to_be_bytes();
                json!({ "type": SKIP, "data": STANDARD.encode(count) })
            }
        });
        let frames: Vec<Value> = frames.collect();
        let mut all = Map::new();
        all.insert("digest".to_owned(), self.digest.clone().into());
        all.insert("type".to_owned(), self.plaintext.kind().name().into());
        if !frames.is_empty() {
            all.insert("data".to_owned(), frames.into());
        }
        if !self.parts.is_empty() {
            let parts: Vec<Value> = self.parts.iter().map(Shown::json).collect();
            all.insert("subRecords".to_owned(), parts.into());
        }
        all.into()
    }

    fn text(&self, out: &mut Vec<u8>) {
        self.title("", out);
        for part in &self.parts {
            part.title("  ", out);
        }
        for frame in self.plaintext.frames() {
            match frame {
                Frame::Data(data) => {
                    out.extend_from_slice(b"  data: ");
                    out.extend_from_slice(data);
                    out.push(b'\n');
                }
                Frame::Skip(count) => {
                    out.extend(format!("  skipping {count} bytes\n").into_bytes());
                }
            }
        }
        for part in &self.parts {
            out.push(b'\n');
            part.text(out);
        }
    }
}
