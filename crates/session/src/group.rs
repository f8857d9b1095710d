//! Several sessions of which any will do.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use crate::manager::WAIT;
use crate::{Manager, Session, SessionError};

/// The sessions of all who want one result: what one client can give serves them all.
#[derive(Clone, Debug)]
pub struct Group {
    manager: Manager,
    ids: Vec<String>,
}

impl Group {
    /// The sessions `ids` of `manager`, in the order in which they are tried.
    pub fn new(manager: Manager, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut group = Self {
            manager,
            ids: Vec::new(),
        };
        for id in ids.into_iter().map(Into::into) {
            if !id.is_empty() && !group.ids.contains(&id) {
                group.ids.push(id);
            }
        }
        group
    }

    /// No session: nothing can be asked of a client.
    pub fn none() -> Self {
        Self::new(Manager::new(), [""; 0])
    }

    /// The ids, in order.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Whether there is no session in it.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The manager that knows the sessions.
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// The same manager with one session alone.
    pub fn only(&self, id: impl Into<String>) -> Self {
        Self::new(self.manager.clone(), [id])
    }

    /// The first session that is open, waiting for each in turn.
    pub async fn first(&self, wait: Duration) -> Result<Session, SessionError> {
        let mut last = SessionError::NoSessions;
        for id in &self.ids {
            match self.manager.get(id, wait).await {
                Ok(session) => return Ok(session),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Asks each session in turn until one answers; the error is the last one's.
    ///
    /// # Cancel safety
    /// As the future of `ask`.
    pub async fn any<T, E, F, Fut>(&self, mut ask: F) -> Result<T, E>
    where
        F: FnMut(Session) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<SessionError> + Display,
    {
        let mut last = None;
        for id in &self.ids {
            let session = match self.manager.get(id, WAIT).await {
                Ok(session) => session,
                Err(error) => {
                    last = Some(error.into());
                    continue;
                }
            };
            match ask(session).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::debug!(session = id, %error, "the session could not answer");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| SessionError::NoSessions.into()))
    }
}
