//! Mounts in the ways that the API has, those among them that client libraries do not write.

use cooper_client::Solve;
use cooper_llb::build::{MarshalOptions, MountSpec, SecretSpec, SshSpec, State};
use cooper_proto::pb::{self, CacheSharingOpt};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::client::{Bench, Files, bind, copy, mkdir, mkfile, read_only, request, sh, tmpfs};
use crate::read;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The graph of `state`, whose last operation is a command, with that operation changed, and
/// its output `index`.
fn edited(state: &State, index: i64, edit: impl FnOnce(&mut pb::ExecOp)) -> Solve {
    let mut definition = state.marshal(&MarshalOptions::default());
    let at = definition.def.len() - 2;
    let old = digest(&definition.def[at]);
    let mut op = pb::Op::decode(&*definition.def[at]).unwrap();
    let Some(pb::op::Op::Exec(exec)) = &mut op.op else {
        panic!("{op:?}");
    };
    edit(exec);
    let bytes = op.encode_to_vec();
    let new = digest(&bytes);
    definition.def[at] = bytes.into();
    let root = pb::Op {
        inputs: vec![pb::Input {
            digest: new.clone(),
            index,
        }],
        ..pb::Op::default()
    };
    definition.def[at + 1] = root.encode_to_vec().into();
    if let Some(metadata) = definition.metadata.remove(&old) {
        definition.metadata.insert(new, metadata);
    }
    let mut solve = Solve::default();
    solve.request.definition = Some(definition);
    solve
}

fn mount_at<'a>(exec: &'a mut pb::ExecOp, dest: &str) -> &'a mut pb::Mount {
    exec.mounts
        .iter_mut()
        .find(|mount| mount.dest == dest)
        .unwrap()
}

fn input() -> State {
    State::scratch().files(vec![
        mkdir("/dir"),
        mkfile("/dir/file", "data"),
        mkfile("/top", "top"),
    ])
}

#[test]
fn mnt03_a_read_only_mount_may_be_a_result() {
    let bench = Bench::start();
    let mut exec = sh("[ $(cat /m/top) = top ]; ! touch /m/new 2>/dev/null");
    exec.mounts.push(bind("/m", &input()));
    let state = bench.image().run(exec);
    let out = bench.export(edited(&state, 1, |exec| {
        mount_at(exec, "/m").readonly = true
    }));
    assert_eq!(read(&out.path().join("top")), "top");
    assert_eq!(read(&out.path().join("dir/file")), "data");
    assert!(!out.path().join("new").exists());
    bench.end();
}

#[test]
fn mnt04_exe03_what_is_no_result_is_thrown_away() {
    let bench = Bench::start();
    let source = input();
    // Written without a result: seen by the step, by nobody else, and the source is as it was.
    let mut exec =
        sh("echo -n new > /m/top; rm -r /m/dir; echo -n x > /m/more; cat /m/top > /seen");
    exec.mounts.push(MountSpec {
        no_output: true,
        ..bind("/m", &source)
    });
    let made = bench.image().run(exec);
    let out = bench.files(&State::scratch().copy(copy(&made, "/seen", "/")));
    assert_eq!(read(&out.path().join("seen")), "new");
    let out = bench.files(&source);
    assert_eq!(read(&out.path().join("top")), "top");
    assert_eq!(read(&out.path().join("dir/file")), "data");
    let mut again = sh("[ $(cat /m/top) = top ]; [ ! -e /m/more ]");
    again.mounts.push(MountSpec {
        no_output: true,
        ..bind("/m", &source)
    });
    bench.solve(&bench.image().run(again));
    // Nothing to begin with: an empty place, also for one that is read-only.
    let mut none = sh("[ -z \"$(ls -A /m)\" ]; touch /m/x; [ -z \"$(ls -A /r)\" ]");
    none.mounts.push(MountSpec {
        no_output: true,
        ..bind("/m", &State::scratch())
    });
    none.mounts.push(read_only("/r", &State::scratch()));
    bench.solve(&bench.image().run(none));
    // Read-only is read-only, for a file as well as for a folder.
    for (selector, target) in [("", "/m/top"), ("/dir", "/m/file"), ("/top", "/m")] {
        let mut write = sh(&format!("echo x > {target}"));
        write.mounts.push(MountSpec {
            selector: selector.into(),
            ..read_only("/m", &source)
        });
        let error = bench.fails(&bench.image().run(write));
        assert!(error.contains("exit code: 1"), "{selector}: {error}");
    }
    bench.end();
}

