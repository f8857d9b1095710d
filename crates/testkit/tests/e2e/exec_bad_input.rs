//! Steps that cannot be run: the error names the step and the cause, and the daemon goes on.

use cooper_llb::build::{Exec, MountKind, MountSpec, SecretSpec, State};
use cooper_proto::pb;

use crate::client::{Bench, Files, args, bind, mkfile, mount, read_only, request, sh};
use crate::read;

/// A step that fails, and what is said about it.
struct Case {
    exec: Exec,
    parts: &'static [&'static str],
}

fn case(exec: Exec, parts: &'static [&'static str]) -> Case {
    Case { exec, parts }
}

fn with(mut exec: Exec, mounts: Vec<MountSpec>) -> Exec {
    exec.mounts = mounts;
    exec
}

#[track_caller]
fn check(bench: &Bench, image: &State, cases: Vec<Case>) {
    for Case { exec, parts } in cases {
        let words = exec.args.join(" ");
        let state = image.run(exec);
        let error = bench.fails(&state);
        for part in parts {
            assert!(error.contains(part), "{words}: {part:?} is not in {error}");
        }
        bench.solve(&image.run(sh("true")));
    }
}

#[test]
fn exe01_commands_that_cannot_be_run_are_named() {
    let bench = Bench::start();
    let image = bench.image().run(sh(
        "mkdir /x; echo '#!/no/such/shell' > /x/script; chmod 755 /x/script; \
         echo text > /x/plain; mkdir /x/folder",
    ));
    check(
        &bench,
        &image,
        vec![
            case(
                args(&["/no/such/program", "word"]),
                &["\"/no/such/program word\"", "exit code"],
            ),
            case(
                args(&["no-such-program"]),
                &["\"no-such-program\"", "exit code"],
            ),
            case(args(&["/x/plain"]), &["\"/x/plain\"", "exit code"]),
            case(args(&["/x/folder"]), &["\"/x/folder\"", "exit code"]),
            case(args(&["/x/script"]), &["\"/x/script\"", "exit code"]),
        ],
    );
    bench.end();
}

#[test]
fn exe01_users_and_folders_that_are_not_there_are_named() {
    let bench = Bench::start();
    let image = bench.image().run(sh("echo text > /plain"));
    let fails = |state: &State, parts: &[&str]| {
        let error = bench.fails(&state.run(sh("true")));
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    };
    let step = "process \"sh -e -c true\" did not complete successfully";
    fails(
        &image.clone().user("nobody-knows"),
        &[step, "unable to find user nobody-knows"],
    );
    fails(
        &image.clone().user("root:no-group"),
        &[step, "unable to find group no-group"],
    );
    fails(&image.clone().user("-5"), &[step, "must be in range"]);
    fails(
        &image.clone().dir("/plain/below"),
        &[step, "failed to create working directory /plain/below"],
    );
    fails(&image.clone().dir("/plain"), &[step]);
    bench.solve(&image.run(sh("true")));
    bench.end();
}

#[test]
fn mnt07_mounts_that_do_not_fit_are_named() {
    let bench = Bench::start();
    let image = bench
        .image()
        .run(sh("echo text > /plain; mkdir /folder; ln -s /../../.. /up"));
    let source = State::scratch().files(vec![mkfile("/file", "content")]);
    let picked = |target: &str, selector: &str| MountSpec {
        selector: selector.into(),
        ..read_only(target, &source)
    };
    let on_file = with(sh("true"), vec![bind("/plain", &source)]);
    let on_folder = with(sh("true"), vec![picked("/folder", "/file")]);
    let missing = with(sh("true"), vec![picked("/m", "/missing")]);
    check(
        &bench,
        &image,
        vec![
            case(on_file, &["sh -e -c true"]),
            case(on_folder, &["sh -e -c true"]),
            case(missing, &["\"/missing\": not found"]),
        ],
    );
    // A link that leads out of the root leads to its top.
    let script = "cat /up/in/file > /o/text";
    let mounts = vec![
        picked("/up/in/file", "/file"),
        bind("/o", &State::scratch()),
    ];
    let out = image.run_mounted(with(sh(script), mounts), "/o").unwrap();
    assert_eq!(read(&bench.files(&out).path().join("text")), "content");
    bench.end();
}

