//! Addresses of git repositories as Dockerfiles and build contexts write them
//! (`frontend/dockerfile/dfgitutil`): `https://host/repo.git#ref:subdir`, `git@host:repo`, with
//! an optional query.

use cooper_llb::build::{Constraints, Git, State, join};
use url::form_urlencoded;

use crate::gotext::parse_bool;

/// A repository and what is wanted of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GitRef {
    remote: Remote,
    pub(crate) reference: String,
    pub(crate) checksum: String,
    pub(crate) subdir: String,
    /// `github.com/org/repo`: could be a path as well.
    pub(crate) could_be_local: bool,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) submodules: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Remote {
    url: String,
    host: String,
    path: String,
    scheme: String,
    query: String,
    fragment: String,
}

/// What a text is.
pub(crate) enum Parsed {
    /// A repository.
    Git(Box<GitRef>),
    /// Something else.
    Other,
    /// A repository with something wrong.
    Invalid(String),
}

impl GitRef {
    pub(crate) fn parse(text: &str) -> Parsed {
        Self::parse_as(text, false)
    }

    /// With `known`, an address without the suffix `.git` is one of a repository, too.
    pub(crate) fn parse_as(text: &str, known: bool) -> Parsed {
        if text.starts_with("./") || text.starts_with("../") {
            return Parsed::Other;
        }
        let could_be_local = text.starts_with("github.com/");
        let remote = if could_be_local {
            Remote::parse(&format!("https://{text}"))
        } else {
            Remote::parse(text)
        };
        let Some(remote) = remote else {
            return Parsed::Other;
        };
        // A page and a repository differ by the suffix only.
        let by_http = matches!(remote.scheme.as_str(), "http" | "https");
        if by_http && !known && !could_be_local && !remote.path.ends_with(".git") {
            return Parsed::Other;
        }
        let (reference, subdir) = remote
            .fragment
            .split_once(':')
            .unwrap_or((&remote.fragment, ""));
        let mut git = Self {
            reference: reference.to_owned(),
            subdir: join("/", subdir).trim_start_matches('/').to_owned(),
            could_be_local,
            ..Self::default()
        };
        let query = remote.query.clone();
        git.remote = remote;
        match git.load(&query) {
            Ok(()) => Parsed::Git(Box::new(git)),
            Err(error) => Parsed::Invalid(error),
        }
    }

    fn load(&mut self, query: &str) -> Result<(), String> {
        let (mut tag, mut branch) = (String::new(), String::new());
        let mut seen: Vec<String> = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let (key, value) = (key.into_owned(), value.into_owned());
            if seen.contains(&key) {
                return Err(format!("query {key:?} has multiple values"));
            }
            let flag = matches!(key.as_str(), "submodules" | "keep-git-dir");
            if value.is_empty() && !flag {
                return Err(format!("query {key:?} has no value"));
            }
            let switch = || {
                if value.is_empty() {
                    return Ok(true);
                }
                parse_bool(&value).ok_or_else(|| format!("invalid {key} value: {value:?}"))
            };
            match key.as_str() {
                "ref" => conflict("ref", &mut self.reference, value)?,
                "tag" => tag = value,
                "branch" => branch = value,
                "subdir" => conflict("subdir", &mut self.subdir, value)?,
                "checksum" | "commit" => self.checksum = value,
                "keep-git-dir" => self.keep_git_dir = Some(switch()?),
                "submodules" => self.submodules = Some(switch()?),
                _ => return Err(format!("unexpected query {key:?}")),
            }
            seen.push(key);
        }
        if !tag.is_empty() && !branch.is_empty() {
            return Err("branch conflicts with tag".into());
        }
        for (name, prefix) in [(tag, "refs/tags/"), (branch, "refs/heads/")] {
            if !name.is_empty() {
                let full = match name.strip_prefix(prefix) {
                    Some(_) => name,
                    None => format!("{prefix}{name}"),
                };
                conflict("ref", &mut self.reference, full)?;
            }
        }
        // The beginning of a name is not a name: it is compared with the default branch.
        let is_full = matches!(self.checksum.len(), 40 | 64)
            && self.checksum.bytes().all(|b| b.is_ascii_hexdigit());
        if self.reference.is_empty() && is_full {
            self.reference.clone_from(&self.checksum);
        }
        Ok(())
    }

    /// The repository as a source.
    pub(crate) fn state(
        &self,
        keep_git_dir: bool,
        checksum: &str,
        constraints: Constraints,
    ) -> State {
        State::git(
            Git {
                id: format!("{}{}", self.remote.host, join("/", &self.remote.path)),
                url: self.remote.url.clone(),
                reference: self.reference.clone(),
                subdir: self.subdir.clone(),
                checksum: checksum.to_owned(),
                keep_git_dir,
                skip_submodules: self.submodules == Some(false),
                ssh: self.remote.scheme == "ssh",
            },
            constraints,
        )
    }
}

