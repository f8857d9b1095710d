//! The handle through which an op speaks for its vertex.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use oci_spec::image::Digest;

use crate::sink::{Discard, Sink};
use crate::{Event, VertexLog, VertexStatus, VertexWarning};

/// Speaks for one vertex. Cheap to clone.
#[derive(Clone)]
pub struct VertexProgress {
    digest: Digest,
    sink: Arc<dyn Sink>,
}

impl fmt::Debug for VertexProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VertexProgress")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl VertexProgress {
    /// Speaks for the vertex `digest` into `sink`.
    pub fn new(digest: Digest, sink: Arc<dyn Sink>) -> Self {
        Self { digest, sink }
    }

    /// Speaks for nobody, to nobody.
    pub fn discard() -> Self {
        let digest = EMPTY.parse().expect("the digest of nothing is well-formed");
        Self {
            digest,
            sink: Arc::new(Discard),
        }
    }

    /// The vertex.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where it speaks to.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Passes on what a process wrote; `stream` is [`crate::STDOUT`] or [`crate::STDERR`].
    pub fn log(&self, stream: i64, data: Bytes) {
        let vertex = self.digest.clone();
        let timestamp = SystemTime::now();
        self.sink.emit(Event::Log(VertexLog {
            vertex,
            stream,
            data,
            timestamp,
        }));
    }

    /// Begins part of the work: `id` is unique within the vertex, `name` is what a user reads.
    /// The guard says that it ended when it is told so or dropped.
    pub fn status(&self, id: &str, name: &str) -> StatusGuard {
        let now = SystemTime::now();
        let status = VertexStatus {
            id: id.to_owned(),
            vertex: self.digest.clone(),
            name: name.to_owned(),
            current: 0,
            total: 0,
            timestamp: now,
            started: Some(now),
            completed: None,
        };
        self.sink.emit(Event::Status(status.clone()));
        StatusGuard {
            status,
            sink: self.sink.clone(),
        }
    }

    /// Warns about the vertex; the warning's own digest is replaced by the vertex's.
    pub fn warn(&self, warning: VertexWarning) {
        self.sink.emit(Event::Warning(VertexWarning {
            vertex: self.digest.clone(),
            ..warning
        }));
    }
}

/// The digest of nothing.
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Part of a vertex's work that is going on. Dropping it says that the work ended.
#[must_use = "a status that is dropped at once has ended"]
pub struct StatusGuard {
    status: VertexStatus,
    sink: Arc<dyn Sink>,
}

impl fmt::Debug for StatusGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusGuard")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl StatusGuard {
    /// Says how far it is: bytes (or pieces) done, and in all (0 when unknown).
    pub fn set(&self, current: i64, total: i64) {
        let timestamp = SystemTime::now();
        let status = VertexStatus {
            current,
            total,
            timestamp,
            ..self.status.clone()
        };
        self.sink.emit(Event::Status(status));
    }

    /// Remembers a last position, which the end will carry.
    pub fn finish(mut self, current: i64, total: i64) {
        self.status.current = current;
        self.status.total = total;
    }

    /// Says that it ended.
    pub fn done(self) {}
}

impl Drop for StatusGuard {
    fn drop(&mut self) {
        let now = SystemTime::now();
        let mut status = self.status.clone();
        status.timestamp = now;
        status.completed = Some(now);
        self.sink.emit(Event::Status(status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Collect;

    #[test]
    fn a_status_ends_when_its_guard_goes() {
        let sink = Arc::new(Collect::default());
        let progress = VertexProgress {
            sink: sink.clone(),
            ..VertexProgress::discard()
        };
        {
            let status = progress.status("id", "name");
            status.set(3, 9);
        }
        progress.status("id", "name").finish(9, 9);
        let ended: Vec<_> = sink
            .take()
            .into_iter()
            .filter_map(|event| match event {
                Event::Status(status) => status.completed.map(|_| status.current),
                _ => None,
            })
            .collect();
        assert_eq!(ended, [0, 9]);
    }

    #[test]
    fn a_warning_carries_the_vertex() {
        let sink = Arc::new(Collect::default());
        let progress = VertexProgress {
            sink: sink.clone(),
            ..VertexProgress::discard()
        };
        progress.log(crate::STDERR, Bytes::from_static(b"x"));
        let events = sink.take();
        let Event::Log(log) = &events[0] else {
            panic!("{events:?}")
        };
        assert_eq!((&log.vertex, log.stream), (progress.digest(), 2));
    }
}
