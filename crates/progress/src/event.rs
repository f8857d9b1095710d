//! The events, with the fields of BuildKit's control API.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use oci_spec::image::Digest;

/// Something that a user may see.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A vertex appeared, started, ended or turned out to be cached.
    Vertex(Vertex),
    /// Part of a vertex's work went on.
    Status(VertexStatus),
    /// A vertex's process wrote something.
    Log(VertexLog),
    /// Something is worth a warning.
    Warning(VertexWarning),
}

/// A node of the build graph as it is now. Later events for one digest replace earlier ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Vertex {
    /// Digest of the vertex's definition.
    pub digest: Digest,
    /// Digests of the vertices that it takes its inputs from.
    pub inputs: Vec<Digest>,
    /// What a user reads: `[2/3] RUN make`.
    pub name: String,
    /// Whether the result was found instead of made.
    pub cached: bool,
    /// When work on it began.
    pub started: Option<SystemTime>,
    /// When it ended; a vertex that goes on after an end (a merged or a resumed one) is started
    /// again.
    pub completed: Option<SystemTime>,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// The group under whose name clients may show it.
    pub progress_group: Option<ProgressGroup>,
}

/// Vertices that clients may show as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Identity of the group.
    pub id: String,
    /// What a user reads.
    pub name: String,
    /// A weak group shows its vertices' own names when it holds only one.
    pub weak: bool,
}

/// Part of a vertex's work: a layer's download, a file transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VertexStatus {
    /// Identity within the vertex.
    pub id: String,
    /// The vertex.
    pub vertex: Digest,
    /// What a user reads; clients show the id when it is empty.
    pub name: String,
    /// Bytes (or pieces) done.
    pub current: i64,
    /// Bytes (or pieces) in all; 0 when unknown.
    pub total: i64,
    /// When this was true.
    pub timestamp: SystemTime,
    /// When it began.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
}

/// What a vertex's process wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VertexLog {
    /// The vertex.
    pub vertex: Digest,
    /// 1 is standard output, 2 is standard error.
    pub stream: i64,
    /// The bytes as they were written: not always text, not always whole lines.
    pub data: Bytes,
    /// When they arrived.
    pub timestamp: SystemTime,
}

/// A warning about a vertex, with the place in the source that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VertexWarning {
    /// The vertex.
    pub vertex: Digest,
    /// Clients hide warnings above the level that the user asked for.
    pub level: i64,
    /// One line.
    pub short: Bytes,
    /// Further lines.
    pub detail: Vec<Bytes>,
    /// Where more is said.
    pub url: String,
    /// The file that it is about.
    pub info: Option<Arc<SourceInfo>>,
    /// The lines of the file that it is about.
    pub ranges: Vec<SourceRange>,
}

/// A source file that a graph was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceInfo {
    /// Its name.
    pub filename: String,
    /// Its content.
    pub data: Bytes,
    /// Its language, as editors name it.
    pub language: String,
    /// The encoded definition that it was loaded by; empty when there is none.
    pub definition: Bytes,
}

/// A part of a source file, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceRange {
    /// Where it begins.
    pub start: Position,
    /// Where it ends.
    pub end: Position,
}

/// A place in a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: i32,
    /// From 0, in bytes.
    pub character: i32,
}
