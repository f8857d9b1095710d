//! A solve with the session and the progress beside it.

use std::future::Future;
use std::time::Duration;

use cooper_proto::control::{SolveRequest, SolveResponse, StatusResponse};
use cooper_session::SessionMeta;
use cooper_session::content::EXPORT;
use cooper_session::serve::Services;
use futures::StreamExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{Client, ClientError};

/// How long the progress may be silent after the solve has ended (BuildKit's value).
const STATUS_SILENCE: Duration = Duration::from_secs(5);

/// What to build, and what the daemon may ask for meanwhile.
#[derive(Debug, Default)]
pub struct Solve {
    /// The request. `ref` is made up when it is empty, `session` always.
    pub request: SolveRequest,
    /// What the session offers.
    pub services: Services,
    /// Name of the session; shown, never compared.
    pub name: String,
    /// What tells this client's directories from others' of the same name, so that the next
    /// build sends only what changed.
    pub shared_key: String,
    /// Gives the build up.
    pub cancelled: CancellationToken,
}

impl Client {
    /// Builds; `progress` gets what the daemon says of it, in order, to the end. An image whose
    /// blobs went to the layout `export` of the services is entered into the layout's index.
    ///
    /// # Errors
    /// The daemon's error (see [`ClientError::sources`]), or [`ClientError::Cancelled`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the build up, without the rest of the progress.
    pub async fn solve(
        &self,
        mut solve: Solve,
        progress: &mut (dyn FnMut(StatusResponse) + Send),
    ) -> Result<SolveResponse, ClientError> {
        let request = &mut solve.request;
        request.session = uuid::Uuid::new_v4().simple().to_string();
        if request.r#ref.is_empty() {
            request.r#ref = uuid::Uuid::new_v4().simple().to_string();
        }
        let reference = request.r#ref.clone();
        let meta = SessionMeta {
            id: request.session.clone(),
            name: solve.name,
            shared_key: solve.shared_key,
            ..SessionMeta::default()
        };
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        let session = async {
            let served = self.session(&solve.services, meta, stop.clone()).await;
            // A solve that needs the session fails for want of it, and says so.
            if let Err(error) = served {
                tracing::debug!(%error, "the session ended");
            }
        };
        let status = async {
            if let Err(error) = self.follow(&reference, &ended, progress).await {
                tracing::debug!(%error, "the progress ended");
            }
        };
        let solving = async {
            let mut control = self.control();
            let answer = tokio::select! {
                answer = control.solve(solve.request) => answer
                    .map(tonic::Response::into_inner)
                    .map_err(ClientError::call("failed to solve")),
                () = solve.cancelled.cancelled() => Err(ClientError::Cancelled),
            };
            ended.cancel();
            answer
        };
        let building = async {
            let (answer, ()) = tokio::join!(solving, status);
            stop.cancel();
            answer
        };
        let (answer, ()) = tokio::join!(boxed(building), boxed(session));
        let answer = answer?;
        // The daemon wrote blobs; what they are called is for the client to write down.
        if let Some(layout) = solve.services.layouts.get(EXPORT) {
            crate::layout::enter(&layout.dir, &answer)?;
        }
        Ok(answer)
    }

    async fn follow(
        &self,
        reference: &str,
        ended: &CancellationToken,
        progress: &mut (dyn FnMut(StatusResponse) + Send),
    ) -> Result<(), ClientError> {
        let mut stream = tokio::select! {
            stream = self.status(reference) => std::pin::pin!(stream?),
            // The daemon waits for a solve of that name, and there will be none.
            () = after(ended) => return Ok(()),
        };
        loop {
            let next = tokio::select! {
                next = stream.next() => next,
                () = ended.cancelled() => {
                    match timeout(STATUS_SILENCE, stream.next()).await {
                        Ok(next) => next,
                        Err(_) => return Ok(()),
                    }
                }
            };
            match next {
                Some(response) => progress(response?),
                None => return Ok(()),
            }
        }
    }
}

async fn after(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(STATUS_SILENCE).await;
}

/// On the heap: these futures hold whole requests.
fn boxed<'a, T>(future: impl Future<Output = T> + Send + 'a) -> futures::future::BoxFuture<'a, T> {
    Box::pin(future)
}
