//! What can go wrong with the store.

use std::path::PathBuf;

/// A failure of the store. None of them changes what is stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be opened or is not a store.
    #[error("open the metadata store {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// There is no space for what a store in use needs beside its file.
    #[error("open the metadata store {path}: no space left on device")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("the metadata store {path} is damaged: {detail}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        detail: String,
    },
    /// A damaged file could not be put aside, or its whole rows not be brought over.
    #[error("begin the damaged metadata store {path} anew")]
    Rebuild {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file was written by a version of the program that this one does not know.
    #[error("the metadata store {path} has format {found}, this program knows {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: i64,
        /// The format that is known.
        known: i64,
    },
    /// A statement failed.
    #[error("access the table {table}")]
    Sql {
        /// The table.
        table: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// A value does not have the shape that its table has.
    #[error("the value of {key:?} in the table {table} has another shape")]
    Value {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The boot's identity cannot be read, or syncing failed.
    #[error("make the metadata store durable")]
    Durable(#[source] std::io::Error),
    /// A transaction's function panicked; nothing of it was kept.
    #[error("a transaction panicked: {0}")]
    Panic(String),
    /// The writer has ended.
    #[error("the metadata store is closed")]
    Closed,
}
