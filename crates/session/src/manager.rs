//! The sessions that are open now, and one of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::connect::connect;
use crate::{SessionError, SessionMeta, health};

/// How long [`Group::any`](crate::Group::any) waits for one session (BuildKit's value).
pub const WAIT: Duration = Duration::from_secs(15);

/// The sessions that are open now. A clone is the same manager.
#[derive(Clone, Default)]
pub struct Manager {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: Mutex<HashMap<String, Session>>,
    /// Changes whenever a session comes.
    arrivals: watch::Sender<u64>,
}

/// The client's back channel, as the daemon sees it. A clone is the same session.
#[derive(Clone)]
pub struct Session {
    inner: Arc<SessionInner>,
}

struct SessionInner {
    meta: SessionMeta,
    /// Lower case: clients do not agree on the case of method names.
    methods: HashSet<String>,
    channel: Channel,
    closed: CancellationToken,
}

impl Manager {
    /// No sessions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a session of a connection on which the client serves gRPC, and keeps it until the
    /// client hangs up or does not answer any more.
    ///
    /// # Errors
    /// The id is taken, or the client does not speak HTTP/2.
    ///
    /// # Cancel safety
    /// Dropping the future ends the session.
    pub async fn serve<I>(&self, io: I, meta: SessionMeta) -> Result<(), SessionError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if self.sessions().contains_key(&meta.id) {
            return Err(SessionError::Exists { id: meta.id });
        }
        let closed = CancellationToken::new();
        // Whatever way this future ends, the connection ends with it.
        let close_on_drop = closed.clone().drop_guard();
        let channel = connect(io, closed.clone()).await?;
        let session = Session {
            inner: Arc::new(SessionInner {
                methods: meta.methods.iter().map(|m| m.to_lowercase()).collect(),
                channel,
                closed: closed.clone(),
                meta,
            }),
        };
        let entry = self.enter(session.clone())?;
        tokio::select! {
            () = closed.cancelled() => {}
            () = health::watch(&session) => {
                tracing::warn!(session = session.id(), "the client does not answer health checks");
            }
        }
        drop((entry, close_on_drop));
        Ok(())
    }

    /// The open session `id` (BuildKit's `prefix:id` is taken too), waiting for it to come.
    ///
    /// # Errors
    /// [`SessionError::NoSession`] when it did not come within `wait`.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Session, SessionError> {
        let id = bare_id(id);
        let mut arrivals = self.inner.arrivals.subscribe();
        let find = async {
            loop {
                if let Some(session) = self.find(id) {
                    return session;
                }
                // The manager holds the sender, so this ends only with an arrival.
                let _ = arrivals.changed().await;
            }
        };
        tokio::time::timeout(wait, find)
            .await
            .map_err(|_| SessionError::NoSession { id: id.to_owned() })
    }

    /// The session `id` if it is open now.
    pub fn find(&self, id: &str) -> Option<Session> {
        self.sessions().get(bare_id(id)).cloned()
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.sessions().len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.sessions().is_empty()
    }

    fn enter(&self, session: Session) -> Result<Entry, SessionError> {
        let id = session.id().to_owned();
        let mut sessions = self.sessions();
        if sessions.contains_key(&id) {
            return Err(SessionError::Exists { id });
        }
        sessions.insert(id.clone(), session);
        drop(sessions);
        self.inner.arrivals.send_modify(|count| *count += 1);
        Ok(Entry {
            manager: self.clone(),
            id,
        })
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.inner
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vertex prefixes the id to tell its contexts apart; the look-up does not need that.
fn bare_id(id: &str) -> &str {
    match id.split_once(':') {
        Some((_, bare)) if !bare.is_empty() => bare,
        _ => id,
    }
}

/// A session's place in the list.
struct Entry {
    manager: Manager,
    id: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.manager.sessions().remove(&self.id);
    }
}

impl Session {
    /// The id that a solve names.
    pub fn id(&self) -> &str {
        &self.inner.meta.id
    }

    /// What tells one client's folders from another's.
    pub fn shared_key(&self) -> &str {
        &self.inner.meta.shared_key
    }

    /// All that the client said of it.
    pub fn meta(&self) -> &SessionMeta {
        &self.inner.meta
    }

    /// Whether the client serves `/service/Method`, in any case of letters.
    pub fn supports(&self, method: &str) -> bool {
        self.inner.methods.contains(&method.to_lowercase())
    }

    /// A channel to the client's services; cheap to clone.
    pub fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    /// Whether the client is gone.
    pub fn is_closed(&self) -> bool {
        self.inner.closed.is_cancelled()
    }

    /// Ends when the client is gone.
    pub async fn closed(&self) {
        self.inner.closed.cancelled().await;
    }

    pub(crate) fn require(&self, method: &'static str) -> Result<(), SessionError> {
        if self.supports(method) {
            return Ok(());
        }
        Err(SessionError::Unsupported {
            method: method.to_owned(),
        })
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("meta", self.meta())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager")
            .field("sessions", &self.len())
            .finish()
    }
}
