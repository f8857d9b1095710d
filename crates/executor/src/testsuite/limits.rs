//! What a container may use.

use cooper_sys::cgroup::Hierarchies;

use super::{Fixture, shell};
use crate::{ContainerSpec, ExecError, Resources, Ulimit};

const MIB: i64 = 1 << 20;

/// Prints the file of the container's own group: of version 1 below its controller.
fn read(controller: &str, v1: &str, v2: &str) -> String {
    format!("cat /sys/fs/cgroup/{controller}/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}")
}

async fn limited(fixture: &Fixture, resources: Resources, script: &str) -> String {
    let container = ContainerSpec {
        resources,
        ..fixture.container()
    };
    fixture.script(container, script).await.trim().to_owned()
}

pub(super) async fn memory_is_limited(fixture: &Fixture) {
    let resources = Resources {
        memory: 64 * MIB,
        memory_swap: 96 * MIB,
        ..Resources::default()
    };
    let script = read("memory", "memory.limit_in_bytes", "memory.max");
    let text = limited(fixture, resources.clone(), &script).await;
    assert_eq!(text, (64 * MIB).to_string());
    // Together with swap in version 1, swap alone in version 2; not each kernel counts it.
    let unified = Hierarchies::detect().unwrap().unified();
    let script = "cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes 2>/dev/null || \
                  cat /sys/fs/cgroup/memory.swap.max 2>/dev/null || echo uncounted";
    let text = limited(fixture, resources, script).await;
    let swap = if unified { 32 * MIB } else { 96 * MIB };
    assert!(text == swap.to_string() || text == "uncounted", "{text}");
}

pub(super) async fn processor_time_is_limited(fixture: &Fixture) {
    let resources = Resources {
        cpu_period: 50_000,
        cpu_quota: 20_000,
        ..Resources::default()
    };
    let script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us \
                  2>/dev/null || cat /sys/fs/cgroup/cpu.max";
    let text = limited(fixture, resources, script).await;
    let numbers: Vec<_> = text.split_whitespace().collect();
    assert_eq!(numbers, ["20000", "50000"]);
}

pub(super) async fn processor_shares_are_set(fixture: &Fixture) {
    let resources = Resources {
        cpu_shares: 512,
        ..Resources::default()
    };
    let script = read("cpu", "cpu.shares", "cpu.weight");
    let text = limited(fixture, resources, &script).await;
    // A weight of version 2 is made from shares: 1 + (shares - 2) * 9999 / 262142, or on newer
    // runtimes by a curve through 100 at 1024.
    let weight = text.parse::<u64>().unwrap();
    assert!(weight == 512 || (10..100).contains(&weight), "{text}");
}

pub(super) async fn processors_are_chosen(fixture: &Fixture) {
    let resources = Resources {
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        ..Resources::default()
    };
    let script = "grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status | cut -f2";
    let text = limited(fixture, resources, script).await;
    assert_eq!(text, "0\n0");
}

pub(super) async fn without_limits_there_are_none(fixture: &Fixture) {
    let script = read("memory", "memory.limit_in_bytes", "memory.max");
    let text = limited(fixture, Resources::default(), &script).await;
    let none = text == "max" || text.parse::<u64>().unwrap() > 1 << 50;
    assert!(none, "{text}");
}

pub(super) async fn a_control_group_can_be_put_elsewhere(fixture: &Fixture) {
    let hierarchies = Hierarchies::detect().unwrap();
    let own = format!("{}/own", fixture.parent);
    let container = ContainerSpec {
        id: Some("placed".into()),
        // It does not lead out of the hierarchy.
        cgroup_parent: format!("/../{own}"),
        ..fixture.container()
    };
    let (input, keep) = super::pipe();
    let process = crate::Process {
        stdin: crate::Input::Fd(input),
        ..shell("echo up; cat")
    };
    let (running, mut output) = super::process::piped_in(fixture, container, process).await;
    std::io::Read::read_exact(&mut output, &mut [0; 3]).unwrap();
    let group = format!("/{own}/buildkit/placed");
    assert!(!hierarchies.processes(&group).is_empty());
    drop(keep);
    assert!(running.wait().await.unwrap().success());
    drop(running);
    fixture.executor.close().await;
    assert_eq!(
        hierarchies.directories(&group),
        Vec::<std::path::PathBuf>::new()
    );
}

