//! Answering on connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cooper_engine::{Engine, Gateway, GatewayServer, GatewayStream};
use cooper_proto::content::content_server::ContentServer;
use cooper_proto::control::control_server::ControlServer;
use cooper_proto::disk::disk_server::DiskServer;
use cooper_proto::gateway::llb_bridge_server::LlbBridgeServer;
use cooper_proto::{MAX_HEADER_SIZE, MAX_MESSAGE_SIZE};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::bridge::{BridgeService, Builds};
use crate::content::ContentService;
use crate::disk::DiskService;
use crate::service::{ControlService, Version};

/// Flow-control windows in bytes: HTTP/2's own of 64 KiB would pay a round trip for each.
const STREAM_WINDOW: u32 = 1 << 20;
/// So large because h2 ends a connection on which more small frames wait than half of it is
/// worth, each counted as 256 bytes: a session sends one for every file of a context.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Serving broke off.
#[derive(Debug, thiserror::Error)]
#[error("failed to serve gRPC")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Answers on `connections` until `stop` is cancelled, and then waits for the calls that go on.
///
/// # Cancel safety
/// Dropping the future drops all connections, and with them what their clients wait for.
pub async fn serve<I, S>(
    engine: Arc<Engine>,
    version: Version,
    connections: S,
    stop: CancellationToken,
) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Stream<Item = io::Result<I>>,
{
    let (_reporter, health) = tonic_health::server::health_reporter();
    let control = ControlService::new(engine.clone(), version.clone(), stop.clone());
    let disk = DiskService::new(engine.clone());
    let content = ContentService::new(engine.clone());
    let bridge = BridgeService::new(Builds::Named(engine), version);
    let connections = connections.map_ok(|stream| Connection { stream, _end: None });
    builder()
        .add_service(
            ControlServer::new(control)
                .max_decoding_message_size(MAX_MESSAGE_SIZE)
                .max_encoding_message_size(MAX_MESSAGE_SIZE),
        )
        .add_service(gateway_server(bridge))
        .add_service(DiskServer::new(disk).max_encoding_message_size(MAX_MESSAGE_SIZE))
        .add_service(ContentServer::new(content).max_encoding_message_size(MAX_MESSAGE_SIZE))
        .add_service(health)
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await?;
    Ok(())
}

fn builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADER_SIZE)
}

fn gateway_server(bridge: BridgeService) -> LlbBridgeServer<BridgeService> {
    LlbBridgeServer::new(bridge)
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE)
}

/// Serves the gateway to the programs of frontends, as gRPC over their standard input and output.
pub struct GatewayOverStdio {
    version: Version,
}

impl GatewayOverStdio {
    /// One that says that the daemon is of this version.
    pub fn new(version: Version) -> Self {
        Self { version }
    }
}

impl GatewayServer for GatewayOverStdio {
    fn serve(&self, gateway: Arc<Gateway>, stream: GatewayStream) -> BoxFuture<'static, ()> {
        let bridge = BridgeService::new(Builds::One(gateway), self.version.clone());
        Box::pin(async move {
            let (_reporter, health) = tonic_health::server::health_reporter();
            let ended = CancellationToken::new();
            let stream = Connection {
                stream,
                _end: Some(ended.clone().drop_guard()),
            };
            // The one connection; there is no other, and the server ends with it.
            let connections = futures::stream::iter([Ok::<_, io::Error>(stream)]);
            let connections = connections.chain(futures::stream::pending());
            let serving = builder()
                .add_service(gateway_server(bridge))
                .add_service(health)
                .serve_with_incoming_shutdown(connections, ended.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::debug!(%error, "a frontend is served no more");
            }
        })
    }
}

/// A byte stream of which nothing else is known.
struct Connection<I> {
    stream: I,
    /// Who hears of its end, if anybody does.
    _end: Option<DropGuard>,
}

impl<I> Connected for Connection<I> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
