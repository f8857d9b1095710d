//! A commit's files, in a record of their own.

use std::path::Path;
use std::sync::Arc;

use cooper_cache::{CacheManager, ImmutableRef, RecordOptions, RecordType};
use cooper_sys::Root;

use super::program::Program;
use super::remote::Resolved;
use super::repository::Repository;
use super::spec::{Spec, is_commit};
use crate::SourceError;

/// The folder that all is checked out in when a part of it is wanted.
const WHOLE: &str = ".cooper-checkout";

pub(super) async fn checkout(
    cache: &CacheManager,
    repository: &Repository<'_>,
    spec: &Spec,
    resolved: &Resolved,
) -> Result<ImmutableRef, SourceError> {
    let reference = &repository.reference;
    let options = RecordOptions {
        description: format!("git snapshot for {}#{reference}", spec.shown()),
        record_type: RecordType::GitCheckout,
        ..RecordOptions::default()
    };
    let target = cache.new_mutable(None, options).await?;
    let mounted = target.mount().await?;
    let dir = mounted.path();
    let is_part = !spec.subdir.is_empty();
    let tree = if is_part {
        let tree = dir.join(WHOLE);
        std::fs::create_dir(&tree).map_err(io("make", &tree))?;
        tree
    } else {
        dir.to_owned()
    };
    let git = if spec.keep_git_dir && !is_part {
        clone(repository, spec, resolved, dir).await?
    } else {
        let git = repository.git.on(repository.dir(), Some(&tree));
        git.run(&["checkout", reference, "--", "."])
            .await
            .map_err(|error| error.at(format!("failed to checkout remote {}", spec.shown())))?;
        git
    };
    if !spec.skip_submodules {
        let args = ["submodule", "update", "--init", "--recursive", "--depth=1"];
        let attempt = || format!("failed to update submodules for {}", spec.shown());
        git.run(&args).await.map_err(|error| error.at(attempt()))?;
    }
    if is_part {
        let (dir, subdir) = (dir.to_owned(), spec.subdir.clone());
        let part = tokio::task::spawn_blocking(move || take_part(&dir, &subdir));
        let part = part.await.expect("the task does not panic");
        part.map_err(|source| SourceError::GitSubdir {
            subdir: spec.subdir.clone(),
            source: Arc::new(source),
        })?;
    }
    drop(mounted);
    Ok(target.commit().await?)
}

/// Checks out with a repository of its own, which knows the commit and nothing before it.
async fn clone<'a>(
    repository: &Repository<'a>,
    spec: &Spec,
    resolved: &Resolved,
    dir: &Path,
) -> Result<Program<'a>, SourceError> {
    let reference = repository.reference.as_str();
    let git = repository.git.on(&dir.join(".git"), Some(dir));
    let mut args = vec!["-c", "init.defaultBranch=master", "init"];
    if resolved.is_sha256() {
        args.push("--object-format=sha256");
    }
    git.run(&args).await?;
    // By the protocol: a clone of a folder takes over files that it should not trust.
    let origin = format!("file://{}", repository.dir().display());
    git.run(&["remote", "add", "origin", &origin]).await?;
    let kind = repository.git.run(&["cat-file", "-t", reference]).await?;
    let name = if kind.trim() == "tag" {
        let short = reference.strip_prefix("refs/tags/").unwrap_or(reference);
        format!("{reference}:refs/tags/{short}")
    } else if is_commit(reference) {
        // Only names can be fetched.
        let name = format!("refs/cooper/{reference}");
        let args = ["update-ref", &name, reference];
        repository.git.run(&args).await?;
        name
    } else {
        format!("{reference}:{reference}")
    };
    git.run(&["fetch", "-u", "--depth=1", "origin", &name])
        .await?;
    git.run(&["checkout", "FETCH_HEAD"])
        .await
        .map_err(|error| error.at(format!("failed to checkout remote {}", spec.shown())))?;
    let shown = spec.shown();
    git.run(&["remote", "set-url", "origin", &shown])
        .await
        .map_err(|error| error.at(format!("failed to set remote origin to {shown}")))?;
    git.run(&["reflog", "expire", "--all", "--expire=now"])
        .await
        .map_err(|error| error.at(format!("failed to expire reflog for remote {shown}")))?;
    let _ = std::fs::remove_file(dir.join(".git/FETCH_HEAD"));
    Ok(git)
}

/// Leaves of all that was checked out only what is in `subdir`. The repository may have links
/// there: none of them leads out of it.
fn take_part(dir: &Path, subdir: &str) -> std::io::Result<()> {
    let top = Root::open(dir)?;
    let part = top.sub(WHOLE)?.sub(subdir)?;
    for name in part.read_dir(".")? {
        rustix::fs::renameat(&part, &name, &top, &name)?;
    }
    top.remove_all(WHOLE)
}

fn io(attempt: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SourceError {
    let path = path.to_owned();
    move |source| SourceError::Io {
        attempt,
        path,
        source: Arc::new(source),
    }
}
