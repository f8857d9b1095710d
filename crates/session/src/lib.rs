//! The client's back channel, both ends of it: files, credentials, secrets, ssh.
//!
//! A client opens a byte stream to the daemon ([`Tunnel`]) and serves gRPC on it
//! ([`serve`]); the daemon keeps it in a [`Manager`] as a [`Session`] and asks it for what a
//! build needs ([`filesync`], [`upload`], [`content`], [`auth`], [`secrets`], [`ssh`]), or several of them
//! until one answers ([`Group`]). Nothing that comes over a session is trusted: files are written below
//! one directory, in order, and only if they were asked for.
//!
//! This crate refuses to know what the files are for: no refs, no snapshots, no build graph,
//! and on the client's side no configuration files.
//!
//! ```
//! use std::sync::Arc;
//! use cooper_session::filesync::{self, SyncRequest};
//! use cooper_session::serve::{self, Services};
//! use cooper_session::{Manager, SessionMeta, Tree, WAIT};
//! use tokio_util::sync::CancellationToken;
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! std::fs::write(here.path().join("hello"), "hello")?;
//!
//! // The client offers a directory on a byte stream ...
//! let mut services = Services::default();
//! services.dirs.insert("context".into(), Tree::new(here.path()).owned_by_root());
//! let (near, far) = tokio::io::duplex(64 << 10);
//! let shutdown = CancellationToken::new();
//! let client = serve::run(far, &services, shutdown.clone());
//!
//! // ... and the daemon makes a copy of it.
//! let manager = Manager::new();
//! let meta = SessionMeta {
//!     id: "s1".into(),
//!     methods: services.methods(),
//!     ..SessionMeta::default()
//! };
//! let build = async {
//!     let session = manager.get("s1", WAIT).await?;
//!     let request = SyncRequest { name: "context".into(), ..SyncRequest::default() };
//!     let synced = filesync::receive(&session, &request, there.path(), Arc::new(())).await;
//!     shutdown.cancel();
//!     synced
//! };
//! tokio::try_join!(client, manager.serve(near, meta), build)?;
//! assert_eq!(std::fs::read_to_string(there.path().join("hello"))?, "hello");
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod connect;
mod error;
mod group;
mod health;
mod manager;
mod meta;
mod tunnel;

pub mod exporters;
pub mod filesync;
mod follow;
mod order;
pub mod pattern;
mod proxy;
pub mod stat;
mod transfer;
mod tree;
mod writer;

pub mod auth;
pub mod content;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod secrets;
pub mod serve;
pub mod ssh;
pub mod upload;

pub use error::SessionError;
pub use group::Group;
pub use manager::{Manager, Session, WAIT};
pub use meta::SessionMeta;
pub use proxy::Proxies;
pub use tree::Tree;
pub use tunnel::{BytesMessage, Tunnel};
