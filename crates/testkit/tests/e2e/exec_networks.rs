//! Networks of steps. Those of plug-ins need the programs of the package
//! `containernetworking-plugins`, and iptables.

use std::path::Path;

use cooper_llb::build::State;
use cooper_proto::pb;

use crate::client::{Bench, bind, sh};
use crate::read;

/// Where Debian has plug-ins.
const PLUGINS: &str = "/usr/lib/cni";

/// What a script writes to `/o/out`.
fn output(bench: &Bench, network: Option<pb::NetMode>, script: &str) -> String {
    let mut exec = sh(script);
    exec.network = network;
    exec.mounts = vec![bind("/o", &State::scratch())];
    let out = bench.image().run_mounted(exec, "/o").unwrap();
    read(&bench.files(&out).path().join("out"))
}

fn interfaces(bench: &Bench, network: Option<pb::NetMode>, number: u32) -> String {
    let script = format!("ls /sys/class/net | tr '\\n' ' ' > /o/out # {number}");
    output(bench, network, &script)
}

#[test]
fn ex04_steps_have_a_bridge_of_their_own() {
    if !Path::new(PLUGINS).join("bridge").exists() {
        return;
    }
    let name = format!("cooper{}", std::process::id() % 100_000);
    let config = format!(
        "insecure-entitlements = [\"network.host\"]\n[worker.oci]\nnetworkMode = \"bridge\"\n\
         cniPoolSize = 2\nbridgeName = {name:?}\nbridgeSubnet = \"10.203.77.0/24\"\n\
         cniBinaryPath = {PLUGINS:?}\n"
    );
    let bench = Bench::with_config(&config);
    let bridge = Path::new("/sys/class/net").join(&name);
    assert_eq!(interfaces(&bench, None, 1), "eth0 lo ");
    assert!(bridge.exists());
    let script = "ping -c 1 -W 5 10.203.77.1 > /dev/null && echo reached > /o/out";
    assert_eq!(output(&bench, None, script), "reached\n");
    let script = "cat /proc/net/route | grep -c ^eth0 > /o/out; ping -c 1 127.0.0.1 > /dev/null";
    assert_eq!(output(&bench, None, script), "2\n");
    // Who wants none has none.
    assert_eq!(interfaces(&bench, Some(pb::NetMode::None), 2), "lo ");
    bench.end();
    assert!(!bridge.exists(), "the bridge remains");
}

#[test]
fn ex04_steps_have_the_network_of_a_list_of_plugins() {
    if !Path::new(PLUGINS).join("ptp").exists() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("cni.json");
    let text = r#"{"cniVersion": "1.0.0", "name": "cooper-ptp", "plugins": [{"type": "ptp",
        "ipam": {"type": "host-local", "subnet": "10.203.78.0/24", "dataDir": "DIR/ipam"}}]}"#;
    let text = text.replace("DIR", dir.path().to_str().unwrap());
    std::fs::write(&list, text).unwrap();
    let config = format!(
        "[worker.oci]\nnetworkMode = \"cni\"\ncniConfigPath = {list:?}\ncniBinaryPath = {PLUGINS:?}\n"
    );
    let bench = Bench::with_config(&config);
    assert_eq!(interfaces(&bench, None, 1), "eth0 lo ");
    let script = "ping -c 1 -W 5 10.203.78.1 > /dev/null && echo reached > /o/out";
    assert_eq!(output(&bench, None, script), "reached\n");
    bench.end();
    // Each address was given back.
    let held = std::fs::read_dir(dir.path().join("ipam/cooper-ptp")).unwrap();
    let held: Vec<_> = held
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("10."))
        .collect();
    assert_eq!(held, [""; 0]);
}

#[test]
fn ex04_a_network_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("cni.json");
    let text = r#"{"name": "broken", "plugins": [{"type": "no-such-plugin"}]}"#;
    std::fs::write(&list, text).unwrap();
    let config = format!(
        "[worker.oci]\nnetworkMode = \"cni\"\ncniConfigPath = {list:?}\ncniBinaryPath = {PLUGINS:?}\n"
    );
    let bench = Bench::with_config(&config);
    let error = bench.fails(&bench.image().run(sh("true")));
    assert!(error.contains("sh -e -c true"), "{error}");
    assert!(error.contains("network plug-in"), "{error}");
    bench.end();
}
