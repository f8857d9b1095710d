//! `http://` and `https://`: a file from a server, kept as long as the server says that it is
//! still the same. Keys and names are BuildKit's (`source/http/source.go`).

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod name;
mod request;

use std::sync::Arc;

use async_trait::async_trait;
use cooper_cache::{CacheError, CacheManager, ImmutableRef, RecordOptions};
use cooper_content::{Digest, Plaintext, PlaintextKind, digest_from, digest_of};
use cooper_llb::gojson::{self, Base64, Object, Value};
use cooper_session::Group;
use cooper_sys::Root;
use reqwest::header::{ETAG, LAST_MODIFIED};
use reqwest::{Client, Response, StatusCode, Url};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::OnceCell;

use crate::{
    CacheKey, ChecksumAlgorithm, ChecksumRequest, Facts, HttpMetadata, Identifier, Instance,
    Metadata, MetadataRequest, Source, SourceContext, SourceError,
};

pub(crate) use request::redacted;

const CHECKSUM: &str = "http.checksum";
const FILENAME: &str = "http.filename";
const PERM: &str = "http.perm";
const UID: &str = "http.uid";
const GID: &str = "http.gid";
const AUTH_SECRET: &str = "http.authheadersecret";
const HEADER: &str = "http.header.";
const SIGNATURE: &str = "http.sig.";

/// The index under which what a server said of a download is kept.
const SAID: &str = "http-said:";

/// Servers that know BuildKit take it for one of its kind.
const AGENT: &str = concat!(
    "cooper/",
    env!("CARGO_PKG_VERSION"),
    " (compatible; buildkit/v0)"
);

/// Downloads.
#[derive(Clone)]
pub struct HttpSource {
    cache: CacheManager,
    client: Client,
}

impl HttpSource {
    /// Keeps downloads in `cache`.
    pub fn new(cache: CacheManager) -> Result<Self, SourceError> {
        let client = cooper_registry::http_client()
            .user_agent(AGENT)
            .build()
            .map_err(|source| SourceError::Http {
                attempt: "prepare for",
                url: "http".into(),
                source: Arc::new(source),
            })?;
        Ok(Self { cache, client })
    }
}

impl Source for HttpSource {
    fn schemes(&self) -> &'static [&'static str] {
        &["http", "https"]
    }

    fn open(&self, id: Identifier) -> Result<Arc<dyn Instance>, SourceError> {
        let url = format!("{}://{}", id.scheme, id.reference);
        let parsed = Url::parse(&url).map_err(|_| SourceError::Identifier {
            identifier: url.clone(),
        })?;
        let number = |name: &str| match id.attr(name).map(parse_number) {
            Some(Some(number)) => Ok(number),
            Some(None) => Err(id.invalid(name, "invalid syntax")),
            None => Ok(0),
        };
        let checksum = match id.attr(CHECKSUM).map(str::parse::<Digest>) {
            Some(Ok(digest)) => Some(digest),
            Some(Err(error)) => return Err(id.invalid(CHECKSUM, error)),
            None => None,
        };
        if let Some(name) = id.attrs.keys().find(|name| name.starts_with(SIGNATURE)) {
            return Err(id.invalid(name, "signatures are not supported"));
        }
        let mut headers = Vec::new();
        for (name, value) in &id.attrs {
            // Others are dropped silently, as BuildKit does.
            match name.strip_prefix(HEADER).map(str::to_lowercase).as_deref() {
                Some("accept") => headers.push(Header("Accept", value.clone())),
                Some("user-agent") => headers.push(Header("User-Agent", value.clone())),
                _ => {}
            }
        }
        headers.sort_by_key(|header| header.0);
        Ok(Arc::new(Http {
            source: self.clone(),
            shown: request::redacted(&parsed),
            text: url,
            url: parsed,
            checksum,
            filename: id.attr(FILENAME).unwrap_or_default().to_owned(),
            perm: number(PERM)?,
            uid: number(UID)?,
            gid: number(GID)?,
            auth_secret: id.attr(AUTH_SECRET).unwrap_or_default().to_owned(),
            headers,
            found: OnceCell::new(),
        }))
    }
}

/// A number as Go's `ParseInt` with base 0 reads it.
fn parse_number(text: &str) -> Option<i64> {
    let lower = text.to_lowercase();
    let (digits, radix) = if let Some(digits) = lower.strip_prefix("0x") {
        (digits, 16)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (digits, 8)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (digits, 2)
    } else if let Some(digits) = lower.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        (digits, 8)
    } else {
        (lower.as_str(), 10)
    };
    i64::from_str_radix(digits, radix).ok()
}

