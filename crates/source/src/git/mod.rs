//! `git://`: a commit of a repository, checked out by the `git` program.
//!
//! What was fetched of a repository is kept bare in one record that all builds share, and each
//! checkout in a record of its own. Keys, commands and errors are BuildKit's
//! (`source/git/source.go`).

mod access;
mod checkout;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod program;
mod remote;
mod repository;
mod spec;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use cooper_cache::{CacheManager, ImmutableRef};
use tokio::sync::OnceCell;

pub use program::GitFailure;

use crate::{
    CacheKey, Facts, GitMetadata, Identifier, Instance, Metadata, MetadataRequest, Source,
    SourceContext, SourceError,
};
use access::Access;
use program::Program;
use remote::Resolved;
use spec::Spec;

/// The index under which a checkout is kept.
const CHECKOUT: &str = "git-snapshot::";

/// Commits of repositories.
#[derive(Clone)]
pub struct GitSource {
    cache: CacheManager,
    locks: Arc<Locks>,
}

impl GitSource {
    /// Keeps repositories and checkouts in `cache`.
    pub fn new(cache: CacheManager) -> Self {
        Self {
            cache,
            locks: Arc::default(),
        }
    }

    /// Whether the `git` program is there at all.
    pub fn is_available() -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir: PathBuf| dir.join("git").is_file())
    }
}

impl Source for GitSource {
    fn schemes(&self) -> &'static [&'static str] {
        &["git"]
    }

    fn open(&self, id: Identifier) -> Result<Arc<dyn Instance>, SourceError> {
        Ok(Arc::new(Git {
            source: self.clone(),
            spec: Spec::new(&id)?,
            resolved: OnceCell::new(),
        }))
    }
}

/// One at a time for each name.
#[derive(Debug, Default)]
struct Locks {
    by_name: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    /// Waits for its turn.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the queue is lost.
    async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                locks.insert(name.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

struct Git {
    source: GitSource,
    spec: Spec,
    resolved: OnceCell<Arc<Resolved>>,
}

impl Git {
    async fn resolved(&self, cx: &SourceContext) -> Result<&Resolved, SourceError> {
        let resolve = || async {
            self.spec.check_checksum()?;
            if let Some(resolved) = self.spec.pinned()? {
                return Ok(Arc::new(resolved));
            }
            let Spec {
                remote, reference, ..
            } = &self.spec;
            let name = format!("git:{remote}#{reference}");
            let known = cx.recall::<Resolved>(&name);
            if let Some(known) = known.and_then(|known| known.shared_with(&self.spec)) {
                return Ok(Arc::new(known));
            }
            let access = Access::open(&self.spec, &cx.sessions).await?;
            let git = Program::new(&access, &cx.progress);
            let _turn = self.source.locks.lock(&self.spec.remote).await;
            let resolved = Arc::new(remote::resolve(&git, &self.spec).await?);
            cx.remember(&name, &resolved);
            Ok::<_, SourceError>(resolved)
        };
        Ok(&**self.resolved.get_or_try_init(resolve).await?)
    }

    /// The checkout of an earlier build.
    async fn known(&self, index: &str) -> Result<Option<ImmutableRef>, SourceError> {
        for id in self.source.cache.search(index)? {
            if let Ok(output) = self.source.cache.get(&id).await {
                return Ok(Some(output));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Instance for Git {
    async fn cache_key(&self, cx: &SourceContext, _: usize) -> Result<CacheKey, SourceError> {
        let resolved = self.resolved(cx).await?;
        Ok(CacheKey {
            key: self.spec.key(resolved.key_commit(), &resolved.reference),
            pin: resolved.object.clone(),
            last: true,
        })
    }

    fn facts(&self) -> Option<Facts> {
        let Spec {
            reference, subdir, ..
        } = &self.spec;
        let repository = self.spec.shown();
        let resolved = self.resolved.get()?;
        let yes = |is: bool| if is { "yes".to_owned() } else { String::new() };
        Some(Facts {
            kind: "git",
            subject: repository.clone(),
            facts: vec![
                ("repository", repository),
                ("reference", reference.clone()),
                ("commit", resolved.object.clone()),
                ("subdirectory", subdir.clone()),
                ("keeping of .git", yes(self.spec.keep_git_dir)),
                ("leaving out of submodules", yes(self.spec.skip_submodules)),
            ],
        })
    }

    async fn snapshot(&self, cx: &SourceContext) -> Result<Option<ImmutableRef>, SourceError> {
        let resolved = self.resolved(cx).await?;
        let key = self.spec.key(resolved.key_commit(), &resolved.reference);
        let index = format!("{CHECKOUT}{key}:{}", self.spec.subdir);
        let _turn = self.source.locks.lock(&index).await;
        if let Some(known) = self.known(&index).await? {
            return Ok(Some(known));
        }
        let access = Access::open(&self.spec, &cx.sessions).await?;
        let git = Program::new(&access, &cx.progress);
        let _remote = self.source.locks.lock(&self.spec.remote).await;
        let repository = repository::fetch(&self.source.cache, &git, &self.spec, resolved).await?;
        let output = checkout::checkout(&self.source.cache, &repository, &self.spec, resolved);
        let output = output.await?;
        output.add_index(&index).await?;
        output.retain().await?;
        Ok(Some(output))
    }

    async fn metadata(
        &self,
        cx: &SourceContext,
        request: &MetadataRequest,
    ) -> Result<Option<Metadata>, SourceError> {
        let resolved = self.resolved(cx).await?;
        let mut found = GitMetadata {
            checksum: resolved.object.clone(),
            reference: resolved.reference.clone(),
            commit_checksum: resolved.peeled.clone().unwrap_or_default(),
            ..GitMetadata::default()
        };
        if request.objects {
            let access = Access::open(&self.spec, &cx.sessions).await?;
            let git = Program::new(&access, &cx.progress);
            let _turn = self.source.locks.lock(&self.spec.remote).await;
            let cache = &self.source.cache;
            let repository = repository::fetch(cache, &git, &self.spec, resolved).await?;
            repository.objects(&mut found).await?;
        }
        Ok(Some(Metadata::Git(found)))
    }
}

#[cfg(test)]
mod tests;
