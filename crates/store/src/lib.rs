//! The one metadata store: typed tables over SQLite, one writer that commits in groups, readers
//! that are never blocked, and a durable watermark.
//!
//! A write is acknowledged when its transaction is in the write-ahead log: it survives the death
//! of the process and costs no sync. A [`Store::checkpoint`] makes everything up to a sequence
//! number survive the death of the machine. When the store is opened after the machine died,
//! what was not checkpointed is dropped, because the files that it speaks of may not be there.
//!
//! This crate refuses to know what is stored: no refs, no keys, no digests.
//!
//! ```
//! use cooper_store::{Store, Table};
//!
//! const WORKERS: Table<String> = Table::new("workers");
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let store = Store::in_memory()?;
//! store.write(|tx| tx.put(&WORKERS, "id", &"abc".to_owned())).await?;
//! assert_eq!(store.read(|tx| tx.get(&WORKERS, "id"))?.as_deref(), Some("abc"));
//! # Ok::<_, cooper_store::StoreError>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod damage;
mod database;
mod error;
mod log;
mod table;
mod writer;

pub use damage::{Opened, Rebuilt};
pub use database::{Dropped, Store};
pub use error::StoreError;
pub use table::{Read, Table, Write};

/// Counts the commits of a store, from 1. Rows carry the number of the commit that wrote them.
pub type Seq = u64;
