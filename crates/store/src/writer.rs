//! The one thread that writes. Whatever waits when it looks goes into one transaction.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::log::Watch;
use crate::table::{Read, Write, as_sql};
use crate::{Seq, StoreError};

/// Transactions of one group at most: a bound on how long the first one waits.
const GROUP: usize = 512;

/// One transaction: does its work, and afterwards is told whether the group was committed.
pub(crate) trait Job: Send {
    fn run(&mut self, tx: &mut Write<'_>) -> bool;
    fn done(self: Box<Self>, committed: Result<(), String>);
}

pub(crate) enum Message {
    Job(Box<dyn Job>),
    /// Begins a checkpoint: asks for the number of the last commit, which it will cover.
    Fix(oneshot::Sender<Seq>),
    /// Sets the watermark when there is one. When the log is synced afterwards, that and
    /// everything before is durable.
    Mark {
        watermark: Option<(String, Seq)>,
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

#[derive(Debug)]
pub(crate) struct Writer {
    sender: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// `seq` is the number of the last commit, `fixed` that of the last checkpoint.
    pub(crate) fn start(
        connection: Connection,
        seq: Seq,
        fixed: Seq,
        watch: Option<Watch>,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .stack_size(512 << 10)
            .spawn(move || serve(connection, seq, fixed, watch, &receiver))?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    pub(crate) fn send(&self, message: Message) -> Result<(), StoreError> {
        let sender = self.sender.as_ref().ok_or(StoreError::Closed)?;
        sender.send(message).map_err(|_| StoreError::Closed)
    }
}

impl Drop for Writer {
    /// Everything that was sent is written before the store is gone.
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut connection: Connection,
    mut seq: Seq,
    mut fixed: Seq,
    mut watch: Option<Watch>,
    receiver: &Receiver<Message>,
) {
    let mut waiting: Option<Message> = None;
    while let Some(first) = waiting.take().or_else(|| receiver.recv().ok()) {
        match first {
            Message::Job(job) => {
                let mut jobs = vec![job];
                while jobs.len() < GROUP {
                    match receiver.try_recv() {
                        Ok(Message::Job(job)) => jobs.push(job),
                        Ok(other) => {
                            waiting = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                seq = group(&mut connection, seq, fixed, jobs);
                if let Some(watch) = &mut watch {
                    watch.look();
                }
            }
            Message::Fix(done) => {
                fixed = seq;
                let _ = done.send(seq);
            }
            Message::Mark { watermark, done } => {
                let marked = mark(&mut connection, watermark);
                let _ = done.send(marked.map_err(|source| StoreError::Sql {
                    table: "meta",
                    source,
                }));
            }
        }
    }
}

fn group(connection: &mut Connection, seq: Seq, fixed: Seq, mut jobs: Vec<Box<dyn Job>>) -> Seq {
    let next = seq + 1;
    let committed = (|| {
        let mut transaction = connection.transaction()?;
        for job in &mut jobs {
            // A job that fails takes back its own changes and nobody else's.
            let savepoint = transaction.savepoint()?;
            let mut tx = Write {
                read: Read {
                    connection: &savepoint,
                },
                seq: next,
                fixed,
            };
            if job.run(&mut tx) {
                savepoint.commit()?;
            }
        }
        transaction.commit()
    })();
    let result = committed.map_err(|error: rusqlite::Error| error.to_string());
    if let Err(error) = &result {
        tracing::error!(%error, "the metadata store could not commit");
    }
    for job in jobs {
        job.done(result.clone());
    }
    next
}

/// Sets the watermark, or else nothing: what was done about rows that had been dropped at opening
/// is as durable as what is committed so far.
fn mark(
    connection: &mut Connection,
    watermark: Option<(String, Seq)>,
) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction()?;
    if let Some((boot, seq)) = watermark {
        let sql = "INSERT INTO meta (name, value) VALUES ('watermark', ?1), ('boot', ?2) \
                   ON CONFLICT (name) DO UPDATE SET value = CASE \
                   WHEN name = 'watermark' AND CAST(value AS INTEGER) > CAST(excluded.value AS INTEGER) \
                   THEN value ELSE excluded.value END";
        transaction.execute(sql, (seq.to_string(), boot))?;
        // What took their place is covered now.
        transaction.execute("DELETE FROM kept WHERE until <= ?1", [as_sql(seq)])?;
    }
    transaction.execute("DELETE FROM dropped", [])?;
    transaction.commit()
}

/// A [`Job`] from a function and a channel for its result.
pub(crate) struct Call<T, F> {
    pub(crate) function: Option<F>,
    pub(crate) result: Option<Result<T, StoreError>>,
    pub(crate) reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnOnce(&mut Write<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, tx: &mut Write<'_>) -> bool {
        let Some(function) = self.function.take() else {
            return false;
        };
        let result = catch_unwind(AssertUnwindSafe(|| function(tx))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(StoreError::Panic(text.unwrap_or_default()))
        });
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn done(self: Box<Self>, committed: Result<(), String>) {
        let result = match (committed, self.result) {
            (Ok(()), Some(result)) => result,
            (Ok(()), None) => Err(StoreError::Closed),
            (Err(detail), _) => Err(StoreError::Sql {
                table: "kv",
                source: rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(1), Some(detail)),
            }),
        };
        let _ = self.reply.send(result);
    }
}
