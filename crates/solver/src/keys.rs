//! Cache keys and where they are kept.
//!
//! A key is an identity: that of an operation over inputs with certain keys. Links lead from
//! the keys of inputs to the key of the operation, results hang on keys. This is the shape of
//! BuildKit's `CacheKeyStorage`, so that a cache written by one can be read by the other.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use oci_spec::image::Digest;
use sha2::Digest as _;

use crate::explain::{Journal, Noted};

/// Names a cache key. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Takes the name of a key that is known from elsewhere.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// The key of an operation over inputs with these keys. It follows from them, so what is
    /// found does not depend on who was first.
    pub(crate) fn derived<'a>(links: impl Iterator<Item = (&'a KeyId, &'a Link)>) -> Self {
        let mut hash = sha2::Sha256::new();
        for (from, link) in links {
            hash.update(from.as_str());
            hash.update(" ");
            hash.update(link.to_text());
            hash.update("\n");
        }
        // 160 bits: nobody finds two that are equal.
        Self(hex::encode(&hash.finalize()[..20]).into())
    }

    /// The key of something without inputs: it follows from the digest and the output alone.
    /// An output of -1 stands for content as such, whoever made it.
    pub fn root(digest: &Digest, output: i64) -> Self {
        let text = format!("{digest}@{output}");
        let hash = sha2::Sha256::digest(text.as_bytes());
        Self(format!("sha256:{}", hex::encode(hash)).into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the key of an input leads to the key of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
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
    /// One text for the whole link, unique and without spaces.
    pub fn to_text(&self) -> String {
        let selector = self.selector.as_ref().map(Digest::as_ref).unwrap_or("");
        format!("{}/{}/{}/{selector}", self.input, self.output, self.digest)
    }
}

/// A result that hangs on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheResult {
    /// Names it in the [`crate::ResultStore`].
    pub id: String,
    /// When it was made.
    pub created_at: SystemTime,
}

/// What is to be kept of one operation that was carried out.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    /// The key.
    pub id: KeyId,
    /// Where it is reached from.
    pub links: Vec<(KeyId, Arc<Link>)>,
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
    fn connect(&self, id: &KeyId, links: Vec<(KeyId, Arc<Link>)>);

    /// Forgets a result that is no more, and the keys that nothing hangs on any more.
    fn release(&self, result: &str);

    /// Where is kept what results were made of. Without one nothing is explained, and nothing
    /// is described.
    fn journal(&self) -> Option<Arc<dyn Journal>> {
        None
    }
}
