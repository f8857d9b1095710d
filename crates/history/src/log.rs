//! What was seen of a build, as a blob: messages, each behind its length (BuildKit's
//! `application/vnd.buildkit.status.v0`).

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use cooper_content::{Blob, BlobReader, ContentError, ContentStore, Digest};
use cooper_progress::Event;
use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::control::{StatusResponse, VertexLog};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::HistoryError;
use crate::status::responses;

/// Bytes of a build's log from which on what its steps said, and how far parts of them are, is left
/// out: the last line that is there says so. From twice as many on nothing more is kept.
pub const MOST_LOG: u64 = 64 << 20;
/// Events that are made messages at once.
const BATCH: usize = 1000;
/// Messages that wait for a reader.
const QUEUE: usize = 4;
const CUT: &str = "[the history keeps no more output of this build]\n";

/// What was seen, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) total: i32,
    pub(crate) cached: i32,
    pub(crate) completed: i32,
    pub(crate) warnings: i32,
}

/// Counts steps as BuildKit does: one that was cached or completed once counts as that.
pub(crate) fn count(seen: &[Arc<Event>]) -> Counts {
    let mut steps: HashMap<&Digest, (bool, bool)> = HashMap::new();
    let mut warnings = 0;
    for event in seen {
        match &**event {
            Event::Vertex(vertex) => {
                let (cached, completed) = steps.entry(&vertex.digest).or_default();
                *cached |= vertex.cached;
                *completed |= vertex.completed.is_some();
            }
            Event::Warning(_) => warnings += 1,
            _ => {}
        }
    }
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    Counts {
        total: number(steps.len()),
        cached: number(steps.values().filter(|(cached, _)| *cached).count()),
        completed: number(steps.values().filter(|(_, completed)| *completed).count()),
        warnings: number(warnings),
    }
}

/// Writes what was seen as a blob of at most twice `most` bytes, by the name `name`; says how
/// large it is.
pub(crate) async fn write(
    content: &dyn ContentStore,
    name: &str,
    seen: &[Arc<Event>],
    most: u64,
) -> Result<(Digest, u64), ContentError> {
    let mut ingest = content.ingest(name).await?;
    if ingest.offset() > 0 {
        ingest.abort().await?;
        ingest = content.ingest(name).await?;
    }
    let mut cut = Cut {
        most,
        written: 0,
        over: false,
        said: false,
    };
    for events in seen.chunks(BATCH) {
        for message in responses(events) {
            if let Some(frame) = cut.frame(message) {
                ingest.write(&frame).await?;
            }
        }
        // The disk blocks, and hashing takes its time.
        tokio::task::yield_now().await;
    }
    let digest = ingest.commit(Some(cut.written), None).await?;
    Ok((digest, cut.written))
}

/// Bounds a log.
struct Cut {
    most: u64,
    written: u64,
    /// From the first message that did not fit on: one that does would stand behind the last line.
    over: bool,
    said: bool,
}

impl Cut {
    /// The message as it is written, if it is.
    fn frame(&mut self, mut message: StatusResponse) -> Option<Vec<u8>> {
        self.over |= self.written + message.encoded_len() as u64 > self.most;
        if self.over {
            message.statuses.clear();
            let first = message.logs.drain(..).next();
            if let (Some(log), false) = (first, self.said) {
                self.said = true;
                message.logs.push(VertexLog {
                    msg: CUT.into(),
                    ..log
                });
            }
            if message == StatusResponse::default() {
                return None;
            }
        }
        let size = message.encoded_len();
        // Nobody could be sent what is larger than a message may be.
        if size > MAX_MESSAGE_SIZE || self.written + size as u64 + 4 > 2 * self.most {
            return None;
        }
        let mut frame = Vec::with_capacity(size + 4);
        // Two times the bound is far below four gibibytes.
        frame.extend(u32::try_from(size).ok()?.to_le_bytes());
        message.encode(&mut frame).ok()?;
        self.written += frame.len() as u64;
        Some(frame)
    }
}

/// The messages of a log, as they are read.
pub struct LogStream {
    messages: mpsc::Receiver<Result<StatusResponse, HistoryError>>,
}

impl LogStream {
    /// Nothing was seen.
    pub(crate) fn empty() -> Self {
        let (_, messages) = mpsc::channel(1);
        Self { messages }
    }

    /// Reads `blob`, on a thread that may block; it ends when this is dropped.
    pub(crate) fn read(blob: Box<dyn Blob>, reference: String) -> Self {
        let (outgoing, messages) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            let mut reader = BufReader::new(BlobReader::new(&*blob));
            while let Some(message) = next(&mut reader, &reference).transpose() {
                let over = message.is_err();
                if outgoing.blocking_send(message).is_err() || over {
                    return;
                }
            }
        });
        Self { messages }
    }

    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// The blob cannot be read, or is not what was written. Nothing comes after that.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<StatusResponse, HistoryError>> {
        self.messages.recv().await
    }
}

