//! Tasks that were begun and have not yet come to wait for anything.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How many there are. What waits for a process or the network may be as many as a graph has; what
/// only waits for a processor would take memory for nothing.
#[derive(Default)]
pub(crate) struct Starting {
    count: AtomicUsize,
    fewer: Notify,
}

/// One of them; it counts until it is dropped.
pub(crate) struct Begun(Arc<Starting>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Starting {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// When one of them has come to wait since the last time. One that ended or was given up is
    /// heard of by its end.
    pub(crate) async fn fewer(&self) {
        self.fewer.notified().await;
    }

    /// Counts a task from now until it waits for something or is dropped. One that ends without
    /// gives what to drop when somebody has taken its output: it takes memory until then.
    pub(crate) fn watch<F: Future>(
        self: &Arc<Self>,
        task: F,
    ) -> impl Future<Output = (Option<Begun>, F::Output)> + use<F> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut begun = Some(Begun(self.clone()));
        async move {
            let mut task = pin!(task);
            std::future::poll_fn(move |cx| {
                let polled = task.as_mut().poll(cx);
                if let Some(begun) = begun.take_if(|_| polled.is_pending()) {
                    let starting = begun.0.clone();
                    drop(begun);
                    starting.fewer.notify_one();
                }
                polled.map(|output| (begun.take(), output))
            })
            .await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn what_waits_or_is_dropped_is_not_counted() {
        let starting = Arc::<Starting>::default();
        let (ends, waits, goes) = (
            starting.watch(ready(7)),
            starting.watch(pending::<()>()),
            starting.watch(pending::<()>()),
        );
        assert_eq!(starting.count(), 3);
        let (ended, seven) = ends.await;
        assert_eq!((seven, starting.count()), (7, 3));
        drop(ended);
        assert_eq!(starting.count(), 2);
        drop(goes);
        assert_eq!(starting.count(), 1);
        let waits = tokio::spawn(waits);
        starting.fewer().await;
        assert_eq!(starting.count(), 0);
        waits.abort();
        let _ = waits.await;
        assert_eq!(starting.count(), 0);
    }
}
