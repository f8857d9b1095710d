//! The one task that owns the clean-up: what handles leave behind comes here in order, and it
//! makes checkpoints some seconds after something was written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cooper_snapshot::{ActiveKey, SnapshotId, SnapshotName};
use cooper_store::{Seq, StoreError};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::core::Core;
use crate::lease;
use crate::record::{LEASES, OPENED, USES};
use crate::remove::Removal;
use crate::{CacheError, RefId};

/// How long after a write the checkpoint is made: long enough that a burst shares one sync.
const DELAY: Duration = Duration::from_secs(5);

/// What the keeper is asked for.
pub(crate) enum Message {
    /// Unfinished work that nobody goes on with.
    Discard(lease::Work),
    /// A ref whose last handle is gone.
    Unused(RefId),
    /// Records that were taken out: remove what they stand for.
    Remove(Vec<Removal>, oneshot::Sender<()>),
    /// Turn a sealed ref into a committed one, which must not stop in the middle.
    Finalise(RefId, oneshot::Sender<Result<(), CacheError>>),
    /// Something was written.
    Written,
    /// Say when all that was posted before is done.
    Settle(oneshot::Sender<()>),
    /// As [`Message::Settle`], and make a checkpoint.
    Checkpoint(oneshot::Sender<Result<(), CacheError>>),
}

/// Serves until every handle and manager is gone.
pub(crate) async fn serve(core: Arc<Core>, mut mail: mpsc::UnboundedReceiver<Message>) {
    // One after the other, in the order of posting: a view goes before the snapshot below it.
    let mut queue: VecDeque<Message> = VecDeque::new();
    let mut current: Option<BoxFuture<'static, ()>> = None;
    // Beside them: what somebody waits for and what takes long.
    let mut beside: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    // Nobody but the last one out waits for it: on a disk that is busy it takes long.
    let mut checkpoint: Option<BoxFuture<'static, ()>> = None;
    let mut due: Option<Instant> = None;
    let mut open = true;
    while open
        || current.is_some()
        || !queue.is_empty()
        || !beside.is_empty()
        || checkpoint.is_some()
    {
        if current.is_none()
            && let Some(message) = queue.pop_front()
        {
            let mut work = work_on(core.clone(), message);
            if let Work::Wait(done) = work {
                // Those beside that have begun by now belong to what is waited for.
                let mut begun = std::mem::take(&mut beside);
                work = Work::Beside(Box::pin(async move {
                    while begun.next().await.is_some() {}
                    let _ = done.send(());
                }));
            }
            match work {
                Work::Now(work) => current = Some(work),
                Work::Beside(work) => beside.push(work),
                Work::Wait(_) => {}
            }
            continue;
        }
        tokio::select! {
            message = mail.recv(), if open => match message {
                Some(message @ Message::Finalise(..)) => {
                    // Somebody waits for it, and for nothing that is in the queue.
                    if let Work::Beside(work) = work_on(core.clone(), message) {
                        beside.push(work);
                    }
                }
                Some(Message::Written) => due = due.or_else(|| Some(Instant::now() + DELAY)),
                Some(message) => queue.push_back(message),
                None => open = false,
            },
            () = finished(&mut current) => current = None,
            Some(()) = beside.next() => {}
            () = finished(&mut checkpoint) => checkpoint = None,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && checkpoint.is_none() && open => {
                due = None;
                let core = core.clone();
                checkpoint = Some(Box::pin(async move {
                    if let Err(error) = core.checkpoint().await {
                        tracing::warn!(%error, "could not make the cache durable");
                    }
                }));
            }
        }
    }
}

