//! What an earlier process left that was killed, and what could not be removed because
//! containerd was away.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cooper_executor::{Group, processes_with, remove_left};
use cooper_proto::containerd::services::containers::v1::ListContainersRequest;
use cooper_proto::containerd::services::tasks::v1::ListTasksRequest;
use cooper_sys::cgroup::Hierarchies;

use crate::executor::blocking;
use crate::task::Task;
use crate::{Containerd, ContainerdError, Runtime};

/// The label of containers that says whose they are: the executor's root.
pub(crate) const OWNER: &str = "cooper.executor.root";

/// The file of a bundle that names its control group.
pub(crate) const CGROUP: &str = "cgroup";

/// When containerd is asked for what it was still making, after a start and after one another.
const AGAIN: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// Containers that are to be removed when containerd is there again.
#[derive(Debug, Default)]
pub(crate) struct Left(Mutex<Vec<Task>>);

impl Left {
    /// Notes that `task` could not be removed.
    pub(crate) fn add(&self, task: Task) {
        self.list().push(task);
    }

    /// Whether there is something to remove.
    pub(crate) fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// Tries to remove all. What cannot be removed stays noted.
    pub(crate) async fn remove(&self) {
        let tasks = std::mem::take(&mut *self.list());
        for task in tasks {
            if let Err(error) = task.remove().await {
                tracing::warn!(%error, ?task, "cannot remove a container");
                self.add(task);
            }
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Task>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills every container of the executor in `root` that containerd knows, and removes it. Returns
/// their ids.
pub(crate) async fn sweep(
    containerd: &Containerd,
    root: &str,
) -> Result<BTreeSet<String>, ContainerdError> {
    // Quoted as in Go, which for a path is as in JSON.
    let filter = format!("labels.{OWNER:?}=={}", serde_json::Value::from(root));
    let request = ListContainersRequest {
        filters: vec![filter],
    };
    let list = containerd.containers().list(request).await;
    let list = list.map_err(containerd.failed())?.into_inner();
    let mut ids = BTreeSet::new();
    for container in list.containers {
        Task::new(containerd, &container.id).remove().await?;
        ids.insert(container.id);
    }
    Ok(ids)
}

/// Kills and removes which of `ids` containerd was still making when it was asked to remove them:
/// a request to make one that it has begun with may come to its end though the client is gone and
/// the container is forgotten. Then there is a task of no container, which nothing else can name.
pub(crate) async fn sweep_late(containerd: Containerd, runtime: Runtime, ids: BTreeSet<String>) {
    for pause in AGAIN {
        tokio::time::sleep(pause).await;
        let request = ListTasksRequest::default();
        let tasks = match containerd.tasks().list(request).await {
            Ok(list) => list.into_inner().tasks,
            Err(status) => {
                let error = containerd.failed()(status);
                tracing::debug!(%error, "cannot look for containers that were left");
                continue;
            }
        };
        for found in tasks.iter().filter(|task| ids.contains(&task.id)) {
            let task = Task::new(&containerd, &found.id);
            // Only with a container is it found.
            let known = task.record(b"{}".to_vec(), &runtime, []).await;
            tracing::debug!(?task, ?known, "a container was still made");
            if let Err(error) = task.remove().await {
                tracing::warn!(%error, ?task, "cannot remove a container that was left");
            }
        }
        let known: BTreeSet<String> = tasks.into_iter().map(|task| task.id).collect();
        let lost: Vec<String> = ids.difference(&known).cloned().collect();
        let namespace = containerd.namespace().to_owned();
        let killed = blocking(move || {
            kill_shims(&namespace, &lost);
            Ok(())
        });
        let _ = killed.await;
    }
}

/// Kills the shims of the tasks `ids`, of which containerd does not know: it lets go of one that it
/// has just started when its client is gone, and the shim waits for requests for ever. Blocks.
fn kill_shims(namespace: &str, ids: &[String]) {
    for id in ids {
        let pairs = [["-namespace", namespace], ["-id", id]];
        for shim in processes_with(&pairs.map(|pair| pair.map(str::as_bytes))) {
            tracing::debug!(id, "a shim was left");
            if let Err(error) = shim.signal(9) {
                tracing::warn!(%error, id, "cannot kill a shim that was left");
            }
        }
    }
}

/// Removes the bundles in `bundles`, and adds their ids. Blocks.
pub(crate) fn sweep_bundles(
    bundles: &Path,
    hierarchies: &Arc<Hierarchies>,
    ids: &mut BTreeSet<String>,
) {
    let Ok(entries) = std::fs::read_dir(bundles) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let dir = entry.path();
        ids.extend(entry.file_name().into_string());
        // Without it nothing was started. Ours end with the id; another one is not ours to kill.
        let path = std::fs::read_to_string(dir.join(CGROUP)).ok();
        let path = path.filter(|path| Path::new(path).ends_with(entry.file_name()));
        let group = path.map(|path| Group::new(hierarchies.clone(), &path));
        if let Err(error) = remove_left(&dir, group) {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove a container that was left");
        }
    }
}
