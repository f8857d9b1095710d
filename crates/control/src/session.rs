//! The tunnel of a client's session.

use cooper_proto::control::BytesMessage;
use cooper_session::{Manager, SessionError, SessionMeta, Tunnel};
use futures::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use crate::service::Answers;

/// Makes a session of the stream. It lives as long as the answer is read: a client that goes
/// away takes it along.
pub(crate) fn serve(
    sessions: &Manager,
    request: Request<Streaming<BytesMessage>>,
) -> Result<Response<Answers<BytesMessage>>, Status> {
    let headers = request.metadata().clone().into_headers();
    let meta = SessionMeta::from_headers(&headers)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    if sessions.find(&meta.id).is_some() {
        let error = SessionError::Exists { id: meta.id };
        return Err(Status::already_exists(error.to_string()));
    }
    let (tunnel, outgoing) = Tunnel::new(request.into_inner());
    let sessions = sessions.clone();
    let served = Box::pin(async move {
        let id = meta.id.clone();
        if let Err(error) = sessions.serve(tunnel, meta).await {
            let error = cooper_solver::error_chain(&error);
            tracing::debug!(session = id, error, "the session ended");
        }
    });
    let answers = outgoing.map(Ok).take_until(served);
    Ok(Response::new(answers.boxed()))
}
