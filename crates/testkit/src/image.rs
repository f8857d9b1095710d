//! Base images, made from Debian's packages and pushed with skopeo: no part of Cooper is in
//! them, so that a fault in Cooper cannot hide itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::Registry;
use crate::run::{bin, run};

/// Pushes `HOST/busybox:latest`: Debian's static busybox with its links. Returns the reference.
#[track_caller]
pub fn push_busybox(registry: &Registry) -> String {
    let layout = cached("busybox", |dir| {
        let root = dir.join("root");
        for folder in ["bin", "tmp", "etc", "root", "var"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox
            .iter()
            .find(|path| path.exists())
            .expect("busybox-static");
        std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
        let applets = run(Command::new(busybox).arg("--list")).success();
        for applet in applets.output.lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
        layout(dir, &root);
    });
    push(&layout, registry, "busybox:latest")
}

/// Pushes `HOST/debian:stable`: a minimal Debian with this machine's package sources.
#[track_caller]
pub fn push_debian(registry: &Registry) -> String {
    let layout = cached("debian", |dir| {
        let root = dir.join("root");
        let targets = run(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(COMPONENT) $(SITE) $(CODENAME)",
            "Created-By: Packages",
        ]))
        .success();
        let (site, suite) = targets
            .output
            .lines()
            .filter_map(|line| line.strip_prefix("Debian main "))
            .filter_map(|rest| rest.split_once(' '))
            .find(|(_, suite)| !suite.contains('-'))
            .expect("apt knows a Debian release");
        run(Command::new("debootstrap")
            .args(["--variant=minbase", suite])
            .arg(&root)
            .arg(site))
        .success();
        for name in ["sources.list", "sources.list.d", "apt.conf.d"] {
            let from = Path::new("/etc/apt").join(name);
            if from.exists() {
                run(Command::new("cp")
                    .arg("-rT")
                    .arg(from)
                    .arg(root.join("etc/apt").join(name)))
                .success();
            }
        }
        // Sources beyond Debian need keys and certificates that the image does not have.
        for entry in std::fs::read_dir(root.join("etc/apt/sources.list.d")).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if !text.contains("debian-archive-keyring") && !text.contains(site) {
                std::fs::remove_file(&path).unwrap();
            }
        }
        layout(dir, &root);
    });
    push(&layout, registry, "debian:stable")
}

/// The folder of a thing that takes long to make, made once per build output. A half-made one
/// never has the final name.
fn cached(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = bin("testkit");
    let ready = folder.join(name);
    if !ready.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let work = folder.join(format!("{name}.tmp-{}", std::process::id()));
        std::fs::create_dir_all(&work).unwrap();
        make(&work);
        std::fs::rename(&work, &ready).unwrap();
    }
    ready.join("layout")
}

#[track_caller]
fn push(layout: &Path, registry: &Registry, name: &str) -> String {
    let reference = format!("{}/{name}", registry.host());
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}", layout.display()))
        .arg(format!("docker://{reference}")))
    .success();
    reference
}

/// Turns the tree `root` into an OCI image layout (OCI image spec, "Image Layout") in
/// `dir/layout` with one gzip layer, and removes the tree.
fn layout(dir: &Path, root: &Path) {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all("", root).unwrap();
    let archive = archive.into_inner().unwrap();
    let layer = blob(&blobs, &compress(&archive));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/sh"],
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&archive)] },
        "history": [{ "created_by": "testkit" }],
    });
    let config = blob(&blobs, config.to_string().as_bytes());
    let descriptor = |kind: &str, (digest, size): &(String, usize)| {
        let kind = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({ "mediaType": kind, "digest": digest, "size": size })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar+gzip", &layer)],
    });
    let manifest = blob(&blobs, manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [descriptor("manifest.v1+json", &manifest)],
    });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    std::fs::remove_dir_all(root).unwrap();
}

fn blob(folder: &Path, bytes: &[u8]) -> (String, usize) {
    let digest = digest(bytes);
    std::fs::write(folder.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    (digest, bytes.len())
}

pub(crate) fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