#[test]
fn exe06_a_secret_that_is_missing_is_named() {
    let bench = Bench::start();
    let secret = |env: bool| {
        let mut exec = sh("true");
        exec.secrets.push(SecretSpec {
            target: Some("/s".into()).filter(|_: &String| !env),
            env: Some("S".into()).filter(|_: &String| env),
            options: pb::SecretOpt {
                id: "no-such-secret".into(),
                ..pb::SecretOpt::default()
            },
        });
        exec
    };
    check(
        &bench,
        &bench.image(),
        vec![
            case(secret(false), &["no-such-secret"]),
            case(secret(true), &["no-such-secret"]),
        ],
    );
    bench.end();
}

#[test]
fn exe05_sizes_of_tmpfs_that_make_no_sense_are_no_limit() {
    let bench = Bench::start();
    for (size, script) in [
        (0, "head -c 200000 /dev/zero > /t/x"),
        (-1, "head -c 200000 /dev/zero > /t/x"),
        // More than there is: it is only memory once it is written.
        (1 << 50, "head -c 200000 /dev/zero > /t/x"),
        (65536, "! head -c 200000 /dev/zero > /t/x"),
    ] {
        let tmpfs = mount("/t", &State::scratch(), MountKind::Tmpfs { size });
        let script = format!("{script} # {size}");
        bench.solve(&bench.image().run(with(sh(&script), vec![tmpfs])));
    }
    bench.end();
}

#[test]
fn exe22_output_without_end_is_cut_and_a_child_does_not_outlive_its_step() {
    let bench = Bench::start();
    let image = bench.image();
    // One line of ten megabytes, and one more afterwards.
    bench.solve(&image.run(sh(
        "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo end",
    )));
    // What is written when the step is over is nobody's.
    bench.solve(&image.run(sh("(sleep 1000; echo late) & echo early")));
    bench.end();
}

#[test]
fn exe17_a_name_cannot_add_lines_to_the_hosts_file() {
    let bench = Bench::start();
    let mut exec = sh("true");
    exec.extra_hosts.push(pb::HostIp {
        host: "one\n6.6.6.6 other".into(),
        ip: "1.2.3.4".into(),
    });
    let mut bad = sh("true");
    bad.extra_hosts.push(pb::HostIp {
        host: "one".into(),
        ip: "1.2.3.4\n6.6.6.6".into(),
    });
    let hostname = bench.image().hostname("one\n6.6.6.6 other");
    let error = bench.fails(&hostname.run(sh("true")));
    assert!(error.contains("invalid host name"), "{error}");
    check(
        &bench,
        &bench.image(),
        vec![
            case(exec, &["sh -e -c true", "invalid host name"]),
            case(bad, &["failed to parse IP"]),
        ],
    );
    bench.end();
}

#[test]
fn ex06_want_of_memory_is_said_with_the_step() {
    let bench = Bench::start();
    let script = "x=$(head -c 300000000 /dev/zero | tr '\\0' a); echo ${#x}";
    let mut exec = sh(script);
    exec.constraints = exec.constraints.resources(pb::LinuxResources {
        memory: 32 << 20,
        memory_swap: 32 << 20,
        ..pb::LinuxResources::default()
    });
    let error = bench.fails(&bench.image().run(exec));
    assert!(error.contains("head -c 300000000"), "{error}");
    assert!(error.contains("cannot allocate memory"), "{error}");
    bench.end();
}

#[test]
fn exe19_limits_are_set_and_do_not_matter_for_the_cache() {
    let bench = Bench::start();
    let limited = |resources| {
        let script = "cat /proc/sys/kernel/random/uuid > /o/id; \
                      (cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || \
                      cat /sys/fs/cgroup/memory.max) > /o/memory; \
                      grep Cpus_allowed_list /proc/self/status | cut -f2 > /o/cpus";
        let mut exec = with(sh(script), vec![bind("/o", &State::scratch())]);
        exec.constraints = exec.constraints.resources(resources);
        let out = bench.image().run_mounted(exec, "/o").unwrap();
        let out = bench.export(request(&out));
        ["id", "memory", "cpus"].map(|name| read(&out.path().join(name)))
    };
    let small = pb::LinuxResources {
        memory: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpuset_cpus: "0".into(),
        ..pb::LinuxResources::default()
    };
    let first = limited(small);
    assert_eq!(first[1].trim(), (64 << 20).to_string());
    assert_eq!(first[2].trim(), "0");
    // The same step with other limits is the same step.
    assert_eq!(limited(pb::LinuxResources::default()), first);
    bench.end();
}