/// A header of the request that belongs to the key.
#[derive(Clone, Debug)]
struct Header(&'static str, String);

impl Value for Header {
    fn write(&self, out: &mut String) {
        out.push_str(&Object::write(|object| {
            object.field("Name", self.0);
            object.field("Value", &self.1);
        }));
    }
}

struct Http {
    source: HttpSource,
    url: Url,
    text: String,
    /// Without credentials.
    shown: String,
    checksum: Option<Digest>,
    filename: String,
    perm: i64,
    uid: i64,
    gid: i64,
    auth_secret: String,
    headers: Vec<Header>,
    found: OnceCell<Arc<Found>>,
}

/// What the server said of a download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    etag: String,
    digest: Digest,
    #[serde(default)]
    modified: String,
}

/// A download that is here.
struct Found {
    digest: Digest,
    filename: String,
    modified: String,
    output: ImmutableRef,
}

impl Http {
    async fn found(&self, cx: &SourceContext) -> Result<&Found, SourceError> {
        let find = || async {
            let name = format!("http:{}", self.url_digest());
            let fits = |found: &Arc<Found>| self.is_wanted(&found.digest);
            if let Some(known) = cx.recall::<Found>(&name).filter(fits) {
                return Ok(known);
            }
            let found = Arc::new(self.look(&cx.sessions).await?);
            cx.remember(&name, &found);
            Ok::<_, SourceError>(found)
        };
        Ok(&**self.found.get_or_try_init(find).await?)
    }

    fn is_wanted(&self, digest: &Digest) -> bool {
        self.checksum.as_ref().is_none_or(|wanted| wanted == digest)
    }

    /// Asks whether an earlier download is still what the server has, and gets it anew if not.
    async fn look(&self, sessions: &Group) -> Result<Found, SourceError> {
        let index = format!("http:{}", self.url_digest());
        let mut known = Vec::new();
        for id in self.source.cache.search(&index)? {
            let Ok(output) = self.source.cache.get(&id).await else {
                continue;
            };
            let said = output.indexes().iter().find_map(|index| {
                let said: Said = serde_json::from_str(index.strip_prefix(SAID)?).ok()?;
                Some(said)
            });
            let fits = |said: &Said| !said.etag.is_empty() && self.is_wanted(&said.digest);
            if let Some(said) = said.filter(fits) {
                known.push((said, output));
            }
        }
        if let Some(found) = self.unchanged(sessions, known).await? {
            return Ok(found);
        }
        let response = self.get(sessions).await?;
        self.save(response, &index).await
    }

    /// The download among `known` that the server still has. Some servers err on conditional
    /// requests: it is asked for the headers alone, and the tags are compared here.
    async fn unchanged(
        &self,
        sessions: &Group,
        known: Vec<(Said, ImmutableRef)>,
    ) -> Result<Option<Found>, SourceError> {
        if known.is_empty() {
            return Ok(None);
        }
        let tags: Vec<_> = known.iter().map(|(said, _)| said.etag.as_str()).collect();
        let Ok(response) = self.head(sessions, &tags.join(", ")).await else {
            return Ok(None);
        };
        let status = response.status();
        if status != StatusCode::OK && status != StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let mut tag = header(&response, &ETAG).trim_start_matches("W/").to_owned();
        if tag.is_empty() && tags.len() == 1 && status == StatusCode::NOT_MODIFIED {
            // It can only mean the one that was asked about.
            tag = tags[0].to_owned();
        }
        let filename = self.name(Some(&response));
        let same = known.into_iter().find(|(said, _)| said.etag == tag);
        Ok(same.map(|(said, output)| Found {
            digest: said.digest,
            filename,
            modified: said.modified,
            output,
        }))
    }

