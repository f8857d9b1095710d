//! The daemon's command line.

use std::process::Command;

use cooper_testkit::{Client, Context, Daemon, bin, leak, run};

/// Every flag of buildkitd with a value of its kind, but those that name files that have to be
/// there.
const FLAGS: &[&str] = &[
    "--trace=false",
    "--log-format=json",
    "--log-level=debug",
    "--group=0",
    "--debugaddr=127.0.0.1:0",
    "--allow-insecure-entitlement=network.host",
    "--allow-insecure-entitlement=security.insecure",
    "--proxy-network=false",
    "--otel-socket-path=/run/no-such-socket",
    "--cdi-disabled=true",
    "--cdi-spec-dir=/etc/cdi",
    "--save-cache-debug=false",
    "--rootless=false",
    "--oci-worker=TRUE",
    "--oci-worker-labels=a=b",
    "--oci-worker-snapshotter=auto",
    "--oci-worker-platform=linux/amd64",
    "--oci-worker-net=host",
    "--oci-cni-config-path=/etc/buildkit/cni.json",
    "--oci-cni-binary-dir=/opt/cni/bin",
    "--oci-cni-pool-size=0",
    "--oci-worker-bridge-name=kit0",
    "--oci-worker-bridge-subnet=10.222.0.0/16",
    "--oci-worker-binary=",
    "--oci-worker-proxy-snapshotter-path=",
    "--oci-worker-apparmor-profile=",
    "--oci-worker-selinux=false",
    "--oci-worker-rootless=false",
    "--oci-worker-no-process-sandbox=false",
    "--oci-worker-gc=false",
    "--oci-worker-gc-keepstorage=100,200,300",
    "--oci-max-parallelism=num-cpu",
    "--containerd-worker=false",
    "--containerd-worker-addr=/run/no-such-containerd.sock",
    "--containerd-worker-labels=c=d",
    "--containerd-worker-platform=linux/amd64",
    "--containerd-worker-namespace=kit",
    "--containerd-worker-runtime=io.containerd.runc.v2",
    "--containerd-worker-net=host",
    "--containerd-cni-config-path=/etc/buildkit/cni.json",
    "--containerd-cni-binary-dir=/opt/cni/bin",
    "--containerd-cni-pool-size=0",
    "--containerd-worker-bridge-name=kit0",
    "--containerd-worker-bridge-subnet=10.222.0.0/16",
    "--containerd-worker-snapshotter=overlayfs",
    "--containerd-worker-apparmor-profile=",
    "--containerd-worker-selinux=false",
    "--containerd-worker-rootless=false",
    "--containerd-worker-gc=false",
    "--containerd-worker-gc-keepstorage=100",
    "--containerd-max-parallelism=4",
];

#[test]
fn dmn01_every_flag_of_buildkitd_is_taken() {
    let watch = leak::Watch::begin();
    // The kit's own options and these say some things twice, as wrappers do.
    let daemon = Daemon::with_options("", FLAGS);
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let client = Client::cooper(&daemon);
    client
        .build(&context, &["--output=type=cacheonly"])
        .success();
    assert!(
        daemon.log().contains("\"level\":\"INFO\""),
        "{}",
        daemon.log()
    );
    drop((client, daemon, context));
    watch.check();
}

#[test]
fn dmn01_flags_go_before_the_configuration() {
    let watch = leak::Watch::begin();
    let config = "[log]\nformat = \"json\"\n[worker.oci]\nlabels = { from = \"file\", both = \"file\" }\n\
                  platforms = [\"linux/arm64\"]\n";
    let options = [
        "--oci-worker-labels=both=flag",
        "--oci-worker-platform=linux/riscv64",
        "--log-format=text",
    ];
    let daemon = Daemon::with_options(config, &options);
    let Client::Buildx(buildx) = Client::buildx(&daemon) else {
        unreachable!()
    };
    let shown = run(buildx.command().args(["inspect", "cooper"])).success();
    for expected in ["file", "flag", "linux/riscv64"] {
        assert!(shown.output.contains(expected), "{}", shown.output);
    }
    assert!(!shown.output.contains("linux/arm64"), "{}", shown.output);
    let log = daemon.log();
    assert!(
        log.contains(" INFO ") && !log.contains("{\"timestamp"),
        "{log}"
    );
    drop((buildx, daemon));
    watch.check();
}

#[test]
fn dmn01_what_means_nothing_is_refused_with_its_name() {
    for (arguments, expected) in [
        (["--no-such-flag", "--debug"], "--no-such-flag"),
        (["--oci-worker=perhaps", "--debug"], "--oci-worker"),
        (["--group=no-such-group", "--debug"], "no-such-group"),
        (["--log-format=xml", "--debug"], "--log-format"),
        (["--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (
            ["--allow-insecure-entitlement=all", "--debug"],
            "invalid entitlement : all",
        ),
        (
            ["--addr=/run/x.sock", "--debug"],
            "you meant unix:///run/x.sock ?",
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        let mut command = Command::new(bin("cooperd"));
        let ran = run(command.args(arguments).arg("--root").arg(root.path()));
        ran.fails_with(&[expected]);
    }
}

#[test]
fn dmn03_the_version_has_four_fields() {
    for flag in ["--version", "-v", "-version"] {
        let ran = run(Command::new(bin("cooperd")).arg(flag)).success();
        let fields: Vec<_> = ran.output.split_whitespace().collect();
        let [program, package, version, revision] = fields[..] else {
            panic!("{flag}: {}", ran.output);
        };
        assert_eq!(ran.output.lines().count(), 1);
        assert_eq!(program, "cooperd");
        assert!(package.contains("cooper"), "{package}");
        // Scripts take the third for a version.
        let numbers = version.trim_start_matches('v').split(['.', '-']).take(3);
        assert!(
            numbers.clone().count() == 3 && numbers.clone().all(|it| it.parse::<u32>().is_ok())
        );
        assert!(!revision.is_empty());
    }
}

#[test]
fn dmn03_buildx_shows_the_same_version() {
    let watch = leak::Watch::begin();
    let ran = run(Command::new(bin("cooperd")).arg("--version")).success();
    let version = ran.output.split_whitespace().nth(2).unwrap().to_owned();
    let daemon = Daemon::start();
    let Client::Buildx(buildx) = Client::buildx(&daemon) else {
        unreachable!()
    };
    let shown = run(buildx.command().args(["inspect", "cooper"])).success();
    assert!(shown.output.contains(&version), "{}", shown.output);
    drop((buildx, daemon));
    watch.check();
}
