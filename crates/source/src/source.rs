//! The trait, and the sources by scheme.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use cooper_cache::ImmutableRef;
use cooper_progress::VertexProgress;
use cooper_proto::pb;
use cooper_session::Group;

use crate::{Memory, SourceError};

/// What a client names: scheme, what follows `://`, and attributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identifier {
    /// `docker-image`, `local`, …
    pub scheme: String,
    /// What follows `://`.
    pub reference: String,
    /// Attributes by BuildKit's names (`solver/pb/attr.go`): `image.resolvemode`, ….
    pub attrs: BTreeMap<String, String>,
    /// The platform that it is for.
    pub platform: pb::Platform,
}

impl Identifier {
    /// Splits `text` at `://`.
    pub fn parse(
        text: &str,
        attrs: BTreeMap<String, String>,
        platform: pb::Platform,
    ) -> Result<Self, SourceError> {
        let (scheme, reference) =
            text.split_once("://")
                .ok_or_else(|| SourceError::Identifier {
                    identifier: text.to_owned(),
                })?;
        Ok(Self {
            scheme: scheme.to_owned(),
            reference: reference.to_owned(),
            attrs,
            platform,
        })
    }

    /// An attribute; an empty one is as good as none.
    pub(crate) fn attr(&self, name: &str) -> Option<&str> {
        self.attrs
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The error for an attribute whose value is of no use.
    pub(crate) fn invalid(&self, name: &str, reason: impl std::fmt::Display) -> SourceError {
        SourceError::Attribute {
            name: name.to_owned(),
            value: self.attrs.get(name).cloned().unwrap_or_default(),
            reason: reason.to_string(),
        }
    }
}

/// Whom a source may ask and whom it tells.
#[derive(Clone)]
pub struct SourceContext {
    /// The sessions of all who want it.
    pub sessions: Group,
    /// The vertex that it works for.
    pub progress: VertexProgress,
    /// What the builds that want it know already.
    pub memories: Vec<Memory>,
}

/// What an identifier stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    /// Two with one key are the same. BuildKit's text: a digest, or `session:…` for what
    /// cannot be known before it is there.
    pub key: String,
    /// What to write down to get the very same again: a digest. Empty when there is none.
    pub pin: String,
    /// Whether there are no further keys.
    pub last: bool,
}

/// A kind of source.
pub trait Source: Send + Sync {
    /// The schemes that it answers to.
    fn schemes(&self) -> &'static [&'static str];

    /// Understands an identifier; nothing is asked of anybody yet.
    fn open(&self, id: Identifier) -> Result<Arc<dyn Instance>, SourceError>;
}

/// What is asked of a source besides what it stands for.
#[derive(Clone, Debug, Default)]
pub struct MetadataRequest {
    /// Of a repository: the commit and the tag themselves.
    pub objects: bool,
    /// Of a download: one more digest.
    pub checksum: Option<ChecksumRequest>,
}

/// A digest of a download with bytes behind it, by which a client proves that it has something
/// of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChecksumRequest {
    /// How it is made.
    pub algorithm: ChecksumAlgorithm,
    /// The bytes behind the content.
    pub suffix: Vec<u8>,
}

/// How a digest is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ChecksumAlgorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// What is known of a source without its files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metadata {
    /// Of a repository.
    Git(GitMetadata),
    /// Of a download.
    Http(HttpMetadata),
}

/// What is known of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitMetadata {
    /// The object that the name stands for: a commit, or a tag with a text of its own.
    pub checksum: String,
    /// The full name, `refs/heads/main`.
    pub reference: String,
    /// The commit that such a tag names; else empty.
    pub commit_checksum: String,
    /// The commit as git stores it, when it is asked for.
    pub commit_object: Vec<u8>,
    /// The tag as git stores it, when it is asked for and there is one.
    pub tag_object: Vec<u8>,
}

/// What is known of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpMetadata {
    /// Digest of the content.
    pub checksum: cooper_content::Digest,
    /// The name that it is saved under.
    pub filename: String,
    /// When the server says that it was changed.
    pub last_modified: Option<std::time::SystemTime>,
    /// The digest that was asked for, `sha512:…`.
    pub requested: Option<String>,
}

/// What an identifier says and what it was found to stand for, in words that a user knows:
/// from the difference between two of them follows what changed. No secret is among them, and
/// no address has credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `image`, `git`, `http`.
    pub kind: &'static str,
    /// The image, the repository, the address, whatever its content is.
    pub subject: String,
    /// Names and values, what says most first.
    pub facts: Vec<(&'static str, String)>,
}

/// What one identifier of one build stands for.
#[async_trait]
pub trait Instance: Send + Sync {
    /// The key number `index`, from 0 until one says that it is the last. All are keys of the
    /// same thing.
    ///
    /// # Cancel safety
    /// Dropping the future gives up a request and nothing else.
    async fn cache_key(&self, cx: &SourceContext, index: usize) -> Result<CacheKey, SourceError>;

    /// What is known of it, after [`cache_key`](Self::cache_key). `None` for what is never the
    /// same, such as files that a client sends.
    fn facts(&self) -> Option<Facts> {
        None
    }

    /// Brings it; `None` when there are no files at all.
    ///
    /// # Cancel safety
    /// What was begun is thrown away.
    async fn snapshot(&self, cx: &SourceContext) -> Result<Option<ImmutableRef>, SourceError>;

    /// What can be known of it without its files; `None` when that is nothing.
    ///
    /// # Cancel safety
    /// As [`snapshot`](Self::snapshot).
    async fn metadata(
        &self,
        cx: &SourceContext,
        request: &MetadataRequest,
    ) -> Result<Option<Metadata>, SourceError> {
        let _ = (cx, request);
        Ok(None)
    }
}

/// The sources by scheme. Cheap to clone.
#[derive(Clone, Default)]
pub struct SourceRegistry {
    sources: Arc<BTreeMap<&'static str, Arc<dyn Source>>>,
}

impl SourceRegistry {
    /// The given sources; a later one takes a scheme from an earlier one.
    pub fn new(sources: impl IntoIterator<Item = Arc<dyn Source>>) -> Self {
        let mut by_scheme = BTreeMap::new();
        for source in sources {
            for scheme in source.schemes() {
                by_scheme.insert(*scheme, source.clone());
            }
        }
        Self {
            sources: Arc::new(by_scheme),
        }
    }

    /// The schemes, ordered.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.sources.keys().copied()
    }

    /// What the source operation `op` names, for `platform`.
    pub fn open(
        &self,
        op: &pb::SourceOp,
        platform: &pb::Platform,
    ) -> Result<Arc<dyn Instance>, SourceError> {
        let id = Identifier::parse(&op.identifier, op.attrs.clone(), platform.clone())?;
        let source =
            self.sources
                .get(id.scheme.as_str())
                .ok_or_else(|| SourceError::UnknownScheme {
                    scheme: id.scheme.clone(),
                })?;
        source.open(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_known_scheme_is_refused_in_buildkits_words() {
        let sources = SourceRegistry::default();
        let open = |identifier: &str| {
            let op = pb::SourceOp {
                identifier: identifier.into(),
                ..pb::SourceOp::default()
            };
            match sources.open(&op, &pb::Platform::default()) {
                Ok(_) => panic!("{identifier} was opened"),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(open("nothing"), "failed to parse nothing: invalid");
        assert_eq!(open("svn://x"), "unknown schema svn: not found");
    }
}