pub(super) async fn each_limit_of_processes_is_set(fixture: &Fixture) {
    // As /proc names them, and the unit that it shows.
    let names = [
        ("core", "Max core file size"),
        ("cpu", "Max cpu time"),
        ("data", "Max data size"),
        ("fsize", "Max file size"),
        ("locks", "Max file locks"),
        ("memlock", "Max locked memory"),
        ("msgqueue", "Max msgqueue size"),
        ("nice", "Max nice priority"),
        ("nofile", "Max open files"),
        ("nproc", "Max processes"),
        ("rss", "Max resident set"),
        ("rtprio", "Max realtime priority"),
        ("rttime", "Max realtime timeout"),
        ("sigpending", "Max pending signals"),
        ("stack", "Max stack size"),
    ];
    // Nobody may raise them here; what is unlimited is as good as a large number.
    let own = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = |text: &str, title: &str| {
        let line = text.lines().find(|line| line.starts_with(title));
        let values = line.unwrap()[title.len()..].split_whitespace();
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    let limit = |(number, (name, title)): (usize, &(&str, &str))| {
        let most = line(&own, title)[1].parse::<i64>().unwrap_or(1 << 34);
        Ulimit {
            name: (*name).into(),
            soft: most / 2,
            hard: (most - number as i64).max(most / 2),
        }
    };
    let limits: Vec<_> = names.iter().enumerate().map(limit).collect();
    let container = ContainerSpec {
        ulimits: limits.clone(),
        ..fixture.container()
    };
    let process = crate::Process::new(["/bin/cat", "/proc/self/limits"]);
    let (exit, text) = fixture.run(container, process).await;
    assert!(exit.success(), "{text}");
    for (limit, (_, title)) in limits.iter().zip(names) {
        let expected = [limit.soft, limit.hard].map(|value| value.to_string());
        assert_eq!(line(&text, title)[..2], expected, "{title}");
    }
}

pub(super) async fn a_limit_can_be_lifted(fixture: &Fixture) {
    let container = ContainerSpec {
        ulimits: vec![Ulimit {
            name: "core".into(),
            soft: -1,
            hard: -1,
        }],
        ..fixture.container()
    };
    let text = fixture.script(container, "ulimit -c; ulimit -H -c").await;
    assert_eq!(text, "unlimited\nunlimited\n");
}

pub(super) async fn other_limits_are_those_of_the_daemon(fixture: &Fixture) {
    let own = std::fs::read_to_string("/proc/self/limits").unwrap();
    let process = crate::Process::new(["/bin/cat", "/proc/self/limits"]);
    let (_, text) = fixture.run(fixture.container(), process).await;
    for title in ["Max stack size", "Max processes", "Max core file size"] {
        let of = |text: &str| {
            let line = text.lines().find(|line| line.starts_with(title));
            line.unwrap().to_owned()
        };
        assert_eq!(of(&text), of(&own));
    }
}

pub(super) async fn an_unknown_limit_is_named(fixture: &Fixture) {
    let container = ContainerSpec {
        ulimits: vec![Ulimit {
            name: "files".into(),
            soft: 1,
            hard: 1,
        }],
        ..fixture.container()
    };
    let error = fixture.executor.start(container, shell("true")).await;
    let error = error.err().unwrap();
    assert!(matches!(error, ExecError::Ulimit { .. }), "{error}");
    assert!(error.to_string().contains("files"), "{error}");
}

pub(super) async fn a_kill_is_no_want_of_memory(fixture: &Fixture) {
    let container = ContainerSpec {
        resources: Resources {
            memory: 64 * MIB,
            ..Resources::default()
        },
        ..fixture.container()
    };
    let (exit, _) = fixture
        .run(container, shell("sh -c 'kill -9 $$'; exit $?"))
        .await;
    assert_eq!((exit.code, exit.oom), (137, false));
}

pub(super) async fn use_is_told(fixture: &Fixture) {
    let script = "head -c 30000000 /dev/zero | sha256sum > /dev/null; x=$(head -c 8000000 /dev/zero \
                  | tr '\\0' a); echo ${#x}";
    let mut process = shell(script);
    let written = super::Written::default();
    process.stdout = written.output();
    let running = fixture.executor.start(fixture.container(), process);
    let running = running.await.unwrap();
    assert!(running.wait().await.unwrap().success());
    assert_eq!(written.text(), "8000000\n");
    let usage = running.usage().expect("use is measured");
    assert!(usage.cpu.as_millis() >= 5, "{usage:?}");
    assert!(usage.cpu.as_secs() < 60, "{usage:?}");
    // Not each kernel counts these.
    let memory = usage.memory_peak;
    assert!(memory.is_none_or(|peak| peak >= 8_000_000), "{usage:?}");
    let processes = usage.processes_peak;
    assert!(processes.is_none_or(|peak| peak >= 3), "{usage:?}");
}
