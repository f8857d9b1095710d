//! What digests were computed from, for people who ask why two of them differ.
//!
//! Kinds and frames are those of BuildKit's `util/cachedigest`: a digest is of the bytes of all
//! frames one after the other, and bytes that nobody wants to keep, such as the content of files,
//! are only counted.

use crate::{Digest, digest_of};

/// Bytes that are kept of one plaintext; what is behind them is counted.
const MOST_BYTES: usize = 1 << 20;
/// Frames of one plaintext; with more the rest is counted.
const MOST_FRAMES: usize = 16 << 10;

/// What a plaintext is like, by BuildKit's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaintextKind {
    /// The JSON of an operation or of a source.
    Json,
    /// Any text; digests in it may have plaintexts of their own.
    String,
    /// Texts with NUL between them.
    StringList,
    /// Digests with NUL between them.
    DigestList,
    /// Names and digests, with NUL before each part of a name.
    FileList,
    /// The metadata of a file, then its content, which is not kept.
    File,
}

impl PlaintextKind {
    const ALL: [Self; 6] = [
        Self::Json,
        Self::String,
        Self::StringList,
        Self::DigestList,
        Self::FileList,
        Self::File,
    ];

    /// BuildKit's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::String => "string",
            Self::StringList => "string-list",
            Self::DigestList => "digest-list",
            Self::FileList => "file-list",
            Self::File => "file",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A part of a plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// These bytes.
    Data(Vec<u8>),
    /// So many bytes that are not kept.
    Skip(u64),
}

/// What a digest was computed from. It keeps at most a mebibyte, whatever is put into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plaintext {
    kind: PlaintextKind,
    frames: Vec<Frame>,
    kept: usize,
}

impl Plaintext {
    /// Nothing yet.
    pub fn new(kind: PlaintextKind) -> Self {
        Self {
            kind,
            frames: Vec::new(),
            kept: 0,
        }
    }

    /// Of these bytes alone.
    pub fn of(kind: PlaintextKind, bytes: &[u8]) -> Self {
        let mut plaintext = Self::new(kind);
        plaintext.data(bytes);
        plaintext
    }

    /// Bytes that are part of the digest, as a frame of their own.
    pub fn data(&mut self, bytes: &[u8]) {
        let room = match self.frames.len() < MOST_FRAMES {
            true => MOST_BYTES - self.kept,
            false => 0,
        };
        let (kept, rest) = bytes.split_at(room.min(bytes.len()));
        if !kept.is_empty() {
            self.kept += kept.len();
            self.frames.push(Frame::Data(kept.to_vec()));
        }
        self.skip(rest.len() as u64);
    }

    /// So many bytes are part of the digest and nobody's business.
    pub fn skip(&mut self, count: u64) {
        match self.frames.last_mut() {
            _ if count == 0 => {}
            Some(Frame::Skip(before)) => *before = before.saturating_add(count),
            _ => self.frames.push(Frame::Skip(count)),
        }
    }

    /// What it is like.
    pub fn kind(&self) -> PlaintextKind {
        self.kind
    }

    /// The frames in their order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> usize {
        self.kept
    }
}

/// Takes down plaintexts. It is called on the path of a build and must neither wait nor fail.
pub trait Plaintexts: Send + Sync {
    /// Whether the plaintext of `digest` is worth the making.
    fn wants(&self, digest: &Digest) -> bool {
        let _ = digest;
        true
    }

    /// `digest` is that of `plaintext`.
    fn note(&self, digest: &Digest, plaintext: Plaintext);
}

/// The sha256 digest of `bytes`, which `plaintexts` is told when there is one.
pub fn digest_noted(
    plaintexts: Option<&dyn Plaintexts>,
    kind: PlaintextKind,
    bytes: &[u8],
) -> Digest {
    let digest = digest_of(bytes);
    if let Some(plaintexts) = plaintexts
        && plaintexts.wants(&digest)
    {
        plaintexts.note(&digest, Plaintext::of(kind, bytes));
    }
    digest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_is_too_long_is_counted() {
        let mut long = Plaintext::of(PlaintextKind::Json, &vec![b'a'; MOST_BYTES - 1]);
        long.data(b"bcd");
        long.data(b"");
        long.data(b"ef");
        long.skip(5);
        assert_eq!(long.kept(), MOST_BYTES);
        let [Frame::Data(begin), Frame::Data(end), Frame::Skip(9)] = long.frames() else {
            panic!("{} frames", long.frames().len());
        };
        assert_eq!((begin.len(), end.as_slice()), (MOST_BYTES - 1, &b"b"[..]));

        let mut many = Plaintext::new(PlaintextKind::FileList);
        for _ in 0..MOST_FRAMES + 7 {
            many.data(b"x");
        }
        assert_eq!(many.frames().len(), MOST_FRAMES + 1);
        assert_eq!(many.frames().last(), Some(&Frame::Skip(7)));
    }

    #[test]
    fn kinds_have_names() {
        for kind in PlaintextKind::ALL {
            assert_eq!(PlaintextKind::named(kind.name()), Some(kind));
        }
        assert_eq!(PlaintextKind::named("digest-array"), None);
    }

    struct Told(Mutex<Vec<(Digest, Plaintext)>>, bool);

    impl Plaintexts for Told {
        fn wants(&self, _: &Digest) -> bool {
            self.1
        }

        fn note(&self, digest: &Digest, plaintext: Plaintext) {
            self.0.lock().unwrap().push((digest.clone(), plaintext));
        }
    }

    #[test]
    fn who_wants_it_is_told() {
        let expected = digest_of(b"/");
        let (wants, has) = (Told(Mutex::default(), true), Told(Mutex::default(), false));
        for told in [None, Some(&wants), Some(&has)] {
            let told = told.map(|told| told as &dyn Plaintexts);
            let digest = digest_noted(told, PlaintextKind::String, b"/");
            assert_eq!(digest, expected);
        }
        let plaintext = Plaintext::of(PlaintextKind::String, b"/");
        assert_eq!(wants.0.into_inner().unwrap(), [(expected, plaintext)]);
        assert_eq!(has.0.into_inner().unwrap(), []);
    }
}
