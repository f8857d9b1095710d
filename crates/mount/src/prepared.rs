//! Mounts that are ready, and what becomes of them.

use std::sync::Arc;

use cooper_cache::{CacheError, ImmutableRef, LocalRef, MutableRef, Written};
use cooper_executor::ContainerMount;
use cooper_snapshot::Mount;

use crate::MountError;
use crate::cachedir::CacheDir;
use crate::error::cache;
use crate::secret::SecretFile;
use crate::ssh::SshSocket;

/// The mounts of one process. They can be mounted as long as this value is there.
///
/// [`Prepared::commit`] keeps what was written; dropping the value discards it, and gives
/// caches, secrets and sockets back. Nothing may be mounted any more when either happens.
#[derive(Default)]
pub struct Prepared {
    /// The root file system.
    pub root: Vec<Mount>,
    /// Whether processes see it as read-only.
    pub root_read_only: bool,
    /// The other mounts, those that others are in first.
    pub mounts: Vec<ContainerMount>,
    /// By the index of the step's mount.
    pub(crate) sources: Vec<Option<Vec<Mount>>>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) kept: Vec<Kept>,
}

/// What a mount of the step leaves.
pub(crate) struct Output {
    /// The number that the step's result has; `None` for what is thrown away.
    pub(crate) index: Option<usize>,
    /// The index of the step's mount.
    mount: usize,
    state: State,
}

enum State {
    /// What came in.
    Same(ImmutableRef),
    /// What was written.
    Written(Box<MutableRef>),
}

impl Output {
    pub(crate) fn same(index: usize, mount: usize, input: &LocalRef) -> Self {
        Self {
            index: Some(index),
            mount,
            state: State::Same(ImmutableRef::clone(input)),
        }
    }

    pub(crate) fn written(index: Option<usize>, mount: usize, made: MutableRef) -> Self {
        Self {
            index,
            mount,
            state: State::Written(Box::new(made)),
        }
    }

    async fn keep(self) -> Result<ImmutableRef, MountError> {
        match self.state {
            State::Same(same) => Ok(same),
            State::Written(made) => made
                .commit()
                .await
                .map_err(cache("commit the output of mount", &self.mount.to_string())),
        }
    }
}

/// What is held only so that it can be mounted.
#[allow(dead_code, reason = "held for what dropping them does")]
pub(crate) enum Kept {
    Input(LocalRef),
    Cache(Arc<CacheDir>),
    Secret(SecretFile),
    Ssh(SshSocket),
}

impl Prepared {
    /// What is mounted for the mount at `index` of the step; `None` when it was left out.
    pub fn source(&self, index: usize) -> Option<&[Mount]> {
        self.sources.get(index)?.as_deref()
    }

    /// How many mounts the step has.
    pub fn count(&self) -> usize {
        self.sources.len()
    }

    /// [`source`](Self::source), to look at while it is mounted elsewhere for writing: what a
    /// mount of an overlay has above its layers is one more layer.
    pub fn view(&self, index: usize) -> Option<Vec<Mount>> {
        let mounts = self.source(index)?.iter().cloned();
        Some(mounts.map(Mount::read_only).collect())
    }

    /// Resolves when the step has written more than one may, caches not counted.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn outgrown(&self) -> CacheError {
        Written::to(self.written()).outgrown().await
    }

    /// Looks whether the step has written more than one may, caches not counted.
    ///
    /// # Errors
    /// [`CacheError::Outgrown`].
    pub async fn check_size(&self) -> Result<(), CacheError> {
        Written::to(self.written()).check().await
    }

    fn written(&self) -> Vec<&MutableRef> {
        let written = self
            .outputs
            .iter()
            .filter_map(|output| match &output.state {
                State::Written(made) => Some(&**made),
                State::Same(_) => None,
            });
        written.collect()
    }

    /// Keeps what was written, as the outputs of the step, ordered by their index.
    ///
    /// # Cancel safety
    /// When the future is dropped some outputs may have been kept: they are refs that nobody
    /// has and go when the cache is pruned.
    pub async fn commit(self) -> Result<Vec<(usize, ImmutableRef)>, MountError> {
        // Others may wait for the caches.
        drop(self.kept);
        let mut results = Vec::with_capacity(self.outputs.len());
        for output in self.outputs {
            if let Some(index) = output.index {
                results.push((index, output.keep().await?));
            }
        }
        Ok(results)
    }

    /// Keeps what a step that failed has written, for a look at it: by the index of the step's
    /// mount, what is no output as well. Caches are not among them.
    ///
    /// # Cancel safety
    /// As [`commit`](Self::commit).
    pub async fn commit_failed(self) -> Result<Vec<(usize, ImmutableRef)>, MountError> {
        drop(self.kept);
        let mut results = Vec::with_capacity(self.outputs.len());
        for output in self.outputs {
            results.push((output.mount, output.keep().await?));
        }
        Ok(results)
    }
}
