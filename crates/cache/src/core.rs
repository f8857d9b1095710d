//! What the handles, the manager and the keeper share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cooper_content::{ContentStore, Plaintexts};
use cooper_snapshot::Snapshotter;
use cooper_store::{Seq, Store, StoreError, Write};
use tokio::sync::{mpsc, oneshot};

use crate::blobs::{Book, Watched};
use crate::contenthash::HashCache;
use crate::keeper::Message;
use crate::record::{OPENED, RECORDS};
use crate::refs::Live;
use crate::state::State;
use crate::{CacheError, RefId};

/// Told that a record is gone.
pub(crate) type Listener = Box<dyn Fn(&RefId, Option<&str>) + Send + Sync>;

/// The sending end of the keeper's mailbox. Sending never waits.
pub(crate) type Mailbox = mpsc::UnboundedSender<Message>;

/// A row that was handed over to the store, to be awaited: the commit that it is part of, when the
/// row is a new one.
pub(crate) type Handed = oneshot::Receiver<Result<Option<Seq>, StoreError>>;

/// Everything but the mailbox: the keeper has it too, and must not keep its own mailbox open.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    /// Writes down in the book who touches what.
    pub(crate) content: Arc<dyn ContentStore>,
    /// The same without the book.
    pub(crate) blobs: Arc<dyn ContentStore>,
    pub(crate) book: Arc<Book>,
    pub(crate) mounts: PathBuf,
    pub(crate) epoch: u64,
    pub(crate) boot: String,
    pub(crate) hashes: HashCache,
    pub(crate) listeners: Mutex<Vec<Listener>>,
    /// Rows up to this may survive the death of the machine. Raised under the lock of the state
    /// before they do: who finds a row above it has whatever it hands over written before that.
    pub(crate) durable: AtomicU64,
    /// Whether something was written that no checkpoint covers or is waiting to cover.
    pub(crate) written: AtomicBool,
    /// Held while records are pruned.
    pub(crate) pruning: tokio::sync::Mutex<()>,
    /// Told when what is being written was measured.
    pub(crate) sampled: tokio::sync::Notify,
    /// Bytes that one step may write at most; 0 for no limit.
    pub(crate) most_of_step: AtomicU64,
    /// Who is told what digests are computed from.
    pub(crate) plaintexts: OnceLock<Arc<dyn Plaintexts>>,
    state: Mutex<State>,
}

/// The core and the way to the keeper. As long as one is there the keeper serves.
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    pub(crate) mail: Mailbox,
}

impl std::ops::Deref for Shared {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Core {
    pub(crate) fn new(
        config: crate::CacheConfig,
        epoch: u64,
        boot: String,
        state: State,
        book: Book,
        hashes: HashCache,
    ) -> Self {
        let book = Arc::new(book);
        Self {
            hashes,
            store: config.store,
            snapshotter: config.snapshotter,
            content: Arc::new(Watched {
                inner: config.content.clone(),
                book: book.clone(),
            }),
            blobs: config.content,
            book,
            mounts: config.mounts,
            epoch,
            boot,
            listeners: Mutex::default(),
            durable: AtomicU64::new(0),
            written: AtomicBool::new(false),
            pruning: tokio::sync::Mutex::default(),
            sampled: tokio::sync::Notify::new(),
            most_of_step: AtomicU64::new(0),
            plaintexts: OnceLock::new(),
            state: Mutex::new(state),
        }
    }

    /// The records. Never held across an await; panics in other holders left nothing half done,
    /// because what is under the lock is plain counting.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the record of `id` to the store, with `also` in the same transaction. Called under
    /// the lock, so that rows are written in the order of the changes.
    pub(crate) fn hand_over(
        &self,
        state: &mut State,
        id: &RefId,
        also: impl FnOnce(&mut Write<'_>) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Handed, CacheError> {
        let entry = state
            .get_mut(id)
            .ok_or_else(|| CacheError::NotFound { id: id.clone() })?;
        entry.stored = true;
        let (key, record) = (id.clone(), entry.record.clone());
        Ok(self.store.submit(move |tx| {
            let new = !tx.has(&RECORDS, key.as_str())?;
            tx.put(&RECORDS, key.as_str(), &record)?;
            also(tx)?;
            Ok(new.then(|| tx.seq()))
        })?)
    }

    /// Waits until what was handed over is committed, and notes in which commit the record came
    /// to be there: from then on some form of it may survive the machine.
    pub(crate) async fn committed(&self, id: &RefId, handed: Handed) -> Result<(), CacheError> {
        let seq = handed.await.map_err(|_| StoreError::Closed)??;
        if let Some(seq) = seq
            && let Some(entry) = self.state().get_mut(id)
        {
            entry.seq = seq;
        }
        Ok(())
    }

    /// Whether the row written in commit `seq` may survive the death of the machine.
    pub(crate) fn is_durable(&self, seq: Seq) -> bool {
        seq <= self.durable.load(Ordering::Acquire)
    }

    /// Notes that the mutable `id` is written in place from now on, and durably so when its row
    /// is durable: it must not be taken for whole after the death of the machine.
    pub(crate) fn open_for_writing(
        &self,
        state: &mut State,
        id: &RefId,
    ) -> Result<(Option<Handed>, bool), CacheError> {
        let entry = state
            .get(id)
            .ok_or_else(|| CacheError::NotFound { id: id.clone() })?;
        let durable = self.is_durable(entry.seq);
        if let Some(times) = state.opened.get_mut(id) {
            *times += 1;
            return Ok((None, false));
        }
        state.opened.insert(id.clone(), 1);
        let key = id.clone();
        let handed = self.store.submit(move |tx| {
            tx.put(&OPENED, key.as_str(), &())?;
            Ok(None)
        })?;
        Ok((Some(handed), durable))
    }
}

impl Shared {
    /// Posts to the keeper. When it has ended the process is ending too, and the sweep at the
    /// next start does what is left.
    pub(crate) fn post(&self, message: Message) {
        let _ = self.mail.send(message);
    }

    /// Says that something was written that a checkpoint should cover.
    pub(crate) fn touch(&self) {
        if !self.written.swap(true, Ordering::AcqRel) {
            self.post(Message::Written);
        }
    }

    /// A handle of the immutable ref `id`.
    pub(crate) fn pin(self: &Arc<Self>, state: &mut State, id: &RefId) -> Option<Arc<Live>> {
        let entry = state.get_mut(id)?;
        if entry.record.is_mutable() {
            return None;
        }
        if let Some(live) = entry.live.upgrade() {
            return Some(live);
        }
        let live = Arc::new(Live::new(self.clone(), id.clone()));
        entry.handles += 1;
        entry.live = Arc::downgrade(&live);
        Some(live)
    }
}
