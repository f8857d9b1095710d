//! Asking for containerd's garbage collector.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::lease::Lease;
use crate::{Containerd, ContainerdError};

/// How long others that are removed soon are waited for: a run looks at all that there is.
const GATHER: Duration = Duration::from_millis(500);

/// Asks for a run of the collector some time after something was removed: by itself containerd
/// makes one only after a hundred changes. Ends with its last clone.
#[derive(Clone, Debug)]
pub(crate) struct Collector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    wanted: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    pub(crate) fn new(containerd: Containerd) -> Self {
        let wanted = Arc::new(Notify::new());
        let asked = wanted.clone();
        let task = tokio::spawn(async move {
            loop {
                asked.notified().await;
                tokio::time::sleep(GATHER).await;
                if let Err(error) = collect(&containerd).await {
                    // The next one frees the same.
                    tracing::debug!(%error, "cannot ask for containerd's garbage collector");
                }
            }
        });
        let task = task.abort_handle();
        Self(Arc::new(Inner { wanted, task }))
    }

    /// Something was removed.
    pub(crate) fn wanted(&self) {
        self.0.wanted.notify_one();
    }
}

/// A lease that is deleted with `sync` is what containerd has for it: the answer comes when the
/// collector has run.
async fn collect(containerd: &Containerd) -> Result<(), ContainerdError> {
    let lease = Lease::new(containerd, "collect").await;
    let lease = lease.map_err(containerd.failed())?;
    let collected = lease.end_and_collect().await;
    collected.map_err(containerd.failed())
}
