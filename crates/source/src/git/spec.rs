//! What an identifier of a repository says (`source/git/identifier.go`).

use super::remote::Resolved;
use crate::{Identifier, SourceError};

/// Attributes that ask for what is not there: better an error than another tree.
const UNSUPPORTED: &[&str] = &[
    "git.mtime",
    "git.fetchbycommit",
    "git.bundle",
    "git.checkoutbundle",
];
const SIGNATURE: &str = "git.sig.";

/// A commit of a repository, and what is wanted of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spec {
    /// The address.
    pub(super) remote: String,
    /// A branch, tag or commit; empty for the default branch.
    pub(super) reference: String,
    /// A folder in it, without `.`; empty for all.
    pub(super) subdir: String,
    /// What the commit must begin with.
    pub(super) checksum: String,
    pub(super) keep_git_dir: bool,
    pub(super) skip_submodules: bool,
    pub(super) token_secret: String,
    pub(super) header_secret: String,
    /// The agent of the client that is asked for keys.
    pub(super) ssh: String,
    /// The content of a `known_hosts` file.
    pub(super) known_hosts: String,
}

impl Spec {
    pub(super) fn new(id: &Identifier) -> Result<Self, SourceError> {
        let unsupported =
            |name: &&String| UNSUPPORTED.contains(&name.as_str()) || name.starts_with(SIGNATURE);
        if let Some(name) = id.attrs.keys().find(unsupported) {
            return Err(id.invalid(name, "not supported"));
        }
        let (address, fragment) = id.reference.split_once('#').unwrap_or((&id.reference, ""));
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let text = |name: &str| id.attr(name).unwrap_or_default().to_owned();
        let switch = |name: &str| id.attr(name) == Some("true");
        let address = id.attr("git.fullurl").unwrap_or(address);
        let spec = Self {
            remote: if is_transport(address) {
                address.to_owned()
            } else {
                format!("https://{address}")
            },
            reference: reference.to_owned(),
            subdir: clean(subdir),
            checksum: text("git.checksum"),
            keep_git_dir: switch("git.keepgitdir"),
            skip_submodules: switch("git.skipsubmodules"),
            token_secret: text("git.authtokensecret"),
            header_secret: text("git.authheadersecret"),
            ssh: text("git.mountsshsock"),
            known_hosts: text("git.knownsshhosts"),
        };
        // They become arguments of a program, where a dash would make options of them.
        for value in [&spec.remote, &spec.reference] {
            if value.starts_with('-') || value.contains('\0') {
                return Err(SourceError::Identifier {
                    identifier: format!("git://{}", id.reference),
                });
            }
        }
        Ok(spec)
    }

    /// The address without credentials.
    pub(super) fn shown(&self) -> String {
        match reqwest::Url::parse(&self.remote) {
            Ok(url) => crate::http::redacted(&url),
            Err(_) => self.remote.clone(),
        }
    }

    /// Where the server is, for the names of secrets.
    pub(super) fn host(&self) -> Option<String> {
        let url = reqwest::Url::parse(&self.remote).ok()?;
        let host = url.host_str()?;
        Some(match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        })
    }

    pub(super) fn check_checksum(&self) -> Result<(), SourceError> {
        if self.checksum.chars().all(|c| c.is_ascii_hexdigit()) {
            return Ok(());
        }
        Err(SourceError::GitChecksum {
            checksum: self.checksum.clone(),
        })
    }

    /// What it stands for if it names a commit: nobody needs to be asked.
    pub(super) fn pinned(&self) -> Result<Option<Resolved>, SourceError> {
        if !is_commit(&self.reference) {
            return Ok(None);
        }
        if !self.reference.starts_with(&self.checksum) {
            return Err(self.mismatch(self.reference.clone()));
        }
        Ok(Some(Resolved {
            reference: self.reference.clone(),
            object: self.reference.clone(),
            peeled: None,
            keep_tag: self.keep_git_dir,
        }))
    }

    pub(super) fn mismatch(&self, found: String) -> SourceError {
        SourceError::GitMismatch {
            expected: self.checksum.clone(),
            found,
        }
    }

    /// The key of a commit as it is wanted here.
    pub(super) fn key(&self, commit: &str, reference: &str) -> String {
        let mut key = commit.to_owned();
        if self.keep_git_dir {
            key.push_str(".git");
            if !reference.is_empty() {
                key.push('#');
                key.push_str(reference);
            }
        }
        if !self.subdir.is_empty() {
            key.push(':');
            key.push_str(&self.subdir);
        }
        if self.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        key
    }
}

