//! Control groups of version 2: where those of steps are, and what they limit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cooper_llb::build::{Exec, State};
use cooper_proto::pb;
use cooper_testkit::wait_until;

use crate::client::{Bench, bind, request, sh};

/// Where the guest mounts its groups.
pub(crate) const GROUPS: &str = "/sys/fs/cgroup";

/// What a script writes to `/o/out`.
pub(crate) fn output(bench: &Bench, mut exec: Exec) -> String {
    exec.mounts.push(bind("/o", &State::scratch()));
    let made = bench.image().run_mounted(exec, "/o").unwrap();
    let out = bench.files(&made);
    std::fs::read_to_string(out.path().join("out")).unwrap()
}

/// The only group below `parent`, at any depth, that has a process: the built-in runtime keeps some
/// ready that have none, and for crun there is one around the container's.
pub(crate) fn only(parent: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(parent).ok()?;
    let mut groups = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir());
    groups.find_map(|group| {
        let processes = std::fs::read_to_string(group.join("cgroup.procs")).ok()?;
        if processes.is_empty() {
            only(&group)
        } else {
            Some(group)
        }
    })
}

/// Starts a step that waits, gives its group to `look`, and gives the step up.
pub(crate) fn while_it_runs(
    bench: &Bench,
    mut exec: Exec,
    parent: &Path,
    look: impl FnOnce(&Path),
) {
    exec.args = sh("sleep 600").args;
    let solve = request(&bench.image().run(exec));
    let cancelled = solve.cancelled.clone();
    let client = bench.client.clone();
    let solving = bench
        .rt
        .spawn(async move { client.solve(solve, &mut |_| ()).await.map(drop) });
    let mut found = None;
    wait_until("the step has a group", Duration::from_secs(60), || {
        found = only(parent);
        found.is_some()
    });
    let found = found.unwrap();
    look(&found);
    cancelled.cancel();
    bench.rt.block_on(solving).unwrap().unwrap_err();
    wait_until("the group goes", Duration::from_secs(20), || {
        !found.exists()
    });
}

fn limited(resources: pb::LinuxResources) -> Exec {
    let mut exec = sh("true");
    exec.constraints = exec.constraints.resources(resources);
    exec
}

fn read(group: &Path, file: &str) -> String {
    let text = std::fs::read_to_string(group.join(file));
    text.unwrap_or_else(|error| panic!("{file}: {error}"))
        .trim()
        .to_owned()
}

/// Waits until the runtime has set the limit: the process is in the group before that.
pub(crate) fn limit(group: &Path, file: &str, expected: &str) {
    wait_until(file, Duration::from_secs(10), || {
        read(group, file) == expected
    });
}

#[test]
fn a_step_has_a_namespace_and_a_group_of_its_own() {
    let bench = Bench::start();
    let text = output(&bench, sh("cat /proc/self/cgroup > /o/out"));
    assert_eq!(text.trim(), "0::/");
    let text = output(
        &bench,
        sh("grep ' /sys/fs/cgroup ' /proc/self/mounts > /o/out; \
            mkdir /sys/fs/cgroup/x 2>> /o/out || true"),
    );
    assert!(
        text.contains("cgroup2 ro,") && text.contains("Read-only file system"),
        "{text}"
    );
    bench.end();
}

#[test]
fn limits_are_in_the_files_of_the_group() {
    let bench = Bench::start();
    let exec = limited(pb::LinuxResources {
        memory: 64 << 20,
        memory_swap: 80 << 20,
        cpu_shares: 512,
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpuset_cpus: "1".into(),
        ..pb::LinuxResources::default()
    });
    while_it_runs(&bench, exec, &Path::new(GROUPS).join("buildkit"), |group| {
        limit(group, "memory.max", "67108864");
        limit(group, "memory.swap.max", "16777216");
        limit(group, "cpu.max", "25000 50000");
        limit(group, "cpuset.cpus", "1");
        let weight: u64 = read(group, "cpu.weight").parse().unwrap();
        assert!((10..100).contains(&weight), "{weight}");
    });
    bench.end();
}

#[test]
fn want_of_memory_is_said_with_the_step_and_ends_it_alone() {
    let bench = Bench::start();
    let mut exec = sh("x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo ${#x}");
    exec.constraints = exec.constraints.resources(pb::LinuxResources {
        memory: 32 << 20,
        memory_swap: 32 << 20,
        ..pb::LinuxResources::default()
    });
    let error = bench.fails(&bench.image().run(exec));
    for part in ["head -c 200000000", "cannot allocate memory"] {
        assert!(error.contains(part), "{error}");
    }
    // A kill that memory has nothing to do with; not of the first process, which cannot kill itself.
    let error = bench.fails(&bench.image().run(sh("sh -c 'kill -9 $$' || exit 137")));
    assert!(!error.contains("cannot allocate memory"), "{error}");
    bench.solve(&bench.image().run(sh("true")));
    bench.end();
}

#[test]
fn a_step_says_the_group_above_its_own() {
    let bench = Bench::start();
    let exec = Exec {
        cgroup_parent: "/asked/for".into(),
        ..limited(pb::LinuxResources {
            memory: 64 << 20,
            ..pb::LinuxResources::default()
        })
    };
    let parent = Path::new(GROUPS).join("asked/for/buildkit");
    while_it_runs(&bench, exec, &parent, |group| {
        limit(group, "memory.max", "67108864");
    });
    bench.end();
}

#[test]
fn the_daemon_is_told_the_group_above_those_of_steps() {
    let config = "[worker.oci]\ndefaultCgroupParent = \"/chosen\"\n";
    let bench = Bench::with_config(config);
    let parent = Path::new(GROUPS).join("chosen/buildkit");
    while_it_runs(&bench, sh("true"), &parent, |group| {
        assert!(read(group, "cgroup.controllers").contains("memory"));
    });
    bench.end();
}

#[test]
fn a_limit_of_processes_above_holds_for_steps() {
    let parent = Path::new(GROUPS).join("few");
    std::fs::create_dir_all(&parent).unwrap();
    std::fs::write(parent.join("pids.max"), "20").unwrap();
    let bench = Bench::start();
    let exec = Exec {
        cgroup_parent: "/few".into(),
        ..sh("for i in $(seq 60); do sleep 100 & done; true")
    };
    let error = bench.fails(&bench.image().run(exec));
    assert!(error.contains("did not complete successfully"), "{error}");
    bench.end();
}

#[test]
fn many_layers_are_mounted_one_way_or_the_other() {
    let bench = Bench::start();
    let mut made = bench.image();
    for number in 0..90 {
        made = made.run(sh(&format!("echo {number} > /file-{number}")));
        // An emulated machine takes its time: no build is longer than it may be.
        if number % 20 == 19 {
            bench.solve(&made);
        }
    }
    let mut exec = sh("ls / | grep -c '^file-' > /o/out");
    exec.mounts.push(bind("/o", &State::scratch()));
    let out = bench.files(&made.run_mounted(exec, "/o").unwrap());
    let text = std::fs::read_to_string(out.path().join("out")).unwrap();
    assert_eq!(text.trim(), "90");
    bench.end();
}
