//! States of file systems by one of containerd's snapshotters.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cooper_proto::containerd::services::snapshots::v1 as wire;
use cooper_proto::containerd::types;
use cooper_snapshot::{
    ActiveKey, Mount, SnapshotError, SnapshotId, SnapshotName, Snapshotter, Usage,
};
use tonic::Code;

use crate::collect::Collector;
use crate::{Containerd, ContainerdError};

/// The label that keeps containerd's garbage collector from a snapshot or a blob.
pub(crate) const ROOT: &str = "containerd.io/gc.root";

/// The label that says which cache a snapshot or a blob belongs to.
pub(crate) const OWNER: &str = "cooper.cache";

/// Snapshots that one of containerd's snapshotters keeps, in the namespace of the connection.
///
/// They carry a label with the name of their owner, which is also a part of their keys: whatever
/// else is in the namespace is neither seen nor touched. Each is a root for containerd's garbage
/// collector, from its first moment until it is removed, because only the owner knows what it
/// still needs; the space of removed ones is free when the collector has run, which is asked for.
///
/// Dropping it changes nothing that containerd keeps.
#[derive(Clone, Debug)]
pub struct ContainerdSnapshotter {
    containerd: Containerd,
    name: String,
    owner: String,
    /// Where containerd keeps them, if it says so.
    root: Option<PathBuf>,
    collector: Collector,
}

impl ContainerdSnapshotter {
    /// The snapshots of `owner` in containerd's snapshotter `name` (`overlayfs`, `native`, …).
    /// The owner is at most 64 letters and digits.
    ///
    /// # Errors
    /// When containerd has no such snapshotter, or it does not work on this machine.
    pub async fn open(
        containerd: Containerd,
        name: &str,
        owner: &str,
    ) -> Result<Self, ContainerdError> {
        let mut plugin = containerd.snapshotter(name).await?;
        Ok(Self {
            root: plugin.exports.remove("root").map(PathBuf::from),
            collector: Collector::new(containerd.clone()),
            containerd,
            name: name.to_owned(),
            owner: owner.to_owned(),
        })
    }

    /// containerd has one list for keys and names.
    fn key(&self, id: &SnapshotId) -> String {
        let (kind, id) = match id {
            SnapshotId::Active(key) => ("active", key.as_str()),
            SnapshotId::Committed(name) => ("committed", name.as_str()),
        };
        format!("cooper/{}/{kind}/{id}", self.owner)
    }

    fn active(&self, key: &ActiveKey) -> String {
        self.key(&SnapshotId::Active(key.clone()))
    }

    fn committed(&self, name: &SnapshotName) -> String {
        self.key(&SnapshotId::Committed(name.clone()))
    }

    fn id(&self, key: &str) -> Option<SnapshotId> {
        let rest = key.strip_prefix("cooper/")?.strip_prefix(&*self.owner)?;
        let (kind, id) = rest.strip_prefix('/')?.split_once('/')?;
        match kind {
            "active" => Some(SnapshotId::Active(ActiveKey::new(id))),
            "committed" => Some(SnapshotId::Committed(SnapshotName::new(id))),
            _ => None,
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let labels = [(OWNER, self.owner.as_str()), (ROOT, "1")];
        labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn snapshots(&self) -> wire::snapshots_client::SnapshotsClient<crate::client::Service> {
        self.containerd.snapshots()
    }

    /// What a refusal means that is about `id`.
    fn failed(&self, attempt: &str, id: &dyn Display, status: tonic::Status) -> SnapshotError {
        let error = self.containerd.failed()(status);
        match error.code() {
            Some(Code::NotFound) => SnapshotError::NotFound { id: id.to_string() },
            Some(Code::AlreadyExists) => SnapshotError::Exists { id: id.to_string() },
            _ => backend(format!("{attempt} snapshot {id}"), error),
        }
    }

    async fn all(&self, filter: String) -> Result<Vec<wire::Info>, ContainerdError> {
        let request = wire::ListSnapshotsRequest {
            snapshotter: self.name.clone(),
            filters: vec![filter],
        };
        let mut all = Vec::new();
        let answer = self.snapshots().list(request).await;
        let mut stream = answer.map_err(self.containerd.failed())?.into_inner();
        while let Some(some) = stream.message().await.map_err(self.containerd.failed())? {
            all.extend(some.info);
        }
        Ok(all)
    }

    async fn stat(&self, key: String) -> Result<wire::Info, tonic::Status> {
        let snapshotter = self.name.clone();
        let request = wire::StatSnapshotRequest { snapshotter, key };
        let answer = self.snapshots().stat(request).await?.into_inner();
        answer
            .info
            .ok_or_else(|| tonic::Status::internal("an answer without a snapshot"))
    }

    async fn used(&self, id: &SnapshotId) -> Result<Usage, SnapshotError> {
        let request = wire::UsageRequest {
            snapshotter: self.name.clone(),
            key: self.key(id),
        };
        let answer = self.snapshots().usage(request).await;
        let answer = answer.map_err(|status| self.failed("measure", id, status))?;
        let answer = answer.into_inner();
        Ok(Usage {
            bytes: answer.size.try_into().unwrap_or(0),
            inodes: answer.inodes.try_into().unwrap_or(0),
            shared: Vec::new(),
        })
    }
}

/// What is not there when a snapshot is made is its parent.
fn missing<'a>(
    status: &tonic::Status,
    key: &'a ActiveKey,
    parent: &'a Option<&SnapshotName>,
) -> &'a dyn Display {
    match parent {
        Some(parent) if status.code() == Code::NotFound => *parent,
        _ => key,
    }
}

