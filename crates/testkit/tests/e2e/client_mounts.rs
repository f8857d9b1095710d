//! What is mounted into a step, as programs ask for it.

use std::os::unix::net::UnixListener;

use cooper_llb::build::{Constraints, Exec, MountKind, MountSpec, SecretSpec, SshSpec, State};
use cooper_proto::pb::{self, CacheSharingOpt};
use cooper_session::serve::SshAgent;

use crate::client::{
    Bench, Files, args, bind, copy, mkdir, mkfile, mount, read_only, request, sh, tmpfs,
    with_secrets,
};
use crate::read;

fn cache(target: &str, source: &State, id: &str, sharing: CacheSharingOpt) -> MountSpec {
    let id = id.to_owned();
    mount(target, source, MountKind::Cache { id, sharing })
}

fn with(mut exec: Exec, mounts: Vec<MountSpec>) -> Exec {
    exec.mounts = mounts;
    exec
}

/// A command that waits for both states.
fn after(bench: &Bench, one: &State, two: &State) -> State {
    bench.image().run(with(
        args(&["true"]),
        vec![bind("/m1", one), bind("/m2", two)],
    ))
}

#[test]
fn exe04_caches_outlive_builds_and_have_a_base() {
    let bench = Bench::start();
    let (shared, none) = (CacheSharingOpt::Shared, State::scratch());
    let image = bench.image().dir("/wd");
    let base = image.run_mounted(
        with(sh("echo -n base > baz"), vec![bind("/wd", &none)]),
        "/wd",
    );
    let base = base.unwrap();
    let one = cache("/wd", &none, "mycache1", shared);
    let two = cache("/wd2", &base, "mycache2", shared);
    let made = image
        .run(with(sh("echo -n first > foo"), vec![one.clone()]))
        .run(with(
            sh("cat foo && echo -n second > /wd2/bar"),
            vec![one, two],
        ));
    bench.solve(&made);
    bench.solve(&made);
    let mounts = vec![
        bind("/wd", &none),
        cache("/src0", &none, "mycache1", shared),
        cache("/src1", &base, "mycache2", shared),
    ];
    let script = "cp /src0/foo . && cp /src1/bar . && cp /src1/baz .";
    let out = bench.files(&image.run_mounted(with(sh(script), mounts), "/wd").unwrap());
    for (name, content) in [("foo", "first"), ("bar", "second"), ("baz", "base")] {
        assert_eq!(read(&out.path().join(name)), content);
    }
    bench.end();
}

#[test]
fn exe04_sol17_a_build_without_cache_begins_its_caches_anew() {
    let bench = Bench::start();
    let locked =
        |target: &str, id: &str| cache(target, &State::scratch(), id, CacheSharingOpt::Locked);
    let (one, two) = (locked("/m1", "mycache1"), locked("/m2", "mycache2"));
    let both = vec![one.clone(), two.clone()];
    let image = bench.image();
    bench.solve(&image.run(with(sh("touch /m1/foo; touch /m2/bar"), both.clone())));
    let mut anew = with(sh("[ ! -f /m1/foo ]; touch /m1/foo2"), vec![one]);
    anew.constraints = Constraints::default().ignore_cache(true);
    bench.solve(&image.run(anew));
    bench.solve(&image.run(with(sh("[ -f /m1/foo2 ]; [ -f /m2/bar ]"), both)));
    bench.end();
}

#[test]
fn exe04_one_cache_is_mounted_twice() {
    let bench = Bench::start();
    let locked = |target: &str| {
        cache(
            target,
            &State::scratch(),
            "mycache1",
            CacheSharingOpt::Locked,
        )
    };
    let script = "[ ! -f /m2/foo ]; touch /m1/foo; [ -f /m2/foo ]";
    bench.solve(
        &bench
            .image()
            .run(with(sh(script), vec![locked("/m1"), locked("/m2")])),
    );
    bench.end();
}

