//! Image layouts that clients serve: manifests and blobs come over the session
//! (BuildKit's `source/containerimage/ocilayout.go`).

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cooper_content::{ContentError, Descriptor, Digest, Fetch};
use cooper_session::content::{LAYOUT, Store};
use cooper_session::{Group, SessionError};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::manifest::{MAX_SIZE, detect, malformed};
use crate::SourceError;

/// How long a session that is named is waited for (BuildKit's value).
const WAIT: Duration = Duration::from_secs(5);
/// What the source of a layer begins with that lies in a layout.
const SCHEME: &str = "oci-layout://";

/// An image layout that a session serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The session; empty for any of those that the build has.
    pub session: String,
    /// The store within the session.
    pub store: String,
}

impl Layout {
    /// How a layer says that it can be fetched from here. The build's own sessions are not
    /// named: a later build that has the layout has it in another session.
    pub(super) fn source(&self, sessions: &Group) -> String {
        match self.is_own(sessions) {
            true => format!("{SCHEME}{}", self.store),
            false => format!("{SCHEME}{}#{}", self.store, self.session),
        }
    }

    /// Reads what [`source`](Self::source) wrote.
    pub(super) fn of_source(source: &str) -> Option<Self> {
        let rest = source.strip_prefix(SCHEME)?;
        let (store, session) = rest.rsplit_once('#').unwrap_or((rest, ""));
        Some(Self {
            session: session.to_owned(),
            store: store.to_owned(),
        })
    }

    fn is_own(&self, sessions: &Group) -> bool {
        self.session.is_empty() || sessions.ids().contains(&self.session)
    }

    /// Asks the session that has it.
    async fn ask<T, F>(&self, sessions: &Group, ask: impl Fn(Store) -> F) -> Result<T, SessionError>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        let name = format!("{LAYOUT}{}", self.store);
        let ask = |session| {
            let store = Store::new(&session, name.as_str()).map(&ask);
            async move { store?.await }
        };
        if self.session.is_empty() {
            return sessions.any(ask).await;
        }
        let session = sessions.manager().get(&self.session, WAIT).await?;
        ask(session).await
    }

    /// The manifest or index `digest`, whatever its type is.
    pub(super) async fn root(
        &self,
        digest: &Digest,
        sessions: &Group,
    ) -> Result<(Descriptor, Bytes), SourceError> {
        let size = |store: Store| async move { store.size(digest.as_ref()).await };
        let size = self.ask(sessions, size).await?;
        let bytes = self.blob("manifest", digest, size, sessions).await?;
        let media_type = detect(digest, &bytes)?;
        Ok((Descriptor::new(media_type, size, digest.clone()), bytes))
    }

    /// A small blob, verified.
    pub(super) async fn blob(
        &self,
        what: &'static str,
        digest: &Digest,
        size: u64,
        sessions: &Group,
    ) -> Result<Bytes, SourceError> {
        if size > MAX_SIZE {
            return Err(malformed(what, digest, "it is too large"));
        }
        let read = |store: Store| async move { store.read(digest.as_ref(), 0).await };
        let reader = self.ask(sessions, read).await?;
        let mut bytes = Vec::new();
        // One more than there should be, to see that there is more.
        let read = reader.take(size + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| malformed(what, digest, error))?;
        if cooper_content::digest_of(&bytes) != *digest {
            let reason = "the bytes that came have another digest";
            return Err(malformed(what, digest, reason));
        }
        Ok(bytes.into())
    }

    pub(super) fn fetcher(&self, sessions: &Group) -> impl Fetch + use<> {
        LayoutFetch {
            layout: self.clone(),
            sessions: sessions.clone(),
        }
    }
}

struct LayoutFetch {
    layout: Layout,
    sessions: Group,
}

#[async_trait]
impl Fetch for LayoutFetch {
    async fn fetch(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, ContentError> {
        let digest = descriptor.digest();
        let read = |store: Store| async move { store.read(digest.as_ref(), offset).await };
        let reader = self.layout.ask(&self.sessions, read).await;
        let reader = reader.map_err(|source| ContentError::Backend {
            attempt: format!("failed to read {digest} from the client's layout"),
            source: source.into(),
        })?;
        Ok(Box::new(reader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_session::Manager;

    #[test]
    fn a_source_names_a_session_only_if_it_is_not_the_builds() {
        let sessions = Group::new(Manager::new(), ["own"]);
        for (session, source) in [
            ("", "oci-layout://base"),
            ("own", "oci-layout://base"),
            ("other", "oci-layout://base#other"),
        ] {
            let layout = Layout {
                session: session.into(),
                store: "base".into(),
            };
            assert_eq!(layout.source(&sessions), source);
            let read = Layout::of_source(source).unwrap();
            assert_eq!(read.store, "base");
            assert_eq!(read.session, if session == "other" { "other" } else { "" });
        }
        assert_eq!(Layout::of_source("docker.io/library/alpine"), None);
    }
}