fn conflict(what: &str, current: &mut String, value: String) -> Result<(), String> {
    if !current.is_empty() && *current != value {
        return Err(format!("{what} conflicts: {current:?} vs {value:?}"));
    }
    *current = value;
    Ok(())
}

impl Remote {
    fn parse(text: &str) -> Option<Self> {
        let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (address, query) = address.split_once('?').unwrap_or((address, ""));
        let mut remote = Self {
            url: address.to_owned(),
            query: query.to_owned(),
            fragment: fragment.to_owned(),
            ..Self::default()
        };
        if let Some((scheme, rest)) = address.split_once("://") {
            let scheme = scheme.to_ascii_lowercase();
            if !matches!(scheme.as_str(), "http" | "https" | "ssh" | "git") {
                return None;
            }
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            let host = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
            remote.host = host.to_owned();
            remote.path = path.to_owned();
            remote.scheme = scheme;
            return Some(remote);
        }
        // user@host:path, as scp has it.
        let (user, rest) = address.split_once('@')?;
        let (host, path) = rest.split_once(':')?;
        let word = |text: &str, more: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || more.contains(c))
        };
        if !word(user, "_") || !word(host, ".") {
            return None;
        }
        remote.host = host.to_owned();
        remote.path = path.to_owned();
        remote.scheme = "ssh".to_owned();
        Some(remote)
    }
}

/// Whether a source of `ADD` is a repository.
pub(crate) fn is_git(text: &str) -> bool {
    !matches!(GitRef::parse(text), Parsed::Other)
}

/// Whether a source of `ADD` is a download.
pub(crate) fn is_http(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> GitRef {
        match GitRef::parse(text) {
            Parsed::Git(git) => *git,
            Parsed::Other => panic!("{text} is not git"),
            Parsed::Invalid(error) => panic!("{text}: {error}"),
        }
    }

    #[test]
    fn repositories() {
        let found = git("https://github.com/moby/buildkit.git#v0.1:sub/dir");
        assert_eq!(found.remote.url, "https://github.com/moby/buildkit.git");
        assert_eq!(
            (found.reference.as_str(), found.subdir.as_str()),
            ("v0.1", "sub/dir")
        );
        let found = git("git@github.com:moby/buildkit.git#main");
        assert_eq!(
            (found.remote.host.as_str(), found.remote.scheme.as_str()),
            ("github.com", "ssh")
        );
        let found = git("github.com/moby/buildkit");
        assert!(found.could_be_local);
        let found = git("https://h/x.git?branch=a&subdir=b&keep-git-dir&submodules=false");
        assert_eq!(
            (found.reference.as_str(), found.subdir.as_str()),
            ("refs/heads/a", "b")
        );
        assert_eq!(
            (found.keep_git_dir, found.submodules),
            (Some(true), Some(false))
        );
        assert_eq!(git("git://h/x?commit=abc").reference, "");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let pinned = git(&format!("git://h/x?commit={commit}"));
        assert_eq!(
            (pinned.reference.as_str(), pinned.checksum.as_str()),
            (commit, commit)
        );
    }

    #[test]
    fn others() {
        for text in [
            "",
            "./x.git",
            "a/b",
            "https://h/x.tar",
            "ftp://h/x.git",
            "a b@c:d",
        ] {
            assert!(matches!(GitRef::parse(text), Parsed::Other), "{text}");
        }
        for text in [
            "https://h/x.git?foo=a",
            "https://h/x.git?tag=a&branch=b",
            "https://h/x.git?ref=b#a",
            "https://h/x.git?ref=",
        ] {
            assert!(matches!(GitRef::parse(text), Parsed::Invalid(_)), "{text}");
        }
        assert!(is_http("https://h/x.tar") && !is_http("https://h/x.git"));
        assert!(matches!(
            GitRef::parse_as("https://h/x", true),
            Parsed::Git(_)
        ));
    }
}