#[test]
fn exe04_shared_caches_are_shared_and_locked_ones_are_not() {
    let bench = Bench::start();
    let image = bench.image().dir("/wd");
    let meet = |own: &str, other: &str, base: &State| {
        let script = format!(
            "touch {own}; n=0; while [ ! -f {other} ]; do n=$((n+1)); [ $n -lt 100 ]; usleep 100000; done"
        );
        let mount = cache("/wd", base, "shared", CacheSharingOpt::Shared);
        image.run(with(sh(&script), vec![mount]))
    };
    for base in [State::scratch(), bench.image()] {
        bench.solve(&after(
            &bench,
            &meet("one", "two", &base),
            &meet("two", "one", &base),
        ));
    }
    let miss = |own: &str, other: &str| {
        let script = format!(
            "touch {own}; if [ -f {other} ]; then exit 0; fi; for i in $(seq 5); do \
             if [ -f {other} ]; then exit 1; fi; usleep 100000; done"
        );
        let mount = cache("/wd", &State::scratch(), "locked", CacheSharingOpt::Locked);
        image.run(with(sh(&script), vec![mount]))
    };
    bench.solve(&after(&bench, &miss("one", "two"), &miss("two", "one")));
    bench.end();
}

/// A relative target counts from the working directory; no source at all is an empty one.
#[test]
fn mnt01_targets_may_be_relative_and_sources_missing() {
    let bench = Bench::start();
    let none = State::scratch();
    let image = bench.image().dir("/root");
    let relative = with(
        sh("echo -n data > /root/relpath/data"),
        vec![bind("relpath", &none)],
    );
    let out = bench.files(&image.run_mounted(relative, "relpath").unwrap());
    assert_eq!(read(&out.path().join("data")), "data");

    let nothing = MountSpec {
        selector: "/".into(),
        ..read_only("/nil", &none)
    };
    let made = with(args(&["/bin/true"]), vec![nothing, bind("/mnt", &none)]);
    bench.solve(&image.run_mounted(made, "/mnt").unwrap());
    bench.end();
}

#[test]
fn exe03_what_is_mounted_is_part_of_the_key() {
    let bench = Bench::start();
    let other = bench.image().run(sh("touch /marker"));
    let script = |not: &str| sh(&format!("[ {not} -f /m1/marker ]"));
    bench.solve(
        &bench
            .image()
            .run(with(script(""), vec![read_only("/m1", &other)])),
    );
    bench.solve(
        &bench
            .image()
            .run(with(script("!"), vec![read_only("/m1", &bench.image())])),
    );
    bench.end();
}

#[test]
fn ex09_mount_points_that_were_made_are_removed() {
    let bench = Bench::start();
    let made = bench
        .image()
        .files(vec![mkdir("/test"), mkdir("/test/qux/")]);
    let mounts = ["/test/foo", "/test/bar/x/y", "/test/baz/x", "/test/qux"].map(tmpfs);
    let made = made.run(with(args(&["touch", "/test/baz/keep"]), mounts.to_vec()));
    let only = cooper_llb::build::CopySpec {
        dir_contents_only: true,
        ..copy(&made, "/test", "/")
    };
    let archive = bench.stream(request(&State::scratch().copy(only)), "tar", &[]);
    assert_eq!(archive.names(), ["baz/", "baz/keep", "qux/"]);

    // What the runtime needs stays, and nothing else.
    let base = bench.stream(request(&bench.image()), "tar", &[]);
    let ran = bench.image().run(sh("touch /sys/written || true"));
    let ran = bench.stream(request(&ran), "tar", &[]);
    let added: Vec<_> = ran
        .names()
        .into_iter()
        .filter(|name| !base.0.contains_key(*name))
        .collect();
    assert_eq!(added, ["dev/", "proc/", "sys/"]);
    for name in added {
        let header = &ran.entry(name).header;
        assert_eq!(header.mode().unwrap() & 0o777, 0o755, "{name}");
        assert_eq!(
            (header.uid().unwrap(), header.gid().unwrap()),
            (0, 0),
            "{name}"
        );
    }
    bench.end();
}