    async fn save(&self, mut response: Response, index: &str) -> Result<Found, SourceError> {
        let filename = self.name(Some(&response));
        let modified = header(&response, &LAST_MODIFIED);
        let time = name::parse_time(&modified);
        let etag = header(&response, &ETAG).trim_start_matches("W/").to_owned();
        let options = RecordOptions {
            description: format!("http url {}", self.shown),
            ..RecordOptions::default()
        };
        let target = self.source.cache.new_mutable(None, options).await?;
        let mounted = target.mount().await?;
        let path = mounted.path().join(&filename);
        let io = |attempt| {
            let path = path.clone();
            move |source: std::io::Error| SourceError::Io {
                attempt,
                path,
                source: Arc::new(source),
            }
        };
        let root = Root::open(mounted.path()).map_err(io("open"))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = root.open_with(&filename, flags, Mode::RUSR | Mode::WUSR);
        let mut file = tokio::fs::File::from_std(file.map_err(io("make"))?.into());
        let mut hasher = Sha256::new();
        while let Some(piece) = response.chunk().await.map_err(self.http("read"))? {
            hasher.update(&piece);
            file.write_all(&piece).await.map_err(io("write"))?;
        }
        file.flush().await.map_err(io("write"))?;
        drop(file);
        let digest = digest_from(&hasher.finalize());
        if let Some(expected) = self.checksum.as_ref().filter(|e| **e != digest) {
            return Err(SourceError::HttpChecksum {
                url: self.shown.clone(),
                found: Box::new(digest),
                expected: Box::new(expected.clone()),
            });
        }
        self.metadata(&root, &filename, time.unwrap_or(0))
            .map_err(io("set the metadata of"))?;
        drop((root, mounted));
        let output = target.commit().await?;
        let modified = if time.is_some() {
            modified
        } else {
            String::new()
        };
        if !etag.is_empty() {
            let said = Said {
                etag,
                digest: digest.clone(),
                modified: modified.clone(),
            };
            let said = serde_json::to_string(&said).expect("texts are JSON");
            output.add_index(&format!("{SAID}{said}")).await?;
            output.add_index(index).await?;
            output.retain().await?;
        }
        Ok(Found {
            digest,
            filename,
            modified,
            output,
        })
    }

    fn metadata(&self, root: &Root, filename: &str, seconds: i64) -> std::io::Result<()> {
        let entry = root.entry(filename)?;
        let id = |id: i64| u32::try_from(id).map_err(|_| std::io::ErrorKind::InvalidInput);
        let (uid, gid) = (id(self.uid)?, id(self.gid)?);
        rustix::fs::chownat(
            &entry.dir,
            &entry.name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        let perm = if self.perm == 0 { 0o600 } else { self.perm };
        let mode = Mode::from_raw_mode(u32::try_from(perm & 0o7777).unwrap_or(0o600));
        rustix::fs::chmodat(&entry.dir, &entry.name, mode, AtFlags::empty())?;
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let here = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::utimensat(
            &entry.dir,
            &entry.name,
            &times,
            here,
        )?)
    }

    fn name(&self, response: Option<&Response>) -> String {
        let disposition = response.map(|response| {
            let name = reqwest::header::CONTENT_DISPOSITION;
            header(response, &name)
        });
        name::filename(&self.url, &self.filename, disposition.as_deref())
    }

    /// What tells one download from another before anything is known of it.
    fn url_digest(&self) -> Digest {
        let name = [self.text.as_bytes(), b"\0", self.filename.as_bytes()].concat();
        let text = Object::write(|object| {
            object.field("Filename", &Base64(&name));
            object.field("Perm", &self.perm);
            object.field("UID", &self.uid);
            object.field("GID", &self.gid);
            object.omit_empty("AuthHeaderSecret", &self.auth_secret);
            object.field("Header", &self.headers);
        });
        digest_of(text.as_bytes())
    }

    fn key(&self, filename: &str, checksum: &Digest, modified: &str) -> Digest {
        let write = |headers: &Vec<Header>| {
            Object::write(|object| {
                object.field("Filename", filename);
                object.field("Perm", &self.perm);
                object.field("UID", &self.uid);
                object.field("GID", &self.gid);
                object.field("Checksum", checksum.as_ref());
                object.omit_empty("LastModTime", modified);
                object.omit_empty("AuthHeaderSecret", &self.auth_secret);
                object.omit_empty("Header", headers);
            })
        };
        let text = write(&self.headers);
        let digest = digest_of(text.as_bytes());
        if let Some(plaintexts) = self.source.cache.plaintexts()
            && plaintexts.wants(&digest)
        {
            // A header may be a key to the server.
            let shown = write(&Vec::new());
            let shown = match self.headers.is_empty() {
                true => shown.as_str(),
                false => shown.strip_suffix('}').unwrap_or(&shown),
            };
            let mut plaintext = Plaintext::of(PlaintextKind::Json, shown.as_bytes());
            plaintext.skip((text.len() - shown.len()) as u64);
            plaintexts.note(&digest, plaintext);
        }
        digest
    }
}

/// A header of an answer; empty when there is none.
fn header(response: &Response, name: &reqwest::header::HeaderName) -> String {
    let value = response.headers().get(name);
    let text = value.and_then(|value| value.to_str().ok());
    text.unwrap_or_default().to_owned()
}

