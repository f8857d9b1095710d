//! fsutil's protocol over any pair of packet streams.
//!
//! The sender lists its files in STAT packets, the receiver asks by number for the content of
//! those that it lacks (REQ) and gets it in DATA packets, an empty one at the end of each file.
//! When the receiver has everything it says FIN, and the sender says it too.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cooper_proto::fsutil::{Packet, Stat, packet::PacketType};
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use crate::SessionError;
use crate::stat::{errno_text, is_regular};
use crate::tree::Tree;
use crate::writer::{Event, Options, Watch, Writer};

/// How long a receiver that failed has for saying why.
const REASON: Duration = Duration::from_secs(1);
/// Content in one packet, in bytes.
const PIECE: usize = 64 << 10;
/// Packets that wait on their way; a sender that is faster waits. More than a receiver has
/// requests under way, so that requests never wait.
pub(crate) const QUEUE: usize = 128;

/// Receives into `target`. `method` is what an error is blamed on.
///
/// # Cancel safety
/// Dropping the future ends the transfer; what has been written stays. A write that is under
/// way ends in its own time.
pub(crate) async fn receive<S>(
    mut incoming: S,
    outgoing: mpsc::Sender<Packet>,
    target: &Path,
    options: Options,
    watch: Arc<dyn Watch>,
    method: &'static str,
) -> Result<(), SessionError>
where
    S: Stream<Item = Result<Packet, Status>> + Unpin,
{
    let (events, receiver) = mpsc::channel(QUEUE);
    let writing = {
        let (target, watch, outgoing) = (target.to_owned(), watch.clone(), outgoing.clone());
        tokio::task::spawn_blocking(move || {
            Writer::new(&target, options, watch, outgoing)?.run(receiver)
        })
    };
    let pump = async move {
        let mut events = Some(events);
        let mut bytes = 0;
        let mut last = String::new();
        loop {
            let packet = match incoming.next().await {
                Some(Ok(packet)) => packet,
                Some(Err(status)) if is_no_text(&status) => return Err(no_text(&last)),
                Some(Err(status)) => return Err(SessionError::call(method)(status)),
                None => return Err(SessionError::Closed),
            };
            bytes += packet.encoded_len() as u64;
            watch.transferred(bytes);
            let event = match packet.r#type() {
                PacketType::PacketStat => match packet.stat {
                    Some(stat) => {
                        last.clone_from(&stat.path);
                        Event::Stat(stat)
                    }
                    None => Event::LastStat,
                },
                PacketType::PacketData => Event::Data(packet.id, packet.data),
                PacketType::PacketErr => {
                    let text = String::from_utf8_lossy(&packet.data);
                    return Err(SessionError::Protocol(format!("error from sender: {text}")));
                }
                PacketType::PacketFin => return Ok(()),
                PacketType::PacketReq => continue,
            };
            // When nobody takes it any more the writer has ended, and tells why.
            if let Some(sender) = &events
                && sender.send(event).await.is_err()
            {
                events = None;
            }
        }
    };
    let (mut pump, mut writing) = (Box::pin(pump), writing);
    tokio::select! {
        pumped = &mut pump => {
            // Without events the writer ends, if it has not: nothing is written after this.
            drop(pump);
            match (flatten(writing.await), pumped) {
                (Ok(()), pumped) => pumped,
                (Err(SessionError::Closed), Ok(())) => {
                    let text = "the sender ended too early";
                    Err(SessionError::Protocol(text.to_owned()))
                }
                (Err(SessionError::Closed), Err(error)) | (Err(error), _) => Err(error),
            }
        }
        written = &mut writing => match flatten(written) {
            Ok(()) => pump.await,
            Err(error) => {
                let _ = outgoing.try_send(error_packet(&error));
                Err(error)
            }
        },
    }
}

fn flatten(
    joined: Result<Result<(), SessionError>, tokio::task::JoinError>,
) -> Result<(), SessionError> {
    joined.unwrap_or_else(|error| {
        Err(SessionError::Protocol(format!(
            "the writer failed: {error}"
        )))
    })
}

/// Names are text in this protocol; one that is not comes as an error of the decoder.
fn is_no_text(status: &Status) -> bool {
    status.message().contains("invalid string value")
}

/// The name itself cannot be shown: it is the next one after `last`, in the order of names.
fn no_text(last: &str) -> SessionError {
    let place = match last {
        "" => "the first of all".to_owned(),
        last => format!("the next one after {last:?}"),
    };
    SessionError::Protocol(format!(
        "the client sent a file name that is not valid UTF-8, {place}: rename the file or name \
         it in the ignore file"
    ))
}

fn error_packet(error: &SessionError) -> Packet {
    Packet {
        r#type: PacketType::PacketErr.into(),
        data: error.to_string().into(),
        ..Packet::default()
    }
}

