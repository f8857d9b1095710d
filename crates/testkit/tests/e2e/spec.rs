//! What a container of a step is like from within.

use std::process::Command;
use std::time::Duration;

use cooper_llb::build::{Exec, State};
use cooper_proto::pb;
use cooper_testkit::{Started, bin, run};

use crate::client::{Bench, Files, args, copy, sh};
use crate::read;

/// What a command writes to `/o/out`.
fn output(bench: &Bench, state: &State, mut exec: Exec) -> String {
    exec.mounts
        .push(crate::client::bind("/o", &State::scratch()));
    let made = state.run_mounted(exec, "/o").unwrap();
    let out = bench.files(&State::scratch().copy(copy(&made, "/out", "/")));
    read(&out.path().join("out"))
}

fn says(bench: &Bench, script: &str) -> String {
    output(
        bench,
        &bench.image(),
        sh(&format!("{{ {script}; }} > /o/out")),
    )
}

#[test]
fn oci01_a_container_has_these_rights_and_mounts() {
    let bench = Bench::start();
    let rights = |user: &str| {
        let exec = sh("grep -E '^(Cap|NoNewPrivs)' /proc/self/status > /o/w/out");
        let state = bench.image().user(user);
        let mut exec = exec;
        exec.mounts.push(crate::client::bind("/o", &mkdir_open()));
        let made = state.run_mounted(exec, "/o").unwrap();
        let out = bench.files(&State::scratch().copy(copy(&made, "/w/out", "/")));
        read(&out.path().join("out")).replace('\t', " ")
    };
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE,
    // NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
    let (all, none) = ("00000000a80425fb", "0000000000000000");
    assert_eq!(
        rights(""),
        format!(
            "CapInh: {none}\nCapPrm: {all}\nCapEff: {all}\nCapBnd: {all}\nCapAmb: {none}\n\
             NoNewPrivs: 0\n"
        )
    );
    assert_eq!(
        rights("1000"),
        format!(
            "CapInh: {none}\nCapPrm: {none}\nCapEff: {none}\nCapBnd: {all}\nCapAmb: {none}\n\
             NoNewPrivs: 0\n"
        )
    );

    let mounts = says(&bench, "cat /proc/mounts");
    let mount = |path: &str| {
        let found = mounts
            .lines()
            .find(|line| line.split(' ').nth(1) == Some(path));
        let words = found.unwrap_or_else(|| panic!("no {path} in\n{mounts}"));
        let words: Vec<_> = words.split(' ').collect();
        let options: Vec<_> = words[3].split(',').map(str::to_owned).collect();
        (words[2].to_owned(), options)
    };
    for (path, kind, options) in [
        ("/proc", "proc", &["nosuid", "nodev", "noexec"][..]),
        ("/dev", "tmpfs", &["nosuid", "size=65536k", "mode=755"]),
        (
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "gid=5", "mode=620"],
        ),
        (
            "/dev/shm",
            "tmpfs",
            &["nosuid", "nodev", "noexec", "size=65536k"],
        ),
        ("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]),
        ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
    ] {
        let (found, all) = mount(path);
        assert_eq!(found, kind, "{path}");
        for option in options {
            assert!(
                all.iter().any(|one| one == option),
                "{path}: {option} in {all:?}"
            );
        }
    }
    assert!(
        !mounts.lines().any(|line| line.contains(" /run ")),
        "{mounts}"
    );
    // Nothing of the daemon's folder is seen but by the kernel's own words for the root.
    let others = mounts
        .lines()
        .filter(|line| line.split(' ').nth(1) != Some("/"));
    assert!(
        !others.collect::<String>().contains("cooper-daemon"),
        "{mounts}"
    );

    // Namespaces of its own, and itself as the first process.
    assert_eq!(says(&bench, "echo $$"), "1\n");
    // A headline, the shell and `ps`. In a pipe the other end would be there or not yet.
    let processes = says(&bench, "ps > /processes; wc -l < /processes");
    assert_eq!(processes.trim(), "3");
    bench.end();
}

