//! The calls of the daemon's API, in the corners that clients come to.

use std::time::{Duration, Instant};

use cooper_client::Solve;
use cooper_llb::build::{MarshalOptions, State};
use cooper_proto::control::{
    BuildHistoryEventType, BuildHistoryRequest, SolveRequest, StatusRequest, StatusResponse,
};
use cooper_proto::{gateway as api, pb};
use cooper_session::serve::Output;
use futures::StreamExt;
use prost::Message;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{Bench, Files, exporter, mkfile, request, sh, solve_to};
use crate::client_frontend::{channel, gateway};
use crate::read;

/// A request for the state by this name, without a session.
fn plain(state: &State, name: &str) -> SolveRequest {
    SolveRequest {
        r#ref: name.into(),
        definition: Some(state.marshal(&MarshalOptions::default())),
        ..SolveRequest::default()
    }
}

fn file(data: &str) -> State {
    State::scratch().files(vec![mkfile("/foo", data)])
}

#[test]
fn ctl02_health_is_told_and_watched() {
    let bench = Bench::start();
    bench.rt.block_on(async {
        let mut health = HealthClient::new(channel(&bench).await);
        let whole = health.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(whole.into_inner().status(), ServingStatus::Serving);
        let other = HealthCheckRequest {
            service: "nobody.knows.This".into(),
        };
        let error = health.check(other).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        // A watcher is told at once, and then waits for changes.
        let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
        let mut watch = watch.into_inner();
        let first = watch.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        let quiet = tokio::time::timeout(Duration::from_millis(300), watch.message()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    });
    bench.end();
}

/// A stream of progress to its end, and the daemon's clock at its begin.
async fn status(bench: &Bench, name: &str) -> Result<(String, Vec<StatusResponse>), tonic::Status> {
    let request = StatusRequest { r#ref: name.into() };
    let answer = bench.client.control().status(request).await?;
    let clock = answer.metadata().get("buildkit-current-timestamp");
    let clock = clock.expect("the daemon says what time it is").to_str();
    let clock = clock.unwrap().to_owned();
    let all: Vec<_> = answer.into_inner().collect().await;
    Ok((clock, all.into_iter().collect::<Result<_, _>>()?))
}

fn output_of(responses: &[StatusResponse], stream: i64) -> Vec<u8> {
    let logs = responses.iter().flat_map(|response| &response.logs);
    let logs = logs.filter(|log| log.stream == stream);
    logs.flat_map(|log| log.msg.to_vec()).collect()
}

#[test]
fn ctl08_sol01_progress_is_told_before_during_and_after_a_build() {
    let bench = Bench::start();
    let state = bench
        .image()
        .run(sh("echo out; printf 'bad \\377 text' >&2; sleep 1"));
    let own = || plain(&state, "watched");
    bench.rt.block_on(async {
        let early = status(&bench, "watched");
        let solving = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            bench.client.control().solve(own()).await.unwrap();
        };
        let late = async {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            status(&bench, "watched").await
        };
        let (early, (), late) = tokio::join!(early, solving, late);
        // And once more when it is over: the build is remembered for a while.
        let after = status(&bench, "watched").await;
        for (clock, seen) in [early, late, after].map(Result::unwrap) {
            assert!(clock.contains('T') && clock.ends_with('Z'), "{clock}");
            assert_eq!(output_of(&seen, 1), b"out\n");
            assert_eq!(output_of(&seen, 2), b"bad \xff text");
            let vertexes: Vec<_> = seen.iter().flat_map(|all| &all.vertexes).collect();
            let step = |done: bool| {
                vertexes.iter().any(|vertex| {
                    vertex.name.contains("echo out")
                        && vertex.started.is_some()
                        && vertex.completed.is_some() == done
                        && !vertex.cached
                })
            };
            assert!(step(false) && step(true), "{vertexes:?}");
        }
        // The same again is another build, and says that nothing had to be done.
        let again = plain(&state, "again");
        bench.client.control().solve(again).await.unwrap();
        let (_, again) = status(&bench, "again").await.unwrap();
        assert_eq!(output_of(&again, 1), b"");
        let mut vertexes = again.iter().flat_map(|all| &all.vertexes);
        assert!(vertexes.any(|vertex| vertex.name.contains("echo out") && vertex.cached));

        let begin = Instant::now();
        let error = status(&bench, "nobody").await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        assert!(error.message().contains("no such job nobody"), "{error}");
        assert!(
            begin.elapsed() > Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
    });
    bench.end();
}

#[test]
fn ctl08_much_output_comes_in_messages_of_a_bearable_size() {
    let bench = Bench::start();
    let line = "x".repeat(127);
    let script = format!("yes {line} | head -n 12000");
    let state = bench.image().run(sh(&script));
    bench.rt.block_on(async {
        bench
            .client
            .control()
            .solve(plain(&state, "loud"))
            .await
            .unwrap();
        let (_, seen) = status(&bench, "loud").await.unwrap();
        for response in &seen {
            let logs: usize = response.logs.iter().map(|log| log.msg.len()).sum();
            assert!(logs <= 1 << 20, "{logs}");
            assert!(response.encoded_len() < 16 << 20);
        }
        let all = output_of(&seen, 1);
        assert!(all.starts_with(line.as_bytes()), "{}", all.len());
    });
    bench.end();
}

#[test]
fn ctl07_slv01_a_solve_ends_with_its_answer_and_has_its_name_alone() {
    let bench = Bench::start();
    let slow = bench.image().run(sh("sleep 2; echo x > /out"));
    bench.rt.block_on(async {
        let mut control = bench.client.control();
        let begin = Instant::now();
        let mut named = plain(&slow, "mine");
        named
            .exporters
            .push(exporter("image", &[("name", "example.com/x:1")]));
        let mut other = control.clone();
        let first = other.solve(named);
        let second = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            control.solve(plain(&file("x"), "mine")).await
        };
        let (first, second) = tokio::join!(first, second);
        assert!(begin.elapsed() >= Duration::from_secs(2));
        let response = first.unwrap().into_inner().exporter_response;
        assert_eq!(response["image.name"], "example.com/x:1");
        assert!(response["containerimage.digest"].starts_with("sha256:"));
        let error = second.unwrap_err();
        assert!(error.message().contains("mine exists"), "{error}");
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        // Over, it is still remembered for a while, for those who ask for its progress.
        let mut control = bench.client.control();
        let error = control.solve(plain(&file("y"), "mine")).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        let answer = control.solve(plain(&file("y"), "other")).await.unwrap();
        assert!(answer.into_inner().exporter_response.is_empty());
    });
    bench.end();
}

#[test]
fn ctl13_gw01_a_frontend_may_call_before_its_build_is_there() {
    let bench = Bench::start();
    bench.rt.block_on(async {
        let mut early = gateway(&bench, "mine").await;
        let pinging = early.0.ping(api::PingRequest {});
        let building = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let solve = SolveRequest {
                r#ref: "mine".into(),
                ..SolveRequest::default()
            };
            bench.client.control().solve(solve).await
        };
        let frontend = async {
            let pong = pinging.await.unwrap().into_inner();
            let mut bridge = gateway(&bench, "mine").await;
            let nothing = api::ReturnRequest {
                result: Some(api::Result::default()),
                error: None,
            };
            bridge.0.r#return(nothing).await.unwrap();
            pong
        };
        let (pong, built) = tokio::join!(frontend, building);
        built.unwrap();
        assert_eq!(pong.workers.len(), 1);
        assert!(!pong.workers[0].platforms.is_empty());
        let has = |caps: &[cooper_proto::apicaps::ApiCap], name: &str| {
            caps.iter().any(|cap| cap.id == name && cap.enabled)
        };
        for cap in [
            "solve.base",
            "return",
            "returnmap",
            "readfile",
            "frontend.inputs",
        ] {
            assert!(has(&pong.frontend_api_caps, cap), "{cap}");
        }
        for cap in ["source.image", "exec.meta.base", "file.base", "mergeop"] {
            assert!(has(&pong.llb_caps, cap), "{cap}");
        }

        // One that ended is none, and neither is one without a name.
        for (name, part) in [("mine", "no such job mine"), ("never", "no such job never")] {
            let mut bridge = gateway(&bench, name).await;
            let begin = Instant::now();
            let error = bridge.0.ping(api::PingRequest {}).await.unwrap_err();
            assert_eq!(error.code(), Code::NotFound, "{name}: {error}");
            assert!(error.message().contains(part), "{error}");
            assert!(begin.elapsed() < Duration::from_secs(6));
        }
        let mut unnamed = api::llb_bridge_client::LlbBridgeClient::new(channel(&bench).await);
        let error = unnamed.ping(api::PingRequest {}).await.unwrap_err();
        assert!(error.message().contains("no buildid"), "{error}");
    });
    bench.end();
}

