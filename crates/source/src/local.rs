//! `local://`: folders of the client, kept from one build to the next so that only what changed
//! is sent.
//!
//! What is in a folder is not known before it was sent: the key is good for one session, and
//! what is built of the files is found by their content (`source/local/source.go` in BuildKit).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cooper_cache::{
    CacheManager, EntryKind, FileHasher, FileStat, HashedChange, ImmutableRef, MutableRef,
    RecordOptions, RecordType,
};
use cooper_content::{PlaintextKind, digest_from, digest_noted};
use cooper_llb::gojson::Object;
use cooper_progress::StatusGuard;
use cooper_proto::fsutil::Stat;
use cooper_session::filesync::{self, Change, Differ, SyncRequest, Watch};
use cooper_session::{Session, SessionError, stat};
use sha2::Sha256;

use crate::{CacheKey, Identifier, Instance, Source, SourceContext, SourceError};

const SESSION: &str = "local.session";
const INCLUDE: &str = "local.includepattern";
const EXCLUDE: &str = "local.excludepatterns";
const FOLLOW: &str = "local.followpaths";
const SHARED_KEY: &str = "local.sharedkeyhint";
const DIFFER: &str = "local.differ";
const METADATA: &str = "local.metadatatransfer";
/// Files that are brought although only metadata is.
const EXCEPTIONS: &str = "local.metadatatransferexclude";

/// How long the session that is named is waited for, before another one is asked.
const WAIT: Duration = Duration::from_secs(5);
/// How often a count of bytes is shown.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Folders of the client.
#[derive(Clone)]
pub struct LocalSource {
    cache: CacheManager,
}

impl LocalSource {
    /// Keeps copies in `cache`.
    pub fn new(cache: CacheManager) -> Self {
        Self { cache }
    }
}

impl Source for LocalSource {
    fn schemes(&self) -> &'static [&'static str] {
        &["local"]
    }

    fn open(&self, id: Identifier) -> Result<Arc<dyn Instance>, SourceError> {
        let list = |name: &str| match id.attr(name).map(serde_json::from_str) {
            Some(Ok(patterns)) => Ok(patterns),
            Some(Err(error)) => Err(id.invalid(name, error)),
            None => Ok(None),
        };
        let differ = match id.attr(DIFFER) {
            Some("none") => Differ::None,
            _ => Differ::Metadata,
        };
        let only = match id.attr(METADATA) {
            None => None,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => None,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => {
                Some(list(EXCEPTIONS)?.unwrap_or_default())
            }
            Some(_) => return Err(id.invalid(METADATA, "neither true nor false")),
        };
        let (name, session) = match id.attr(SESSION).map(|session| session.split_once(':')) {
            // A session in a session: the name is that of a folder in it.
            Some(Some((prefix, session))) => (format!("{prefix}-{}", id.reference), session),
            Some(None) => (id.reference.clone(), id.attr(SESSION).unwrap_or_default()),
            None => (id.reference.clone(), ""),
        };
        Ok(Arc::new(Local {
            cache: self.cache.clone(),
            include: list(INCLUDE)?,
            exclude: list(EXCLUDE)?,
            follow: list(FOLLOW)?,
            name,
            session: session.to_owned(),
            hint: id.attr(SHARED_KEY).unwrap_or_default().to_owned(),
            differ,
            only,
        }))
    }
}

struct Local {
    cache: CacheManager,
    name: String,
    session: String,
    /// Absent is another key than empty: Go writes `null` for it.
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    follow: Option<Vec<String>>,
    hint: String,
    differ: Differ,
    /// Only these files are brought, and the metadata of the others.
    only: Option<Vec<String>>,
}

impl Local {
    /// Brings the folder from one session.
    async fn sync(
        &self,
        cx: &SourceContext,
        session: &Session,
    ) -> Result<ImmutableRef, SourceError> {
        let mut index = format!("local:{}:{}:{}", self.name, self.hint, session.shared_key());
        if self.only.is_some() {
            // What is incomplete is no copy of the folder.
            index.push_str(":metadata");
        }
        let target = self.target(&index).await?;
        let request = SyncRequest {
            name: self.name.clone(),
            include: self.include.clone().unwrap_or_default(),
            exclude: self.exclude.clone().unwrap_or_default(),
            follow: self.follow.clone().unwrap_or_default(),
            differ: self.differ,
            only: self.only.clone(),
        };
        let status = cx
            .progress
            .status(&format!("transferring {}:", self.name), "transferring");
        let watch = Arc::new(Seen {
            cache: self.cache.clone(),
            inner: Mutex::new(SeenInner {
                status: Some(status),
                shown: Instant::now(),
                bytes: 0,
                changes: Vec::new(),
            }),
        });
        let mounted = target.mount().await?;
        let received = filesync::receive(session, &request, mounted.path(), watch.clone()).await;
        drop(mounted);
        // After an error the copy goes back as it is: the next sync compares it with what the
        // client has, and its hashes are not known any more.
        received?;
        target.set_content_hashes(watch.finish());
        target.add_index(&index).await?;
        Ok(target.commit().await?)
    }

