//! The history of builds: which run, which ended and how, what was seen of them, and what they
//! left. Its records are those of BuildKit's API (`BuildHistoryRecord`).
//!
//! [`History::begin`] says that a build runs, [`Recording::end`] how it ended, and
//! [`Recording::keep`] hands over what was seen of it. One task writes all that behind: a record
//! into a file of its own (`history.db`), and what is large as blobs into a folder beside it
//! (`history`). A build waits for none of it. Who lists records waits for those of builds that have
//! ended, so that a build whose client was told its end is there.
//!
//! A record is there from the end of its build on: what ran when the process died is gone, as in
//! BuildKit. What is written survives the death of the process, and that of the machine from the
//! next checkpoint on, two minutes later at most. Records go by age and number ([`Limits`]) and when
//! all of them take more than [`MOST_BYTES`]; pinned ones stay. Of one build at most
//! [`MOST_LOG`] bytes of output and progress are kept.
//!
//! This crate refuses to know how anything is built, who listens, and what an error means.
//!
//! ```
//! use cooper_history::{End, History, Limits, Record};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! # let root = tempfile::tempdir()?;
//! let history = History::open(root.path(), Limits::default()).await?;
//! let mut recording = history.begin(Record { r#ref: "one".into(), ..Record::default() });
//! recording.end(End::default());
//! recording.keep(Vec::new(), None);
//! history.settled("").await;
//! let records = history.records("").await?;
//! assert_eq!(records[0].r#ref, "one");
//! # history.close().await;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! Modules in reading order: `history`, `keeper` (the task that writes), `kept` (what is on the
//! disk), `log` (what was seen, as a blob), `status` (events as messages), `image` (what is kept of
//! images), `trace`, `redact`.
#![forbid(unsafe_code)]

mod error;
mod history;
mod image;
mod keeper;
mod kept;
mod log;
mod redact;
mod status;
mod trace;

pub use error::HistoryError;
pub use history::{Attachment, End, History, Limits, Listening, News, NewsStream, Recording};
pub use keeper::MOST_BYTES;
pub use log::{LogStream, MOST_LOG};
pub use status::responses;

/// What is known of a build, as it is on the wire.
pub type Record = cooper_proto::control::BuildHistoryRecord;

/// The kinds of blobs that records speak of; BuildKit's names, with its spelling.
pub mod media_type {
    /// What was seen: `StatusResponse` messages, each behind its length, 32 bits little-endian.
    pub const LOG: &str = "application/vnd.buildkit.status.v0";
    /// What was seen as spans of OpenTelemetry, in the JSON of its Go library.
    pub const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";
    /// Why it failed, with all details: a `google.rpc.Status`.
    pub const ERROR: &str = "application/vnd.googeapis.google.rpc.status+proto";
}
