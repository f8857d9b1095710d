//! What a client asks for, and what it is told at the end.

use std::collections::BTreeMap;

use cooper_frontend::{CacheImport, Inputs};
use cooper_proto::{pb, sourcepolicy};

/// What a client asks for. With neither a definition nor a frontend the client builds by itself,
/// through a [`Gateway`](crate::Gateway).
#[derive(Clone, Debug, Default)]
pub struct SolveRequest {
    /// Names the build; the client chooses it.
    pub id: String,
    /// The client's session, `id` or `prefix:id`; empty when there is none.
    pub session: String,
    /// The graph.
    pub definition: Option<pb::Definition>,
    /// The frontend; empty for none.
    pub frontend: String,
    /// The frontend's options.
    pub frontend_attrs: BTreeMap<String, String>,
    /// The frontend's inputs.
    pub frontend_inputs: Inputs,
    /// What to do with the result, in the client's order.
    pub exporters: Vec<ExporterRequest>,
    /// The client names more when the result is known.
    pub session_exporters: bool,
    /// Where to export the cache to.
    pub cache_exports: Vec<CacheExport>,
    /// Caches to look into.
    pub cache_imports: Vec<CacheImport>,
    /// Rights that the client gives: `network.host`, …
    pub entitlements: Vec<String>,
    /// Not shown among the builds.
    pub internal: bool,
    /// A policy over all sources.
    pub source_policy: Option<sourcepolicy::Policy>,
}

/// One exporter of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExporterRequest {
    /// `image`, `oci`, `local`, …
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// Where to export the cache to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheExport {
    /// `registry`, `inline`, …
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// What the client is told at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SolveResponse {
    /// `containerimage.digest` and the like, of all exporters.
    pub exporter_response: BTreeMap<String, String>,
}
