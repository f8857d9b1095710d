//! The history of builds, as clients of BuildKit's API read and change it.

use std::process::Command;
use std::time::Duration;

use cooper_client::{ClientError, Solve};
use cooper_llb::build::State;
use cooper_proto::content::InfoRequest;
use cooper_proto::control::{
    BuildHistoryEvent, BuildHistoryEventType as Kind, BuildHistoryRecord, BuildHistoryRequest,
    StatusRequest, StatusResponse, UpdateBuildHistoryRequest,
};
use cooper_proto::rpc;
use cooper_testkit::{Buildx, Client, Context, Ran, bin, run};
use futures::StreamExt;
use prost::Message;
use tonic::Code;

use crate::client::{Bench, Files, exporter, mkfile, request, sh, with_dir};

type News = futures::stream::BoxStream<'static, Result<BuildHistoryEvent, ClientError>>;

/// The largest blob that is read here.
const MOST: usize = 1 << 20;

fn named(state: &State, name: &str) -> Solve {
    let mut solve = request(state);
    solve.request.r#ref = name.into();
    solve
}

/// A build of the Dockerfile in `dir`.
fn dockerfile(dir: &std::path::Path, name: &str) -> Solve {
    let mut solve = Solve::default();
    solve.request.r#ref = name.into();
    solve.request.frontend = "dockerfile.v0".into();
    with_dir(with_dir(solve, "context", dir), "dockerfile", dir)
}

impl Bench {
    /// What is there, to its end.
    fn listed(&self, request: BuildHistoryRequest) -> Vec<BuildHistoryEvent> {
        let request = BuildHistoryRequest {
            early_exit: true,
            ..request
        };
        self.rt.block_on(async {
            let events = self.client.history(request).await.unwrap();
            events.map(Result::unwrap).collect().await
        })
    }

    fn records(&self, name: &str) -> Vec<BuildHistoryRecord> {
        let events = self.listed(BuildHistoryRequest {
            r#ref: name.into(),
            ..BuildHistoryRequest::default()
        });
        let complete = |event: &BuildHistoryEvent| event.r#type() == Kind::Complete;
        assert!(events.iter().all(complete), "{events:?}");
        events
            .into_iter()
            .filter_map(|event| event.record)
            .collect()
    }

    #[track_caller]
    fn record(&self, name: &str) -> BuildHistoryRecord {
        let mut records = self.records(name);
        assert_eq!(records.len(), 1, "{records:?}");
        records.remove(0)
    }

    fn names(&self, filters: &[&str], limit: i32) -> Vec<String> {
        let events = self.listed(BuildHistoryRequest {
            filter: filters.iter().map(|text| (*text).to_owned()).collect(),
            limit,
            ..BuildHistoryRequest::default()
        });
        let records = events.into_iter().filter_map(|event| event.record);
        records.map(|record| record.r#ref).collect()
    }

    fn update(&self, name: &str, change: UpdateBuildHistoryRequest) -> Result<(), tonic::Status> {
        let change = UpdateBuildHistoryRequest {
            r#ref: name.into(),
            ..change
        };
        let mut control = self.client.control();
        let updated = self.rt.block_on(control.update_build_history(change));
        updated.map(drop)
    }

    fn delete(&self, name: &str) -> Result<(), tonic::Status> {
        let delete = UpdateBuildHistoryRequest {
            delete: true,
            ..UpdateBuildHistoryRequest::default()
        };
        self.update(name, delete)
    }

    fn pin(&self, name: &str, pinned: bool) -> Result<(), tonic::Status> {
        let pin = UpdateBuildHistoryRequest {
            pinned,
            ..UpdateBuildHistoryRequest::default()
        };
        self.update(name, pin)
    }

    fn blob(&self, digest: &str) -> Vec<u8> {
        self.rt.block_on(self.client.blob(digest, MOST)).unwrap()
    }

    fn has_blob(&self, digest: &str) -> bool {
        let request = InfoRequest {
            digest: digest.into(),
        };
        let mut content = self.client.content();
        match self.rt.block_on(content.info(request)) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.code(), Code::NotFound, "{error}");
                false
            }
        }
    }

    fn replayed(&self, name: &str) -> Vec<StatusResponse> {
        self.rt.block_on(async {
            let request = StatusRequest { r#ref: name.into() };
            let stream = self.client.control().status(request).await.unwrap();
            assert!(stream.metadata().contains_key("buildkit-current-timestamp"));
            stream.into_inner().map(Result::unwrap).collect().await
        })
    }

    fn stopped_and_started(&mut self) {
        self.daemon.stop();
        self.restart();
    }
}