#[async_trait]
impl Instance for Http {
    async fn cache_key(&self, cx: &SourceContext, _: usize) -> Result<CacheKey, SourceError> {
        let (key, digest) = match &self.checksum {
            // It is known what it is: nobody needs to be asked.
            Some(checksum) => (self.key(&self.name(None), checksum, ""), checksum),
            None => {
                let found = self.found(cx).await?;
                let key = self.key(&found.filename, &found.digest, &found.modified);
                (key, &found.digest)
            }
        };
        Ok(CacheKey {
            key: key.to_string(),
            pin: digest.to_string(),
            last: true,
        })
    }

    fn facts(&self) -> Option<Facts> {
        // What comes after a question mark may be a key to the server.
        let address = match self.shown.split_once('?') {
            Some((address, query)) => format!("{address}?{}", digest_of(query.as_bytes())),
            None => self.shown.clone(),
        };
        let found = self.found.get();
        let digest = self
            .checksum
            .as_ref()
            .or(found.map(|found| &found.digest))?;
        let filename = match found {
            Some(found) => found.filename.clone(),
            None => self.name(None),
        };
        let number = |value: i64| match value {
            0 => String::new(),
            value => value.to_string(),
        };
        let modified = found.filter(|_| self.checksum.is_none());
        Some(Facts {
            kind: "http",
            subject: address,
            facts: vec![
                ("digest of the download", digest.to_string()),
                ("file name", filename),
                (
                    "mode",
                    if self.perm == 0 {
                        String::new()
                    } else {
                        format!("{:04o}", self.perm)
                    },
                ),
                ("owner", number(self.uid)),
                ("group", number(self.gid)),
                (
                    "time of the last change",
                    modified
                        .map(|found| found.modified.clone())
                        .unwrap_or_default(),
                ),
                ("id of the secret", self.auth_secret.clone()),
                (
                    "headers of the request",
                    match self.headers.is_empty() {
                        true => String::new(),
                        false => digest_of(gojson::to_string(&self.headers).as_bytes()).to_string(),
                    },
                ),
            ],
        })
    }

    async fn snapshot(&self, cx: &SourceContext) -> Result<Option<ImmutableRef>, SourceError> {
        Ok(Some(self.found(cx).await?.output.clone()))
    }

    async fn metadata(
        &self,
        cx: &SourceContext,
        request: &MetadataRequest,
    ) -> Result<Option<Metadata>, SourceError> {
        let found = self.found(cx).await?;
        let requested = match &request.checksum {
            Some(request) => Some(found.checksum(request).await?),
            None => None,
        };
        let seconds = name::parse_time(&found.modified);
        let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Ok(Some(Metadata::Http(HttpMetadata {
            checksum: found.digest.clone(),
            filename: found.filename.clone(),
            last_modified: seconds
                .map(|seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)),
            requested,
        })))
    }
}

impl Found {
    /// The digest of the content and of what is asked for behind it.
    async fn checksum(&self, request: &ChecksumRequest) -> Result<String, SourceError> {
        let Some(local) = self.output.local() else {
            return Err(CacheError::NotFound {
                id: self.output.id().clone(),
            }
            .into());
        };
        let mounted = local.mount().await?;
        let (path, request) = (mounted.path().join(&self.filename), request.clone());
        let hash = move || {
            let failed = |source| SourceError::Io {
                attempt: "read",
                path: path.clone(),
                source: Arc::new(source),
            };
            let dir = path.parent().unwrap_or(&path);
            let name = path.file_name().unwrap_or_default();
            let root = Root::open(dir).map_err(failed)?;
            let file = root.open_with(name, OFlags::RDONLY, Mode::empty());
            let mut file = std::fs::File::from(file.map_err(failed)?);
            let digest = match request.algorithm {
                ChecksumAlgorithm::Sha256 => hashed::<Sha256>(&mut file, &request.suffix),
                ChecksumAlgorithm::Sha384 => hashed::<sha2::Sha384>(&mut file, &request.suffix),
                ChecksumAlgorithm::Sha512 => hashed::<sha2::Sha512>(&mut file, &request.suffix),
            };
            let name = match request.algorithm {
                ChecksumAlgorithm::Sha256 => "sha256",
                ChecksumAlgorithm::Sha384 => "sha384",
                ChecksumAlgorithm::Sha512 => "sha512",
            };
            // The file is read before it is let go.
            drop(mounted);
            Ok(format!("{name}:{}", digest.map_err(failed)?))
        };
        let hashed = tokio::task::spawn_blocking(hash).await;
        hashed.expect("the task does not panic")
    }
}

fn hashed<H: sha2::Digest>(file: &mut std::fs::File, suffix: &[u8]) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut hash = H::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    hash.update(suffix);
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests;