fn backend(attempt: String, error: ContainerdError) -> SnapshotError {
    SnapshotError::Backend {
        attempt,
        source: error.into(),
    }
}

fn mount(mount: types::Mount) -> Mount {
    Mount {
        kind: mount.r#type,
        source: mount.source.into(),
        options: mount.options,
    }
}

#[async_trait]
impl Snapshotter for ContainerdSnapshotter {
    fn name(&self) -> &str {
        &self.name
    }

    fn elsewhere(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// containerd counts the bytes of each by itself.
    fn tells_shared(&self) -> bool {
        false
    }

    async fn prepare(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError> {
        let request = wire::PrepareSnapshotRequest {
            snapshotter: self.name.clone(),
            key: self.active(key),
            parent: parent.map(|name| self.committed(name)).unwrap_or_default(),
            labels: self.labels(),
        };
        let answer = self.snapshots().prepare(request).await;
        answer
            .map(drop)
            .map_err(|status| self.failed("prepare", missing(&status, key, &parent), status))
    }

    async fn view(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError> {
        let request = wire::ViewSnapshotRequest {
            snapshotter: self.name.clone(),
            key: self.active(key),
            parent: parent.map(|name| self.committed(name)).unwrap_or_default(),
            labels: self.labels(),
        };
        let answer = self.snapshots().view(request).await;
        answer
            .map(drop)
            .map_err(|status| self.failed("view", missing(&status, key, &parent), status))
    }

    async fn mounts(&self, key: &ActiveKey) -> Result<Vec<Mount>, SnapshotError> {
        let request = wire::MountsRequest {
            snapshotter: self.name.clone(),
            key: self.active(key),
        };
        let answer = self.snapshots().mounts(request).await;
        let answer = answer.map_err(|status| self.failed("mount", key, status))?;
        Ok(answer.into_inner().mounts.into_iter().map(mount).collect())
    }

    async fn commit(&self, key: &ActiveKey, name: &SnapshotName) -> Result<(), SnapshotError> {
        let request = wire::CommitSnapshotRequest {
            snapshotter: self.name.clone(),
            name: self.committed(name),
            key: self.active(key),
            labels: self.labels(),
        };
        let Err(status) = self.snapshots().commit(request).await else {
            return Ok(());
        };
        // Not each snapshotter says in one way that it is one for reading.
        let info = self.stat(self.active(key)).await;
        if info.is_ok_and(|info| info.kind() == wire::Kind::View) {
            let id = key.to_string();
            return Err(SnapshotError::ReadOnly { id });
        }
        let id: &dyn Display = match status.code() {
            Code::AlreadyExists => name,
            _ => key,
        };
        Err(self.failed("commit", id, status))
    }

    async fn usage(&self, name: &SnapshotName) -> Result<Usage, SnapshotError> {
        self.used(&SnapshotId::Committed(name.clone())).await
    }

    async fn usage_active(&self, key: &ActiveKey) -> Result<Usage, SnapshotError> {
        self.used(&SnapshotId::Active(key.clone())).await
    }

    async fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let key = self.key(id);
        let request = wire::RemoveSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.clone(),
        };
        let status = match self.snapshots().remove(request).await {
            Ok(_) => {
                self.collector.wanted();
                return Ok(());
            }
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) => status,
        };
        if status.code() == Code::FailedPrecondition {
            // Quoted as in Go, which for our keys is as in JSON.
            let filter = format!("parent=={}", serde_json::Value::from(key));
            let children = self.all(filter).await.unwrap_or_default();
            if let Some(child) = children.first() {
                let child = self.id(&child.name).map(|id| id.to_string());
                return Err(SnapshotError::HasChildren {
                    id: id.to_string(),
                    child: child.unwrap_or_else(|| children[0].name.clone()),
                });
            }
        }
        Err(self.failed("remove", id, status))
    }

    async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let filter = format!("labels.{OWNER:?}=={:?}", self.owner);
        let all = self.all(filter).await;
        let all = all.map_err(|error| backend("list snapshots".into(), error))?;
        Ok(all.iter().filter_map(|info| self.id(&info.name)).collect())
    }
}
