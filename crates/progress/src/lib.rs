//! What a user sees of a build: vertices, statuses with byte counts, logs and warnings, and the
//! [`Sink`] that carries them upward.
//!
//! The events are those of BuildKit's `StatusResponse`, field by field. An op gets a
//! [`VertexProgress`], a handle that knows which vertex it speaks for.
//!
//! This crate refuses to know who listens: no wire types, no terminal, no tracing.
//!
//! ```
//! use cooper_progress::{Collect, Event, VertexProgress};
//! use std::sync::Arc;
//!
//! let sink = Arc::new(Collect::default());
//! let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
//! let progress = VertexProgress::new(digest.parse()?, sink.clone());
//! let status = progress.status("transferring", "transferring context");
//! status.set(10, 20);
//! status.done();
//! assert_eq!(sink.take().len(), 3);
//! # Ok::<_, oci_spec::OciSpecError>(())
//! ```
#![forbid(unsafe_code)]

mod clip;
mod event;
mod sink;
mod vertex;

pub use clip::{Clip, Limits};
pub use event::{
    Event, Position, ProgressGroup, SourceInfo, SourceRange, Vertex, VertexLog, VertexStatus,
    VertexWarning,
};
pub use oci_spec::image::Digest;
pub use sink::{Collect, Discard, Sink};
pub use vertex::{StatusGuard, VertexProgress};

/// The stream number of standard output in a [`VertexLog`].
pub const STDOUT: i64 = 1;
/// The stream number of standard error in a [`VertexLog`].
pub const STDERR: i64 = 2;
