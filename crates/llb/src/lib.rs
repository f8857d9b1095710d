//! A build graph: loaded from the wire, checked, named and digested; and the means to write one.
//!
//! The wire form is BuildKit's LLB: a list of encoded operations, each named by the SHA-256 of
//! its bytes, the last of which only points at the output. [`load`] makes a [`Graph`] of it.
//!
//! This crate refuses to know how anything is built or cached; it only says what the bytes that
//! a cache key is made of look like.
//!
//! Modules in reading order: [`load`](fn@load), [`build`], [`platform`], [`caps`].
#![forbid(unsafe_code)]

pub mod build;
pub mod caps;
mod digest;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gojson;
mod graph;
mod load;
mod name;
pub mod platform;

pub use caps::{CapError, CapSet};
pub use digest::digest_of;
pub use error::LlbError;
pub use graph::{Graph, Input, Output, Vertex};
pub use load::{Entitlements, LoadOptions, load};
pub use oci_spec::image::Digest;

/// The operation of a vertex, as on the wire.
pub use cooper_proto::pb::op::Op;
