//! The connection, and the calls that need no session.

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use cooper_proto::content::ReadContentRequest;
use cooper_proto::content::content_client::ContentClient;
use cooper_proto::control::control_client::ControlClient;
use cooper_proto::control::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, InfoRequest,
    InfoResponse, ListWorkersRequest, PruneRequest, StatusRequest, StatusResponse,
    UpdateBuildHistoryRequest, UsageRecord,
};
use cooper_proto::disk::disk_client::DiskClient;
use cooper_proto::disk::{PlanPruneResponse, VerifyRequest, VerifyResponse};
use cooper_proto::types::WorkerRecord;
use cooper_proto::{MAX_HEADER_SIZE, MAX_MESSAGE_SIZE};
use cooper_session::serve::{self, Services};
use cooper_session::{SessionMeta, Tunnel};
use futures::{Stream, StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::{ClientError, Tls};

/// Flow-control windows in bytes: HTTP/2's own of 64 KiB would pay a round trip for each.
const STREAM_WINDOW: u32 = 1 << 20;
/// So large because h2 ends a connection on which more small frames wait than half of it is
/// worth, each counted as 256 bytes: a session sends one for every file of a context.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// How long a connection over the network may take to come about (BuildKit's value).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a daemon; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to `unix://PATH` or `tcp://HOST:PORT`, without TLS.
    ///
    /// # Errors
    /// As those of [`connect_with`](Self::connect_with).
    pub async fn connect(address: &str) -> Result<Self, ClientError> {
        Self::connect_with(address, &Tls::default()).await
    }

    /// Connects to `unix://PATH` or `tcp://HOST:PORT`; the latter with TLS if anything of `tls`
    /// is set.
    ///
    /// # Errors
    /// The address is of another kind, a file of `tls` cannot be read, nobody answers within
    /// five seconds, or one of the two does not accept the other's certificate.
    pub async fn connect_with(address: &str, tls: &Tls) -> Result<Self, ClientError> {
        let unknown = || ClientError::Address {
            address: address.to_owned(),
        };
        let failed = |source| ClientError::Connect {
            address: address.to_owned(),
            source,
        };
        let channel = match address.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => {
                let path = PathBuf::from(path);
                let dial = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                endpoint(Endpoint::from_static("http://localhost"))
                    .connect_with_connector(dial)
                    .await
            }
            Some(("tcp", host)) if !host.is_empty() => {
                let scheme = if tls.is_used() { "https" } else { "http" };
                let uri = Endpoint::from_shared(format!("{scheme}://{host}"));
                let mut uri = endpoint(uri.map_err(|_| unknown())?);
                if tls.is_used() {
                    uri = uri.tls_config(tls.config()?).map_err(failed)?;
                }
                uri.connect_timeout(CONNECT_TIMEOUT).connect().await
            }
            _ => return Err(unknown()),
        };
        Ok(Self {
            channel: channel.map_err(failed)?,
        })
    }

    /// A client of the daemon at the other end of `io`. When that ends, so do the calls.
    ///
    /// # Errors
    /// The other end does not speak HTTP/2.
    pub async fn over<I>(io: I) -> Result<Self, ClientError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = Mutex::new(Some(io));
        let dial = tower::service_fn(move |_| {
            let io = io.lock().ok().and_then(|mut io| io.take());
            let gone = || io::Error::other("the connection is closed");
            async move { io.map(TokioIo::new).ok_or_else(gone) }
        });
        let channel = endpoint(Endpoint::from_static("http://localhost"))
            .connect_with_connector(dial)
            .await;
        let channel = channel.map_err(|source| ClientError::Connect {
            address: "the daemon".to_owned(),
            source,
        })?;
        Ok(Self { channel })
    }

    /// The Control service as it is on the wire.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// The blobs of the daemon's default worker, for reading, as they are on the wire.
    pub fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// What the daemon is.
    ///
    /// # Cancel safety
    /// Cancel safe, as the other calls.
    pub async fn info(&self) -> Result<InfoResponse, ClientError> {
        let answer = self.control().info(InfoRequest {}).await;
        let answer = answer.map_err(ClientError::call("failed to call info"))?;
        Ok(answer.into_inner())
    }

    /// The workers that a filter matches; no filter matches all.
    pub async fn workers(&self, filter: Vec<String>) -> Result<Vec<WorkerRecord>, ClientError> {
        let answer = self
            .control()
            .list_workers(ListWorkersRequest { filter })
            .await;
        let answer = answer.map_err(ClientError::call("failed to list workers"))?;
        Ok(answer.into_inner().record)
    }

    /// What the cache holds.
    pub async fn disk_usage(
        &self,
        request: DiskUsageRequest,
    ) -> Result<Vec<UsageRecord>, ClientError> {
        let answer = self.control().disk_usage(request).await;
        let answer = answer.map_err(ClientError::call("failed to call diskusage"))?;
        Ok(answer.into_inner().record)
    }

    /// Removes from the cache; yields what was removed.
    pub async fn prune(
        &self,
        request: PruneRequest,
    ) -> Result<impl Stream<Item = Result<UsageRecord, ClientError>> + Send + use<>, ClientError>
    {
        let answer = self.control().prune(request).await;
        let answer = answer.map_err(ClientError::call("failed to call prune"))?;
        Ok(answer
            .into_inner()
            .map_err(ClientError::call("failed to receive prune")))
    }

    /// What [`prune`](Self::prune) would do now. A daemon that is no Cooper does not know it.
    pub async fn plan_prune(
        &self,
        request: PruneRequest,
    ) -> Result<PlanPruneResponse, ClientError> {
        let answer = self.disk().plan_prune(request).await;
        let answer = answer.map_err(ClientError::call("failed to plan a prune"))?;
        Ok(answer.into_inner())
    }

    /// Where what the daemon knows of its disk differs from what is there. A daemon that is no
    /// Cooper does not know it.
    pub async fn verify(&self) -> Result<VerifyResponse, ClientError> {
        let answer = self.disk().verify(VerifyRequest {}).await;
        let answer = answer.map_err(ClientError::call("failed to verify the disk usage"))?;
        Ok(answer.into_inner())
    }

    fn disk(&self) -> DiskClient<Channel> {
        DiskClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// The progress of the solve `reference`, until its end.
    pub async fn status(
        &self,
        reference: &str,
    ) -> Result<impl Stream<Item = Result<StatusResponse, ClientError>> + Send + use<>, ClientError>
    {
        let request = StatusRequest {
            r#ref: reference.into(),
        };
        let answer = self.control().status(request).await;
        let answer = answer.map_err(ClientError::call("failed to get status"))?;
        Ok(answer
            .into_inner()
            .map_err(ClientError::call("failed to receive status")))
    }

    /// The history of builds: what is there, and what comes unless the request wants no more.
    pub async fn history(
        &self,
        request: BuildHistoryRequest,
    ) -> Result<
        impl Stream<Item = Result<BuildHistoryEvent, ClientError>> + Send + use<>,
        ClientError,
    > {
        let answer = self.control().listen_build_history(request).await;
        let answer = answer.map_err(ClientError::call("failed to list builds"))?;
        Ok(answer
            .into_inner()
            .map_err(ClientError::call("failed to receive builds")))
    }

    /// Pins or removes the record of a build.
    pub async fn update_history(
        &self,
        request: UpdateBuildHistoryRequest,
    ) -> Result<(), ClientError> {
        let answer = self.control().update_build_history(request).await;
        answer.map_err(ClientError::call("failed to update the record of a build"))?;
        Ok(())
    }

    /// A blob of the daemon's as a whole, which has at most `most` bytes.
    ///
    /// # Errors
    /// Also when it has more.
    pub async fn blob(&self, digest: &str, most: usize) -> Result<Vec<u8>, ClientError> {
        let failed = ClientError::call("failed to read a blob");
        let request = ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        };
        let answer = self.content().read(request).await.map_err(&failed)?;
        let mut pieces = answer.into_inner();
        let mut blob = Vec::new();
        while let Some(piece) = pieces.message().await.map_err(&failed)? {
            if blob.len() + piece.data.len() > most {
                let large = format!("{digest} has more than {most} bytes");
                return Err(failed(tonic::Status::resource_exhausted(large)));
            }
            blob.extend_from_slice(&piece.data);
        }
        Ok(blob)
    }

    /// Opens the session that `meta` describes and serves it until the daemon ends it or
    /// `shutdown` is cancelled. The methods in `meta` are replaced by those of `services`.
    ///
    /// # Cancel safety
    /// Dropping the future ends the session.
    pub async fn session(
        &self,
        services: &Services,
        mut meta: SessionMeta,
        shutdown: CancellationToken,
    ) -> Result<(), ClientError> {
        meta.methods = services.methods();
        let (outgoing, messages) = Tunnel::<BytesMessage>::sender();
        let mut call = Request::new(messages);
        *call.metadata_mut() = MetadataMap::from_headers(meta.to_headers());
        let mut control = self.control();
        // The daemon speaks first on the tunnel, but its headers may wait for that.
        let incoming = futures::stream::once(async move { control.session(call).await })
            .map_ok(tonic::Response::into_inner)
            .try_flatten()
            .boxed();
        let tunnel = Tunnel::join(incoming, outgoing);
        Ok(serve::run(tunnel, services, shutdown).await?)
    }
}

fn endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADER_SIZE)
}
