//! Compiles the `.proto` files with `protox`, so that no `protoc` has to be installed.

use std::path::Path;

use protox::prost::Message;

const FILES: &[&str] = &[
    "containerd/runtime/options.proto",
    "containerd/runtime/runc/options.proto",
    "containerd/services/containers/v1/containers.proto",
    "containerd/services/content/v1/content.proto",
    "containerd/services/diff/v1/diff.proto",
    "containerd/services/images/v1/images.proto",
    "containerd/services/introspection/v1/introspection.proto",
    "containerd/services/leases/v1/leases.proto",
    "containerd/services/snapshots/v1/snapshots.proto",
    "containerd/services/tasks/v1/tasks.proto",
    "containerd/services/version/v1/version.proto",
    "cooper/v1/disk.proto",
    "errdefs/errdefs.proto",
    "fsutil/types/stat.proto",
    "fsutil/types/wire.proto",
    "google/rpc/status.proto",
    "moby/buildkit/secrets/v1/secrets.proto",
    "moby/buildkit/v1/apicaps/caps.proto",
    "moby/buildkit/v1/control.proto",
    "moby/buildkit/v1/frontend/gateway.proto",
    "moby/buildkit/v1/sourcepolicy/policy.proto",
    "moby/buildkit/v1/types/worker.proto",
    "moby/exporter/v1/exporter.proto",
    "moby/filesync/v1/auth.proto",
    "moby/filesync/v1/filesync.proto",
    "moby/sshforward/v1/ssh.proto",
    "moby/upload/v1/upload.proto",
    "pb/ops.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, [Path::new("proto")])?;
    let out = std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?;
    let kept = Path::new(&out).join("descriptors.bin");
    std::fs::write(kept, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Ordered maps make the bytes of a message the same every time: digests are of bytes.
        .btree_map(".")
        .bytes(".pb.Definition.def")
        .bytes(".fsutil.types.Packet.data")
        .bytes(".moby.buildkit.v1.BytesMessage.data")
        .bytes(".moby.buildkit.v1.VertexLog.msg")
        .bytes(".moby.filesync.v1.BytesMessage.data")
        .bytes(".moby.sshforward.v1.BytesMessage.data")
        .bytes(".moby.upload.v1.BytesMessage.data")
        .bytes(".containerd.services.content.v1.ReadContentResponse.data")
        .bytes(".containerd.services.content.v1.WriteContentRequest.data")
        .compile_fds(descriptors)?;
    Ok(())
}