/// A path without its empty parts; empty for the top.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The full name of an object, by SHA-1 or SHA-256.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether git can reach the address as it stands.
fn is_transport(address: &str) -> bool {
    const SCHEMES: &[&str] = &["http://", "https://", "git://", "ssh://"];
    SCHEMES.iter().any(|scheme| address.starts_with(scheme)) || is_scp(address)
}

/// `user@host:path`, as scp has it.
fn is_scp(address: &str) -> bool {
    let Some((user, rest)) = address.split_once('@') else {
        return false;
    };
    let Some((host, _)) = rest.split_once(':') else {
        return false;
    };
    let word = |text: &str, more: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
        !text.is_empty() && text.chars().all(inside)
    };
    word(user, "-_") && word(host, "-.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(reference: &str, attrs: &[(&str, &str)]) -> Result<Spec, SourceError> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        let id = Identifier::parse(
            &format!("git://{reference}"),
            attrs.collect(),
            Default::default(),
        );
        Spec::new(&id.unwrap())
    }

    #[test]
    fn identifiers() {
        let plain = spec("github.com/a/b.git", &[]).unwrap();
        assert_eq!(plain.remote, "https://github.com/a/b.git");
        assert_eq!((plain.reference.as_str(), plain.subdir.as_str()), ("", ""));
        for (fragment, reference, subdir) in [
            ("main", "main", ""),
            ("main:sub", "main", "sub"),
            (":/a//b/../c/", "", "a/c"),
            ("v1:.", "v1", ""),
            ("v1:/../..", "v1", ""),
        ] {
            let spec = spec(&format!("h/r#{fragment}"), &[]).unwrap();
            assert_eq!(
                (spec.reference.as_str(), spec.subdir.as_str()),
                (reference, subdir),
                "{fragment}"
            );
        }
        for (url, remote) in [
            ("http://h/r", "http://h/r"),
            ("git@h.x:r/s", "git@h.x:r/s"),
            ("ssh://git@h/r", "ssh://git@h/r"),
            ("h/r", "https://h/r"),
            // Files of the daemon's machine are out of reach.
            ("file:///etc", "https://file:///etc"),
            ("ext::sh -c x", "https://ext::sh -c x"),
        ] {
            let spec = spec("x/y", &[("git.fullurl", url)]).unwrap();
            assert_eq!(spec.remote, remote);
        }
        assert!(spec("h/r#--upload-pack=x", &[]).is_err());
        assert!(spec("h/r", &[("git.bundle", "x")]).is_err());
        let user = spec("h/r", &[("git.fullurl", "https://me:pw@h:81/r")]).unwrap();
        assert_eq!(user.shown(), "https://xxxxx:xxxxx@h:81/r");
        assert_eq!(user.host().unwrap(), "h:81");
    }

    #[test]
    fn keys() {
        let commit = "0123456789012345678901234567890123456789";
        let all = [
            ("git.keepgitdir", "true"),
            ("git.skipsubmodules", "true"),
            ("git.checksum", "0123"),
        ];
        let full = spec(&format!("h/r#{commit}:s"), &all).unwrap();
        let resolved = full.pinned().unwrap().unwrap();
        assert_eq!(
            full.key(resolved.key_commit(), "refs/tags/v1"),
            format!("{commit}.git#refs/tags/v1:s(skip-submodules)")
        );
        assert_eq!(spec("h/r#v1", &[]).unwrap().key(commit, "x"), commit);
        let other = spec(&format!("h/r#{commit}"), &[("git.checksum", "9")]).unwrap();
        assert_eq!(
            other.pinned().unwrap_err().to_string(),
            format!("expected checksum to match 9, got {commit}")
        );
        let no_hex = spec("h/r", &[("git.checksum", "foobar")]).unwrap();
        assert_eq!(
            no_hex.check_checksum().unwrap_err().to_string(),
            "invalid checksum foobar for Git URL, expected hex commit hash"
        );
    }
}