#[test]
fn exe03_several_mounts_are_several_results() {
    let bench = Bench::start();
    let source = input();
    let mut exec =
        sh("echo -n root > /root-file; echo -n one > /a/one; echo -n two > /b/two; rm /b/top");
    exec.mounts.push(bind("/a", &State::scratch()));
    exec.mounts.push(bind("/b", &source));
    let image = bench.image();
    let root = image.run(exec.clone());
    let a = image.run_mounted(exec.clone(), "/a").unwrap();
    let b = image.run_mounted(exec, "/b").unwrap();
    let out = bench.files(&State::scratch().copy(copy(&root, "/root-file", "/")));
    assert_eq!(read(&out.path().join("root-file")), "root");
    let out = bench.files(&a);
    assert_eq!(read(&out.path().join("one")), "one");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
    let out = bench.files(&b);
    assert_eq!(read(&out.path().join("two")), "two");
    assert!(!out.path().join("top").exists() && out.path().join("dir/file").exists());
    bench.end();
}

/// A step that fails gives no result of any of its mounts, and none of them stays.
#[test]
fn mnt08_a_step_that_fails_leaves_no_result() {
    let bench = Bench::start();
    let run = |script: &str| {
        let mut exec = sh(script);
        exec.mounts.push(bind("/m", &State::scratch()));
        exec
    };
    let image = bench.image();
    let script = "head -c 1000000 /dev/zero > /m/x; cp /m/x /x; exit 5";
    for state in [
        image.run(run(script)),
        image.run_mounted(run(script), "/m").unwrap(),
    ] {
        let error = bench.fails(&state);
        assert!(error.contains("exit code: 5"), "{error}");
    }
    let left = bench
        .rt
        .block_on(bench.client.disk_usage(Default::default()))
        .unwrap();
    let large: Vec<_> = left
        .iter()
        .filter(|record| record.description.contains("1000000") && record.size > 100_000)
        .collect();
    assert!(large.is_empty(), "{large:?}");
    // The same with another end is a result of both.
    let both = run("head -c 1000000 /dev/zero > /m/x; cp /m/x /x");
    let out = bench.files(&image.run_mounted(both.clone(), "/m").unwrap());
    assert_eq!(out.path().join("x").metadata().unwrap().len(), 1_000_000);
    let root = State::scratch().copy(copy(&image.run(both), "/x", "/"));
    let out = bench.files(&root);
    assert_eq!(out.path().join("x").metadata().unwrap().len(), 1_000_000);
    bench.end();
}

#[test]
fn mnt01_mounts_lie_over_each_other_by_their_depth() {
    let bench = Bench::start();
    let inner = State::scratch().files(vec![mkfile("/file", "inner")]);
    let script = "[ $(cat /m/dir/file) = inner ]; [ $(cat /m/top) = top ]; [ -z \"$(ls -A /m/dir/deep)\" ]; \
                  [ \"$(cat /m/late)\" = inner ]";
    let state = |order: &[usize]| {
        let mut exec = sh(script);
        let all = [
            MountSpec {
                no_output: true,
                ..bind("/m", &input())
            },
            MountSpec {
                no_output: true,
                ..bind("/m/dir", &inner)
            },
            tmpfs("/m/dir/deep"),
            MountSpec {
                selector: "/file".into(),
                ..read_only("/m/late", &inner)
            },
        ];
        exec.mounts = order.iter().map(|index| all[*index].clone()).collect();
        bench.image().run(exec)
    };
    bench.solve(&state(&[0, 1, 2, 3]));
    // As they come on the wire, whatever the order.
    let given = edited(&state(&[0, 1, 2, 3]), 0, |exec| exec.mounts.reverse());
    bench.try_solve(given).unwrap();
    // What was made for mounts in other mounts' inputs is not in the inputs.
    let out = bench.files(&input());
    assert!(!out.path().join("late").exists() && !out.path().join("dir/deep").exists());
    bench.end();
}

#[test]
fn mnt02_a_root_that_is_read_only_may_have_mounts_that_are_not() {
    let bench = Bench::start();
    let mut exec = sh(
        "! touch /new 2>/dev/null; grep ' / ' /proc/mounts | cut -d ' ' -f 4 | grep -q '^ro'; \
         touch /dev/shm/x; echo -n x > /made/for/it/x; touch /mem/x",
    );
    exec.read_only_root = true;
    exec.mounts.push(bind("/made/for/it", &State::scratch()));
    exec.mounts.push(tmpfs("/mem"));
    let made = bench.image().run_mounted(exec, "/made/for/it").unwrap();
    assert_eq!(read(&bench.files(&made).path().join("x")), "x");
    // And the image is as it was.
    let image = bench.files(&State::scratch().copy(crate::client::copy(&bench.image(), "/", "/x")));
    assert!(!image.path().join("x/made").exists() && !image.path().join("x/mem").exists());
    bench.end();
}

