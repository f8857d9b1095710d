//! The Dockerfile frontend: a Dockerfile and the options of a client become a build graph and an
//! image configuration. It answers to the name `dockerfile.v0`.
//!
//! What it does is what BuildKit's own frontend does, operation by operation, so that the cache
//! keys of a build are the same and one builder's cache serves the other.
//!
//! **Which syntax.** A `# syntax=` line and the argument `BUILDKIT_SYNTAX` name an image that is
//! to read the Dockerfile, and it is run. The images `docker/dockerfile` and
//! `docker/dockerfile-upstream` are this frontend, of whatever version: they are not pulled, the
//! parser in here reads the file, and says what it does not understand. A client that asks for a
//! capability of frontends that is not known here is refused.
//!
//! It refuses to know how graphs are built: images are looked up, files are read and warnings are
//! shown through the [`Bridge`](cooper_frontend::Bridge).
//!
//! ```
//! use cooper_frontend::Frontend;
//! use cooper_frontend_dockerfile::DockerfileFrontend;
//!
//! assert_eq!(DockerfileFrontend.name(), "dockerfile.v0");
//! ```
//!
//! Modules in reading order: `options` (what a client asks for), `context` (where the files are),
//! `named` (contexts by name), `convert` (text to graph), `lint` (warnings), `subrequest`
//! (questions about a Dockerfile), `build` (one result of all platforms).
#![forbid(unsafe_code)]

mod build;
mod context;
mod convert;
mod extra;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gitref;
mod gotext;
mod image;
mod json;
mod lint;
mod named;
mod options;
mod source;
mod subrequest;
mod syntax;

#[cfg(test)]
mod tests;

pub use build::DockerfileFrontend;