/// A folder that anybody may write into.
fn mkdir_open() -> State {
    State::scratch().files(vec![cooper_llb::build::FileAction::Mkdir {
        path: "/w".into(),
        mode: 0o777,
        make_parents: false,
        owner: None,
        created: None,
    }])
}

#[test]
fn oci02_what_of_the_kernel_is_hidden_is_hidden() {
    let bench = Bench::start();
    let script = "for p in /proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats \
         /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware \
         /sys/devices/virtual/powercap; do \
         if [ -d $p ]; then [ -z \"$(ls -A $p)\" ] || echo open $p; \
         ! touch $p/x 2>/dev/null || echo written $p; \
         elif [ -e $p ]; then [ \"$(head -c 1 $p | wc -c)\" = 0 ] || echo open $p; \
         [ -c $p ] || echo no device $p; fi; done; \
         for p in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do \
         [ ! -e $p ] || grep \" $p \" /proc/mounts | grep -q ' ro,' || echo writable $p; done; \
         ! echo x > /proc/sys/kernel/hostname || echo renamed; \
         ! echo h > /proc/sysrq-trigger || echo asked";
    assert_eq!(says(&bench, &format!("{{ {script}; }} 2>/dev/null")), "");
    bench.end();
}

#[test]
fn oci03_there_are_these_devices_and_no_others() {
    let bench = Bench::start();
    let found = says(&bench, "ls /dev");
    for name in [
        "full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero", "mqueue",
    ] {
        assert!(found.lines().any(|line| line == name), "{name}: {found}");
    }
    for name in found.lines() {
        let links = ["fd", "stdin", "stdout", "stderr", "core"];
        let known = [
            "full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero", "mqueue",
        ];
        assert!(links.contains(&name) || known.contains(&name), "{name}");
    }
    assert_eq!(
        says(
            &bench,
            "cd /dev; stat -c '%n %t:%T %a %u' null zero full random urandom tty"
        ),
        "null 1:3 666 0\nzero 1:5 666 0\nfull 1:7 666 0\nrandom 1:8 666 0\nurandom 1:9 666 0\n\
         tty 5:0 666 0\n"
    );
    // A node for another may be made and not be opened: the memory, a disk, the kernel's log.
    let script = "cd /tmp; mknod mem c 1 1; mknod disk b 254 0; mknod log c 1 11; \
         for d in mem disk log; do head -c 1 $d 2>&1 | sed 's/.*: //'; done; \
         mknod zero c 1 5; head -c 3 zero | wc -c";
    assert_eq!(
        says(&bench, script),
        "Operation not permitted\nOperation not permitted\nOperation not permitted\n3\n"
    );
    bench.end();
}

