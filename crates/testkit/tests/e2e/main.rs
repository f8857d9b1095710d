//! End-to-end cases: what a user does, with the programs that a user has.
//!
//! They run one at a time (`cargo xtask test-e2e`), because each ends with a look at the whole
//! machine for what it left behind.
#![allow(clippy::unwrap_used, missing_docs)]

mod bad_input;
mod buildctl_options;
mod cache_debug;
mod caching;
mod cancelling;
mod client;
mod client_files;
mod client_frontend;
mod client_gateway;
mod client_metadata;
mod client_mounts;
mod client_results;
mod client_sources;
mod client_steps;
mod containerd;
mod contexts;
mod contract;
mod control_api;
mod credentials;
mod daemon_flags;
mod disk;
mod dockerfile;
mod dockerfile_client;
mod dockerfile_corners;
mod dockerfile_git;
mod dockerfile_words;
mod exec_bad_input;
mod exec_networks;
mod explain;
mod exports;
mod failures;
mod faults;
mod first_build;
mod footprint;
mod frontend_images;
mod gateway_calls;
mod graphs;
mod history;
mod layouts;
mod lifecycle;
mod listeners;
mod mistakes;
mod outputs;
mod power;
mod pushing;
mod registries;
mod registry;
mod results;
mod rogue;
mod rootless;
mod sessions;
mod sharing;
mod soak;
mod spec;
mod trace;
mod written_mounts;

use std::path::{Path, PathBuf};

/// A folder for what a build writes out, removed with it.
struct Out(tempfile::TempDir);

impl Out {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("cooper-out-").tempdir();
        Self(dir.unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The option that writes the result's files into the folder `name`.
    fn local(&self, name: &str) -> String {
        format!("--output=type=local,dest={}", self.path(name).display())
    }

    fn read(&self, path: &str) -> String {
        read(&self.path(path))
    }
}

#[track_caller]
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"))
}