fn output(messages: &[StatusResponse]) -> Vec<u8> {
    let logs = messages.iter().flat_map(|message| &message.logs);
    logs.flat_map(|log| log.msg.to_vec()).collect()
}

/// The messages of a log, each behind its length.
fn framed(mut bytes: &[u8]) -> Vec<StatusResponse> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (size, rest) = bytes.split_first_chunk::<4>().unwrap();
        let (message, rest) = rest.split_at(u32::from_le_bytes(*size) as usize);
        all.push(StatusResponse::decode(message).unwrap());
        bytes = rest;
    }
    all
}

#[test]
fn his02_his03_his04_ctl08_a_build_is_recorded_and_its_log_comes_again() {
    let mut bench = Bench::start();
    let state = bench.image().run(sh("echo seen-$((40+2))"));
    let mut solve = named(&state, "first");
    let image = exporter("image", &[("name", "example.com/x:1")]);
    solve.request.exporters.push(image.clone());
    let attrs = &mut solve.request.frontend_attrs;
    attrs.insert("context".into(), "https://me:word@example.com/r.git".into());
    let response = bench.try_solve(solve).unwrap().exporter_response;
    let record = bench.record("first");
    assert!(record.created_at.is_some());
    assert!(record.completed_at.unwrap().seconds >= record.created_at.unwrap().seconds);
    assert_eq!((record.frontend.as_str(), &record.error), ("", &None));
    assert_eq!(record.exporters, [image]);
    assert_eq!(
        record.frontend_attrs["context"],
        "https://xxxxx:xxxxx@example.com/r.git"
    );
    let digest = &response["containerimage.digest"];
    assert_eq!(&record.exporter_response["containerimage.digest"], digest);
    let result = record.result.as_ref().unwrap();
    assert_eq!(&result.results[&0].digest, digest);
    assert_eq!(result.result_deprecated.as_ref(), Some(&result.results[&0]));
    assert_eq!((record.pinned, record.generation), (false, 0));
    // The image, the step and the export.
    assert_eq!((record.num_total_steps, record.num_completed_steps), (3, 3));
    assert_eq!((record.num_cached_steps, record.num_warnings), (0, 0));
    let log = record.logs.clone().unwrap();
    assert_eq!(log.media_type, "application/vnd.buildkit.status.v0");
    let bytes = bench.blob(&log.digest);
    assert_eq!(bytes.len() as i64, log.size);
    let messages = framed(&bytes);
    assert_eq!(output(&messages), b"seen-42\n");
    let trace = record.trace.as_ref().unwrap();
    assert_eq!(trace.media_type, "application/vnd.buildkit.otlp.json.v0");
    let trace = String::from_utf8(bench.blob(&trace.digest)).unwrap();
    assert!(
        trace.contains(r#""Name":"moby.buildkit.v1.Control/Solve""#),
        "{trace}"
    );
    assert!(trace.contains("seen-$((40+2))"), "{trace}");

    // The same again is cached, and its own build. One without a name of its own is listed, too.
    bench.try_solve(named(&state, "second")).unwrap();
    let second = bench.record("second");
    assert_eq!((second.num_total_steps, second.num_cached_steps), (2, 2));
    assert_eq!(second.result, None);
    bench.solve(&State::scratch().files(vec![mkfile("/x", "x")]));
    assert_eq!(bench.records("").len(), 3);
    // Records are in the order of their names.
    let names = bench.names(&[], 0);
    assert!(names.is_sorted(), "{names:?}");

    bench.stopped_and_started();
    assert_eq!(bench.record("first"), record);
    assert_eq!(bench.blob(&log.digest), bytes);
    assert_eq!(bench.replayed("first"), messages);
    assert_eq!(output(&bench.replayed("second")), b"");
    assert!(!bench.replayed("second").is_empty());
    bench.end();
}

#[test]
fn his02_his03_a_failure_is_recorded_with_its_place() {
    let bench = Bench::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY notexist /foo\n");
    let error = bench.try_solve(dockerfile(context.path(), "bad"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("/notexist"), "{error}");
    let record = bench.record("bad");
    let short = record.error.as_ref().unwrap();
    assert!(
        short.details.is_empty() && short.message.contains("/notexist"),
        "{short:?}"
    );
    let external = record.external_error.as_ref().unwrap();
    assert_eq!(
        external.media_type,
        "application/vnd.googeapis.google.rpc.status+proto"
    );
    let full = rpc::Status::decode(&*bench.blob(&external.digest)).unwrap();
    assert_eq!((full.code, &full.message), (short.code, &short.message));
    let detail = |name: &str| {
        let name = format!("github.com/moby/buildkit/{name}+json");
        let found = full.details.iter().find(|detail| detail.type_url == name);
        serde_json::from_slice::<serde_json::Value>(&found.unwrap().value).unwrap()
    };
    assert!(
        detail("errdefs.Vertex")["digest"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert_eq!(detail("errdefs.Source")["info"]["filename"], "Dockerfile");
    assert!(detail("errdefs.Source")["info"]["definition"].is_object());
    assert_eq!(detail("stack.Stack")["pid"], bench.daemon.pid());
    assert_eq!(bench.names(&["status==error"], 0), ["bad"]);
    assert_eq!(bench.names(&["status==completed"], 0), [""; 0]);
    drop(context);
    bench.end();
}

/// A frontend that is not there does not fail before the build begins; an exporter does.
#[test]
fn slv08_his02_what_is_refused_or_internal_is_not_recorded() {
    let bench = Bench::start();
    let state = State::scratch().files(vec![mkfile("/x", "x")]);
    let mut refused = named(&state, "refused");
    refused.request.exporters.push(exporter("nothing", &[]));
    bench.try_solve(refused).unwrap_err();
    let mut internal = named(&state, "internal");
    internal.request.internal = true;
    bench.try_solve(internal).unwrap();
    assert_eq!(bench.records(""), []);
    bench.end();
}

#[test]
fn his02_his04_what_was_given_up_is_recorded_and_what_died_is_gone() {
    let mut bench = Bench::start();
    bench.solve(&bench.image());
    let slow = bench.image().run(sh("echo begun; sleep 86463"));
    let begun = async |bench: &Bench, name: &str| {
        let mut status = std::pin::pin!(bench.client.status(name).await.unwrap());
        while let Some(message) = status.next().await {
            if output(&[message.unwrap()]) == b"begun\n" {
                return;
            }
        }
        panic!("the build ended");
    };
    bench.rt.block_on(async {
        let mut discard = |_| ();
        let solving = Box::pin(bench.client.solve(named(&slow, "left"), &mut discard));
        tokio::select! {
            solved = solving => panic!("{solved:?}"),
            () = begun(&bench, "left") => {}
        }
    });
    let mut record = Vec::new();
    for _ in 0..100 {
        // The daemon hears of it a moment later.
        if !record.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        let events = bench.listed(BuildHistoryRequest {
            r#ref: "left".into(),
            ..BuildHistoryRequest::default()
        });
        record = events
            .into_iter()
            .filter(|event| event.r#type() == Kind::Complete)
            .filter_map(|event| event.record)
            .collect();
    }
    let error = record[0].error.as_ref().unwrap();
    assert_eq!(error.code, Code::Cancelled as i32);
    assert!(error.message.contains("context canceled"), "{error:?}");
    assert_eq!(bench.names(&["status==canceled"], 0), ["left"]);

    bench.try_solve(named(&bench.image(), "kept")).unwrap();
    let kept = bench.record("kept");
    let running = {
        let client = bench.client.clone();
        let solve = named(&slow, "dies");
        bench.rt.spawn(async move {
            let mut discard = |_| ();
            Box::pin(client.solve(solve, &mut discard)).await
        })
    };
    bench.rt.block_on(begun(&bench, "dies"));
    let active = bench.listed(BuildHistoryRequest {
        active_only: true,
        ..BuildHistoryRequest::default()
    });
    assert_eq!(active.len(), 1);
    assert_eq!(active[0].r#type(), Kind::Started);
    assert_eq!(bench.names(&["status==running"], 0), ["dies"]);
    bench.daemon.kill();
    bench.rt.block_on(running).unwrap().unwrap_err();
    bench.restart();
    assert_eq!(bench.records("dies"), []);
    assert_eq!(bench.record("kept"), kept);
    assert_eq!(
        bench.blob(&kept.logs.unwrap().digest).len() as i64,
        bench.record("kept").logs.unwrap().size
    );
    bench.end();
}

#[test]
fn his04_what_a_checkpoint_covered_survives_the_machine_and_the_rest_is_not_half_there() {
    let mut bench = Bench::start();
    let state = |text: &str| State::scratch().files(vec![mkfile("/x", text)]);
    bench.try_solve(named(&state("1"), "covered")).unwrap();
    let covered = bench.record("covered");
    bench.stopped_and_started();
    bench.try_solve(named(&state("2"), "later")).unwrap();
    let later = bench.record("later").logs.unwrap().digest;
    bench.pin("covered", true).unwrap();
    bench.daemon.kill_with_machine();
    bench.restart();
    // As it was then; the other is gone with its blobs.
    assert_eq!(bench.records(""), std::slice::from_ref(&covered));
    assert!(bench.has_blob(&covered.logs.unwrap().digest));
    assert!(!bench.has_blob(&later));
    assert!(!bench.replayed("covered").is_empty());
    bench.end();
}

#[test]
fn ctl11_ctl12_records_are_pinned_and_removed_and_listeners_hear_it() {
    let mut bench = Bench::start();
    let listen = |name: &str| {
        let request = BuildHistoryRequest {
            r#ref: name.into(),
            ..BuildHistoryRequest::default()
        };
        let news = bench.rt.block_on(bench.client.history(request));
        news.unwrap().boxed()
    };
    let (mut all, mut one) = (listen(""), listen("b"));
    let state = State::scratch().files(vec![mkfile("/x", "x")]);
    for name in ["a", "b"] {
        bench.try_solve(named(&state, name)).unwrap();
        // Its end is told when it is written, and who lists waits for that.
        bench.record(name);
    }
    bench.pin("b", true).unwrap();
    let pinned = bench.record("b");
    assert_eq!((pinned.pinned, pinned.generation), (true, 1));
    bench.pin("b", false).unwrap();
    let finalize = || UpdateBuildHistoryRequest {
        finalize: true,
        ..UpdateBuildHistoryRequest::default()
    };
    bench.update("b", finalize()).unwrap();
    bench.update("nobody", finalize()).unwrap();
    bench.delete("a").unwrap();
    bench.delete("b").unwrap();
    let next = |from: &mut News| {
        let next = async { tokio::time::timeout(Duration::from_secs(5), from.next()).await };
        let event = bench.rt.block_on(next).unwrap().unwrap().unwrap();
        (event.r#type(), event.record.unwrap())
    };
    let expected = [
        (Kind::Started, "a", 0),
        (Kind::Complete, "a", 0),
        (Kind::Started, "b", 0),
        (Kind::Complete, "b", 0),
        (Kind::Complete, "b", 1),
        (Kind::Complete, "b", 2),
        (Kind::Deleted, "a", 0),
        (Kind::Deleted, "b", 0),
    ];
    for (kind, name, generation) in expected {
        let (found, record) = next(&mut all);
        assert_eq!(
            (found, record.r#ref.as_str(), record.generation),
            (kind, name, generation)
        );
        if name == "b" {
            assert_eq!(next(&mut one).0, kind);
        }
    }
    drop((all, one));
    for error in [bench.delete("b"), bench.pin("b", true)] {
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        assert_eq!(
            error.message(),
            "failed to retrieve ref b: file does not exist"
        );
    }
    // Who listens is told of the end.
    let mut listening = bench
        .rt
        .block_on(bench.client.history(BuildHistoryRequest::default()))
        .map(Box::pin)
        .unwrap();
    bench.stopped_and_started();
    assert!(!matches!(bench.rt.block_on(listening.next()), Some(Ok(_))));
    drop(listening);
    bench.end();
}

#[test]
fn his06_records_are_filtered_and_limited() {
    let bench = Bench::start();
    let state = State::scratch().files(vec![mkfile("/x", "x")]);
    for (name, context) in [
        ("one", "https://example.com/user/repo.git#main"),
        ("two", ""),
        ("three", ""),
    ] {
        let mut solve = named(&state, name);
        let attrs = &mut solve.request.frontend_attrs;
        attrs.insert("context".into(), context.into());
        bench.try_solve(solve).unwrap();
    }
    for (filters, limit, expected) in [
        (&[][..], 2, &["three", "two"][..]),
        (&[], 9, &["three", "two", "one"]),
        (&["ref==one"], 0, &["one"]),
        (&["ref~=^t"], 1, &["three"]),
        (&["ref~=^t"], 0, &["three", "two"]),
        (
            &["repository==https://example.com/user/repo.git"],
            0,
            &["one"],
        ),
        (&["ref==one", "ref==two"], 0, &["one", "two"]),
        (&["ref==one,status==error"], 0, &[]),
        (&["startedAt>1h,status==completed"], 1, &["three"]),
        (&["completedAt<1h"], 0, &[]),
        (&["duration>10m"], 0, &[]),
    ] {
        assert_eq!(bench.names(filters, limit), expected, "{filters:?}");
    }
    for (filter, limit, message) in [
        ("ref+foo", 0, "parse error"),
        ("startedAt>x", 0, "invalid time x"),
        ("ref", -1, "invalid limit -1"),
    ] {
        let request = BuildHistoryRequest {
            filter: vec![filter.to_owned()],
            limit,
            early_exit: true,
            ..BuildHistoryRequest::default()
        };
        let mut control = bench.client.control();
        let error = bench.rt.block_on(control.listen_build_history(request));
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(message), "{error}");
    }
    bench.end();
}

#[test]
fn dmn02_his04_as_many_records_stay_as_the_configuration_says() {
    let bench = Bench::with_config("[history]\n  maxEntries = 2\n");
    let state = State::scratch().files(vec![mkfile("/x", "x")]);
    let build = |bench: &Bench, name: &str| {
        bench.try_solve(named(&state, name)).unwrap();
        bench.record(name).logs.unwrap().digest
    };
    let pinned = build(&bench, "pinned");
    bench.pin("pinned", true).unwrap();
    let first = build(&bench, "1");
    for name in ["2", "3"] {
        build(&bench, name);
    }
    assert!(
        !bench.daemon.log().contains("has no effect"),
        "{}",
        bench.daemon.log()
    );
    // What is over is removed behind the build that it is over for.
    let names = || bench.names(&[], 0);
    let limit = Duration::from_secs(5);
    cooper_testkit::wait_until("the oldest goes", limit, || names().len() == 3);
    assert_eq!(names(), ["2", "3", "pinned"]);
    assert!(bench.has_blob(&pinned));
    assert!(!bench.has_blob(&first));
    bench.delete("pinned").unwrap();
    assert!(!bench.has_blob(&pinned));
    bench.end();

    let bench = Bench::with_config("[history]\n  maxEntries = 0\n");
    bench.try_solve(named(&state, "x")).unwrap();
    assert_eq!(bench.names(&[], 0), [""; 0]);
    bench.end();
}

#[test]
fn ctl14_his02_an_images_texts_stay_with_its_record() {
    let bench = Bench::start();
    let state = bench.image().run(sh("echo foo > /foo"));
    let mut solve = named(&state, "x");
    solve
        .request
        .exporters
        .push(exporter("image", &[("name", "example.com/x:1")]));
    let response = bench.try_solve(solve).unwrap().exporter_response;
    let manifest = &response["containerimage.digest"];
    let config = &response["containerimage.config.digest"];
    let text: serde_json::Value = serde_json::from_slice(&bench.blob(manifest)).unwrap();
    let layer = text["layers"][1]["digest"].as_str().unwrap();
    assert!(bench.has_blob(layer));
    let kept = bench.record("x");
    assert_eq!(kept.result.unwrap().results[&0].digest, *manifest);
    bench.rt.block_on(async {
        let all = cooper_proto::control::PruneRequest {
            all: true,
            ..Default::default()
        };
        let pruned = bench.client.prune(all).await.unwrap();
        pruned
            .for_each(|record| async { drop(record.unwrap()) })
            .await;
    });
    let gone = !bench.has_blob(layer);
    if !cooper_testkit::by_containerd() {
        // An image of containerd's is not the cache's to remove.
        assert!(gone);
    }
    assert!(bench.has_blob(manifest) && bench.has_blob(config));
    bench.delete("x").unwrap();
    if gone {
        assert!(!bench.has_blob(manifest) && !bench.has_blob(config));
    }
    bench.end();
}

#[test]
fn his02_why_steps_were_not_cached_is_kept_with_the_build() {
    let bench = Bench::start();
    let base = &bench.busybox;
    let build = |value: &str, name: &str| {
        let text = format!("FROM {base}\nARG V\nRUN echo $V > /v\n");
        let context = Context::new().file("Dockerfile", text);
        let mut solve = dockerfile(context.path(), name);
        let attrs = &mut solve.request.frontend_attrs;
        attrs.insert("build-arg:V".into(), value.into());
        attrs.insert("build-arg:COOPER_EXPLAIN".into(), "1".into());
        bench.try_solve(solve).unwrap();
    };
    build("one", "older");
    build("two", "newer");
    let record = bench.record("newer");
    let attached = &record.result.as_ref().unwrap().attestations;
    assert_eq!(attached.len(), 1, "{attached:?}");
    assert_eq!(
        attached[0].media_type,
        "application/vnd.cooper.explain.v0+json"
    );
    let told: serde_json::Value = serde_json::from_slice(&bench.blob(&attached[0].digest)).unwrap();
    let step = &told["steps"][0];
    assert_eq!(
        step["cause"], "variable V changed from \"one\" to \"two\"",
        "{told}"
    );

    // With the client of the house, by name or the last one.
    let shown = cooper(&bench, &["history", "inspect", "newer"])
        .success()
        .output;
    for line in [
        "completed",
        "frontend",
        "build-arg:V=two",
        "variable V changed from",
    ] {
        assert!(
            shown.to_lowercase().contains(&line.to_lowercase()),
            "{shown}"
        );
    }
    assert_eq!(
        cooper(&bench, &["history", "inspect"]).success().output,
        shown
    );
    let shown = cooper(&bench, &["history", "ls"]).success().output;
    assert!(
        shown.find("newer").unwrap() < shown.find("older").unwrap(),
        "{shown}"
    );
    let shown = cooper(&bench, &["history", "ls", "--filter", "ref==older"])
        .success()
        .output;
    assert!(
        shown.contains("older") && !shown.contains("newer"),
        "{shown}"
    );
    let shown = cooper(&bench, &["history", "logs", "newer"])
        .success()
        .output;
    assert!(
        shown.contains("RUN echo two > /v") && shown.contains("not cached: variable V"),
        "{shown}"
    );
    cooper(&bench, &["history", "logs", "nobody"]).fails_with(&["no record found", "nobody"]);
    cooper(&bench, &["history", "rm", "nobody"]).fails_with(&["nobody", "does not exist"]);
    cooper(&bench, &["history", "rm", "older"]).success();
    assert_eq!(bench.names(&[], 0), ["newer"]);
    bench.pin("newer", true).unwrap();
    cooper(&bench, &["prune-histories"]).success();
    assert_eq!(bench.names(&[], 0), ["newer"]);
    cooper(&bench, &["history", "rm", "--all"]).success();
    assert_eq!(bench.names(&[], 0), [""; 0]);
    bench.end();
}

fn cooper(bench: &Bench, words: &[&str]) -> Ran {
    let address = bench.daemon.address();
    run(Command::new(bin("cooper"))
        .args(words)
        .args(["--addr", &address]))
}

#[test]
fn ctl11_ctl12_buildx_lists_shows_and_removes_builds() {
    let bench = Bench::start();
    let Client::Buildx(buildx) = Client::buildx(&bench.daemon) else {
        unreachable!()
    };
    let history = |words: &[&str]| {
        let mut command = buildx.command();
        run(command.args(["history", "--builder", "cooper"]).args(words))
    };
    let text = format!("FROM {}\nRUN echo seen-$((40+2))\n", bench.busybox);
    let context = Context::new().file("Dockerfile", text);
    let args = ["--output=type=image,name=example.com/x", "--build-arg=A=b"];
    buildx.build(&context, &args).success();
    context.write("Dockerfile", "FROM scratch\nCOPY notexist /foo\n");
    assert_ne!(buildx.build(&context, &[]).code, 0);
    let records = bench.records("");
    assert_eq!(records.len(), 2);
    let of = |failed: bool| {
        let found = records
            .iter()
            .find(|record| record.error.is_some() == failed);
        found.unwrap().r#ref.clone()
    };
    let (good, bad) = (of(false), of(true));
    if !has_history(&buildx) {
        // Before 0.20 it asks for records only beside its own builds.
        drop((buildx, context));
        return bench.end();
    }
    let shown = history(&["ls"]).success().output;
    assert!(
        shown.contains("Completed") && shown.contains("Error"),
        "{shown}"
    );
    let shown = history(&["ls", "--filter", "status=error"])
        .success()
        .output;
    assert!(shown.contains(&bad) && !shown.contains(&good), "{shown}");
    let shown = history(&["logs", &good]).success().output;
    assert!(shown.contains("seen-42"), "{shown}");
    let shown = history(&["inspect", &good]).success().output;
    for part in ["Duration:", "Build Steps:", "BUILD ARG", "Attachments:"] {
        assert!(shown.contains(part), "no {part}: {shown}");
    }
    let shown = history(&["inspect", &bad]).success().output;
    assert!(
        shown.contains("/notexist") && shown.contains("Dockerfile:2"),
        "{shown}"
    );
    history(&["rm", &bad]).success();
    let shown = history(&["ls"]).success().output;
    assert!(!shown.contains(&bad), "{shown}");
    assert_ne!(history(&["rm", &bad]).code, 0);
    history(&["rm", "--all"]).success();
    assert_eq!(bench.records(""), []);
    drop((buildx, context));
    bench.end();
}

fn has_history(buildx: &Buildx) -> bool {
    let help = run(buildx.command().args(["history", "--help"]));
    help.output.contains("build records")
}