#[test]
fn mnt05_a_cache_has_a_base_and_may_be_a_result() {
    let bench = Bench::start();
    let base = input();
    let state = |script: &str, cwd: &str| {
        let mut exec = sh(script);
        let kind = cooper_llb::build::MountKind::Cache {
            id: "kept".into(),
            sharing: CacheSharingOpt::Shared,
        };
        exec.mounts
            .push(crate::client::mount("/cache", &base, kind));
        bench.image().dir(cwd).run(exec)
    };
    bench.solve(&state(
        "[ $(cat /cache/top) = top ]; echo -n written > /cache/more",
        "/",
    ));
    // The result of such a mount is what it began with, not what is in it now.
    let solve = edited(
        &state("[ $(cat /cache/more) = written ]", "/tmp"),
        1,
        |exec| {
            mount_at(exec, "/cache").output = 1;
        },
    );
    let out = bench.export(solve);
    assert_eq!(read(&out.path().join("top")), "top");
    assert!(!out.path().join("more").exists());
    // Another base is another cache of the same id.
    let mut exec = sh("[ ! -e /cache/more ]; [ ! -e /cache/top ]");
    let kind = cooper_llb::build::MountKind::Cache {
        id: "kept".into(),
        sharing: CacheSharingOpt::Shared,
    };
    exec.mounts
        .push(crate::client::mount("/cache", &State::scratch(), kind));
    bench.solve(&bench.image().run(exec));
    bench.end();
}

#[test]
fn mnt06_what_is_optional_and_not_there_is_not_mounted() {
    let bench = Bench::start();
    let mut exec = sh(
        "[ ! -e /run/secrets/none ]; [ ! -e /agent ]; [ -z \"${NONE+x}\" ]; touch /mem/x; \
         [ $(stat -f -c %T /mem) = tmpfs ]",
    );
    exec.secrets.push(SecretSpec {
        target: Some("/run/secrets/none".into()),
        env: Some("NONE".into()),
        options: pb::SecretOpt {
            id: "none".into(),
            optional: true,
            ..Default::default()
        },
    });
    exec.ssh.push(SshSpec {
        target: "/agent".into(),
        options: pb::SshOpt {
            id: "none".into(),
            optional: true,
            ..Default::default()
        },
    });
    exec.mounts.push(tmpfs("/mem"));
    let state = bench.image().run(exec);
    bench.solve(&state);
    // And of none of it anything is in the result.
    let archive = bench.stream(request(&state), "tar", &[]);
    for name in ["run/", "agent", "mem/"] {
        assert!(!archive.0.contains_key(name), "{:?}", archive.names());
    }
    bench.end();
}

#[test]
fn mnt07_a_part_of_an_input_does_not_lead_out_of_it() {
    let bench = Bench::start();
    let evil = bench.image().run(sh(
        "mkdir -p /in/dir; echo -n inside > /in/dir/file; ln -s /etc /in/abs; \
         ln -s ../../../../../etc /in/up; ln -s dir /in/good; ln -s loop /in/loop; mkdir /in/etc; \
         echo -n own > /in/etc/hostname",
    ));
    let evil = State::scratch().copy(cooper_llb::build::CopySpec {
        dir_contents_only: true,
        ..copy(&evil, "/in", "/")
    });
    let look = |selector: &str, script: &str| {
        let mut exec = sh(script);
        exec.mounts.push(MountSpec {
            selector: selector.into(),
            ..read_only("/m", &evil)
        });
        bench.image().run(exec)
    };
    bench.solve(&look("/good", "[ $(cat /m/file) = inside ]"));
    bench.solve(&look("good/file", "[ $(cat /m) = inside ]"));
    bench.solve(&look("/dir/../dir", "[ $(cat /m/file) = inside ]"));
    // Links that lead out lead to what is there within.
    for selector in ["/abs", "/up", "../../../../etc", "/up/../etc"] {
        bench.solve(&look(selector, "[ $(cat /m/hostname) = own ]"));
    }
    for selector in ["/none", "/loop", "/dir/file/x", "/loop/x"] {
        let error = bench.fails(&look(selector, "true"));
        assert!(!error.contains("exit code"), "{selector}: {error}");
    }
    bench.end();
}
