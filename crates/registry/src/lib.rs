//! OCI distribution: names of images, resolving, pulling and pushing.
//!
//! A [`Registry`] is a client of all registries. It knows where a domain's registry and its
//! mirrors are ([`HostConfig`]), asks the client's session for credentials
//! ([`cooper_session::auth`]), keeps tokens, follows redirects without carrying secrets along,
//! and tries again a bounded number of times when a server or a connection fails. Bytes that
//! have a digest are verified by whoever asked for them: manifests here, blobs by the store
//! that takes them.
//!
//! This crate refuses to know what is in an image, where blobs are kept, and what a build is.
//!
//! ```
//! use cooper_registry::Reference;
//!
//! let reference = Reference::parse("alpine")?;
//! assert_eq!(reference.to_string(), "docker.io/library/alpine:latest");
//! assert_eq!(reference.familiar(), "alpine:latest");
//! assert!(Reference::parse("Alpine").is_err());
//! # Ok::<_, cooper_registry::ReferenceError>(())
//! ```
//!
//! Modules in reading order: `reference` (names), `host` (where registries are), `transport`
//! (one request with its redirects, credentials and retries), `challenge` and `auth` (what a
//! 401 asks for and how it gets it), `resolve`, `fetch`, `push`.
#![forbid(unsafe_code)]

mod auth;
mod challenge;
mod error;
mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod host;
mod push;
mod reference;
mod resolve;
mod transport;

pub use error::RegistryError;
pub use fetch::BlobFetcher;
pub use host::{HostConfig, KeyPair, http_client};
pub use oci_spec::image::{Descriptor, Digest, MediaType};
pub use push::{PushOptions, Pushed};
pub use reference::{Reference, ReferenceError};
pub use transport::Registry;

/// The largest manifest that is taken, in bytes.
pub const MAX_MANIFEST: u64 = 8 << 20;
