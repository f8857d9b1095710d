//! The bare repository that all builds share, and what is fetched into it.

use std::path::Path;

use cooper_cache::{CacheError, CacheManager, MountedDir, MutableRef, RecordOptions};

use super::program::{GitFailure, Program};
use super::remote::{Resolved, default_branch};
use super::spec::{Spec, is_commit};
use crate::{GitMetadata, SourceError};

/// The index under which the repository is kept.
const SHARED: &str = "git-remote::";

/// A repository that has the commit.
pub(super) struct Repository<'a> {
    /// git on it.
    pub(super) git: Program<'a>,
    /// The name or the commit that was fetched.
    pub(super) reference: String,
    mounted: MountedDir,
    // Goes back when it is dropped, after it was unmounted.
    _kept: MutableRef,
}

impl Repository<'_> {
    pub(super) fn dir(&self) -> &Path {
        self.mounted.path()
    }

    /// Adds the texts of the commit and of the tag to what is known of them. A name that was
    /// one of an object alone may turn out to be a tag.
    pub(super) async fn objects(&self, found: &mut GitMetadata) -> Result<(), SourceError> {
        let kind = self.git.run(&["cat-file", "-t", &found.checksum]).await?;
        match kind.trim() {
            "commit" => found.commit_checksum.clear(),
            "tag" if found.commit_checksum.is_empty() => {
                let commit = format!("{}^{{commit}}", found.checksum);
                let commit = self.git.run(&["rev-parse", &commit]).await?;
                found.commit_checksum = commit.trim().to_owned();
            }
            "tag" => {}
            _ => {
                return Err(SourceError::GitNoCommit {
                    object: found.checksum.clone(),
                });
            }
        }
        let mut commit = &found.checksum;
        if !found.commit_checksum.is_empty() {
            let tag = self.git.bytes(&["cat-file", "tag", commit]).await?;
            found.tag_object = tag;
            commit = &found.commit_checksum;
        }
        found.commit_object = self.git.bytes(&["cat-file", "commit", commit]).await?;
        Ok(())
    }
}

/// Brings the commit. The caller has the lock of the remote.
pub(super) async fn fetch<'a>(
    cache: &CacheManager,
    git: &Program<'a>,
    spec: &Spec,
    resolved: &Resolved,
) -> Result<Repository<'a>, SourceError> {
    let repository = match fetch_once(cache, git, spec, resolved, false).await {
        // The server moved a tag, or has a branch where a folder of branches was: what is here
        // stands in the way.
        Err(SourceError::Git { source, .. }) if is_in_the_way(&source) => {
            fetch_once(cache, git, spec, resolved, true).await?
        }
        result => result?,
    };
    verify(&repository, spec).await?;
    Ok(repository)
}

fn is_in_the_way(failure: &GitFailure) -> bool {
    failure.says(&["rejected", "(would clobber existing tag)"])
        || failure.says(&["some local refs could not be updated;"])
            && (failure.says(&["(unable to update local ref)"])
                || failure.says(&["refname conflict"]))
}

async fn fetch_once<'a>(
    cache: &CacheManager,
    git: &Program<'a>,
    spec: &Spec,
    resolved: &Resolved,
    anew: bool,
) -> Result<Repository<'a>, SourceError> {
    let (kept, mounted) = open(cache, git, spec, resolved, anew).await?;
    let reference = match spec.reference.as_str() {
        "" => default_branch(git, spec).await?,
        reference => reference.to_owned(),
    };
    let repository = Repository {
        git: git.on(mounted.path(), None),
        reference,
        mounted,
        _kept: kept,
    };
    let (git, reference) = (&repository.git, repository.reference.as_str());
    if is_commit(reference) {
        let commit = format!("{reference}^{{commit}}");
        if git.run(&["cat-file", "-e", &commit]).await.is_ok() {
            return Ok(repository);
        }
    }
    // What an earlier process that was killed may have left.
    let _ = std::fs::remove_file(repository.dir().join("shallow.lock"));
    // A name of its own here, so that the server is told of what is here already.
    let target = if reference.starts_with("refs/tags/") {
        reference.to_owned()
    } else {
        format!("refs/tags/{reference}")
    };
    if is_commit(reference) {
        fetch_commit(&repository, spec, reference).await?;
    } else {
        let names = format!("{reference}:{target}");
        let args = [
            "fetch",
            "--depth=1",
            "--no-tags",
            "origin",
            "--force",
            &names,
        ];
        git.run(&args).await.map_err(|error| failed(error, spec))?;
    }
    // The name may stand for another commit by now than the key was made of.
    let now = git.run(&["rev-parse", reference]).await?;
    if now.trim() != resolved.object {
        if !has(git, &resolved.object).await {
            fetch_commit(&repository, spec, &resolved.object).await?;
            forget(git, spec).await?;
        }
        if !has(git, &resolved.object).await {
            return Err(SourceError::GitMoved {
                reference: reference.to_owned(),
                commit: resolved.object.clone(),
            });
        }
        git.run(&["update-ref", &target, &resolved.object, "--no-deref"])
            .await?;
    }
    Ok(repository)
}