#[test]
fn ex09_folders_above_mounts_keep_their_times() {
    let bench = Bench::start();
    let made = bench.image().run(with(
        sh("touch -d @1234567890 /bin /etc /var /tmp /tmp/foo2"),
        vec![tmpfs("/var/foo"), tmpfs("/tmp/foo2/bar")],
    ));
    let archive = bench.stream(request(&made), "tar", &[]);
    for name in ["bin/", "etc/", "var/", "tmp/"] {
        assert_eq!(
            archive.entry(name).header.mtime().unwrap(),
            1_234_567_890,
            "{name}"
        );
    }
    bench.end();
}

#[test]
fn mnt02_nothing_is_written_to_a_root_that_is_read_only() {
    let bench = Bench::start();
    let mut touch = with(
        args(&["/bin/touch", "/foo"]),
        vec![bind("/mnt", &State::scratch())],
    );
    touch.read_only_root = true;
    let error = bench.fails(&bench.image().run_mounted(touch, "/mnt").unwrap());
    let expected = "process \"/bin/touch /foo\" did not complete successfully: exit code: 1";
    assert!(error.contains(expected), "{error}");
    bench.end();
}

#[test]
fn exe05_memory_is_a_mount_of_a_size() {
    let bench = Bench::start();
    let mut sized = tmpfs("/foobar");
    sized.kind = MountKind::Tmpfs { size: 128 << 20 };
    let run = with(
        sh("grep /foobar /proc/mounts > /out; echo x > /foobar/x"),
        vec![sized],
    );
    let made = bench.image().run(run);
    let out = bench.files(&State::scratch().copy(copy(&made, "/out", "/")));
    let line = read(&out.path().join("out"));
    assert!(
        line.contains("tmpfs") && line.contains("size=131072k"),
        "{line}"
    );
    assert!(line.contains("rw,nosuid"), "{line}");
    bench.end();
}

fn secret(target: Option<&str>, env: Option<&str>, id: &str) -> SecretSpec {
    SecretSpec {
        target: target.map(str::to_owned),
        env: env.map(str::to_owned),
        options: pb::SecretOpt {
            id: id.into(),
            mode: 0o400,
            ..pb::SecretOpt::default()
        },
    }
}

#[test]
fn exe06_secrets_are_files_in_memory() {
    let bench = Bench::start();
    let path = "/run/secrets/mysecret";
    let run = |script: &str, edit: &dyn Fn(&mut pb::SecretOpt), id: &str| {
        let mut exec = sh(script);
        let mut spec = secret(Some(path), None, id);
        edit(&mut spec.options);
        exec.secrets.push(spec);
        bench.image().run(exec)
    };
    let script =
        format!("mount | grep mysecret | grep 'type tmpfs'; [ $(cat {path}) = foo-secret ]");
    let state = run(&script, &|_| (), path);
    let solve = with_secrets(request(&state), &[(path, "foo-secret")]);
    bench.try_solve(solve).unwrap();

    let state = run(
        &format!("[ ! -f {path} ]"),
        &|options| options.optional = true,
        path,
    );
    bench.try_solve(with_secrets(request(&state), &[])).unwrap();
    bench.solve(&state);

    let state = run("echo secret3", &|_| (), path);
    let error = bench
        .try_solve(with_secrets(request(&state), &[]))
        .unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
    assert!(bench.fails(&state).contains("not found"));

    let script = format!("[ \"$(stat -c '%u %g %f' {path})\" = '1 1 81ff' ]");
    let owner = |options: &mut pb::SecretOpt| {
        (options.uid, options.gid, options.mode) = (1, 1, 0o777);
    };
    let state = run(&script, &owner, "mysecret");
    bench
        .try_solve(with_secrets(request(&state), &[("mysecret", "pw")]))
        .unwrap();
    let state = run(&format!("[ -f {path} ]"), &|_| (), "mysecret");
    bench
        .try_solve(with_secrets(request(&state), &[("mysecret", "")]))
        .unwrap();
    bench.end();
}

