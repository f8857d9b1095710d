//! Names of images, normalised as Docker does it (distribution/reference).

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Digest;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const DEFAULT_REPOSITORY: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The longest repository name, its domain included.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// Why a text is not the name of an image. The wordings are those of distribution/reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// It does not have the form.
    #[error("invalid reference format")]
    Format,
    /// The repository is not in lower case.
    #[error("invalid reference format: repository name ({repository}) must be lowercase")]
    Uppercase {
        /// The repository.
        repository: String,
    },
    /// It could be the id of an image.
    #[error("invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")]
    Identifier {
        /// The text.
        name: String,
    },
    /// It is too long.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// The digest is of an unknown kind.
    #[error("unsupported digest algorithm")]
    Algorithm,
    /// The digest has the wrong length.
    #[error("invalid checksum digest length")]
    DigestLength,
}

/// A name of an image in its full form: `docker.io/library/alpine:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads a name as a user writes it. One with neither tag nor digest gets the tag `latest`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let mut reference = Self::parse_named(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some(DEFAULT_TAG.into());
        }
        Ok(reference)
    }

    /// Reads a name and leaves a missing tag missing.
    pub fn parse_named(text: &str) -> Result<Self, ReferenceError> {
        if is_identifier(text) {
            return Err(ReferenceError::Identifier { name: text.into() });
        }
        let (domain, rest) = split_domain(text);
        let name_end = rest.find([':', '@']).unwrap_or(rest.len());
        let (repository, mut suffix) = rest.split_at(name_end);
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase {
                repository: repository.into(),
            });
        }
        if !is_domain(&domain) || !is_path(repository) {
            return Err(ReferenceError::Format);
        }
        let (mut tag, mut digest) = (None, None);
        if let Some(after) = suffix.strip_prefix(':') {
            let end = after.find('@').unwrap_or(after.len());
            let (text, rest) = after.split_at(end);
            if !is_tag(text) {
                return Err(ReferenceError::Format);
            }
            (tag, suffix) = (Some(text.to_owned()), rest);
        }
        if let Some(text) = suffix.strip_prefix('@') {
            digest = Some(check_digest(text)?.to_owned());
            suffix = "";
        }
        if !suffix.is_empty() {
            return Err(ReferenceError::Format);
        }
        if domain.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            domain,
            repository: repository.to_owned(),
            tag,
            digest,
        })
    }

    /// The registry, as it is written: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository in the registry: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<Digest> {
        // It was checked when it was taken.
        self.digest.as_deref().and_then(|text| text.parse().ok())
    }

    /// Domain and repository: `docker.io/library/alpine`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.repository)
    }

    /// The shortest form that stands for the same: `alpine:latest`.
    pub fn familiar(&self) -> String {
        let mut text = match self.domain.as_str() {
            DEFAULT_DOMAIN => {
                let short = self.repository.strip_prefix(DEFAULT_REPOSITORY);
                let short = short.filter(|short| !short.contains('/'));
                let short = short.unwrap_or(&self.repository);
                // What looks like a host would be taken for one, and what looks like an image's
                // identifier for that.
                let same = split_domain(short) == (self.domain.clone(), self.repository.clone());
                if same && !is_identifier(short) {
                    short.to_owned()
                } else {
                    self.name()
                }
            }
            _ => self.name(),
        };
        self.suffix(&mut text);
        text
    }

    /// The same name with this digest; the tag stays.
    #[must_use]
    pub fn with_digest(mut self, digest: &Digest) -> Self {
        self.digest = Some(digest.to_string());
        self
    }

    /// The same name with this tag, without a digest.
    pub fn with_tag(mut self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format);
        }
        (self.tag, self.digest) = (Some(tag.to_owned()), None);
        Ok(self)
    }

    /// Domain and repository alone.
    #[must_use]
    pub fn without_tag_and_digest(mut self) -> Self {
        (self.tag, self.digest) = (None, None);
        self
    }

    fn suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest);
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.suffix(&mut text);
        f.write_str(&text)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Whether it looks like the identifier of an image, which no name may.
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The first part is a domain when it looks like one: with a dot, a colon or a capital letter,
/// or `localhost`.
fn split_domain(text: &str) -> (String, String) {
    let (mut domain, mut rest) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest.to_owned())
        }
        _ => (DEFAULT_DOMAIN, text.to_owned()),
    };
    if domain == LEGACY_DOMAIN {
        domain = DEFAULT_DOMAIN;
    }
    let end = rest.find([':', '@']).unwrap_or(rest.len());
    if domain == DEFAULT_DOMAIN && !rest[..end].contains('/') {
        rest.insert_str(0, DEFAULT_REPOSITORY);
    }
    (domain.to_owned(), rest)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(after) = domain.strip_prefix('[') {
        let Some((inside, port)) = after.split_once(']') else {
            return false;
        };
        if inside.is_empty() || !inside.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return false;
        }
        (None, port)
    } else {
        match domain.find(':') {
            Some(colon) => (Some(&domain[..colon]), &domain[colon..]),
            None => (Some(domain), ""),
        }
    };
    let port_fits = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let label = |label: &str| {
        let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        alphanumeric(bytes.first())
            && alphanumeric(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    port_fits && host.is_none_or(|host| host.split('.').all(label))
}

/// Components of letters and digits with single separators: `.`, `_`, `__`, or any number of
/// `-`.
fn is_path(path: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    path.split('/').all(|component| {
        let bytes = component.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return false;
        };
        let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        word(*first)
            && word(*last)
            && separators
                .filter(|run| !run.is_empty())
                .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn check_digest(text: &str) -> Result<&str, ReferenceError> {
    let (algorithm, value) = text.split_once(':').ok_or(ReferenceError::Format)?;
    let part = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if !algorithm.split(['-', '_', '+', '.']).all(part)
        || value.len() < 32
        || !value.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return Err(ReferenceError::Format);
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ReferenceError::Algorithm),
    };
    if value.len() != length {
        return Err(ReferenceError::DigestLength);
    }
    if text.parse::<Digest>().is_err() {
        return Err(ReferenceError::Format);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_made_whole() {
        let pinned = format!("alpine@{DIGEST}");
        let both = format!("localhost:5000/a/b:v1@{DIGEST}");
        let digits = format!("docker.io/library/{}", "0".repeat(64));
        let table = [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            (
                "alpine:3.20",
                "docker.io/library/alpine:3.20",
                "alpine:3.20",
            ),
            (
                "moby/buildkit",
                "docker.io/moby/buildkit:latest",
                "moby/buildkit:latest",
            ),
            (
                "docker.io/alpine",
                "docker.io/library/alpine:latest",
                "alpine:latest",
            ),
            (
                "index.docker.io/alpine",
                "docker.io/library/alpine:latest",
                "alpine:latest",
            ),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            (
                "localhost:5000/x",
                "localhost:5000/x:latest",
                "localhost:5000/x:latest",
            ),
            (
                "127.0.0.1:5000/x/y:t",
                "127.0.0.1:5000/x/y:t",
                "127.0.0.1:5000/x/y:t",
            ),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            (
                "ghcr.io/a/b__c-d.e--f",
                "ghcr.io/a/b__c-d.e--f:latest",
                "ghcr.io/a/b__c-d.e--f:latest",
            ),
            ("Host/x", "Host/x:latest", "Host/x:latest"),
            ("a/b/c", "docker.io/a/b/c:latest", "a/b/c:latest"),
            (
                &digits,
                &format!("{digits}:latest"),
                &format!("{digits}:latest"),
            ),
            (
                &pinned,
                &format!("docker.io/library/alpine@{DIGEST}"),
                &pinned,
            ),
            (&both, &both, &both),
        ];
        for (text, full, familiar) in table {
            let reference = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(Reference::parse(full).unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        use ReferenceError::{Algorithm, DigestLength, Format, Identifier, TooLong, Uppercase};
        let upper = |repository: &str| Uppercase {
            repository: repository.into(),
        };
        let id = "a".repeat(64);
        let long = "a".repeat(256);
        let short_digest = format!("a@sha256:{}", "0".repeat(40));
        let unknown = format!("a@md5:{}", "0".repeat(32));
        let table = [
            ("", Format),
            (":tag", Format),
            ("a:", Format),
            ("a:b:c", Format),
            ("a@", Format),
            ("a@sha256:xyz", Format),
            ("a//b", Format),
            ("-a", Format),
            ("a-", Format),
            ("a..b", Format),
            ("a___b", Format),
            ("a b", Format),
            ("a\n", Format),
            ("https://x/y", Format),
            ("-x.com/a", Format),
            ("x:port/a", Format),
            ("Alpine", upper("library/Alpine")),
            ("moby/BuildKit", upper("moby/BuildKit")),
            (&id, Identifier { name: id.clone() }),
            (&long, TooLong),
            (&short_digest, DigestLength),
            (&unknown, Algorithm),
        ];
        for (text, error) in table {
            assert_eq!(Reference::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(
            Reference::parse("Alpine").unwrap_err().to_string(),
            "invalid reference format: repository name (library/Alpine) must be lowercase"
        );
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    #[test]
    fn parts_are_replaced() {
        let reference = Reference::parse("alpine:3").unwrap();
        let pinned = reference.clone().with_digest(&DIGEST.parse().unwrap());
        assert_eq!(pinned.tag(), Some("3"));
        assert_eq!(pinned.digest().unwrap().to_string(), DIGEST);
        assert_eq!(pinned.with_tag("4").unwrap().familiar(), "alpine:4");
        assert!(reference.clone().with_tag("no tag").is_err());
        assert_eq!(
            reference.without_tag_and_digest().to_string(),
            "docker.io/library/alpine"
        );
        assert_eq!(Reference::parse_named("alpine").unwrap().tag(), None);
    }
}
