//! AppArmor's profile for steps.

use std::io::Write;
use std::process::{Command, Stdio};

use cooper_llb::build::State;
use cooper_proto::control::StatusResponse;
use cooper_proto::pb;

use crate::client::{Bench, bind, request, sh};
use crate::limits::output;

const PROFILE: &str = "profile cooper-test flags=(attach_disconnected,mediate_deleted) {\n  file,\n  \
                       capability,\n  network,\n  mount,\n  umount,\n  signal,\n  ptrace,\n  unix,\n  \
                       deny /forbidden/** rw,\n}\n";

fn load() {
    let mut parser = Command::new("apparmor_parser")
        .arg("--replace")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = parser.stdin.take().unwrap();
    input.write_all(PROFILE.as_bytes()).unwrap();
    drop(input);
    assert!(parser.wait().unwrap().success());
}

fn config(profile: &str) -> String {
    format!(
        "insecure-entitlements = [\"security.insecure\"]\n\
         [worker.oci]\napparmor-profile = \"{profile}\"\n"
    )
}

#[test]
fn a_step_is_confined_by_the_profile_and_an_insecure_one_is_not() {
    load();
    let bench = Bench::with_config(&config("cooper-test"));
    let script = "cat /proc/self/attr/current > /o/out; mkdir /forbidden; \
                  echo x > /forbidden/file || echo denied >> /o/out";
    let text = output(&bench, sh(script));
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        ["cooper-test (enforce)", "denied"]
    );
    let mut exec = sh(script);
    exec.security = pb::SecurityMode::Insecure;
    exec.mounts.push(bind("/o", &State::scratch()));
    let made = bench.image().run_mounted(exec, "/o").unwrap();
    let mut solve = request(&made);
    solve.request.entitlements = vec!["security.insecure".into()];
    let out = bench.export(solve);
    let text = std::fs::read_to_string(out.path().join("out")).unwrap();
    assert_eq!(text.trim(), "unconfined");
    bench.end();
}

#[test]
fn without_a_profile_steps_are_as_the_daemon() {
    let bench = Bench::start();
    let text = output(&bench, sh("cat /proc/self/attr/current > /o/out"));
    assert_eq!(text.trim(), "unconfined");
    bench.end();
}

#[test]
fn a_profile_that_is_not_loaded_is_named() {
    let bench = Bench::with_config(&config("no-such-profile"));
    // What the runtime says of it is what the step has printed; runc does not name the profile.
    let mut said = String::new();
    let mut progress = |status: StatusResponse| {
        let logs = status.logs.iter();
        said.extend(logs.map(|log| String::from_utf8_lossy(&log.msg).into_owned()));
    };
    let solve = request(&bench.image().run(sh("true")));
    let solved = bench.rt.block_on(bench.client.solve(solve, &mut progress));
    let error = solved.unwrap_err().to_string();
    assert!(error.contains("sh -e -c true"), "{error}");
    assert!(said.to_lowercase().contains("apparmor"), "{said}");
    let missing = "the AppArmor profile \"no-such-profile\" is not loaded";
    assert!(error.contains(missing), "{error}");
    bench.end();
}
