//! Keys of content: what an operation sees of an input, whoever made it.
//!
//! BuildKit's `opsutils/contenthash.go`: the digest of the digests of the selected paths, in
//! order, with NUL between them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cooper_cache::{ChecksumOptions, LocalRef};
use cooper_content::PlaintextKind;
use cooper_llb::digest_of;
use cooper_session::pattern;
use cooper_solver::{ContentKey, Digest, FileEntry, FileList, MAX_FILES, OpContext, OpError};
use futures::future::try_join_all;

use crate::env::{Build, Env, InputVertices, Output, localize};
use crate::{ContentError, OpsError};

/// A part of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Where it is; empty for all.
    pub path: String,
    /// Whether the path has wildcards.
    pub wildcard: bool,
    /// Whether a last link is followed.
    pub follow_links: bool,
    /// What of a directory counts; empty for all.
    pub include: Vec<String>,
    /// What of a directory does not count.
    pub exclude: Vec<String>,
    /// Paths below it, wildcards among them, that have to be there whatever is included.
    pub required: Vec<String>,
}

impl Selector {
    fn options(&self) -> ChecksumOptions {
        ChecksumOptions {
            follow_links: self.follow_links,
            wildcard: self.wildcard,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
        }
    }

    fn is_plain(&self) -> bool {
        let filters = [&self.include, &self.exclude, &self.required];
        !self.wildcard && filters.iter().all(|filter| filter.is_empty())
    }
}

/// Paths without those that lie in others, ordered.
pub(crate) fn dedupe_paths(paths: &[String]) -> Vec<String> {
    if paths.len() <= 1 {
        return paths.to_vec();
    }
    let all: BTreeSet<&String> = paths.iter().collect();
    let inside = |path: &String, other: &String| {
        let dir = format!("{}/", other.trim_end_matches('/'));
        path != other && path.starts_with(&dir)
    };
    let outermost = |path: &&&String| !all.iter().any(|other| inside(path, other));
    all.iter()
        .filter(outermost)
        .map(|path| (*path).clone())
        .collect()
}

/// Selectors without those that lie in others, ordered by path.
pub(crate) fn dedupe_selectors(selectors: &[Selector]) -> Vec<Selector> {
    let plain = |follow: bool| {
        let paths: Vec<_> = selectors
            .iter()
            .filter(|selector| selector.is_plain() && selector.follow_links == follow)
            .map(|selector| selector.path.clone())
            .collect();
        dedupe_paths(&paths).into_iter().map(move |path| Selector {
            path,
            follow_links: follow,
            ..Selector::default()
        })
    };
    let mut all: Vec<_> = plain(false).chain(plain(true)).collect();
    all.extend(selectors.iter().filter(|s| !s.is_plain()).cloned());
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// The key of what `selectors` select of one input.
pub(crate) struct ContentHash {
    pub(crate) env: Arc<Env>,
    pub(crate) vertices: InputVertices,
    pub(crate) input: usize,
    /// None selects everything.
    pub(crate) selectors: Vec<Selector>,
}

/// A list of fewer files says nothing.
const FEW_FILES: usize = 16;

impl ContentHash {
    async fn list(&self, local: &LocalRef, most: usize) -> Option<Vec<FileEntry>> {
        let all = [Selector::default()];
        let selectors = match self.selectors.as_slice() {
            [] => all.as_slice(),
            selectors => selectors,
        };
        let most = most / selectors.len();
        let mut found: Vec<FileEntry> = Vec::new();
        for selector in selectors {
            let path = pattern::clean(&format!("/{}", selector.path));
            let options = selector.options();
            let listed = local.list_hashed(Path::new(&path), &options, most);
            let listed = listed.await.ok().flatten()?;
            found.extend(listed.into_iter().map(|file| FileEntry {
                path: file.path,
                digest: file.digest,
                mode: file.mode,
                closed: file.closed,
            }));
        }
        Some(found)
    }

    async fn checksum(
        &self,
        input: Option<&LocalRef>,
        selector: &Selector,
    ) -> Result<Digest, OpsError> {
        let path = pattern::clean(&format!("/{}", selector.path));
        let Some(input) = input else {
            if path == "/" {
                return Ok(digest_of(b""));
            }
            return Err(OpsError::Checksum {
                id: String::new(),
                source: format!("{path}: no such file or directory").into(),
            });
        };
        let checksum = |path: String, options: ChecksumOptions| async move {
            let checksum = input.checksum(Path::new(&path), &options).await;
            checksum.map_err(|source| OpsError::Checksum {
                id: input.id().to_string(),
                source: source.into(),
            })
        };
        for required in &selector.required {
            let required = pattern::clean(&format!("/{required}"));
            let options = ChecksumOptions {
                wildcard: pattern::has_wildcards(&required),
                ..ChecksumOptions::default()
            };
            checksum(required, options).await?;
        }
        checksum(path, selector.options()).await
    }
}

#[async_trait]
impl ContentKey<Build> for ContentHash {
    async fn content_key(&self, cx: &OpContext<Build>, input: &Output) -> Result<Digest, OpError> {
        let key = self.key(cx, input).await;
        Ok(key.map_err(|source| {
            OpsError::Content(Box::new(ContentError {
                index: self.input,
                input: input.clone(),
                source,
            }))
        })?)
    }

    async fn files(&self, _: &OpContext<Build>, input: &Output) -> Option<FileList> {
        // It was brought to disk for its key.
        let local = input.as_ref()?.local()?;
        let mut most = MAX_FILES;
        // Long names leave room for fewer.
        while most >= FEW_FILES {
            let list = self.list(&local, most).await?;
            if let Some(list) = FileList::new(list) {
                return Some(list);
            }
            most /= 4;
        }
        None
    }
}

impl ContentHash {
    async fn key(&self, cx: &OpContext<Build>, input: &Output) -> Result<Digest, OpsError> {
        let local = localize(&self.env, cx, &self.vertices, self.input, input).await?;
        let all = [Selector::default()];
        let selectors = match self.selectors.as_slice() {
            [] => all.as_slice(),
            selectors => selectors,
        };
        let digests =
            try_join_all(selectors.iter().map(|s| self.checksum(local.as_ref(), s))).await?;
        let texts: Vec<_> = digests.iter().map(Digest::as_ref).collect();
        let text = texts.join("\0");
        Ok(self
            .env
            .key_digest(PlaintextKind::DigestList, text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn paths_in_others_are_left_out() {
        let table: [(&[&str], &[&str]); 4] = [
            (&["/foo/bar", "/foo", "/foobar"], &["/foo", "/foobar"]),
            (&["/foo", "/foo"], &["/foo"]),
            (&["/", "/a", "/b"], &["/"]),
            (&["/b", "/a/"], &["/a/", "/b"]),
        ];
        for (paths, expected) in table {
            assert_eq!(dedupe_paths(&words(paths)), words(expected), "{paths:?}");
        }
    }

    #[test]
    fn selectors_with_filters_stay() {
        let plain = |path: &str, follow_links| Selector {
            path: path.into(),
            follow_links,
            ..Selector::default()
        };
        let wild = Selector {
            wildcard: true,
            ..plain("/a/*", true)
        };
        let all = [
            plain("/b", true),
            wild.clone(),
            plain("/a/x", false),
            plain("/a", false),
        ];
        let expected = [plain("/a", false), wild, plain("/b", true)];
        assert_eq!(dedupe_selectors(&all), expected);
    }
}
