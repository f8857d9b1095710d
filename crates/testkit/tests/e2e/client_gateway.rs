//! Programs that are their own frontends: they solve, look, run containers, and return.

use cooper_client::Solve;
use cooper_llb::build::State;
use cooper_proto::gateway::exec_message::Input;
use cooper_proto::gateway::{self as api, ExecMessage};
use cooper_proto::pb;
use cooper_session::serve::Output;
use tonic::Status;

use crate::client::{Bench, Files, args, bind, mkdir, mkfile, read_only, solve_to, with_secrets};
use crate::client_frontend::{at, build, gateway, nothing, single};
use crate::read;

#[test]
fn gw02_gw03_a_program_solves_looks_and_returns() {
    let bench = Bench::start();
    let out = bench.folder();
    let solve = solve_to(
        Solve::default(),
        "local",
        &[],
        Output::Dir(out.path().to_owned()),
    );
    build(&bench, solve, async |mut gateway| {
        let ping = gateway.0.ping(api::PingRequest {}).await?.into_inner();
        let has = |name: &str| ping.frontend_api_caps.iter().any(|cap| cap.id == name);
        assert!(has("gateway.exec") && has("gateway.exec.filesystem"));
        let mut exec = args(&["/bin/sh", "-ec", "echo -n 'This is a test' > /out/foo"]);
        exec.read_only_root = true;
        exec.mounts.push(bind("/out", &State::scratch()));
        let state = bench.image().run_mounted(exec, "/out").unwrap();
        let found = gateway.solve(&state, false).await?;
        assert_eq!(gateway.read(&found, "/foo").await?, "This is a test");
        single(found)
    })
    .unwrap();
    assert_eq!(read(&out.path().join("foo")), "This is a test");

    // Nothing at all is a result, too.
    build(&bench, Solve::default(), async |mut gateway| {
        let found = gateway.solve(&State::scratch(), true).await?;
        assert_eq!(found.id, "");
        nothing()
    })
    .unwrap();
    let failed = build(&bench, Solve::default(), async |_| {
        Err(Status::unknown("expected to fail"))
    });
    assert!(failed.unwrap_err().to_string().contains("expected to fail"));
    // No difference is an empty file system that can be looked at.
    build(&bench, Solve::default(), async |mut gateway| {
        let image = bench.image();
        let none = State::diff(&image, &image, Default::default());
        let found = gateway.solve(&none, true).await?;
        let request = api::ReadDirRequest {
            r#ref: found.id,
            dir_path: "/".into(),
            ..api::ReadDirRequest::default()
        };
        assert_eq!(gateway.0.read_dir(request).await?.into_inner().entries, []);
        nothing()
    })
    .unwrap();
    bench.rt.block_on(async {
        let mut unknown = gateway(&bench, "nobody").await;
        let error = unknown.0.ping(api::PingRequest {}).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
        assert!(error.message().contains("no such job"), "{error}");
    });
    bench.end();
}

