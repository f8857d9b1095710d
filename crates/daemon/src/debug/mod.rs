//! The debug handlers: HTTP on an address of their own, for people who ask why something is or
//! is not found in the cache.
//!
//! They are those of buildkitd that are not Go's (`cmd/buildkitd/debug.go`): `/debug/cache/all`,
//! `lookup`, `store` and `load`, with its texts and its names in JSON. Nobody is asked who he is:
//! who may look is said by the address.
//!
//! Modules in reading order: this one (connections), `handlers` (what is asked for), `answer` (how
//! it is said), `record` (what a digest was computed from), `keys` (the keys of a cache), `config`
//! (the keys of an exported cache).

mod answer;
mod config;
mod handlers;
mod keys;
mod record;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cooper_worker::{StoredKeys, StoredPlaintexts};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::listen::{Listener, accept_plain};

/// So long a client may take to say what it wants (buildkitd's value).
const HEADERS: Duration = Duration::from_secs(60);
/// So long a connection may last: an answer that nobody reads ends.
const CONNECTION: Duration = Duration::from_secs(600);
/// Connections at a time; others wait to be accepted.
const CONNECTIONS: usize = 16;

/// What of a daemon is shown.
#[derive(Clone, Default)]
pub struct CacheDebug {
    /// What cache keys are made of, when it is kept.
    pub(crate) plaintexts: Option<Arc<StoredPlaintexts>>,
    /// The keys of each worker.
    pub(crate) keys: Vec<Arc<StoredKeys>>,
}

/// Answers on `listener` as long as the future is there.
///
/// # Cancel safety
/// Dropping the future closes the listener and all connections.
pub async fn serve(listener: Listener, debug: CacheDebug) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with this future.
    let mut connections = JoinSet::new();
    loop {
        // It is never closed.
        let place = places.clone().acquire_owned().await.ok();
        let io = accept_plain(&listener).await;
        while connections.try_join_next().is_some() {}
        let debug = debug.clone();
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(|request| {
                let debug = debug.clone();
                async move { Ok::<_, Infallible>(handlers::handle(&debug, request).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .serve_connection(TokioIo::new(io), service);
            match tokio::time::timeout(CONNECTION, serving).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a debug connection failed"),
                Err(_) => tracing::debug!("a debug connection was closed"),
            }
        });
    }
}
