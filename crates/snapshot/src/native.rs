//! Snapshots that are copies: slow and large, and possible on every file system.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cooper_store::Store;
use cooper_sys::Root;
use cooper_sys::copy::{CopyOptions, copy_tree};

use crate::error::io;
use crate::index::{Index, Record};
use crate::tree::{self, blocking};
use crate::{ActiveKey, Mount, SnapshotError, SnapshotId, SnapshotName, Snapshotter, Usage};

/// Keeps each snapshot as a folder of its own, `<root>/s/<number>/fs`. A view is no copy: it shows
/// the folder of its parent, to read.
#[derive(Clone, Debug)]
pub struct NativeSnapshotter {
    index: Arc<Index>,
}

impl NativeSnapshotter {
    /// Opens the snapshots in `root`, made when it is missing; their metadata is in `store`.
    pub fn open(root: &Path, store: Store) -> Result<Self, SnapshotError> {
        Ok(Self {
            index: Arc::new(Index::open(root, store)?),
        })
    }

    async fn make(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
        view: bool,
    ) -> Result<(), SnapshotError> {
        let number = self.index.allocate();
        let folder = self.index.folder(number);
        let from = match parent {
            Some(name) => {
                let record = self.index.get(&SnapshotId::Committed(name.clone()))?;
                // A view shows the files of its parent.
                (!view).then(|| self.index.folder(record.number))
            }
            None => None,
        };
        let target = folder.clone();
        let made = blocking(move || {
            tree::make(&target, &["fs"])?;
            if let Some(from) = from {
                let source = Root::open(&from).map_err(io("open", &from))?;
                let to = Root::open(&target).map_err(io("open", &target))?;
                let options = CopyOptions {
                    overwrite_metadata: true,
                    ..CopyOptions::default()
                };
                copy_tree(&source, Path::new("fs"), &to, Path::new("fs"), &options).map_err(
                    |error| SnapshotError::Backend {
                        attempt: format!("copy {}", from.display()),
                        source: error.into(),
                    },
                )?;
            }
            Ok(())
        });
        let record = Record {
            number,
            parent: parent.map(ToString::to_string),
            view,
        };
        let result = match made.await {
            Ok(()) => self.index.insert(key, record).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            let _ = blocking(move || tree::remove(&folder)).await;
        }
        result
    }
}

#[async_trait]
impl Snapshotter for NativeSnapshotter {
    fn name(&self) -> &str {
        "native"
    }

    fn copies(&self) -> bool {
        true
    }

    async fn prepare(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError> {
        self.make(key, parent, false).await
    }

    async fn view(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError> {
        self.make(key, parent, true).await
    }

    async fn mounts(&self, key: &ActiveKey) -> Result<Vec<Mount>, SnapshotError> {
        let record = self.index.get(&SnapshotId::Active(key.clone()))?;
        let shown = match &record.parent {
            Some(parent) if record.view => {
                let parent = SnapshotId::Committed(SnapshotName::new(parent.clone()));
                self.index.get(&parent)?.number
            }
            _ => record.number,
        };
        let folder = self.index.folder(shown).join("fs");
        Ok(vec![Mount::bind(&folder, record.view)])
    }

    async fn commit(&self, key: &ActiveKey, name: &SnapshotName) -> Result<(), SnapshotError> {
        self.index.commit(key, name).await.map(|_| ())
    }

    async fn usage(&self, name: &SnapshotName) -> Result<Usage, SnapshotError> {
        let record = self.index.get(&SnapshotId::Committed(name.clone()))?;
        let folder = self.index.folder(record.number);
        blocking(move || tree::usage(&folder)).await
    }

    async fn usage_active(&self, key: &ActiveKey) -> Result<Usage, SnapshotError> {
        let record = self.index.get(&SnapshotId::Active(key.clone()))?;
        let folder = self.index.folder(record.number);
        blocking(move || tree::usage(&folder)).await
    }

    async fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let mut results = self.index.remove_all(std::slice::from_ref(id)).await;
        results.pop().unwrap_or(Ok(()))
    }

    async fn remove_all(&self, ids: &[SnapshotId]) -> Vec<Result<(), SnapshotError>> {
        self.index.remove_all(ids).await
    }

    async fn strays(&self) -> Result<Vec<(std::path::PathBuf, u64)>, SnapshotError> {
        let index = self.index.clone();
        blocking(move || index.strays()).await
    }

    async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        self.index.list()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copies_conform() {
        let open = |root: &Path, store| {
            let snapshots: Arc<dyn Snapshotter> =
                Arc::new(NativeSnapshotter::open(root, store).unwrap());
            snapshots
        };
        crate::testsuite::run(open).await;
        crate::testsuite::run_on_folders(open).await;
    }
}