#[test]
fn slv02_a_graph_and_a_frontend_exclude_each_other() {
    let bench = Bench::start();
    let mut both = request(&file("x"));
    both.request.frontend = "dockerfile.v0".into();
    let error = bench.try_solve(both).unwrap_err().to_string();
    assert!(
        error.contains("cannot solve with both Definition and Frontend specified"),
        "{error}"
    );
    let mut unknown = Solve::default();
    unknown.request.frontend = "nothing.v0".into();
    let error = bench.try_solve(unknown).unwrap_err().to_string();
    assert!(error.contains("invalid frontend: nothing.v0"), "{error}");
    // The empty graph is the empty file system.
    let out = bench.folder();
    let mut empty = Solve::default();
    empty.request.definition = Some(pb::Definition::default());
    let empty = solve_to(empty, "local", &[], Output::Dir(out.path().to_owned()));
    bench.try_solve(empty).unwrap();
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    bench.end();
}

#[test]
fn slv03_fe01_a_dockerfile_is_built_by_the_daemon() {
    let bench = Bench::start();
    let dir = bench.folder();
    let dockerfile = format!(
        "# syntax=docker/dockerfile:1\nARG BASE=none\nFROM {} AS one\nARG WHO=nobody\n\
         RUN echo $WHO > /out\nFROM scratch AS two\nCOPY --from=one /out /\nCOPY in /\n\
         FROM one\nRUN exit 9\n",
        bench.busybox
    );
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/My.Dockerfile"), &dockerfile).unwrap();
    std::fs::write(dir.path().join("in"), "in").unwrap();
    let attrs = [
        ("filename", "sub/My.Dockerfile"),
        ("target", "two"),
        ("build-arg:WHO", "somebody"),
        ("label:a.b", "c"),
    ];
    let solve = |attrs: &[(&str, &str)]| {
        let mut solve = Solve::default();
        solve.request.frontend = "dockerfile.v0".into();
        for (name, value) in attrs {
            let attrs = &mut solve.request.frontend_attrs;
            attrs.insert((*name).into(), (*value).into());
        }
        solve
    };
    let with_dirs = |solve| {
        let solve = crate::client::with_dir(solve, "context", dir.path());
        crate::client::with_dir(solve, "dockerfile", dir.path())
    };
    let out = bench.export(with_dirs(solve(&attrs)));
    assert_eq!(read(&out.path().join("out")), "somebody\n");
    assert_eq!(read(&out.path().join("in")), "in");
    let image = bench.stream(with_dirs(solve(&attrs)), "oci", &[]);
    let manifest = image.manifest();
    let config = image.blob(&manifest["config"]["digest"]);
    let config: serde_json::Value = serde_json::from_slice(config).unwrap();
    assert_eq!(config["config"]["Labels"]["a.b"], "c");

    // Both come as graphs and not as directories of the client.
    let mut inputs = solve(&attrs[1..3]);
    let context = State::scratch().files(vec![mkfile("/in", "input")]);
    let text = State::scratch().files(vec![mkfile("/Dockerfile", &dockerfile)]);
    for (name, state) in [("context", context), ("dockerfile", text)] {
        let definition = state.marshal(&MarshalOptions::default());
        inputs
            .request
            .frontend_inputs
            .insert(name.into(), definition);
    }
    let out = bench.export(inputs);
    assert_eq!(read(&out.path().join("in")), "input");

    for (attrs, part) in [
        (
            &[("filename", "none")][..],
            "failed to read dockerfile: open none: no such file",
        ),
        (
            &[("filename", "sub/My.Dockerfile"), ("target", "three")],
            "target stage \"three\" could not be found",
        ),
        (
            &[("filename", "sub/My.Dockerfile"), ("platform", "a/b/c/d/e")],
            "failed to parse target platform",
        ),
    ] {
        let error = bench.try_solve(with_dirs(solve(attrs))).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    bench.end();
}

#[test]
fn slv04_the_single_exporter_of_old_clients_counts_when_there_is_no_other() {
    let bench = Bench::start();
    let export = |new: bool| {
        let out = bench.folder();
        let mut solve = request(&file("x"));
        solve.request.exporter_deprecated = "local".into();
        let outputs = &mut solve.services.outputs;
        outputs.insert(0, Output::Dir(out.path().to_owned()));
        if new {
            solve.request.exporters.push(exporter("image", &[]));
        }
        let response = bench.try_solve(solve).unwrap().exporter_response;
        (out, response)
    };
    let (out, response) = export(false);
    assert_eq!(read(&out.path().join("foo")), "x");
    assert!(response.is_empty(), "{response:?}");
    let (out, response) = export(true);
    assert!(!out.path().join("foo").exists());
    assert!(response["containerimage.digest"].starts_with("sha256:"));

    let mut solve = request(&file("x"));
    solve.request.exporter_deprecated = "image".into();
    let attrs = &mut solve.request.exporter_attrs_deprecated;
    attrs.insert("name".into(), "example.com/old:1".into());
    let response = bench.try_solve(solve).unwrap().exporter_response;
    assert_eq!(response["image.name"], "example.com/old:1");
    bench.end();
}

#[test]
fn slv08_his01_internal_builds_are_nobodys_news() {
    let bench = Bench::start();
    bench.rt.block_on(async {
        let mut control = bench.client.control();
        // How buildx finds out whether there is a history.
        let probe = BuildHistoryRequest {
            active_only: true,
            r#ref: "buildx-test-history-api-feature".into(),
            early_exit: true,
            ..BuildHistoryRequest::default()
        };
        let mut answer = control
            .listen_build_history(probe)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.message().await.unwrap(), None);

        let all = BuildHistoryRequest {
            active_only: true,
            ..BuildHistoryRequest::default()
        };
        let mut news = control
            .listen_build_history(all.clone())
            .await
            .unwrap()
            .into_inner();
        for (name, internal) in [("hidden", true), ("seen", false)] {
            let slow = bench.image().run(sh(&format!("sleep 1; echo {name}")));
            let solve = SolveRequest {
                internal,
                ..plain(&slow, name)
            };
            let running = tokio::spawn({
                let mut control = bench.client.control();
                async move { control.solve(solve).await }
            });
            tokio::time::sleep(Duration::from_millis(600)).await;
            let now = BuildHistoryRequest {
                early_exit: true,
                ..all.clone()
            };
            let now = bench
                .client
                .control()
                .listen_build_history(now)
                .await
                .unwrap();
            let now: Vec<_> = now.into_inner().collect().await;
            assert_eq!(now.len(), usize::from(!internal), "{now:?}");
            running.await.unwrap().unwrap();
        }
        for kind in [
            BuildHistoryEventType::Started,
            BuildHistoryEventType::Complete,
        ] {
            let next = tokio::time::timeout(Duration::from_secs(5), news.message()).await;
            let event = next.unwrap().unwrap().unwrap();
            assert_eq!(event.r#type(), kind);
            assert_eq!(event.record.unwrap().r#ref, "seen");
        }
    });
    bench.end();
}

#[test]
fn ctl05_wrk01_wrk02_wrk07_workers_say_what_they_are_and_are_chosen_by_it() {
    if cooper_testkit::by_containerd() {
        // Its labels are those of `containerd::`.
        return;
    }
    let config = "[worker.oci]\n  [worker.oci.labels]\n  \"example.com/kind\" = \"test\"\n";
    let mut bench = Bench::with_config(config);
    let list = |bench: &Bench, filter: &[&str]| {
        let filter = filter.iter().map(|one| (*one).to_owned()).collect();
        bench.rt.block_on(bench.client.workers(filter))
    };
    let all = list(&bench, &[]).unwrap();
    assert_eq!(all.len(), 1);
    let worker = &all[0];
    let label =
        |name: &str| worker.labels[&format!("org.mobyproject.buildkit.worker.{name}")].as_str();
    assert_eq!(label("executor"), "oci");
    assert_eq!(label("snapshotter"), "overlayfs");
    assert_eq!(label("network"), "host");
    assert_eq!(label("oci.process-mode"), "sandbox");
    // That of the command line, and that of the configuration.
    assert_eq!(label("sandbox"), "true");
    assert_eq!(worker.labels["example.com/kind"], "test");
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(label("hostname"), name.trim());
    let version = worker.buildkit_version.as_ref().unwrap();
    assert!(version.version.starts_with('v'), "{version:?}");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    assert_eq!(
        (
            worker.platforms[0].os.as_str(),
            worker.platforms[0].architecture.as_str()
        ),
        ("linux", architecture)
    );

    let id = format!("id=={}", worker.id);
    for (filter, found) in [
        (&["id==nobody"][..], 0),
        (&[&id], 1),
        // Any of several, and each part of one.
        (&["id==nobody", &id], 1),
        (&["labels.\"example.com/kind\"==test"], 1),
        (&["labels.\"example.com/kind\"!=test"], 0),
        (
            &["labels.\"org.mobyproject.buildkit.worker.executor\"~=^oc"],
            1,
        ),
        (&["labels.\"example.com/kind\"==test,id==nobody"], 0),
        (&["labels.\"not.there\""], 0),
    ] {
        assert_eq!(list(&bench, filter).unwrap().len(), found, "{filter:?}");
    }
    assert!(list(&bench, &["id="]).is_err());

    // The worker is the same one after a start, and the first is where builds go.
    bench.daemon.stop();
    bench.daemon.spawn();
    let again = bench
        .rt
        .block_on(cooper_client::Client::connect(&bench.daemon.address()));
    bench.client = again.unwrap();
    assert_eq!(list(&bench, &[]).unwrap()[0].id, worker.id);
    bench.solve(&bench.image().run(sh("true")));
    bench.end();
}