async fn has(git: &Program<'_>, object: &str) -> bool {
    git.run(&["cat-file", "-e", object]).await.is_ok()
}

async fn fetch_commit(
    repository: &Repository<'_>,
    spec: &Spec,
    commit: &str,
) -> Result<(), SourceError> {
    let mut args = vec!["fetch", "--tags"];
    if repository.dir().join("shallow").exists() {
        args.push("--unshallow");
    }
    args.extend(["origin", commit]);
    let fetched = repository.git.run(&args).await;
    fetched.map(drop).map_err(|error| failed(error, spec))
}

fn failed(failure: GitFailure, spec: &Spec) -> SourceError {
    failure.at(format!("failed to fetch remote {}", spec.shown()))
}

async fn forget(git: &Program<'_>, spec: &Spec) -> Result<(), SourceError> {
    let args = ["reflog", "expire", "--all", "--expire=now"];
    let attempt = || format!("failed to expire reflog for remote {}", spec.shown());
    git.run(&args)
        .await
        .map(drop)
        .map_err(|error| error.at(attempt()))
}

/// What was fetched is what the client asked for.
async fn verify(repository: &Repository<'_>, spec: &Spec) -> Result<(), SourceError> {
    if spec.checksum.is_empty() {
        return Ok(());
    }
    let reference = &repository.reference;
    let attempt = || format!("failed to rev-parse {reference} for {}", spec.shown());
    let object = repository.git.run(&["rev-parse", reference]).await;
    let object = object.map_err(|error| error.at(attempt()))?;
    let object = object.trim();
    if object.starts_with(&spec.checksum) {
        return Ok(());
    }
    let peeled = format!("{reference}^{{}}");
    let peeled = repository.git.run(&["rev-parse", &peeled]).await;
    match peeled.as_deref().map(str::trim) {
        Ok(peeled) if peeled.starts_with(&spec.checksum) => Ok(()),
        Ok(peeled) if peeled != object => Err(spec.mismatch(format!("{object} or {peeled}"))),
        _ => Err(spec.mismatch(object.to_owned())),
    }
}

/// The shared repository, made if there is none.
async fn open(
    cache: &CacheManager,
    git: &Program<'_>,
    spec: &Spec,
    resolved: &Resolved,
    anew: bool,
) -> Result<(MutableRef, MountedDir), SourceError> {
    // Objects of two kinds do not stand in one repository.
    let kind = if resolved.is_sha256() { "sha256:" } else { "" };
    let index = format!("{SHARED}{kind}{}", spec.remote);
    if let Some(kept) = known(cache, &index).await? {
        let mounted = kept.mount().await?;
        if !anew {
            return Ok((kept, mounted));
        }
        empty(mounted.path())?;
        init(git, spec, resolved, mounted.path()).await?;
        return Ok((kept, mounted));
    }
    let options = RecordOptions {
        description: format!("shared git repo for {}", spec.shown()),
        retain: true,
        ..RecordOptions::default()
    };
    let made = cache.new_mutable(None, options).await?;
    let mounted = made.mount().await?;
    init(git, spec, resolved, mounted.path()).await?;
    // Found from now on: it is whole.
    made.add_index(&index).await?;
    Ok((made, mounted))
}

async fn known(cache: &CacheManager, index: &str) -> Result<Option<MutableRef>, SourceError> {
    for id in cache.search(index)? {
        match cache.get_mutable(&id).await {
            Ok(kept) => return Ok(Some(kept)),
            // Somebody prunes it.
            Err(CacheError::Locked { .. } | CacheError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn empty(dir: &Path) -> Result<(), SourceError> {
    let clear = || {
        let root = cooper_sys::Root::open(dir)?;
        let names = root.read_dir(".")?;
        names.iter().try_for_each(|name| root.remove_all(name))
    };
    clear().map_err(|source| SourceError::Io {
        attempt: "empty",
        path: dir.to_owned(),
        source: std::sync::Arc::new(source),
    })
}

async fn init(
    git: &Program<'_>,
    spec: &Spec,
    resolved: &Resolved,
    dir: &Path,
) -> Result<(), SourceError> {
    let git = git.on(dir, None);
    let mut args = vec!["-c", "init.defaultBranch=master", "init", "--bare"];
    if resolved.is_sha256() {
        args.push("--object-format=sha256");
    }
    let path = dir.display();
    git.run(&args)
        .await
        .map_err(|error| error.at(format!("failed to init repo at {path}")))?;
    git.run(&["remote", "add", "origin", &spec.remote])
        .await
        .map_err(|error| error.at(format!("failed add origin repo at {path}")))?;
    Ok(())
}