/// A promise that cannot be kept is an error where it is looked at, and for that one only.
#[test]
fn gw02_gw09_a_failure_shows_when_the_result_is_needed() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        let input = State::scratch().files(vec![mkdir("/found"), mkfile("/found/data", "x")]);
        let mut exec = args(&["echo", "hello"]);
        let mut mount = read_only("/src", &input);
        mount.selector = "/notfound".into();
        exec.mounts.push(mount);
        let broken = gateway.solve(&bench.image().run(exec), false).await?;
        let stat = |found: &api::Ref| api::StatFileRequest {
            r#ref: found.id.clone(),
            path: ".".into(),
            ..api::StatFileRequest::default()
        };
        gateway.0.stat_file(stat(&broken)).await.unwrap_err();
        let image = gateway.solve(&bench.image(), false).await?;
        gateway.0.stat_file(stat(&image)).await?;

        let failing = bench.image().run(args(&["sh", "-c", "exit 3"]));
        let lazy = gateway.solve(&failing, false).await?;
        let request = api::EvaluateRequest {
            r#ref: lazy.id.clone(),
        };
        let error = gateway.0.evaluate(request).await.unwrap_err();
        assert!(error.message().contains("exit code: 3"), "{error}");
        let error = gateway.solve(&failing, true).await.unwrap_err();
        assert!(error.message().contains("exit code: 3"), "{error}");
        single(image)
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw11_gw12_processes_run_in_containers_and_talk() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c").await;
        let mut processes = gateway.processes().await;
        // `cat` keeps the container while the others run in it: echo testing | cat > file.
        processes.start("p1", "c", &["cat"], &[0], false).await;
        processes.started("p1").await;
        processes.start("p2", "c", &["cat"], &[0, 1], false).await;
        processes.started("p2").await;
        processes.write("p2", "testing", true).await;
        let ended = processes.done("p2").await;
        assert_eq!((ended.output.as_str(), ended.code), ("testing", 0));
        processes
            .start("p3", "c", &["sh", "-c", "cat > /tmp/test"], &[0], false)
            .await;
        processes.write("p3", "testing", true).await;
        assert_eq!(processes.done("p3").await.code, 0);
        let ended = processes
            .run(
                "c",
                &["sh", "-c", "cat /tmp/test; echo oops >&2; pwd; exit 5"],
            )
            .await;
        assert_eq!(ended.output, "testing/\n");
        assert_eq!((ended.errors.as_str(), ended.code), ("oops\n", 5));
        let error = ended.error.unwrap();
        assert_eq!(error.message, "exit code: 5");
        assert!(
            error
                .details
                .iter()
                .any(|any| any.type_url.ends_with("gatewayapi.ExitMessage+json"))
        );

        // The files are seen from outside.
        let request = |path: &str| api::ReadFileRequest {
            r#ref: "c".into(),
            file_path: path.into(),
            ..api::ReadFileRequest::default()
        };
        let file = gateway
            .0
            .read_file_container(request("/tmp/test"))
            .await?
            .into_inner();
        assert_eq!(file.data, b"testing");
        let error = gateway
            .0
            .read_file_container(request("/tmp/none"))
            .await
            .unwrap_err();
        assert!(error.message().contains("no such file"), "{error}");
        let dir = api::ReadDirRequest {
            r#ref: "c".into(),
            dir_path: "/tmp".into(),
            ..api::ReadDirRequest::default()
        };
        let entries = gateway
            .0
            .read_dir_container(dir)
            .await?
            .into_inner()
            .entries;
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].path.as_str(), entries[0].size), ("test", 7));
        let stat = api::StatFileRequest {
            r#ref: "c".into(),
            path: "/tmp/test".into(),
            mount_index: 1,
        };
        let error = gateway
            .0
            .stat_file_container(stat.clone())
            .await
            .unwrap_err();
        assert!(
            error.message().contains("out of bounds (1 available)"),
            "{error}"
        );
        let stat = api::StatFileRequest {
            mount_index: 0,
            ..stat
        };
        let found = gateway
            .0
            .stat_file_container(stat)
            .await?
            .into_inner()
            .stat
            .unwrap();
        assert_eq!((found.path.as_str(), found.size), ("test", 7));

        processes.write("p1", "", true).await;
        assert_eq!(processes.done("p1").await.code, 0);
        gateway.release("c").await?;
        let error = gateway.release("c").await.unwrap_err();
        assert!(
            error
                .message()
                .contains("container details for c not found"),
            "{error}"
        );
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw11_more_goes_through_a_process_than_any_buffer_holds() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c").await;
        let mut processes = gateway.processes().await;
        processes.start("p", "c", &["cat"], &[0, 1], false).await;
        let sender = processes.sender.clone().unwrap();
        let piece = "buildkit".repeat(4096);
        let writing = async {
            for number in 0..512 {
                let file = api::FdMessage {
                    fd: 0,
                    eof: number == 511,
                    data: piece.clone().into(),
                };
                let message = ExecMessage {
                    process_id: "p".into(),
                    input: Some(Input::File(file)),
                };
                sender.send(message).await.unwrap();
            }
        };
        let ((), ended) = tokio::join!(writing, processes.done("p"));
        assert_eq!(ended.code, 0);
        assert_eq!(ended.output.len(), 16 << 20);
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw10_all_ends_with_the_container() {
    let bench = Bench::start();
    // With its first process.
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c").await;
        let mut processes = gateway.processes().await;
        processes
            .start("p1", "c", &["sleep", "1"], &[], false)
            .await;
        processes
            .start("p2", "c", &["sleep", "30"], &[], false)
            .await;
        let ended = processes.done("p2").await;
        assert_eq!(ended.code, 137);
        assert_eq!(ended.error.unwrap().message, "exit code: 137");
        nothing()
    })
    .unwrap();
    // When it is released.
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c").await;
        let mut processes = gateway.processes().await;
        processes
            .start("p1", "c", &["sleep", "30"], &[], false)
            .await;
        processes.started("p1").await;
        processes
            .start("p2", "c", &["sleep", "30"], &[0], false)
            .await;
        processes.started("p2").await;
        gateway.release("c").await?;
        let mut told = std::collections::BTreeMap::new();
        while told.len() < 2 {
            if let (id, Input::Exit(exit)) = processes.next().await? {
                told.insert(id, exit);
            }
        }
        for exit in told.values() {
            // One that was not up yet has no code of its own.
            assert_ne!(exit.code, 0);
            let message = &exit.error.as_ref().unwrap().message;
            assert!(message.contains("context canceled"), "{message}");
        }
        processes.start("p3", "c", &["true"], &[], false).await;
        let error = loop {
            if let Err(error) = processes.next().await {
                break error;
            }
        };
        assert_eq!(error.code(), tonic::Code::NotFound);
        assert!(
            error
                .message()
                .contains("previously released or not created"),
            "{error}"
        );
        nothing()
    })
    .unwrap();
    // With the build.
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c").await;
        let mut processes = gateway.processes().await;
        processes
            .start("p1", "c", &["sleep", "30"], &[0], false)
            .await;
        processes.started("p1").await;
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw11_signals_and_codes_go_both_ways() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c1").await;
        let mut processes = gateway.processes().await;
        let trap = |code: u32, signal: &str| {
            format!("trap 'kill $(jobs -p); exit {code}' {signal}; echo ready; sleep 10 & wait")
        };
        processes
            .start("p1", "c1", &["sh", "-c", &trap(99, "HUP")], &[1], false)
            .await;
        processes.expect("p1", "ready").await;
        processes.signal("p1", "HUP").await;
        assert_eq!(processes.done("p1").await.code, 99);

        gateway.busybox(&bench, "c2").await;
        processes
            .start("p2", "c2", &["sleep", "30"], &[], false)
            .await;
        processes
            .start("p3", "c2", &["sh", "-c", &trap(111, "INT")], &[1], false)
            .await;
        processes.expect("p3", "ready").await;
        processes.signal("p3", "INT").await;
        assert_eq!(processes.done("p3").await.code, 111);
        processes.signal("p2", "KILL").await;
        assert_eq!(processes.done("p2").await.code, 137);
        processes.signal("p2", "NOTHING").await;
        let error = processes.next().await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw11_terminals_have_a_size() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c").await;
        let mut processes = gateway.processes().await;
        for id in ["p1", "p2"] {
            processes.start(id, "c", &["sh"], &[0, 1, 2], true).await;
            processes.started(id).await;
            let size = |rows, cols| Input::Resize(api::ResizeMessage { rows, cols });
            processes.say(id, size(40, 80)).await;
            processes
                .write(
                    id,
                    "until [ \"$(stty size)\" = '40 80' ]; do :; done; echo first-$TERM\n",
                    false,
                )
                .await;
            processes.expect(id, "first-xterm").await;
            processes.say(id, size(60, 100)).await;
            processes
                .write(
                    id,
                    "until [ \"$(stty size)\" = '60 100' ]; do :; done; echo sec''ond\n",
                    false,
                )
                .await;
            processes.expect(id, "second").await;
        }
        for (id, code) in [("p2", 99), ("p1", 98)] {
            processes.write(id, &format!("exit {code}\n"), false).await;
            assert_eq!(processes.done(id).await.code, code);
        }
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw10_containers_have_mounts_hosts_and_secrets() {
    let bench = Bench::start();
    let solve = with_secrets(Solve::default(), &[("token", "hunter2")]);
    build(&bench, solve, async |mut gateway| {
        let image = gateway.solve(&bench.image(), false).await?;
        let data = State::scratch().files(vec![mkdir("/sub"), mkfile("/sub/file", "data")]);
        let data = gateway.solve(&data, false).await?;
        let kind = |dest: &str, kind: pb::MountType| pb::Mount {
            dest: dest.into(),
            mount_type: kind.into(),
            ..pb::Mount::default()
        };
        let mounts = vec![
            at("/", &image),
            pb::Mount {
                selector: "/sub".into(),
                readonly: true,
                ..at("/ro", &data)
            },
            at("/rw", &data),
            kind("/scratch", pb::MountType::Bind),
            pb::Mount {
                cache_opt: Some(pb::CacheOpt {
                    id: "gateway-cache".into(),
                    ..pb::CacheOpt::default()
                }),
                ..kind("/cached", pb::MountType::Cache)
            },
            kind("/memory", pb::MountType::Tmpfs),
            pb::Mount {
                secret_opt: Some(pb::SecretOpt {
                    id: "token".into(),
                    mode: 0o400,
                    ..pb::SecretOpt::default()
                }),
                ..kind("/run/secrets/token", pb::MountType::Secret)
            },
        ];
        let request = api::NewContainerRequest {
            container_id: "c".into(),
            mounts,
            hostname: "testhost".into(),
            extra_hosts: vec![pb::HostIp {
                host: "some.host".into(),
                ip: "169.254.11.22".into(),
            }],
            ..api::NewContainerRequest::default()
        };
        gateway.0.new_container(request.clone()).await?;
        let again = gateway.0.new_container(request).await.unwrap_err();
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
        let mut processes = gateway.processes().await;
        processes
            .start("p", "c", &["sleep", "30"], &[], false)
            .await;
        let script = "hostname; grep -c '169.254.11.22\tsome.host' /etc/hosts; cat /ro/file; \
                      touch /ro/x 2>/dev/null || echo -n ' ro '; touch /rw/x /scratch/x /cached/x \
                      /memory/x; cat /rw/sub/file /run/secrets/token";
        let ended = processes.run("c", &["sh", "-ec", script]).await;
        assert_eq!(
            ended.output, "testhost\n1\ndata ro datahunter2",
            "{ended:?}"
        );
        // What was written is the container's own.
        let error = gateway.read(&data, "/x").await.unwrap_err();
        assert!(error.message().contains("no such file"), "{error}");
        let mut init = api::InitMessage {
            container_id: "c".into(),
            meta: Some(pb::Meta {
                args: ["sh", "-c", "echo $TOKEN"].map(str::to_owned).to_vec(),
                ..pb::Meta::default()
            }),
            fds: vec![1],
            secretenv: vec![pb::SecretEnv {
                id: "token".into(),
                name: "TOKEN".into(),
                optional: false,
            }],
            ..api::InitMessage::default()
        };
        processes.say("p2", Input::Init(init.clone())).await;
        assert_eq!(processes.done("p2").await.output, "hunter2\n");
        // Rights that the build was not given.
        init.security = pb::SecurityMode::Insecure.into();
        processes.say("p3", Input::Init(init)).await;
        let ended = processes.done("p3").await;
        assert_eq!(ended.code, 255);
        let message = ended.error.unwrap().message;
        assert!(
            message.contains("security.insecure is not allowed"),
            "{message}"
        );

        let missing = vec![at(
            "/",
            &api::Ref {
                id: "none".into(),
                ..api::Ref::default()
            },
        )];
        let error = gateway.container("d", missing).await.unwrap_err();
        assert!(
            error
                .message()
                .contains("failed to find ref none for \"/\" mount"),
            "{error}"
        );
        nothing()
    })
    .unwrap();
    bench.end();
}