#[test]
fn oci04_limits_are_the_daemons_unless_asked_for() {
    let bench = Bench::start();
    let limits = |text: &str| -> Vec<String> {
        let lines = text.lines().skip(1);
        lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    // The daemon may have more files open than it was started with: steps may not.
    let started_with = run(Command::new("cat").arg("/proc/self/limits")).success();
    assert_eq!(
        limits(&says(&bench, "cat /proc/self/limits")),
        limits(&started_with.output)
    );
    let mut exec = sh(
        "ulimit -n > /o/out; ulimit -Hn >> /o/out; ulimit -c >> /o/out; \
                       ulimit -u >> /o/out",
    );
    for (name, soft, hard) in [("nofile", 100, 200), ("core", 0, 0), ("nproc", 77, 88)] {
        exec.ulimits.push(pb::Ulimit {
            name: name.into(),
            soft,
            hard,
        });
    }
    assert_eq!(output(&bench, &bench.image(), exec), "100\n200\n0\n77\n");
    let mut exec = sh("true");
    exec.ulimits.push(pb::Ulimit {
        name: "nonsense".into(),
        soft: 1,
        hard: 1,
    });
    let error = bench.fails(&bench.image().run(exec));
    assert!(error.contains("nonsense"), "{error}");
    bench.end();
}

#[test]
fn oci09_exe17_the_hosts_file_is_made_and_read_only() {
    let bench = Bench::start();
    let plain = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    assert_eq!(says(&bench, "cat /etc/hosts"), plain);
    let options = says(&bench, "grep ' /etc/hosts ' /proc/mounts | cut -d ' ' -f 4");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(
            options.trim().split(',').any(|one| one == option),
            "{options}"
        );
    }
    let error = bench.fails(&bench.image().run(sh("echo x >> /etc/hosts")));
    assert!(error.contains("exit code: 1"), "{error}");
    // The image's own file is neither seen nor changed.
    let own = bench
        .image()
        .files(vec![crate::client::mkfile("/etc/hosts", "own\n")]);
    assert_eq!(output(&bench, &own, sh("cat /etc/hosts > /o/out")), plain);
    let kept = own.run(sh("true"));
    let out = bench.files(&State::scratch().copy(copy(&kept, "/etc/hosts", "/")));
    assert_eq!(read(&out.path().join("hosts")), "own\n");

    // Names matter for the key, addresses do not.
    let build = |hosts: &[(&str, &str)]| {
        let mut exec =
            sh("tail -n +3 /etc/hosts > /o/out; cat /proc/sys/kernel/random/uuid >> /o/out");
        for (host, ip) in hosts {
            exec.extra_hosts.push(pb::HostIp {
                host: (*host).into(),
                ip: (*ip).into(),
            });
        }
        output(&bench, &bench.image(), exec)
    };
    let first = build(&[("a.example", "10.0.0.1"), ("b.example", "fd00::1")]);
    assert!(
        first.starts_with("10.0.0.1\ta.example\nfd00::1\tb.example\n"),
        "{first}"
    );
    assert_eq!(
        build(&[("a.example", "10.0.0.9"), ("b.example", "fd00::1")]),
        first
    );
    assert_ne!(
        build(&[("c.example", "10.0.0.1"), ("b.example", "fd00::1")]),
        first
    );
    bench.end();
}

#[test]
fn oci10_the_resolvers_file_is_the_hosts_or_as_configured() {
    let bench = Bench::start();
    let seen = says(&bench, "cat /etc/resolv.conf");
    let of_host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("nameserver"));
        lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    match servers(&of_host) {
        none if none.is_empty() => assert!(!servers(&seen).is_empty(), "{seen}"),
        some => assert_eq!(servers(&seen), some),
    }
    let error = bench.fails(&bench.image().run(sh("echo x >> /etc/resolv.conf")));
    assert!(error.contains("exit code: 1"), "{error}");
    bench.end();

    let config = "[dns]\n  nameservers = [\"192.0.2.1\", \"192.0.2.2\"]\n  \
                  options = [\"edns0\", \"ndots:2\"]\n  searchDomains = [\"a.example\", \"b.example\"]\n";
    let bench = Bench::with_config(config);
    let seen = says(&bench, "grep -v '^#' /etc/resolv.conf | sort");
    assert_eq!(
        seen.trim(),
        "nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions edns0 ndots:2\n\
         search a.example b.example"
    );
    bench.end();
}

