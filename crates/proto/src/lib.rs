//! The wire types of BuildKit's API, client and server side, and of the protocols that a
//! build session speaks: fsutil's file synchronisation and containerd's content service. And
//! those of containerd's other services that a daemon asks for.
//!
//! The `.proto` files beside the source restate published names and numbers; they are compiled
//! at build time with no `protoc`. Maps are ordered, so that encoding a message twice gives the
//! same bytes.
//!
//! This crate refuses to know any logic: no validation, no defaults, no digests.
//!
//! ```
//! use cooper_proto::pb;
//! use prost::Message;
//!
//! let op = pb::Op {
//!     op: Some(pb::op::Op::Source(pb::SourceOp {
//!         identifier: "docker-image://docker.io/library/busybox:latest".into(),
//!         ..Default::default()
//!     })),
//!     ..Default::default()
//! };
//! let bytes = op.encode_to_vec();
//! assert_eq!(pb::Op::decode(&*bytes)?, op);
//! # Ok::<_, prost::DecodeError>(())
//! ```
#![forbid(unsafe_code)]
#![allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]

/// The largest message in bytes that every client and server takes: containerd's default,
/// which BuildKit uses on all its connections, the session's included.
pub const MAX_MESSAGE_SIZE: usize = 16 << 20;

/// The most bytes of headers or trailers that every client and server takes: Go's default. A
/// failed solve carries the user's text in them, and a folder to be sent all patterns of an
/// ignore file; the 16 KiB of other HTTP libraries are less than that.
pub const MAX_HEADER_SIZE: u32 = 16 << 20;

/// What all messages are like, a `google.protobuf.FileDescriptorSet`: for who has to write one
/// as JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// LLB: the build graph.
pub mod pb {
    tonic::include_proto!("pb");
}

/// fsutil: files and the packets that synchronise them.
pub mod fsutil {
    pub use types::*;

    #[doc(hidden)]
    pub mod types {
        tonic::include_proto!("fsutil.types");
    }
}

/// `google.rpc.Status`, the carrier of typed error details.
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

/// The typed details of a failed solve (their value on the wire is JSON).
pub mod errdefs {
    tonic::include_proto!("errdefs");
}

/// containerd's content service.
pub mod content {
    tonic::include_proto!("containerd.services.content.v1");
}

pub mod containerd;

#[doc(hidden)]
pub mod cooper {
    pub mod v1 {
        tonic::include_proto!("cooper.v1");
    }
}
/// What Cooper tells of its disk beyond BuildKit's API.
pub use cooper::v1 as disk;

// Generated code names other packages by their place in this tree of modules, which has to
// mirror the packages' names.
#[doc(hidden)]
pub mod google {
    pub use crate::rpc;
}

#[doc(hidden)]
pub mod moby {
    pub mod buildkit {
        pub mod v1 {
            tonic::include_proto!("moby.buildkit.v1");
            pub mod types {
                tonic::include_proto!("moby.buildkit.v1.types");
            }
            pub mod apicaps {
                tonic::include_proto!("moby.buildkit.v1.apicaps");
            }
            pub mod sourcepolicy {
                tonic::include_proto!("moby.buildkit.v1.sourcepolicy");
            }
            pub mod frontend {
                tonic::include_proto!("moby.buildkit.v1.frontend");
            }
        }
        pub mod secrets {
            pub mod v1 {
                tonic::include_proto!("moby.buildkit.secrets.v1");
            }
        }
    }
    pub mod filesync {
        pub mod v1 {
            tonic::include_proto!("moby.filesync.v1");
        }
    }
    pub mod sshforward {
        pub mod v1 {
            tonic::include_proto!("moby.sshforward.v1");
        }
    }
    pub mod upload {
        pub mod v1 {
            tonic::include_proto!("moby.upload.v1");
        }
    }
    pub mod exporter {
        pub mod v1 {
            tonic::include_proto!("moby.exporter.v1");
        }
    }
}

/// Registry credentials over a session; the same package as [`filesync`].
pub use moby::filesync::v1 as auth;
pub use moby::{
    buildkit::secrets::v1 as secrets,
    buildkit::v1 as control,
    buildkit::v1::{apicaps, frontend as gateway, sourcepolicy, types},
    exporter::v1 as exporter,
    filesync::v1 as filesync,
    sshforward::v1 as ssh,
    upload::v1 as upload,
};