    /// The copy of an earlier build, if there is one that nobody uses now, or a new one.
    async fn target(&self, index: &str) -> Result<MutableRef, SourceError> {
        for id in self.cache.search(index)? {
            match self.cache.get_mutable(&id).await {
                Ok(target) => return Ok(target),
                Err(error) => tracing::debug!(%id, %error, "not reusing a copy"),
            }
        }
        let options = RecordOptions {
            description: format!("local source for {}", self.name),
            record_type: RecordType::LocalSource,
            retain: true,
            ..RecordOptions::default()
        };
        Ok(self.cache.new_mutable(None, options).await?)
    }
}

#[async_trait]
impl Instance for Local {
    async fn cache_key(&self, cx: &SourceContext, _: usize) -> Result<CacheKey, SourceError> {
        let session = match (self.session.as_str(), cx.sessions.ids().first()) {
            ("", Some(first)) => first,
            ("", None) => return Err(SourceError::NoSession),
            (session, _) => session,
        };
        let text = Object::write(|object| {
            object.field("SessionID", session);
            object.field("IncludePatterns", &self.include);
            object.field("ExcludePatterns", &self.exclude);
            object.field("FollowPaths", &self.follow);
            if let Some(only) = &self.only {
                object.field("MetadataTransfer", &true);
                object.omit_empty("MetadataExceptions", only);
            }
        });
        let plaintexts = self.cache.plaintexts();
        let digest = digest_noted(plaintexts, PlaintextKind::Json, text.as_bytes());
        Ok(CacheKey {
            key: format!("session:{}:{digest}", self.name),
            pin: digest.to_string(),
            last: true,
        })
    }

    async fn snapshot(&self, cx: &SourceContext) -> Result<Option<ImmutableRef>, SourceError> {
        if !self.session.is_empty() {
            let named = cx.sessions.manager().get(&self.session, WAIT).await;
            if let Ok(session) = named {
                match self.sync(cx, &session).await {
                    // The client is the right one but offers nothing: perhaps another does.
                    Err(SourceError::Session(error))
                        if matches!(*error, SessionError::NoLocalSources)
                            && cx.sessions.ids().len() > 1 => {}
                    result => return result.map(Some),
                }
            }
        }
        let synced = cx
            .sessions
            .any(|session| async move { self.sync(cx, &session).await })
            .await?;
        Ok(Some(synced))
    }
}

/// What was seen of a transfer.
struct Seen {
    cache: CacheManager,
    inner: Mutex<SeenInner>,
}

struct SeenInner {
    status: Option<StatusGuard>,
    shown: Instant,
    bytes: u64,
    changes: Vec<HashedChange>,
}

impl Seen {
    fn finish(&self) -> Vec<HashedChange> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(status) = inner.status.take() {
            status.finish(i64::try_from(inner.bytes).unwrap_or(i64::MAX), 0);
        }
        std::mem::take(&mut inner.changes)
    }
}

/// A path from the root.
fn rooted(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

impl Watch for Seen {
    fn hasher(&self, stat: &Stat) -> Sha256 {
        FileHasher::new(&FileStat::from(stat)).into()
    }

    fn changed(&self, change: Change<'_>) {
        let change = match change {
            Change::Set { path, stat, digest } => {
                let digest = digest_from(&digest);
                let metadata = FileStat::from(stat);
                if let Some(plaintexts) = self.cache.plaintexts()
                    && plaintexts.wants(&digest)
                {
                    plaintexts.note(&digest, metadata.plaintext());
                }
                HashedChange::Set {
                    path: rooted(path),
                    kind: kind(stat),
                    digest,
                    mode: metadata.permissions(),
                }
            }
            Change::Removed { path } => HashedChange::Delete { path: rooted(path) },
            _ => return,
        };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.changes.push(change);
    }

    fn transferred(&self, bytes: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.bytes = bytes;
        if inner.shown.elapsed() >= SHOW_EVERY {
            inner.shown = Instant::now();
            if let Some(status) = &mut inner.status {
                status.set(i64::try_from(bytes).unwrap_or(i64::MAX), 0);
            }
        }
    }
}

fn kind(stat: &Stat) -> EntryKind {
    if stat::is_dir(stat.mode) {
        EntryKind::Directory
    } else if stat.mode & stat::mode::SYMLINK != 0 {
        EntryKind::Symlink {
            target: stat.linkname.clone().into_bytes(),
        }
    } else if stat::is_regular(stat.mode) && !stat.linkname.is_empty() {
        EntryKind::Hardlink {
            target: rooted(&stat.linkname),
        }
    } else {
        EntryKind::File
    }
}

#[cfg(test)]
mod tests;
