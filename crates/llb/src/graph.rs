use std::collections::HashMap;

use bytes::Bytes;
use cooper_proto::pb;
use oci_spec::image::Digest;

use crate::Op;

/// A build graph: vertices in an order in which inputs come before those who take them, and the
/// output.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) vertices: Vec<Vertex>,
    pub(crate) by_digest: HashMap<String, usize>,
    pub(crate) output: Output,
    pub(crate) source: Option<pb::Source>,
}

/// One output of one vertex of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Output {
    /// Place of the vertex in [`Graph::vertices`].
    pub vertex: usize,
    /// Which of its outputs.
    pub index: usize,
}

/// What a vertex takes: one output of another one.
pub type Input = Output;

/// An operation of a [`Graph`].
#[derive(Clone, Debug)]
pub struct Vertex {
    /// SHA-256 of [`raw`](Self::raw).
    pub digest: Digest,
    /// The operation.
    pub op: Op,
    /// The whole operation as it arrived (or as a source policy changed it): platform and inputs
    /// included. Fields that this program does not know are in here only.
    pub raw: Bytes,
    /// Where its inputs come from; an operation refers to them by number.
    pub inputs: Vec<Input>,
    /// The platform, normalised; that of [`LoadOptions`](crate::LoadOptions) if it said none.
    pub platform: pb::Platform,
    /// What a worker must be like.
    pub constraints: Option<pb::WorkerConstraints>,
    /// What the client said about the vertex: not part of its identity.
    pub metadata: pb::OpMetadata,
    /// What a user reads: the client's name for it, or one made of the operation.
    pub name: String,
}

impl Graph {
    /// The vertices that the output needs, inputs before those who take them.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// The outputs: BuildKit's definitions have one.
    pub fn outputs(&self) -> &[Output] {
        std::slice::from_ref(&self.output)
    }

    /// The output.
    pub fn root(&self) -> Output {
        self.output
    }

    /// The vertex at `index`.
    ///
    /// # Panics
    ///
    /// If the index is not of this graph.
    pub fn vertex(&self, index: usize) -> &Vertex {
        &self.vertices[index]
    }

    /// Place of the vertex with this digest.
    pub fn find(&self, digest: &Digest) -> Option<usize> {
        self.by_digest.get(digest.as_ref()).copied()
    }

    /// The source files that the graph was made from, with the places of its vertices in them.
    pub fn source(&self) -> Option<&pb::Source> {
        self.source.as_ref()
    }
}

impl Vertex {
    /// Whether the client wants it built anew.
    pub fn ignore_cache(&self) -> bool {
        self.metadata.ignore_cache
    }

    /// Whether the client wants it in exported caches, if it said so.
    pub fn export_cache(&self) -> Option<bool> {
        self.metadata
            .export_cache
            .as_ref()
            .map(|export| export.value)
    }
}
