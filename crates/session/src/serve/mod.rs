//! The client's end of a session: what it offers to the daemon, and the server that offers it.

mod agent;
mod answers;
mod layouts;
mod output;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cooper_proto::auth::auth_server::AuthServer;
use cooper_proto::auth::{FetchTokenRequest, FetchTokenResponse};
use cooper_proto::content::content_server::ContentServer;
use cooper_proto::filesync::file_sync_server::FileSyncServer;
use cooper_proto::secrets::secrets_server::SecretsServer;
use cooper_proto::ssh::ssh_server::SshServer;
use cooper_proto::upload::upload_server::UploadServer;
use cooper_proto::{MAX_HEADER_SIZE, MAX_MESSAGE_SIZE};
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::auth::{CREDENTIALS, Credentials, FETCH_TOKEN, GET_AUTHORITY, VERIFY_AUTHORITY};
use crate::connect::{CONNECTION_WINDOW, Guarded, STREAM_WINDOW};
use crate::content::{INFO, READ, WRITE};
use crate::filesync::{FILE_SEND, FILE_SYNC};
use crate::secrets::GET_SECRET;
use crate::ssh::{CHECK_AGENT, FORWARD_AGENT};
use crate::upload::PULL;
use crate::{SessionError, Tree};

pub use layouts::Layout;
pub use output::{Output, Writer};

const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Gives registry credentials.
#[async_trait]
pub trait AuthProvider: Send + Sync {
    /// The credentials for `host`; empty ones when there are none.
    async fn credentials(&self, host: &str) -> io::Result<Credentials>;

    /// Whether tokens are fetched here, so that the daemon is given no passwords. Then the other
    /// methods are called.
    fn fetches_tokens(&self) -> bool {
        false
    }

    /// A token for the scopes of the request.
    async fn fetch_token(&self, _: &FetchTokenRequest) -> io::Result<FetchTokenResponse> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The public half of a key (Ed25519) that stands for the credentials for `host`.
    async fn token_authority(&self, _host: &str, _salt: &[u8]) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// `payload` signed with that key: the signature, then the payload (NaCl's `crypto_sign`).
    async fn sign(&self, _host: &str, _payload: &[u8], _salt: &[u8]) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Gives secrets.
#[async_trait]
pub trait SecretProvider: Send + Sync {
    /// The secret `id`; `None` when there is none of that name.
    async fn secret(&self, id: &str) -> io::Result<Option<Vec<u8>>>;
}

/// An ssh agent that is forwarded.
#[derive(Clone, Debug)]
pub struct SshAgent {
    /// Its socket.
    pub socket: PathBuf,
    /// Forward every byte; else only the listing of keys and the signing with them.
    pub raw: bool,
}

/// What a client offers.
#[derive(Clone, Default)]
pub struct Services {
    /// Directories that the daemon may copy, by name (`context`, `dockerfile`).
    pub dirs: BTreeMap<String, Tree>,
    /// Registry credentials.
    pub auth: Option<Arc<dyn AuthProvider>>,
    /// Secrets.
    pub secrets: Option<Arc<dyn SecretProvider>>,
    /// Ssh agents by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// Where the results of the solve's exporters go, by their number.
    pub outputs: BTreeMap<usize, Output>,
    /// Files that the daemon may read once as `http://buildkit-session/NAME`, by name.
    pub uploads: BTreeMap<String, PathBuf>,
    /// Image layouts, by the names of [`content`](crate::content): `oci:NAME` to build from,
    /// `export` for a result.
    pub layouts: BTreeMap<String, Layout>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services")
            .field("dirs", &self.dirs)
            .field("outputs", &self.outputs.keys())
            .finish_non_exhaustive()
    }
}

impl Services {
    /// The methods that are offered, as [`SessionMeta`](crate::SessionMeta) says them.
    pub fn methods(&self) -> Vec<String> {
        let tokens = self.auth.as_ref().is_some_and(|auth| auth.fetches_tokens());
        let groups: [(bool, &[&str]); 9] = [
            (true, &[HEALTH]),
            (!self.dirs.is_empty(), &[FILE_SYNC]),
            (self.auth.is_some(), &[CREDENTIALS]),
            (tokens, &[FETCH_TOKEN, GET_AUTHORITY, VERIFY_AUTHORITY]),
            (self.secrets.is_some(), &[GET_SECRET]),
            (!self.ssh.is_empty(), &[CHECK_AGENT, FORWARD_AGENT]),
            (!self.outputs.is_empty(), &[FILE_SEND]),
            (!self.uploads.is_empty(), &[PULL]),
            (!self.layouts.is_empty(), &[INFO, READ, WRITE]),
        ];
        let offered = groups.iter().filter(|(offered, _)| *offered);
        offered
            .flat_map(|(_, methods)| methods.iter().map(|method| (*method).to_owned()))
            .collect()
    }

    async fn routes(&self) -> Routes {
        let (health, service) = tonic_health::server::health_reporter();
        health
            .set_service_status("", tonic_health::ServingStatus::Serving)
            .await;
        let mut routes = Routes::new(service);
        macro_rules! add {
            ($server:ident, $offered:expr) => {
                if let Some(service) = $offered {
                    routes = routes.add_service(
                        $server::new(service)
                            .max_decoding_message_size(MAX_MESSAGE_SIZE)
                            .max_encoding_message_size(MAX_MESSAGE_SIZE),
                    );
                }
            };
        }
        let some = |there: bool| there.then_some(());
        let dirs = some(!self.dirs.is_empty());
        add!(
            FileSyncServer,
            dirs.map(|()| answers::Dirs(self.dirs.clone()))
        );
        add!(AuthServer, self.auth.clone().map(answers::Auth));
        add!(SecretsServer, self.secrets.clone().map(answers::Secrets));
        let agents = some(!self.ssh.is_empty());
        add!(SshServer, agents.map(|()| agent::Agents(self.ssh.clone())));
        let uploads = some(!self.uploads.is_empty());
        add!(
            UploadServer,
            uploads.map(|()| answers::Uploads::new(&self.uploads))
        );
        let layouts = some(!self.layouts.is_empty());
        add!(
            ContentServer,
            layouts.map(|()| layouts::Layouts(Arc::new(self.layouts.clone())))
        );
        if !self.outputs.is_empty() {
            routes = routes.add_service(output::FileSend::new(self.outputs.clone()));
        }
        routes
    }
}

/// Serves `services` on `io` until the daemon hangs up or `shutdown` is cancelled.
///
/// # Errors
/// The other end does not speak HTTP/2.
///
/// # Cancel safety
/// Dropping the future ends the connection and everything that is being served.
pub async fn run<I>(
    io: I,
    services: &Services,
    shutdown: CancellationToken,
) -> Result<(), SessionError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let closed = shutdown.child_token();
    // Whatever way this future ends, the connection ends with it.
    let close_on_drop = closed.clone().drop_guard();
    let connection = Connection(Guarded {
        io,
        cancelled: Box::pin(closed.clone().cancelled_owned()),
        _on_drop: closed.clone().drop_guard(),
    });
    // One connection, and then none: the end of this stream would be taken for a shutdown.
    let incoming =
        futures::stream::iter([Ok::<_, io::Error>(connection)]).chain(futures::stream::pending());
    let served = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADER_SIZE)
        .add_routes(services.routes().await)
        .serve_with_incoming_shutdown(incoming, closed.cancelled_owned())
        .await;
    drop(close_on_drop);
    served.map_err(|source| SessionError::Connect { source })
}

/// A stream as tonic's server takes it.
struct Connection<I>(Guarded<I>);

impl<I> Connected for Connection<I> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
