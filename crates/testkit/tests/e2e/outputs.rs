//! The ways in which a result leaves the builder.

use std::process::Command;

use cooper_testkit::{Client, Context, Daemon, Pulled, Registry, leak, push_busybox, run};

use crate::Out;

const EPOCH: &str = "1700000000";

fn context(base: &str) -> Context {
    let dockerfile = format!(
        "FROM {base} AS work\n\
         RUN mkdir -p /tree/deep && echo file > /tree/deep/file && ln -s deep/file /tree/link && \
         ln /tree/deep/file /tree/hard && chmod 640 /tree/deep/file\n\
         FROM scratch\nCOPY --from=work /tree /tree\n"
    );
    Context::new().file("Dockerfile", dockerfile)
}

#[test]
fn a_tar_of_files_holds_them_as_they_are() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let context = context(&push_busybox(&registry));
    let daemon = Daemon::start();
    for client in Client::of(&daemon) {
        let out = Out::new();
        let tar = out.path("files.tar");
        let output = format!("--output=type=tar,dest={}", tar.display());
        client.build(&context, &[&output]).success();
        let list = run(Command::new("tar").arg("-tvf").arg(&tar))
            .success()
            .output;
        for part in [
            "-rw-r----- 0/0",
            "tree/deep/file",
            "tree/link -> deep/file",
            "link to tree/",
        ] {
            assert!(list.contains(part), "{part}: {list}");
        }
    }
    drop((daemon, registry, context));
    watch.check();
}

#[test]
fn an_image_is_of_oci_types_or_of_dockers_and_carries_annotations() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let context = context(&push_busybox(&registry));
    let daemon = Daemon::start();
    let client = Client::buildx(&daemon);
    let push = |name: &str, more: &str| {
        let name = format!("{}/typed:{name}", registry.host());
        let output = format!("--output=type=image,name={name},push=true{more}");
        client
            .build(&context, &["--provenance=false", &output])
            .success();
        Pulled::registry(&name)
    };
    let oci = push("oci", ",annotation.org.example.a=b");
    assert_eq!(
        oci.manifest["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(oci.manifest["annotations"]["org.example.a"], "b");
    assert_eq!(
        oci.manifest["layers"][0]["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
    let docker = push("docker", ",oci-mediatypes=false");
    assert_eq!(
        docker.manifest["mediaType"],
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    assert_eq!(
        docker.manifest["layers"][0]["mediaType"],
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    );
    assert_eq!(oci.config, docker.config);
    let zstd = push("zstd", ",compression=zstd,force-compression=true");
    assert_eq!(
        zstd.manifest["layers"][0]["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+zstd"
    );
    assert_eq!(zstd.config["rootfs"], oci.config["rootfs"]);
    let plain = push("plain", ",compression=uncompressed,force-compression=true");
    assert_eq!(
        plain.manifest["layers"][0]["digest"],
        plain.config["rootfs"]["diff_ids"][0]
    );
    drop((client, daemon, registry, context, oci, docker, zstd, plain));
    watch.check();
}

#[test]
fn an_image_has_several_names_and_a_push_by_digest_has_none() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let context = context(&push_busybox(&registry));
    let daemon = Daemon::start();
    let out = Out::new();
    let host = registry.host();
    let (a, b) = (format!("{host}/named/a:1"), format!("{host}/named/b:2"));
    for client in Client::of(&daemon) {
        let file = format!("--metadata-file={}", out.path("metadata.json").display());
        client
            .build(&context, &["--push", "--tag", &a, "--tag", &b, &file])
            .success();
        let told: serde_json::Value = serde_json::from_str(&out.read("metadata.json")).unwrap();
        assert_eq!(told["image.name"], format!("{a},{b}"), "{told}");
        let (first, second) = (Pulled::registry(&a), Pulled::registry(&b));
        assert_eq!(first.manifest, second.manifest);

        let output =
            format!("--output=type=image,name={host}/nameless,push=true,push-by-digest=true");
        client.build(&context, &[&output, &file]).success();
        let told: serde_json::Value = serde_json::from_str(&out.read("metadata.json")).unwrap();
        let digest = told["containerimage.digest"].as_str().unwrap();
        Pulled::registry(&format!("{host}/nameless@{digest}"));
        let tags = run(Command::new("skopeo")
            .args(["list-tags", "--tls-verify=false"])
            .arg(format!("docker://{host}/nameless")));
        assert!(!tags.output.contains("latest"), "{}", tags.output);
    }
    drop((daemon, registry, out, context));
    watch.check();
}

#[test]
fn an_epoch_makes_images_that_do_not_know_when_they_were_made() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let context = context(&push_busybox(&registry));
    let daemon = Daemon::start();
    let client = Client::buildx(&daemon);
    let name = format!("{}/timeless:1", registry.host());
    let epoch = format!("--build-arg=SOURCE_DATE_EPOCH={EPOCH}");
    client
        .build(&context, &["--push", "--tag", &name, &epoch])
        .success();
    let pulled = Pulled::registry(&name);
    assert_eq!(pulled.config["created"], "2023-11-14T22:13:20Z");
    for entry in pulled.config["history"].as_array().unwrap() {
        assert_eq!(entry["created"], "2023-11-14T22:13:20Z");
    }
    drop((client, daemon, registry, context, pulled));
    watch.check();
}