#[test]
fn exe12_secrets_are_variables() {
    let bench = Bench::start();
    let run = |script: &str, secrets: Vec<SecretSpec>| {
        let mut exec = sh(script);
        exec.secrets = secrets;
        request(&bench.image().run(exec))
    };
    let own = || secret(None, Some("MY_SECRET"), "MY_SECRET");
    let solve = run("[ \"$MY_SECRET\" = foo-secret ]", vec![own()]);
    bench
        .try_solve(with_secrets(solve, &[("MY_SECRET", "foo-secret")]))
        .unwrap();
    let mut optional = own();
    optional.options.optional = true;
    let solve = || run("[ -z \"$MY_SECRET\" ]", vec![optional.clone()]);
    bench.try_solve(with_secrets(solve(), &[])).unwrap();
    bench.try_solve(solve()).unwrap();
    let solve = run("echo foo", vec![own()]);
    let error = bench.try_solve(with_secrets(solve, &[])).unwrap_err();
    assert!(
        error.to_string().contains("secret MY_SECRET: not found"),
        "{error}"
    );
    let both = vec![
        secret(None, Some("MYPASSWORD"), "pass"),
        secret(None, Some("MYTOKEN"), "MYTOKEN"),
    ];
    let solve = run("[ $MYPASSWORD-$MYTOKEN = pw-token ]", both);
    bench
        .try_solve(with_secrets(solve, &[("pass", "pw"), ("MYTOKEN", "token")]))
        .unwrap();
    bench.end();
}

#[test]
fn exe07_agents_are_sockets() {
    let bench = Bench::start();
    let dir = bench.folder();
    let socket = dir.path().join("raw.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let ssh = |target: &str, options: pb::SshOpt| SshSpec {
        target: target.into(),
        options,
    };
    let agent = SshAgent { socket, raw: true };

    let mut exec = sh("echo test");
    let default = pb::SshOpt {
        id: "default".into(),
        ..pb::SshOpt::default()
    };
    exec.ssh.push(ssh("", default));
    let error = bench.fails(&bench.image().run(exec));
    assert!(
        error.contains("no SSH key \"default\" forwarded from the client"),
        "{error}"
    );

    let mut exec = sh("[ -z \"$(ls /run/buildkit 2>/dev/null)\" ]");
    let optional = pb::SshOpt {
        optional: true,
        ..pb::SshOpt::default()
    };
    exec.ssh.push(ssh("", optional));
    bench.solve(&bench.image().run(exec));

    let mut exec = sh(
        "[ $SSH_AUTH_SOCK = /run/buildkit/ssh_agent.0 ]; [ \"$(stat -c '%u %g %f' \
                       $SSH_AUTH_SOCK)\" = '7 8 c1c0' ]",
    );
    let owned = pb::SshOpt {
        id: "other".into(),
        uid: 7,
        gid: 8,
        mode: 0o700,
        ..pb::SshOpt::default()
    };
    exec.ssh.push(ssh("", owned));
    let mut solve = request(&bench.image().run(exec));
    solve.services.ssh.insert("other".into(), agent);
    bench.try_solve(solve).unwrap();
    bench.end();
}

/// Far more layers than one call of mount(2) has room for.
#[test]
fn snp02_a_chain_of_many_layers_is_mounted() {
    let bench = Bench::start();
    let mut base = bench.image();
    for _ in 0..110 {
        base = base.files(vec![mkfile("/hello", "hello")]);
    }
    bench.solve(&base);
    let ls = with(
        args(&["ls", "-l", "/base/hello"]),
        vec![read_only("/base", &base)],
    );
    bench.solve(&bench.image().run(ls));
    bench.end();
}

/// The number of paths through this graph is huge, that of its operations is not.
#[test]
fn sol08_mounts_of_mounts_do_not_multiply() {
    let bench = Bench::start();
    let mut state = bench.image();
    let mut mounted: Vec<State> = Vec::new();
    for _ in 0..12 {
        mounted.push(bench.image());
        let mounts: Vec<_> = mounted
            .iter()
            .enumerate()
            .map(|(j, source)| MountSpec {
                selector: "/bin".into(),
                ..bind(&format!("/tmp/bin{j}"), source)
            })
            .collect();
        let exec = with(args(&["true"]), mounts);
        mounted = (0..mounted.len())
            .map(|j| {
                state
                    .run_mounted(exec.clone(), &format!("/tmp/bin{j}"))
                    .unwrap()
            })
            .collect();
        state = state.run(exec);
    }
    bench.solve(&state);
    bench.end();
}