fn next(reader: &mut impl Read, reference: &str) -> Result<Option<StatusResponse>, HistoryError> {
    let damaged = || HistoryError::Log {
        reference: reference.to_owned(),
    };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof => damaged(),
        _ => HistoryError::Read {
            reference: reference.to_owned(),
            source,
        },
    };
    let mut size = [0; 4];
    // The end is before a length, and nowhere else.
    match reader.read(&mut size[..1]).map_err(failed)? {
        0 => return Ok(None),
        _ => reader.read_exact(&mut size[1..]).map_err(failed)?,
    }
    let size = usize::try_from(u32::from_le_bytes(size)).unwrap_or(usize::MAX);
    if size > MAX_MESSAGE_SIZE {
        return Err(damaged());
    }
    let mut bytes = vec![0; size];
    reader.read_exact(&mut bytes).map_err(failed)?;
    let message = StatusResponse::decode(&*bytes).map_err(|_| damaged())?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use cooper_content::MemoryContentStore;
    use cooper_progress::{Collect, STDOUT, Sink, Vertex, VertexProgress, VertexWarning};
    use std::time::SystemTime;

    fn vertex(name: &str, cached: bool, done: bool) -> Event {
        let now = Some(SystemTime::UNIX_EPOCH);
        Event::Vertex(Vertex {
            digest: cooper_content::digest_of(name.as_bytes()),
            inputs: Vec::new(),
            name: name.into(),
            cached,
            started: now,
            completed: now.filter(|_| done),
            error: String::new(),
            progress_group: None,
        })
    }

    fn seen(sink: &Collect) -> Vec<Arc<Event>> {
        sink.take().into_iter().map(Arc::new).collect()
    }

    async fn read(content: &MemoryContentStore, digest: &Digest) -> Vec<StatusResponse> {
        let blob = content.open(digest).await.unwrap();
        let mut stream = LogStream::read(blob, "x".into());
        let mut all = Vec::new();
        while let Some(message) = stream.next().await {
            all.push(message.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn what_was_seen_is_counted_written_and_read() {
        let sink = Arc::new(Collect::default());
        for event in [
            vertex("a", false, false),
            vertex("b", true, true),
            vertex("a", false, true),
            vertex("c", false, false),
        ] {
            sink.emit(event);
        }
        let progress =
            VertexProgress::new(VertexProgress::discard().digest().clone(), sink.clone());
        for number in 0..2500 {
            progress.log(STDOUT, Bytes::from(format!("line {number}\n")));
        }
        progress.warn(VertexWarning {
            vertex: progress.digest().clone(),
            level: 1,
            short: Bytes::from_static(b"careful"),
            detail: Vec::new(),
            url: String::new(),
            info: None,
            ranges: Vec::new(),
        });
        let seen = seen(&sink);
        let counts = Counts {
            total: 3,
            cached: 1,
            completed: 2,
            warnings: 1,
        };
        assert_eq!(count(&seen), counts);
        let content = MemoryContentStore::default();
        let (digest, size) = write(&content, "log", &seen, MOST_LOG).await.unwrap();
        assert_eq!(content.info(&digest).await.unwrap().size, size);
        let back = read(&content, &digest).await;
        let expected: Vec<_> = seen.chunks(BATCH).flat_map(responses).collect();
        assert_eq!(back, expected);
        let (empty, size) = write(&content, "log", &[], MOST_LOG).await.unwrap();
        assert_eq!((read(&content, &empty).await, size), (vec![], 0));
    }

    #[tokio::test]
    async fn a_log_is_cut_and_says_so() {
        let sink = Arc::new(Collect::default());
        let progress =
            VertexProgress::new(VertexProgress::discard().digest().clone(), sink.clone());
        for _ in 0..300 {
            progress.log(STDOUT, Bytes::from(vec![b'x'; 64 << 10]));
        }
        sink.emit(vertex("last", false, true));
        let content = MemoryContentStore::default();
        let most = 4 << 20;
        let (digest, size) = write(&content, "log", &seen(&sink), most).await.unwrap();
        assert!(size > 3 << 20 && size < most + 1000, "{size}");
        let back = read(&content, &digest).await;
        let logs: Vec<_> = back.iter().flat_map(|message| &message.logs).collect();
        assert!(logs.last().unwrap().msg == CUT.as_bytes());
        let cuts = logs.iter().filter(|log| log.msg == CUT.as_bytes());
        assert_eq!(cuts.count(), 1);
        let last = back.last().unwrap();
        assert_eq!(last.vertexes[0].name, "last");
        // Even what is not output is bounded.
        for number in 0..20_000 {
            sink.emit(vertex(&format!("{number}"), false, true));
        }
        let (_, size) = write(&content, "log", &seen(&sink), 100_000).await.unwrap();
        assert!(size <= 200_000, "{size}");
    }

    #[tokio::test]
    async fn damage_is_an_error_and_no_panic() {
        let good = StatusResponse {
            logs: vec![VertexLog::default()],
            ..StatusResponse::default()
        };
        let mut frame = 2_u32.to_le_bytes().to_vec();
        good.encode(&mut frame).unwrap();
        assert_eq!(frame.len(), 6);
        let bytes = |bytes: &[u8]| [&frame, bytes].concat();
        for (bytes, damaged) in [
            (bytes(&[]), false),
            (bytes(&[1, 0]), true),
            (bytes(&[9, 0, 0, 0, 1]), true),
            (bytes(&[255; 8]), true),
            (bytes(&[2, 0, 0, 0, 255, 255]), true),
        ] {
            let content = MemoryContentStore::default();
            let digest = content.write_all(&bytes).await.unwrap();
            let blob = content.open(&digest).await.unwrap();
            let mut stream = LogStream::read(blob, "x".into());
            assert_eq!(stream.next().await.unwrap().unwrap(), good);
            let next = stream.next().await;
            let found = matches!(next, Some(Err(HistoryError::Log { .. })));
            assert_eq!(found, damaged, "{bytes:?}");
            assert!(stream.next().await.is_none());
        }
    }
}
