//! Cooper as a service of systemd, with the units of `dist`, and steps in systemd's slices.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cooper_client::Client;
use cooper_llb::build::{Exec, Local, State};
use cooper_proto::pb;
use cooper_testkit::{bin, run, wait_until};

use crate::client::{Bench, request, sh, with_dir};
use crate::limits::{GROUPS, limit, only, while_it_runs};

const UNITS: &str = "/etc/systemd/system";
const SOCKET: &str = "unix:///run/cooper/cooperd.sock";

pub(crate) fn systemctl(words: &[&str]) -> String {
    let ran = run(Command::new("systemctl").args(words));
    ran.output.trim().to_owned()
}

fn property(name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, "cooperd.service"])
}

fn install() {
    for unit in ["cooperd.service", "cooperd.socket"] {
        std::fs::copy(
            Path::new("/data/units").join(unit),
            Path::new(UNITS).join(unit),
        )
        .unwrap();
    }
    for program in ["cooper", "cooperd"] {
        let to = Path::new("/usr/local/bin").join(program);
        if !to.exists() {
            std::fs::copy(bin(program), to).unwrap();
        }
    }
    std::fs::create_dir_all("/etc/buildkit").unwrap();
    let runtime = std::env::var("COOPER_TEST_RUNTIME").unwrap_or_default();
    let config = format!(
        "[worker.oci]\nbinary = \"{runtime}\"\n\
         defaultCgroupParent = \"/system.slice/cooperd.service\"\n"
    );
    std::fs::write("/etc/buildkit/buildkitd.toml", config).unwrap();
    assert_eq!(systemctl(&["daemon-reload"]), "");
}

/// A step that waits, on a base that the client sends.
pub(crate) fn waits(base: &Path) -> cooper_client::Solve {
    let local = State::local("base", Local::default(), Default::default());
    let mut exec = Exec {
        args: ["/bin/busybox", "sleep", "600"].map(str::to_owned).to_vec(),
        ..Exec::default()
    };
    exec.constraints = exec.constraints.resources(pb::LinuxResources {
        memory: 64 << 20,
        ..pb::LinuxResources::default()
    });
    with_dir(request(&local.run(exec)), "base", base)
}

#[test]
fn a_service_is_started_by_its_socket_and_has_the_groups_of_its_steps_below_its_own() {
    install();
    systemctl(&["start", "cooperd.socket"]);
    assert_eq!(systemctl(&["is-active", "cooperd.service"]), "inactive");
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir(base.path().join("bin")).unwrap();
    std::fs::copy("/bin/busybox", base.path().join("bin/busybox")).unwrap();
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let own = Path::new(GROUPS).join("system.slice/cooperd.service");
    // Twice: what a stop leaves is in nobody's way.
    for _ in 0..2 {
        let client = rt.block_on(Client::connect(SOCKET)).unwrap();
        let solve = waits(base.path());
        let solving = rt.spawn(async move { client.solve(solve, &mut |_| ()).await.map(drop) });
        let mut group = None;
        wait_until("the step has a group", Duration::from_secs(90), || {
            assert!(
                !solving.is_finished(),
                "{}",
                systemctl(&["status", "cooperd"])
            );
            group = only(&own.join("buildkit"));
            group.is_some()
        });
        assert_eq!(systemctl(&["is-active", "cooperd.service"]), "active");
        assert_eq!(property("StatusErrno"), "0");
        limit(&group.unwrap(), "memory.max", "67108864");
        let pid = property("MainPID");
        let place = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(place.trim(), "0::/system.slice/cooperd.service/init");
        // It says that the socket can start it again.
        systemctl(&["stop", "cooperd.service"]);
        rt.block_on(solving).unwrap().unwrap_err();
        assert_eq!(property("ActiveState"), "inactive");
        assert_eq!(property("Result"), "success");
        assert!(!own.exists(), "{own:?} is left");
        assert_eq!(cooper_testkit::leak::running("/bin/busybox sleep 600"), 0);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("/var/lib/cooper"), "{mounts}");
    }
    systemctl(&["stop", "cooperd.socket"]);
}

#[test]
fn steps_are_scopes_of_a_slice() {
    let bench = Bench::start();
    let mut exec = Exec {
        cgroup_parent: "foo-bar.slice:cooper:".into(),
        ..sh("true")
    };
    exec.constraints = exec.constraints.resources(pb::LinuxResources {
        memory: 64 << 20,
        ..pb::LinuxResources::default()
    });
    if std::env::var("COOPER_TEST_RUNTIME").as_deref() == Ok("builtin") {
        // It speaks to no service manager, and says so.
        let error = bench.fails(&bench.image().run(exec));
        assert!(error.contains("foo-bar.slice:cooper:"), "{error}");
    } else {
        let slice = Path::new(GROUPS).join("foo.slice/foo-bar.slice");
        while_it_runs(&bench, exec.clone(), &slice, |group| {
            let name = group.file_name().unwrap().to_string_lossy();
            assert!(
                name.starts_with("cooper-") && name.ends_with(".scope"),
                "{name}"
            );
            limit(group, "memory.max", "67108864");
        });
        exec.args = sh("true").args;
        bench.solve(&bench.image().run(exec));
        wait_until("the scopes go", Duration::from_secs(10), || {
            only(&slice).is_none()
        });
    }
    bench.solve(&bench.image().run(sh("true")));
    bench.end();
}
