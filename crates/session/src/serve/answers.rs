//! Directories, credentials, secrets and uploads, as the daemon asks for them.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use cooper_proto::auth::auth_server;
use cooper_proto::auth::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse,
};
use cooper_proto::filesync::file_sync_server;
use cooper_proto::fsutil::Packet;
use cooper_proto::secrets::secrets_server;
use cooper_proto::secrets::{GetSecretRequest, GetSecretResponse};
use cooper_proto::upload;
use cooper_proto::upload::upload_server;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::filesync::{DIR_NAME, EXCLUDE, FILE_SYNC, FOLLOW, INCLUDE, values};
use crate::secrets::MAX_SECRET_SIZE;
use crate::stat::errno_text;
use crate::transfer::{self, QUEUE};
use crate::upload::URL_PATH;
use crate::{SessionError, Tree, Tunnel};

use super::{AuthProvider, SecretProvider};

pub(super) type Answer<T> = BoxStream<'static, Result<T, Status>>;

/// A stream of answers that does the work which sends them: dropping it stops the work.
pub(super) fn driven<T, S, F>(messages: S, work: F) -> Answer<T>
where
    T: Send + 'static,
    S: Stream<Item = T> + Send + 'static,
    F: Future<Output = Result<(), SessionError>> + Send + 'static,
{
    let work = stream::once(work).filter_map(|ended| async { ended.err().map(|e| Err(status(e))) });
    // What was sent before an error comes before it.
    let messages_first = |_: &mut ()| stream::PollNext::Left;
    stream::select_with_strategy(messages.map(Ok), Box::pin(work), messages_first).boxed()
}

fn status(error: SessionError) -> Status {
    match error.status() {
        Some(status) => status.clone(),
        None => Status::unknown(text(&error)),
    }
}

/// The error with those that led to it.
pub(super) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

pub(super) struct Dirs(pub(super) BTreeMap<String, Tree>);

#[async_trait]
impl file_sync_server::FileSync for Dirs {
    type DiffCopyStream = Answer<Packet>;
    type TarStreamStream = Answer<Packet>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Answer<Packet>>, Status> {
        let metadata = request.metadata();
        let name = values(metadata, DIR_NAME).into_iter().next();
        let name = name.unwrap_or_default();
        let Some(dir) = self.0.get(&name) else {
            let text = format!("no access allowed to dir {name:?}");
            return Err(Status::not_found(text));
        };
        let mut dir = dir.clone();
        dir.include.extend(values(metadata, INCLUDE));
        dir.exclude.extend(values(metadata, EXCLUDE));
        dir.follow.extend(values(metadata, FOLLOW));
        let (outgoing, packets) = mpsc::channel(QUEUE);
        let incoming = request.into_inner();
        let work = transfer::send(incoming, outgoing, vec![dir], Arc::new(()), FILE_SYNC);
        Ok(Response::new(driven(ReceiverStream::new(packets), work)))
    }

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<Answer<Packet>>, Status> {
        Err(Status::unimplemented("method TarStream not implemented"))
    }
}

pub(super) struct Auth(pub(super) Arc<dyn AuthProvider>);

#[async_trait]
impl auth_server::Auth for Auth {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let found = self.0.credentials(&request.get_ref().host).await;
        let found = found.map_err(unknown)?;
        Ok(Response::new(CredentialsResponse {
            username: found.username,
            secret: found.secret,
        }))
    }

    async fn fetch_token(
        &self,
        request: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        let token = self.tokens()?.fetch_token(request.get_ref()).await;
        Ok(Response::new(token.map_err(unknown)?))
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let GetTokenAuthorityRequest { host, salt } = request.get_ref();
        let key = self.tokens()?.token_authority(host, salt).await;
        Ok(Response::new(GetTokenAuthorityResponse {
            public_key: key.map_err(unknown)?,
        }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let VerifyTokenAuthorityRequest {
            host,
            payload,
            salt,
        } = request.get_ref();
        let signed = self.tokens()?.sign(host, payload, salt).await;
        Ok(Response::new(VerifyTokenAuthorityResponse {
            signed: signed.map_err(unknown)?,
        }))
    }
}

impl Auth {
    /// The one that fetches tokens, if it does.
    fn tokens(&self) -> Result<&dyn AuthProvider, Status> {
        match self.0.fetches_tokens() {
            true => Ok(&*self.0),
            false => Err(no_tokens()),
        }
    }
}

fn unknown(error: std::io::Error) -> Status {
    Status::unknown(error.to_string())
}

/// Daemons fall back to asking for the credentials.
fn no_tokens() -> Status {
    Status::unavailable("client side tokens disabled")
}

pub(super) struct Secrets(pub(super) Arc<dyn SecretProvider>);

#[async_trait]
impl secrets_server::Secrets for Secrets {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = &request.get_ref().id;
        let found = self.0.secret(id).await;
        let found = found.map_err(|error| Status::unknown(errno_text(&error)))?;
        let Some(data) = found else {
            return Err(Status::not_found(format!("secret {id}: not found")));
        };
        if data.len() > MAX_SECRET_SIZE {
            let text = format!("invalid secret size {}", data.len());
            return Err(Status::unknown(text));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}

/// Files that are read once.
pub(super) struct Uploads(Mutex<BTreeMap<String, PathBuf>>);

impl Uploads {
    pub(super) fn new(files: &BTreeMap<String, PathBuf>) -> Self {
        Self(Mutex::new(files.clone()))
    }
}

#[async_trait]
impl upload_server::Upload for Uploads {
    type PullStream = Answer<upload::BytesMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Answer<upload::BytesMessage>>, Status> {
        let path = values(request.metadata(), URL_PATH).into_iter().next();
        let path = path.unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let file = {
            let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            files.remove(name)
        };
        let Some(file) = file else {
            return Err(Status::unknown("no http response from session"));
        };
        let (mut tunnel, messages) = Tunnel::new(request.into_inner());
        let work = async move {
            let failed = |error| SessionError::io("read", file.clone())(error);
            let mut source = tokio::fs::File::open(&file).await.map_err(failed)?;
            let copied = tokio::io::copy(&mut source, &mut tunnel).await;
            copied.map_err(|_| SessionError::Closed)?;
            tunnel.shutdown().await.map_err(|_| SessionError::Closed)
        };
        Ok(Response::new(driven(messages, work)))
    }
}
