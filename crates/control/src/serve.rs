//! Answering on connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cooper_engine::Engine;
use cooper_proto::content::content_server::ContentServer;
use cooper_proto::control::control_server::ControlServer;
use cooper_proto::disk::disk_server::DiskServer;
use cooper_proto::gateway::llb_bridge_server::LlbBridgeServer;
use cooper_proto::{MAX_HEADER_SIZE, MAX_MESSAGE_SIZE};
use futures::{Stream, TryStreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::bridge::BridgeService;
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
    let bridge = BridgeService::new(engine, version);
    let connections = connections.map_ok(Connection);
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADER_SIZE)
        .add_service(
            ControlServer::new(control)
                .max_decoding_message_size(MAX_MESSAGE_SIZE)
                .max_encoding_message_size(MAX_MESSAGE_SIZE),
        )
        .add_service(
            LlbBridgeServer::new(bridge)
                .max_decoding_message_size(MAX_MESSAGE_SIZE)
                .max_encoding_message_size(MAX_MESSAGE_SIZE),
        )
        .add_service(DiskServer::new(disk).max_encoding_message_size(MAX_MESSAGE_SIZE))
        .add_service(ContentServer::new(content).max_encoding_message_size(MAX_MESSAGE_SIZE))
        .add_service(health)
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await?;
    Ok(())
}

/// A byte stream of which nothing else is known.
struct Connection<I>(I);

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
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
