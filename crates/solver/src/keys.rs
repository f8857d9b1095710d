//! Cache keys and where they are kept.
//!
//! A key is an identity: that of an operation over inputs with certain keys. Links lead from
//! the keys of inputs to the key of the operation, results hang on keys. This is the shape of
//! BuildKit's `CacheKeyStorage`, so that a cache written by one can be read by the other.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use oci_spec::image::Digest;
use sha2::Digest as _;
use smallvec::SmallVec;

use crate::explain::{Journal, Noted};

/// A text and its hash: keys and links are looked up much more often than they are made, and a
/// table that holds many of them is not to look at each text that it passes.
#[derive(Clone)]
struct Text {
    hash: u64,
    text: Arc<str>,
}

/// The same for all texts, and another in each process: names from elsewhere are not made to fit.
static HASHER: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

impl Text {
    fn new(text: impl Into<Arc<str>> + AsRef<str>) -> Self {
        Self {
            hash: HASHER.hash_one(text.as_ref()),
            text: text.into(),
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        let same = || Arc::ptr_eq(&self.text, &other.text);
        self.hash == other.hash && (same() || self.text == other.text)
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// How digests begin that are good for one session.
const RANDOM: &str = "random:";

/// What this module put together of names and numbers.
fn ascii(text: &[u8]) -> &str {
    std::str::from_utf8(text).expect("digests and numbers are text")
}

/// Writes bytes as hexadecimal digits; `digits` is twice as long.
fn hex_of<'a>(bytes: &[u8], digits: &'a mut [u8]) -> &'a str {
    hex::encode_to_slice(bytes, digits).expect("it is twice as long");
    ascii(digits)
}

/// Adds a number in decimal digits.
fn push_number(text: &mut SmallVec<[u8; 256]>, mut number: usize) {
    let begin = text.len();
    loop {
        let digit = u8::try_from(number % 10).expect("a digit is small");
        text.push(b'0' + digit);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text[begin..].reverse();
}

/// Names a cache key. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyId(Text);

impl PartialOrd for KeyId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyId {
    fn cmp(&self, other: &Self) -> Ordering {
        match self == other {
            true => Ordering::Equal,
            false => self.as_str().cmp(other.as_str()),
        }
    }
}

impl KeyId {
    /// Takes the name of a key that is known from elsewhere.
    pub fn new(id: &str) -> Self {
        Self(Text::new(id))
    }

    /// The key of an operation over inputs with these keys. It follows from them, so what is
    /// found does not depend on who was first.
    pub(crate) fn derived<'a>(links: impl Iterator<Item = (&'a KeyId, &'a Link)>) -> Self {
        let mut hash = sha2::Sha256::new();
        for (from, link) in links {
            hash.update(from.as_str());
            hash.update(" ");
            hash.update(link.as_str());
            hash.update("\n");
        }
        // 160 bits: nobody finds two that are equal.
        let mut name = [0; 40];
        Self(Text::new(hex_of(&hash.finalize()[..20], &mut name)))
    }

    /// The key of something without inputs: it follows from the digest and the output alone.
    /// An output of -1 stands for content as such, whoever made it. A digest that is good for one
    /// session keeps its name, as in BuildKit.
    pub fn root(digest: &Digest, output: i64) -> Self {
        if output == 0 && digest.as_ref().starts_with(RANDOM) {
            return Self(Text::new(digest.as_ref()));
        }
        let mut hash = sha2::Sha256::new();
        let text: &str = digest.as_ref();
        hash.update(text);
        hash.update(format!("@{output}"));
        let mut name = *b"sha256:0000000000000000000000000000000000000000000000000000000000000000";
        hex_of(&hash.finalize(), &mut name[7..]);
        Self(Text::new(ascii(&name)))
    }

    /// The text that a root key is the digest of.
    pub fn root_text(digest: &Digest, output: i64) -> String {
        format!("{digest}@{output}")
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the key of an input leads to the key of an operation. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Link(Text);

/// What a [`Link`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkParts {
    /// Which input of the operation.
    pub input: usize,
    /// Which output of the operation.
    pub output: usize,
    /// What the operation does, its inputs left out ([`crate::CacheMap::digest`]).
    pub digest: Digest,
    /// Which part of the input the operation looks at; `None` for all of it or for content.
    pub selector: Option<Digest>,
}

impl Link {
    /// A link to `output` of the operation `digest` from its input number `input`, of which it
    /// looks at the part `selector`, or at all of it or its content.
    pub fn new(input: usize, output: usize, digest: &Digest, selector: Option<&Digest>) -> Self {
        let selector = selector.map(Digest::as_ref).unwrap_or("");
        // Made for each look-up: on the stack, where it mostly has room.
        let mut text = SmallVec::<[u8; 256]>::new();
        for number in [input, output] {
            push_number(&mut text, number);
            text.push(b'/');
        }
        let digest: &str = digest.as_ref();
        text.extend_from_slice(digest.as_bytes());
        text.push(b'/');
        text.extend_from_slice(selector.as_bytes());
        Self(Text::new(ascii(&text)))
    }

    /// Takes the text of a link that was kept.
    pub fn from_text(text: &str) -> Self {
        Self(Text::new(text))
    }

    /// One text for the whole link, unique and without spaces.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// What it says; `None` when its text is none that this crate made.
    pub fn parts(&self) -> Option<LinkParts> {
        let parts: Vec<_> = self.as_str().split('/').collect();
        let [input, output, digest, selector] = parts[..] else {
            return None;
        };
        Some(LinkParts {
            input: input.parse().ok()?,
            output: output.parse().ok()?,
            digest: digest.parse().ok()?,
            selector: match selector {
                "" => None,
                selector => Some(selector.parse().ok()?),
            },
        })
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A result that hangs on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheResult {
    /// Names it in the [`crate::ResultStore`].
    pub id: Arc<str>,
    /// When it was made.
    pub created_at: SystemTime,
}

/// What is to be kept of one operation that was carried out.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    /// The key.
    pub id: KeyId,
    /// Where it is reached from.
    pub links: Vec<(KeyId, Link)>,
    /// What was made.
    pub result: CacheResult,
    /// What it was made of, to be kept in the same step; only when there is a
    /// [journal](KeyStore::journal).
    pub noted: Option<Arc<Noted>>,
}

/// Keeps keys. The calls are made from the solver's one task: they must be fast and must not
/// wait for a disk.
pub trait KeyStore: Send + Sync {
    /// The keys that `link` leads to from `from`.
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId>;

    /// The results that hang on `id`, in any order.
    fn results(&self, id: &KeyId) -> Vec<CacheResult>;

    /// Keeps an entry; the same one again changes nothing. Written in the background: what is
    /// lost with the machine is lost as a whole, what a key says is never wrong.
    fn add(&self, entry: KeyEntry);

    /// Keeps links to a key that has no result of its own: something that has one follows.
    fn connect(&self, id: &KeyId, links: Vec<(KeyId, Link)>);

    /// Forgets a result that is no more, and the keys that nothing hangs on any more.
    fn release(&self, result: &str);

    /// `id` is the [root key](KeyId::root) of `digest` and `output`. For those who want to know
    /// what keys are made of; called for each of them, many times.
    fn is_root_of(&self, id: &KeyId, digest: &Digest, output: i64) {
        let _ = (id, digest, output);
    }

    /// Where is kept what results were made of. Without one nothing is explained, and nothing
    /// is described.
    fn journal(&self) -> Option<Arc<dyn Journal>> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_root_key_follows_from_its_digest() {
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let root = KeyId::root(&digest, 0);
        assert!(root.as_str().starts_with("sha256:"));
        assert_ne!(root, KeyId::root(&digest, -1));
        assert_eq!(KeyId::root_text(&digest, -1), format!("{digest}@-1"));
        let random: Digest = format!("random:{}", "b".repeat(64)).parse().unwrap();
        assert_eq!(KeyId::root(&random, 0).as_str(), random.as_ref());
        // Another output is another key.
        assert_ne!(KeyId::root(&random, 1), KeyId::root(&random, 0));
    }

    #[test]
    fn a_link_is_its_text() {
        let digest =
            |letter: &str| -> Digest { format!("sha256:{}", letter.repeat(64)).parse().unwrap() };
        for selector in [None, Some(digest("b"))] {
            let link = Link::new(3, 1, &digest("a"), selector.as_ref());
            let kept = Link::from_text(link.as_str());
            assert_eq!(kept, link);
            let parts = LinkParts {
                input: 3,
                output: 1,
                digest: digest("a"),
                selector,
            };
            assert_eq!(kept.parts(), Some(parts));
        }
        for wrong in ["", "1/2", "1/2/x/", "a/0/sha256:00/", "0/0/0/0/0"] {
            assert_eq!(Link::from_text(wrong).parts(), None, "{wrong}");
        }
    }
}
