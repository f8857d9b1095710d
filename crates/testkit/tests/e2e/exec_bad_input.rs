//! Steps that cannot be run: the error names the step and the cause, and the daemon goes on.

use std::time::Duration;

use cooper_llb::build::{Exec, MountKind, MountSpec, SecretSpec, State};
use cooper_proto::pb;
use cooper_testkit::leak;

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

/// A daemon whose runtime is runc but for what `script` does, a part of a shell's `case` on the
/// configuration of the container, or on the arguments when there is none.
fn with_runtime(script: &str) -> (Bench, tempfile::TempDir) {
    let dir = tempfile::Builder::new()
        .prefix("cooper-runtime-")
        .tempdir()
        .unwrap();
    let path = dir.path().join("runtime");
    let text = format!(
        "#!/bin/sh\nlast=; bundle=\nfor word in \"$@\"; do\n\
         [ \"$last\" = --bundle ] && bundle=$word\nlast=$word\ndone\n\
         if [ -n \"$bundle\" ]; then what=$(cat \"$bundle/config.json\"); else what=\"$*\"; fi\n\
         case \"$what\" in\n{script}\nesac\nexec runc \"$@\"\n"
    );
    std::fs::write(&path, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    let config = format!("[worker.oci]\n  binary = \"{}\"\n", path.display());
    (Bench::with_config(&config), dir)
}

#[test]
fn ex01_a_runtime_that_ends_at_once_or_prints_garbage_fails_its_step_alone() {
    if cooper_testkit::by_containerd() {
        // It has runtimes of its own.
        return;
    }
    let (bench, dir) = with_runtime(
        "*be-gone*) exit 0 ;;\n*be-three*) exit 3 ;;\n*be-killed*) kill -9 $$ ;;\n\
         *be-garbage*) head -c 200000 /dev/urandom; head -c 200000 /dev/urandom >&2; exit 1 ;;\n\
         *be-lies*) echo '{{{' > \"$bundle/log.json\"; echo -5 > \"$bundle/pid\"; exit 1 ;;",
    );
    check(
        &bench,
        &bench.image(),
        vec![
            case(
                args(&["echo", "be-gone"]),
                &["echo be-gone", "ended and started nothing"],
            ),
            case(
                args(&["echo", "be-three"]),
                &["echo be-three", "exit code: 3"],
            ),
            case(
                args(&["echo", "be-killed"]),
                &["echo be-killed", "exit code: 137"],
            ),
            case(
                args(&["echo", "be-garbage"]),
                &["echo be-garbage", "exit code: 1"],
            ),
            case(
                args(&["echo", "be-lies"]),
                &["echo be-lies", "exit code: 1"],
            ),
        ],
    );
    bench.end();
    drop(dir);
}

#[test]
fn ex01_a_runtime_that_hangs_is_ended_with_its_build_and_others_go_on() {
    if cooper_testkit::by_containerd() {
        return;
    }
    let sleep = "sleep 86471";
    let (bench, dir) = with_runtime(&format!("*be-hung*) exec {sleep} ;;"));
    let token = tokio_util::sync::CancellationToken::new();
    let hung = bench.image().run(args(&["echo", "be-hung"]));
    let solve = cooper_client::Solve {
        cancelled: token.clone(),
        ..request(&hung)
    };
    let sleeps = |count: usize| async move {
        while leak::running(sleep) != count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    bench.rt.block_on(async {
        let mut discard = |_| ();
        let hangs = bench.client.solve(solve, &mut discard);
        let meanwhile = async {
            sleeps(1).await;
            let mut discard = |_| ();
            let fine = request(&bench.image().run(args(&["echo", "fine"])));
            bench.client.solve(fine, &mut discard).await.unwrap();
            token.cancel();
        };
        let both = futures::future::join(Box::pin(hangs), Box::pin(meanwhile));
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(30), both)
            .await
            .expect("a build that is given up ends");
        assert!(ended.unwrap_err().is_cancelled());
        tokio::time::timeout(Duration::from_secs(5), sleeps(0))
            .await
            .expect("what hangs is ended");
    });
    bench.check_steps();
    bench.end();
    drop(dir);
}

#[test]
fn ex01_a_runtime_that_does_not_say_what_it_can_do_is_used_all_the_same() {
    if cooper_testkit::by_containerd() {
        return;
    }
    for script in ["*--help*) sleep 86472 ;;", "*--help*) yes --keep ;;"] {
        let (bench, dir) = with_runtime(script);
        bench.solve(&bench.image().run(sh("true")));
        assert_eq!(leak::running("sleep 86472"), 0);
        let error = bench.fails(&bench.image().run(sh("exit 7")));
        assert!(error.contains("exit code: 7"), "{error}");
        bench.end();
        drop(dir);
    }
}