/// Sends `trees`: those that have a name in the order of their names. Several that are sent at
/// the top are sent as one; of a file that is in more than one the first is taken.
///
/// # Cancel safety
/// Dropping the future ends the transfer.
pub(crate) async fn send<S>(
    mut incoming: S,
    outgoing: mpsc::Sender<Packet>,
    trees: Vec<Tree>,
    watch: Arc<dyn Watch>,
    method: &'static str,
) -> Result<(), SessionError>
where
    S: Stream<Item = Result<Packet, Status>> + Unpin,
{
    let sender = Arc::new(Sender {
        trees,
        files: Mutex::default(),
        outgoing: outgoing.clone(),
        watch,
        bytes: AtomicU64::new(0),
    });
    let walking = {
        let sender = sender.clone();
        async move { flatten(tokio::task::spawn_blocking(move || sender.list()).await) }
    };
    // Each number is taken once, so this holds no more than there are files.
    let (requests, queue) = mpsc::unbounded_channel();
    let reading = {
        let sender = sender.clone();
        async move { flatten(tokio::task::spawn_blocking(move || sender.read(queue)).await) }
    };
    let answering = async {
        let requests = requests;
        loop {
            let packet = match incoming.next().await {
                Some(Ok(packet)) => packet,
                Some(Err(status)) => return Err(SessionError::call(method)(status)),
                None => return Err(SessionError::Closed),
            };
            match packet.r#type() {
                PacketType::PacketReq => {
                    let Some(file) = sender.take(packet.id) else {
                        let text = format!("invalid file id {}", packet.id);
                        return Err(SessionError::Protocol(text));
                    };
                    if requests.send((packet.id, file)).is_err() {
                        return Err(SessionError::Closed);
                    }
                }
                PacketType::PacketFin => break,
                PacketType::PacketErr => {
                    // fsutil's receivers say in the packet that they were given up, and why in
                    // how the call ends.
                    let end = tokio::time::timeout(REASON, incoming.next()).await;
                    if let Ok(Some(Err(status))) = end
                        && !status.message().is_empty()
                    {
                        return Err(SessionError::call(method)(status));
                    }
                    let text = String::from_utf8_lossy(&packet.data);
                    let text = format!("error from receiver: {text}");
                    return Err(SessionError::Protocol(text));
                }
                _ => {}
            }
        }
        drop(requests);
        let fin = Packet {
            r#type: PacketType::PacketFin.into(),
            ..Packet::default()
        };
        outgoing.send(fin).await.map_err(|_| SessionError::Closed)
    };
    let walking = async {
        let walked = walking.await;
        if let Err(error) = &walked {
            let _ = outgoing.send(error_packet(error)).await;
        }
        walked
    };
    let result = tokio::try_join!(walking, reading, answering).map(drop);
    // When the other end hung up, its reason says more than that it did.
    match result {
        Err(SessionError::Closed) => match incoming.next().await {
            Some(Err(status)) => Err(SessionError::call(method)(status)),
            _ => Err(SessionError::Closed),
        },
        other => other,
    }
}

/// A file that can be asked for: its tree and its path.
type Place = (usize, String);

struct Sender {
    trees: Vec<Tree>,
    files: Mutex<HashMap<u32, Place>>,
    outgoing: mpsc::Sender<Packet>,
    watch: Arc<dyn Watch>,
    bytes: AtomicU64,
}

impl Sender {
    /// Lists all files.
    fn list(&self) -> Result<(), SessionError> {
        let mut next: u32 = 0;
        let mut show = |index: usize, stat: Stat| {
            let id = next;
            next = id.checked_add(1).ok_or_else(|| {
                SessionError::Protocol("more files than a transfer can number".to_owned())
            })?;
            if is_regular(stat.mode) {
                let place = (index, stat.path.clone());
                self.files().insert(id, place);
            }
            self.send(Packet {
                r#type: PacketType::PacketStat.into(),
                stat: Some(stat),
                ..Packet::default()
            })
        };
        if self.trees.len() > 1 && self.trees.iter().any(|tree| tree.under.is_empty()) {
            // Their files stand between each other.
            let mut all: Vec<(usize, Stat)> = Vec::new();
            for (index, tree) in self.trees.iter().enumerate() {
                tree.walk(&mut |stat| {
                    all.push((index, stat));
                    Ok(())
                })?;
            }
            all.sort_by(|(_, a), (_, b)| a.path.split('/').cmp(b.path.split('/')));
            all.dedup_by(|(_, later), (_, first)| later.path == first.path);
            for (index, stat) in all {
                show(index, stat)?;
            }
        } else {
            for (index, tree) in self.trees.iter().enumerate() {
                tree.walk(&mut |stat| show(index, stat))?;
            }
        }
        self.send(Packet {
            r#type: PacketType::PacketStat.into(),
            ..Packet::default()
        })
    }

    /// Sends the content of the files that are asked for. One that cannot be read is empty, as
    /// in fsutil: it may be gone.
    fn read(&self, mut queue: mpsc::UnboundedReceiver<(u32, Place)>) -> Result<(), SessionError> {
        let data = |id: u32, data: Bytes| Packet {
            r#type: PacketType::PacketData.into(),
            id,
            data,
            ..Packet::default()
        };
        let mut buffer = vec![0; PIECE];
        while let Some((id, (tree, path))) = queue.blocking_recv() {
            if let Ok(mut file) = self.trees[tree].open(&path) {
                loop {
                    let length = fill(&mut file, &mut buffer).map_err(|error| {
                        let error = errno_text(&error);
                        SessionError::Protocol(format!("read {path}: {error}"))
                    })?;
                    if length > 0 {
                        self.send(data(id, Bytes::copy_from_slice(&buffer[..length])))?;
                    }
                    if length < PIECE {
                        break;
                    }
                }
            }
            self.send(data(id, Bytes::new()))?;
        }
        Ok(())
    }

    fn take(&self, id: u32) -> Option<Place> {
        self.files().remove(&id)
    }

    fn files(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Place>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, packet: Packet) -> Result<(), SessionError> {
        let size = packet.encoded_len() as u64;
        let sent = self.outgoing.blocking_send(packet);
        sent.map_err(|_| SessionError::Closed)?;
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        self.watch.transferred(before + size);
        Ok(())
    }
}

/// Reads until the buffer is full or the file at its end, and says how much came.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