/// Resolves when the current piece of work does; never when there is none.
async fn finished(current: &mut Option<BoxFuture<'static, ()>>) {
    match current {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// How a message is worked on.
enum Work {
    /// Before the next message.
    Now(BoxFuture<'static, ()>),
    /// While others are worked on.
    Beside(BoxFuture<'static, ()>),
    /// When all that has begun is done.
    Wait(oneshot::Sender<()>),
}

fn work_on(core: Arc<Core>, message: Message) -> Work {
    match message {
        Message::Discard(lease) => Work::Now(Box::pin(async move { core.discard(lease).await })),
        Message::Unused(id) => Work::Now(Box::pin(async move { core.remove_if_waste(id).await })),
        Message::Remove(removals, done) => Work::Now(Box::pin(async move {
            core.remove(removals).await;
            let _ = done.send(());
        })),
        Message::Settle(done) => Work::Wait(done),
        Message::Checkpoint(done) => Work::Now(Box::pin(async move {
            let _ = done.send(core.checkpoint().await);
        })),
        Message::Finalise(id, done) => Work::Beside(Box::pin(async move {
            let _ = done.send(core.finalise(&id).await);
        })),
        Message::Written => Work::Beside(Box::pin(std::future::ready(()))),
    }
}

impl Core {
    /// Removes unfinished work: its snapshot, under either name, and its record.
    async fn discard(&self, work: lease::Work) {
        let active = SnapshotId::Active(ActiveKey::new(work.key.clone()));
        let committed = work
            .name
            .map(|name| SnapshotId::Committed(SnapshotName::new(name)));
        let mut clean = true;
        for id in [Some(active), committed].into_iter().flatten() {
            if let Err(error) = self.snapshotter.remove(&id).await {
                tracing::warn!(snapshot = %id, %error, "could not remove unfinished work");
                clean = false;
            }
        }
        if let Some(record) = work.record {
            let taken = self.state().take(&record);
            if let Some(entry) = taken {
                self.remove(vec![Removal {
                    snapshot: false,
                    ..Removal::new(record, entry)
                }])
                .await;
            }
        }
        let waste = self.state().release_needs(&work.stands_on);
        for id in waste {
            self.remove_if_waste(id).await;
        }
        // With the row the next start would not try again.
        if clean {
            let key = work.key;
            let deleted = self
                .store
                .write(move |tx| tx.delete(&LEASES, &key).map(|_| ()));
            if let Err(error) = deleted.await {
                tracing::warn!(%error, "could not remove a lease");
            }
        }
    }

    /// Makes everything that was acknowledged survive the death of the machine, content hashes
    /// and uses included.
    pub(crate) async fn checkpoint(self: &Arc<Self>) -> Result<(), CacheError> {
        self.written.store(false, Ordering::Release);
        self.hashes.save().await;
        let (uses, closed) = {
            let mut state = self.state();
            let mut uses = Vec::new();
            for (id, entry) in state.iter_mut() {
                if entry.uses_changed && entry.stored {
                    entry.uses_changed = false;
                    uses.push((id.clone(), entry.uses));
                }
            }
            for (id, uses) in &mut uses {
                if !state.shares.of(id).is_empty() {
                    // The next process has to find out again with whom.
                    uses.size = None;
                }
            }
            let closed: Vec<(RefId, u64)> = state
                .opened
                .iter()
                .filter(|(id, _)| state.get(id).is_none_or(|entry| !entry.taken))
                .map(|(id, times)| (id.clone(), *times))
                .collect();
            (uses, closed)
        };
        if !uses.is_empty() {
            let write = self.store.write(move |tx| {
                for (id, uses) in &uses {
                    tx.put(&USES, id.as_str(), uses)?;
                }
                Ok(())
            });
            write.await?;
        }
        let core = self.clone();
        let sync = move |seq| {
            let roots = std::iter::once(core.mounts.as_path()).chain(core.snapshotter.elsewhere());
            for root in roots {
                cooper_sys::sync_fs(root)?;
            }
            core.close_quiet(closed, seq).map_err(std::io::Error::other)
        };
        self.store.checkpoint(&self.boot, sync).await?;
        Ok(())
    }

    /// The files are synced and the watermark is about to be: notes, so that it is durable with
    /// that, which of those that were `closed` before the sync are whole on disk, because nobody
    /// has written to them since.
    fn close_quiet(&self, closed: Vec<(RefId, u64)>, seq: Seq) -> Result<(), StoreError> {
        let mut state = self.state();
        let mut quiet = Vec::new();
        for (id, times) in closed {
            if state.opened.get(&id) == Some(&times)
                && state.get(&id).is_none_or(|entry| !entry.taken)
            {
                state.opened.remove(&id);
                quiet.push(id);
            }
        }
        // Under the lock, so that who opens one again writes after this, and durably.
        self.durable.fetch_max(seq, Ordering::AcqRel);
        if !quiet.is_empty() {
            let deleted = self.store.submit(move |tx| {
                for id in &quiet {
                    tx.delete(&OPENED, id.as_str())?;
                }
                Ok(())
            });
            drop(deleted?);
        }
        Ok(())
    }
}
