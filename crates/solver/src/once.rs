//! A future that is polled once, before a task is made of it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// How a future was after it was polled once.
pub(crate) enum Once<F: Future> {
    /// It has ended.
    Ended(F::Output),
    /// It panicked, which the panic hook has said.
    Panicked,
    /// It waits for something that wakes nobody: who polls it again is told.
    Waits(Pin<Box<F>>),
}

/// Most of what only computes ends at once: it needs no task, which takes longer to make and to
/// wait for.
pub(crate) fn once<F: Future>(future: F) -> Once<F> {
    let mut future = Box::pin(future);
    let polled = catch_unwind(AssertUnwindSafe(|| {
        // Nothing of it is used after a panic but its drop.
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    }));
    match polled {
        Ok(Poll::Ready(output)) => Once::Ended(output),
        Ok(Poll::Pending) => Once::Waits(future),
        Err(_) => Once::Panicked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_woken_by_who_polls_it_again() {
        assert!(matches!(once(async { 7 }), Once::Ended(7)));
        let (tell, told) = tokio::sync::oneshot::channel();
        let Once::Waits(waits) = once(told) else {
            panic!("nothing was told");
        };
        let waits = tokio::spawn(waits);
        tokio::task::yield_now().await;
        assert_eq!(tell.send(8), Ok(()));
        assert_eq!(waits.await.ok(), Some(Ok(8)));
        let panics = once(async { assert!(std::hint::black_box(false), "on purpose") });
        assert!(matches!(panics, Once::Panicked));
    }
}
