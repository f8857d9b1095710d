//! The log of the database (`-wal`): synced and folded beside the writer, who waits for neither.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::damage::beside;
use crate::database::connect_file;

/// Bytes that the file of the log keeps when it begins anew, and that are set aside for it.
pub(crate) const LOG_KEPT: u64 = 4 << 20;
/// Pages of 4 KiB that come into the log before it is folded beside the writer.
const FOLD_PAGES: u32 = 1 << 10;
/// Pages that the log may have before the writer waits until it is folded. Whoever folds beside it
/// never gets to the end as long as it writes; then there is little left to do.
pub(crate) const LOG_PAGES: u32 = 4 << 10;
/// Bytes beyond its end that are set aside for the database.
pub(crate) const DATABASE_AHEAD: u64 = 1 << 20;

/// The files of a database.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    /// Open as long as there are connections: SQLite's locks on the file are the process's, and
    /// end when any descriptor of it is closed (fcntl(2), "Advisory record locking").
    database: Option<File>,
    sync: Sync,
}

/// Makes what a file holds durable.
pub(crate) type Sync = fn(&File) -> std::io::Result<()>;

impl Log {
    /// Of the database `path`. It has to go after all connections.
    pub(crate) fn open(path: &Path, sync: Sync) -> Self {
        Self {
            path: path.to_owned(),
            database: File::options().write(true).open(path).ok(),
            sync,
        }
    }

    /// Makes all that is committed by now survive the death of the machine. Blocks.
    pub(crate) fn sync(&self) -> std::io::Result<()> {
        // What was folded meanwhile was synced for that. On this file there are no locks.
        match File::open(beside(&self.path, "-wal")) {
            Ok(log) => (self.sync)(&log),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Moves what is in the log into the database, on a connection of its own: SQLite syncs
    /// both for it, and whoever commits meanwhile does not wait for that. Blocks.
    pub(crate) fn fold(&self) {
        let folded = connect_file(&self.path).and_then(|connection| {
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        });
        if let Err(error) = folded {
            tracing::warn!(%error, "the log of the metadata store could not be shortened");
        }
        self.reserve();
    }

    /// Takes the space that the next writes need before somebody else does: on a disk that is
    /// full everything that is to be removed is removed from here first. The files stay as long
    /// as they are (fallocate(2), `FALLOC_FL_KEEP_SIZE`). Where there is no space for it, or the
    /// file system cannot do it, the writes themselves will say so.
    pub(crate) fn reserve(&self) {
        let take = |file: &File, end: u64| {
            let length = file.metadata()?.len();
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            Ok::<_, std::io::Error>(rustix::fs::fallocate(file, flags, 0, length.max(end))?)
        };
        let log = File::options().write(true).open(beside(&self.path, "-wal"));
        let taken = log.and_then(|log| {
            take(&log, LOG_KEPT)?;
            let Some(database) = &self.database else {
                return Ok(());
            };
            take(database, database.metadata()?.len() + DATABASE_AHEAD)
        });
        if let Err(error) = taken {
            tracing::debug!(%error, "no space was set aside for the metadata store");
        }
    }

    /// Processes that were killed before they made a checkpoint leave a log that grows with each
    /// of them: it begins anew when it is long.
    pub(crate) fn shorten(&self, connection: &Connection) {
        let log = beside(&self.path, "-wal").metadata();
        if log.is_ok_and(|log| log.len() > LOG_KEPT)
            && let Err(error) =
                connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        {
            tracing::warn!(%error, "the log of the metadata store could not be shortened");
        }
    }
}

/// The thread that folds the log when the writer says that it is long.
#[derive(Debug)]
pub(crate) struct Folder {
    sender: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Folder {
    pub(crate) fn start(log: Arc<Log>) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("store-log".into())
            .stack_size(256 << 10)
            .spawn(move || serve(&log, &receiver))?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Watches the log that `connection`, the only one that writes, makes.
    pub(crate) fn watch(&self, connection: &mut Connection) -> Result<Watch, rusqlite::Error> {
        let pages = Arc::new(AtomicU32::new(0));
        let count = pages.clone();
        connection.wal_hook(Some(move |log: &mut rusqlite::hooks::Wal, now| {
            let now = u32::try_from(now).unwrap_or_default();
            count.store(now, Ordering::Relaxed);
            if now >= LOG_PAGES
                && let Err(error) = log.checkpoint()
            {
                // Who folds it just now, or looks at what is old, is in the way.
                tracing::debug!(%error, "the log of the metadata store stays long");
            }
            Ok(())
        }))?;
        Ok(Watch {
            pages,
            told: 0,
            sender: self.sender.clone(),
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(log: &Log, receiver: &Receiver<()>) {
    while receiver.recv().is_ok() {
        while receiver.try_recv().is_ok() {}
        log.fold();
    }
}

/// How long the log is.
#[derive(Debug)]
pub(crate) struct Watch {
    pages: Arc<AtomicU32>,
    /// How long it was when it was last told.
    told: u32,
    sender: Option<Sender<()>>,
}

impl Watch {
    /// Asks for the log to be folded when much came into it since that was last asked for.
    pub(crate) fn look(&mut self) {
        let now = self.pages.load(Ordering::Relaxed);
        if now < self.told {
            // It has begun anew.
            self.told = 0;
        }
        if now - self.told >= FOLD_PAGES {
            self.told = now;
            if let Some(sender) = &self.sender {
                // The store is going when nobody receives it.
                let _ = sender.send(());
            }
        }
    }
}
