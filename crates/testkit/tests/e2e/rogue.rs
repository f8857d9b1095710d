//! A client whose session does what a list says, whatever the protocol says.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cooper_llb::build::State;
use cooper_proto::control::SolveRequest;
use cooper_proto::filesync::file_sync_server::{FileSync, FileSyncServer};
use cooper_proto::fsutil::{Packet, Stat, packet::PacketType};
use cooper_session::{SessionMeta, Tunnel};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Bench, request};

/// A daemon that does not answer in this time does not answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than a message may have, so that this side does not refuse what it is to send.
const ENOUGH: usize = 64 << 20;

/// What the client does next.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Sends a packet.
    Send(Packet),
    /// Waits until the content of this file is asked for.
    Asked(u32),
    /// Ends the call as if it were done.
    Hang,
    /// Ends the call with an error.
    Fail(&'static str),
}

/// A file of so many bytes.
pub(crate) fn file(path: &str, size: i64) -> Act {
    stat(Stat {
        path: path.into(),
        mode: 0o644,
        size,
        ..Stat::default()
    })
}

pub(crate) fn stat(stat: Stat) -> Act {
    Act::Send(Packet {
        r#type: PacketType::PacketStat.into(),
        stat: Some(stat),
        ..Packet::default()
    })
}

/// There are no more files.
pub(crate) fn last() -> Act {
    kind(PacketType::PacketStat)
}

/// Content of a file; none is its end.
pub(crate) fn data(id: u32, data: impl Into<Vec<u8>>) -> Act {
    Act::Send(Packet {
        r#type: PacketType::PacketData.into(),
        id,
        data: data.into().into(),
        ..Packet::default()
    })
}

pub(crate) fn kind(kind: PacketType) -> Act {
    Act::Send(Packet {
        r#type: kind.into(),
        ..Packet::default()
    })
}

static BUILDS: AtomicU32 = AtomicU32::new(0);

#[derive(Clone)]
struct Rogue {
    acts: Arc<Vec<Act>>,
    /// What the daemon said at last.
    told: Arc<Mutex<Option<String>>>,
}

type Packets = ReceiverStream<Result<Packet, Status>>;

#[async_trait::async_trait]
impl FileSync for Rogue {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(
        &self,
        call: Request<Streaming<Packet>>,
    ) -> Result<Response<Packets>, Status> {
        let (sender, packets) = mpsc::channel(8);
        let rogue = self.clone();
        tokio::spawn(async move { rogue.act(call.into_inner(), sender).await });
        Ok(Response::new(ReceiverStream::new(packets)))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("no"))
    }
}

impl Rogue {
    async fn act(
        &self,
        mut incoming: Streaming<Packet>,
        outgoing: mpsc::Sender<Result<Packet, Status>>,
    ) {
        let mut asked = Vec::new();
        for act in self.acts.iter() {
            match act {
                Act::Send(packet) => {
                    if outgoing.send(Ok(packet.clone())).await.is_err() {
                        break;
                    }
                }
                Act::Asked(id) => {
                    while !asked.contains(id) {
                        match incoming.next().await {
                            Some(Ok(packet)) if packet.r#type() == PacketType::PacketReq => {
                                asked.push(packet.id);
                            }
                            Some(Ok(packet)) => self.note(&packet),
                            _ => return,
                        }
                    }
                }
                Act::Hang => return,
                Act::Fail(text) => {
                    let _ = outgoing.send(Err(Status::unknown(*text))).await;
                    return;
                }
            }
        }
        // From here on it behaves.
        while let Some(Ok(packet)) = incoming.next().await {
            self.note(&packet);
            if packet.r#type() == PacketType::PacketFin {
                let _ = outgoing.send(Ok(packet)).await;
                return;
            }
        }
    }

    fn note(&self, packet: &Packet) {
        if packet.r#type() == PacketType::PacketErr {
            let text = String::from_utf8_lossy(&packet.data).into_owned();
            *self.told.lock().unwrap() = Some(text);
        }
    }
}

/// Builds `state` with a session that offers files by `acts`; gives the daemon's error.
pub(crate) fn build(bench: &Bench, state: &State, acts: Vec<Act>) -> Result<(), String> {
    let rogue = Rogue {
        acts: Arc::new(acts),
        told: Arc::default(),
    };
    let mut solve = request(state).request;
    let number = BUILDS.fetch_add(1, Ordering::Relaxed);
    solve.session = format!("rogue-{}-{number}", std::process::id());
    solve.r#ref = solve.session.clone();
    bench.rt.block_on(Box::pin(async {
        let session = tokio::spawn(serve(
            bench.client.control(),
            solve.session.clone(),
            rogue.clone(),
        ));
        let answer = ask(bench, solve).await;
        session.abort();
        answer
    }))
}

async fn ask(bench: &Bench, solve: SolveRequest) -> Result<(), String> {
    let mut control = bench.client.control();
    let answer = tokio::time::timeout(PATIENCE, control.solve(solve)).await;
    let answer = answer.map_err(|_| "no answer".to_owned())?;
    answer
        .map(drop)
        .map_err(|status| status.message().to_owned())
}

async fn serve(
    mut control: cooper_proto::control::control_client::ControlClient<tonic::transport::Channel>,
    id: String,
    rogue: Rogue,
) {
    let meta = SessionMeta {
        id,
        name: "rogue".into(),
        shared_key: "rogue".into(),
        methods: vec!["/moby.filesync.v1.FileSync/DiffCopy".into()],
        ..SessionMeta::default()
    };
    let (outgoing, messages) = Tunnel::<cooper_proto::control::BytesMessage>::sender();
    let mut call = Request::new(messages);
    *call.metadata_mut() = MetadataMap::from_headers(meta.to_headers());
    let incoming = futures::stream::once(async move { control.session(call).await })
        .map_ok(Response::into_inner)
        .try_flatten()
        .boxed();
    let mut tunnel = Tunnel::join(incoming, outgoing);
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let incoming =
        futures::stream::iter([Ok::<_, std::io::Error>(near)]).chain(futures::stream::pending());
    let served = Server::builder()
        .add_service(FileSyncServer::new(rogue).max_encoding_message_size(ENOUGH))
        .serve_with_incoming(incoming);
    tokio::select! {
        _ = served => {}
        _ = tokio::io::copy_bidirectional(&mut tunnel, &mut far) => {}
    }
}
