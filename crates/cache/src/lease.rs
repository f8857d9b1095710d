//! Leases: unfinished work that is removed unless somebody finishes it.

use cooper_store::{StoreError, Write};

use crate::core::{Mailbox, Shared};
use crate::keeper::Message;
use crate::record::LEASES;
use crate::{CacheError, RefId};

/// What a lease covers.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The key of the snapshot that is written, or of the view.
    pub(crate) key: String,
    /// The name that it may have got.
    pub(crate) name: Option<String>,
    /// The record of the mutable ref that goes with it.
    pub(crate) record: Option<RefId>,
    /// For a view: the ref that it shows. It cannot go before the view.
    pub(crate) stands_on: Option<RefId>,
}

impl Work {
    pub(crate) fn new(key: String) -> Self {
        Self {
            key,
            name: None,
            record: None,
            stands_on: None,
        }
    }
}

/// Guards unfinished work: dropping it posts the work to the keeper, which removes it.
#[derive(Debug)]
pub(crate) struct Lease {
    mail: Mailbox,
    work: Option<Work>,
}

impl Lease {
    /// Writes the lease down. The store keeps the order, so the row is there before the
    /// snapshot that is requested afterwards; nobody has to wait for it.
    pub(crate) fn new(shared: &Shared, work: Work) -> Result<Self, CacheError> {
        let (key, epoch) = (work.key.clone(), shared.epoch);
        shared.state().hold_needs(&work.stands_on);
        // The guard first: were the request sent and the guard not there, nobody would clean up.
        let lease = Self {
            mail: shared.mail.clone(),
            work: Some(work),
        };
        drop(
            shared
                .store
                .submit(move |tx| tx.put(&LEASES, &key, &epoch))?,
        );
        Ok(lease)
    }

    /// The work is done: from now on a record owns it. Gives what takes the lease off the
    /// store, for the transaction that writes the record.
    pub(crate) fn finish(
        mut self,
    ) -> impl FnOnce(&mut Write<'_>) -> Result<(), StoreError> + Send + use<> {
        let work = self.work.take();
        move |tx| match work {
            Some(work) => tx.delete(&LEASES, &work.key).map(|_| ()),
            None => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let _ = self.mail.send(Message::Discard(work));
        }
    }
}
