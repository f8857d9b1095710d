//! Why a solve failed.

use std::sync::Arc;

use cooper_executor::{ExecError, Exit};
use cooper_exporter::ExportError;
use cooper_frontend::FrontendError;
use cooper_llb::LlbError;
use cooper_ops::OpsError;
use cooper_proto::{errdefs, rpc};
use cooper_solver::SolveError;
use cooper_source::SourceError;
use cooper_worker::WorkerError;

/// Why a solve, or a call on behalf of one, failed. The wording is BuildKit's where it has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A client names a build that there is already.
    #[error("job ID {id} exists")]
    JobExists {
        /// The build.
        id: String,
    },
    /// There is no such build, and it did not come.
    #[error("no such job {id}")]
    NoJob {
        /// The build.
        id: String,
    },
    /// A client builds through the gateway and does not say for which build.
    #[error("no buildid found in context")]
    NoBuildId,
    /// A request has a definition and a frontend.
    #[error("cannot solve with both Definition and Frontend specified")]
    Ambiguous,
    /// There is no frontend of this name.
    #[error("invalid frontend: {name}")]
    UnknownFrontend {
        /// The name.
        name: String,
    },
    /// Frontends that run as containers are switched off.
    #[error("frontend {name} is not supported by this builder: it runs no frontend images")]
    UnsupportedFrontend {
        /// The name.
        name: String,
    },
    /// The program of a frontend ended without a result.
    #[error("frontend {image} failed: {how}{}{said}", if said.is_empty() { "" } else { ": " })]
    FrontendExit {
        /// Its image.
        image: String,
        /// How it ended.
        how: String,
        /// What it said last.
        said: String,
    },
    /// The daemon does not allow what the client gives.
    #[error("granting entitlement {name} is not allowed by build daemon configuration")]
    Entitlement {
        /// The right.
        name: String,
    },
    /// A right that nobody knows.
    #[error("unknown entitlement {name}")]
    UnknownEntitlement {
        /// The right.
        name: String,
    },
    /// There is no cache exporter of this kind.
    #[error("unknown cache exporter: {kind:?}")]
    UnknownCacheExporter {
        /// The kind.
        kind: String,
    },
    /// The request has rules over sources.
    #[error("source policies are not supported by this builder")]
    SourcePolicy,
    /// A request or a returned result names a reference that there is not.
    #[error("no such ref: {id}")]
    NoReference {
        /// The reference.
        id: String,
    },
    /// A result with several references, for a client that takes one.
    #[error("solve did not return default result")]
    NoDefaultResult,
    /// A message lacks what it is about, or what it has makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A step failed, and its client can look into it.
    #[error("{source}")]
    Step {
        /// What it was and what it had, in the form of the client's API.
        detail: Box<errdefs::Solve>,
        /// Why.
        source: Box<EngineError>,
    },
    /// The client built by itself and returned an error, which is passed on as it is.
    #[error("{}", status.message)]
    Returned {
        /// Code, message and details.
        status: Box<rpc::Status>,
    },
    /// The build was not given a right that it makes use of.
    #[error("{name} is not allowed")]
    NotAllowed {
        /// The right.
        name: String,
    },
    /// A client names a container that it has already.
    #[error("Container {id} already exists")]
    ContainerExists {
        /// The container.
        id: String,
    },
    /// A client names a container that it does not have.
    #[error("container details for {id} not found")]
    NoContainer {
        /// The container, and for files the mount in it.
        id: String,
    },
    /// A process is to be started in a container that is not there any more.
    #[error("container {id:?} previously released or not created")]
    ContainerGone {
        /// The container.
        id: String,
    },
    /// A client names a process that there is already.
    #[error("Process {id} already exists")]
    ProcessExists {
        /// The process.
        id: String,
    },
    /// A message is about a process that there is not.
    #[error("IO for process {id:?} not found")]
    NoProcess {
        /// The process.
        id: String,
    },
    /// A message is for a descriptor that the process does not read.
    #[error("fd {fd} unavailable to write")]
    NoDescriptor {
        /// The descriptor.
        fd: u32,
    },
    /// A message to a process makes no sense.
    #[error("{0}")]
    InvalidMessage(String),
    /// A process in a client's container did not end well.
    #[error("{exit}{}", if *cancelled { ": context canceled" } else { "" })]
    Exit {
        /// How it ended.
        exit: Exit,
        /// Whether its container was released.
        cancelled: bool,
    },
    /// A container could not be run.
    #[error(transparent)]
    Run(#[from] ExecError),
    /// What belongs to a process could not be got.
    #[error(transparent)]
    Operation(Box<OpsError>),
    /// A frontend failed.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// The result could not be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Nothing can be known of a source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no such worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The client left, or the daemon stops.
    #[error("context canceled")]
    Cancelled,
    /// A bug: this build is lost, others are not.
    #[error("the build panicked, see the daemon's log")]
    Panicked,
}

/// Why a promised result could not be built. Cheap to clone: it is the same for all who ask.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The definition is no graph.
    #[error("failed to load LLB")]
    Load(#[source] Arc<LlbError>),
    /// The graph needs what this builder does not have.
    #[error("{0}")]
    Operation(#[source] Arc<OpsError>),
    /// An operation failed.
    #[error("{0}")]
    Solve(#[from] SolveError),
}