#[test]
fn ex01_wrk02_the_runtime_is_chosen_and_has_to_be_there() {
    if cooper_testkit::by_containerd() {
        // It takes a name of containerd's and no program.
        return;
    }
    let bench = Bench::with_config("[worker.oci]\n  binary = \"runc\"\n");
    bench.solve(&bench.image().run(sh("true")));
    bench.end();

    let dir = tempfile::Builder::new()
        .prefix("cooper-none-")
        .tempdir()
        .unwrap();
    let at = |name: &str| dir.path().join(name);
    for (config, part) in [
        (
            "[worker.oci]\n  binary = \"/not/there/runc\"\n",
            "/not/there/runc",
        ),
        ("[worker.oci]\n  enabled = false\n", "no worker"),
        ("[worker.oci]\n  snapshotter = \"nothing\"\n", "nothing"),
    ] {
        std::fs::write(at("config.toml"), config).unwrap();
        let mut command = Command::new(bin("cooperd"));
        command
            .arg("--config")
            .arg(at("config.toml"))
            .arg("--root")
            .arg(at("root"))
            .arg(format!("--addr=unix://{}", at("sock").display()));
        let ran = Started::new(&mut command).finish_within(Duration::from_secs(20));
        ran.fails_with(&[part]);
    }
    drop(dir);
}

#[test]
fn ex02_streams_codes_and_the_end_of_a_process() {
    let bench = Bench::start();
    // Nothing comes in, and who reads is told so.
    assert_eq!(
        says(&bench, "wc -c; [ -t 0 ] || echo no terminal"),
        "0\nno terminal\n"
    );
    for (script, code) in [
        ("exit 3", "exit code: 3"),
        ("kill -TERM $$", "exit code: 143"),
        ("kill -KILL $$", "exit code: 137"),
        ("exit 256", "exit code: 0"),
    ] {
        let exec = args(&[
            "sh",
            "-c",
            &format!("trap - TERM; sh -c '{script}'; exit $?"),
        ]);
        match code {
            "exit code: 0" => bench.solve(&bench.image().run(exec)),
            _ => {
                let error = bench.fails(&bench.image().run(exec));
                assert!(error.contains(code), "{script}: {error}");
            }
        }
    }
    // The first process itself, which the kernel shields from signals without a handler.
    let error =
        bench.fails(
            &bench
                .image()
                .run(args(&["sh", "-c", "ulimit -t 1; while :; do :; done"])),
        );
    assert!(error.contains("exit code: 1"), "{error}");
    // What it leaves behind does not keep the step, and ends with it.
    let begin = std::time::Instant::now();
    bench.solve(
        &bench
            .image()
            .run(sh("sleep 86471 & sleep 86471 >/dev/null 2>&1 & true")),
    );
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(cooper_testkit::leak::running("sleep 86471"), 0);
    // Standard output and error are pipes and can be opened by their names.
    bench.solve(&bench.image().run(sh(
        "echo x > /dev/stdout; echo x > /proc/self/fd/2; ls -l /proc/self/fd",
    )));
    let open = says(&bench, "ls /proc/self/fd | tr '\\n' ' '");
    assert!(open.starts_with("0 1 2"), "{open}");
    bench.end();
}

#[test]
fn exe02_the_search_path_is_there_unless_another_one_is() {
    let bench = Bench::start();
    let path = |env: Option<&str>| {
        let mut state = bench.image();
        if let Some(value) = env {
            state = state.add_env("PATH", value);
        }
        let exec = args(&[
            "/bin/sh",
            "-c",
            "echo \"[$PATH]\" > /o/out; env | /bin/grep -c ^PATH= >> /o/out",
        ]);
        let exec = match env {
            Some(_) => args(&["/bin/sh", "-c", "echo \"[$PATH]\" > /o/out"]),
            None => exec,
        };
        output(&bench, &state, exec)
    };
    let default = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(path(None), format!("[{default}]\n1\n"));
    assert_eq!(path(Some("/mine:/bin")), "[/mine:/bin]\n");
    // The program itself is looked for there.
    let found = bench
        .image()
        .add_env("PATH", "/nowhere")
        .run(args(&["true"]));
    let error = bench.fails(&found);
    assert!(error.contains("\"true\" did not complete"), "{error}");
    bench.solve(
        &bench
            .image()
            .add_env("PATH", "/nowhere:/bin")
            .run(args(&["true"])),
    );
    bench.end();
}
