//! The control group of a container.

use std::sync::Arc;

use cooper_sys::PidFd;
use cooper_sys::cgroup::{Hierarchies, Usage};

use crate::spawn;

/// Rounds of killing before it is given up: each waits for those that were there to end.
const ROUNDS: usize = 100;

/// A control group, in every hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    hierarchies: Arc<Hierarchies>,
    path: Arc<str>,
}

impl Group {
    pub(crate) fn new(hierarchies: Arc<Hierarchies>, path: &str) -> Self {
        Self {
            hierarchies,
            path: path.into(),
        }
    }

    /// Sends SIGKILL to all in it. Does not wait.
    pub(crate) fn kill(&self) {
        self.hierarchies.kill(&self.path);
    }

    /// Whether `pid` is in it.
    pub(crate) fn contains(&self, pid: u32) -> bool {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().any(|line| line.ends_with(&*self.path))
    }

    /// Whether the kernel killed something in it for want of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        self.hierarchies.oom_kills(&self.path) > 0
    }

    /// What was used in it.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.hierarchies.usage(&self.path)
    }

    /// Kills all in it and waits until it is empty. Nothing may enter it from outside.
    pub(crate) async fn empty(&self) {
        for _ in 0..ROUNDS {
            let group = self.clone();
            let left = tokio::task::spawn_blocking(move || {
                group.kill();
                group.hierarchies.processes(&group.path)
            });
            let left = left.await.unwrap_or_default();
            if left.is_empty() {
                return;
            }
            for pid in left {
                if let Ok(pidfd) = PidFd::open(pid) {
                    let _ = spawn::ended(&pidfd).await;
                }
            }
        }
        tracing::warn!(path = &*self.path, "cannot empty a control group");
    }

    /// As [`Group::empty`], on a thread that may block.
    pub(crate) fn empty_blocking(&self) {
        for _ in 0..ROUNDS {
            self.kill();
            let left = self.hierarchies.processes(&self.path);
            if left.is_empty() {
                return;
            }
            for pid in left {
                if let Ok(pidfd) = PidFd::open(pid) {
                    let _ = spawn::ended_blocking(&pidfd);
                }
            }
        }
    }

    /// Removes it. Blocks.
    pub(crate) fn remove(&self) -> std::io::Result<()> {
        self.hierarchies.remove(&self.path)
    }
}
