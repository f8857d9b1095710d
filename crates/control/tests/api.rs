//! The API as clients use it, over a byte stream, with an engine whose executor is a fake.
#![allow(clippy::unwrap_used, missing_docs)]

mod daemon;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cooper_proto::control::{self, BuildHistoryRequest, SolveRequest};
use cooper_proto::gateway::{self, result::Result as Refs};
use cooper_proto::{pb, rpc};
use prost::Message;
use tonic::Code;

use crate::daemon::{Daemon, file, in_build, remove_nothing};

#[tokio::test]
async fn the_daemon_says_what_it_is() {
    let daemon = Daemon::start().await;
    let info = daemon.control().info(control::InfoRequest {}).await;
    let version = info.unwrap().into_inner().buildkit_version.unwrap();
    assert_eq!(version.package, "cooper");
    let workers = |filter: &str| {
        let mut control = daemon.control();
        let filter = vec![filter.to_owned()];
        async move {
            let request = control::ListWorkersRequest { filter };
            control.list_workers(request).await
        }
    };
    let all = workers("").await.unwrap().into_inner().record;
    assert_eq!(all.len(), 1);
    assert!(!all[0].platforms.is_empty() && !all[0].id.is_empty());
    let id = format!("id=={}", all[0].id);
    assert_eq!(workers(&id).await.unwrap().into_inner().record, all);
    let none = workers("id==other").await.unwrap().into_inner().record;
    assert_eq!(none, []);
    let error = workers("id=").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);

    let mut health = tonic_health::pb::health_client::HealthClient::new(daemon.channel());
    let request = tonic_health::pb::HealthCheckRequest::default();
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status, 1);
    daemon.stop().await;
}

#[tokio::test]
async fn a_graph_is_built_and_shown_to_who_asks_before_and_after() {
    let daemon = Daemon::start().await;
    let early = {
        let mut control = daemon.control();
        let request = control::StatusRequest {
            r#ref: "one".into(),
        };
        tokio::spawn(async move {
            let response = control.status(request).await.unwrap();
            let time = response.metadata().get("buildkit-current-timestamp");
            let time = time.unwrap().to_str().unwrap().to_owned();
            let mut stream = response.into_inner();
            let mut seen = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                seen.extend(message.vertexes);
            }
            (time, seen)
        })
    };
    tokio::task::yield_now().await;
    let request = SolveRequest {
        r#ref: "one".into(),
        definition: Some(file("hello", "world")),
        ..SolveRequest::default()
    };
    daemon.control().solve(request.clone()).await.unwrap();
    let (time, seen) = early.await.unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    let last = seen.last().unwrap();
    assert_eq!(
        (last.name.as_str(), last.error.as_str()),
        ("mkfile hello", "")
    );
    assert!(last.completed.is_some());

    // Late, but its own client may be late.
    assert_eq!(daemon.statuses("one").await, seen);
    // And the name is taken as long.
    let error = daemon.control().solve(request).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::AlreadyExists, "job ID one exists")
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_builds_by_itself_and_returns_a_result() {
    let daemon = Daemon::start().await;
    let mut bridge = daemon.bridge();
    let ping = {
        // Before the build is there.
        let mut bridge = daemon.bridge();
        tokio::spawn(async move { bridge.ping(in_build("own", gateway::PingRequest {})).await })
    };
    tokio::task::yield_now().await;
    let inputs = BTreeMap::from([("main".to_owned(), file("in", "put"))]);
    let solve = daemon.solving(SolveRequest {
        r#ref: "own".into(),
        frontend_inputs: inputs.clone(),
        ..SolveRequest::default()
    });
    let pong = ping.await.unwrap().unwrap().into_inner();
    let has = |caps: &[cooper_proto::apicaps::ApiCap], name: &str| {
        caps.iter().any(|cap| cap.id == name && cap.enabled)
    };
    assert!(
        has(&pong.llb_caps, "file.base") && !has(&pong.llb_caps, "exporter.image.attestations")
    );
    assert!(has(&pong.frontend_api_caps, "return"));
    assert_eq!(pong.workers.len(), 1);
    let answer = bridge
        .inputs(in_build("own", gateway::InputsRequest {}))
        .await;
    assert_eq!(answer.unwrap().into_inner().definitions, inputs);

    let request = gateway::SolveRequest {
        definition: Some(file("dir/hello", "world")),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let solved = bridge.solve(in_build("own", request)).await.unwrap();
    let Some(Refs::Ref(reference)) = solved.into_inner().result.unwrap().result else {
        panic!("not one reference");
    };
    assert!(reference.def.is_some());
    let id = reference.id.clone();
    let read = |path: &str, range| gateway::ReadFileRequest {
        r#ref: id.clone(),
        file_path: path.to_owned(),
        range,
        ..gateway::ReadFileRequest::default()
    };
    let data = bridge
        .read_file(in_build("own", read("dir/hello", None)))
        .await;
    assert_eq!(data.unwrap().into_inner().data, b"world");
    let range = |offset, length| Some(gateway::FileRange { offset, length });
    let data = bridge
        .read_file(in_build("own", read("dir/hello", range(1, 3))))
        .await;
    assert_eq!(data.unwrap().into_inner().data, b"orl");
    let data = bridge
        .read_file(in_build("own", read("dir/hello", range(1, 0))))
        .await;
    assert_eq!(data.unwrap().into_inner().data, b"");
    let error = bridge
        .read_file(in_build("own", read("no", None)))
        .await
        .unwrap_err();
    assert_eq!(error.message(), "open no: no such file or directory");
    let list = gateway::ReadDirRequest {
        r#ref: id.clone(),
        dir_path: "/".into(),
        ..gateway::ReadDirRequest::default()
    };
    let entries = bridge.read_dir(in_build("own", list)).await.unwrap();
    assert_eq!(entries.into_inner().entries[0].path, "dir");
    let stat = gateway::StatFileRequest {
        r#ref: id.clone(),
        path: "dir/hello".into(),
        ..gateway::StatFileRequest::default()
    };
    let stat = bridge.stat_file(in_build("own", stat)).await.unwrap();
    assert_eq!(stat.into_inner().stat.unwrap().size, 5);
    let evaluate = gateway::EvaluateRequest { r#ref: "x".into() };
    let error = bridge
        .evaluate(in_build("own", evaluate))
        .await
        .unwrap_err();
    assert_eq!(error.message(), "no such ref: x");
    let result = gateway::Result {
        result: Some(Refs::Ref(reference)),
        metadata: BTreeMap::from([("frontend.said".to_owned(), b"hi".to_vec())]),
        ..gateway::Result::default()
    };
    let request = gateway::ReturnRequest {
        result: Some(result),
        error: None,
    };
    bridge.r#return(in_build("own", request)).await.unwrap();
    let response = solve.await.unwrap().unwrap().exporter_response;
    assert_eq!(response["frontend.said"], "hi");
    // Nothing is pinned by a build that ended.
    let usage = daemon
        .control()
        .disk_usage(control::DiskUsageRequest::default())
        .await;
    let records = usage.unwrap().into_inner().record;
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(!records[0].in_use);
    daemon.stop().await;
}

#[tokio::test]
async fn an_error_that_a_client_returns_comes_back_with_its_details() {
    let daemon = Daemon::start().await;
    let solve = daemon.solving(SolveRequest {
        r#ref: "own".into(),
        ..SolveRequest::default()
    });
    let request = gateway::SolveRequest {
        definition: Some(remove_nothing()),
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let error = daemon
        .bridge()
        .solve(in_build("own", request))
        .await
        .unwrap_err();
    let status = rpc::Status::decode(error.details()).unwrap();
    let kinds: Vec<_> = status
        .details
        .iter()
        .map(|any| any.type_url.as_str())
        .collect();
    assert_eq!(
        kinds,
        [
            "github.com/moby/buildkit/errdefs.Source+json",
            "github.com/moby/buildkit/errdefs.Vertex+json",
            "github.com/moby/buildkit/errdefs.Solve+json",
            "github.com/moby/buildkit/stack.Stack+json",
        ]
    );
    let source: serde_json::Value = serde_json::from_slice(&status.details[0].value).unwrap();
    assert_eq!(source["info"]["filename"], "Buildfile");
    assert_eq!(source["ranges"][0]["start"]["line"], 2);

    let request = gateway::ReturnRequest {
        result: None,
        error: Some(status.clone()),
    };
    daemon
        .bridge()
        .r#return(in_build("own", request))
        .await
        .unwrap();
    let error = solve.await.unwrap().unwrap_err();
    assert_eq!(error.message(), status.message);
    assert_eq!(rpc::Status::decode(error.details()).unwrap(), status);
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_asked_of_no_build_is_refused() {
    let daemon = Daemon::start().await;
    let mut bridge = daemon.bridge();
    let error = bridge.ping(gateway::PingRequest {}).await.unwrap_err();
    assert_eq!(error.message(), "no buildid found in context");
    let begin = Instant::now();
    let error = bridge
        .ping(in_build("x", gateway::PingRequest {}))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "no such job x")
    );
    assert!(begin.elapsed() >= Duration::from_secs(3));
    daemon.stop().await;
}

#[tokio::test]
async fn a_refused_build_is_over_for_its_listeners_too() {
    let daemon = Daemon::start().await;
    let request = SolveRequest {
        r#ref: "refused".into(),
        entitlements: vec!["network.host".into()],
        ..SolveRequest::default()
    };
    let begin = Instant::now();
    daemon.control().solve(request).await.unwrap_err();
    assert!(daemon.statuses("refused").await.is_empty());
    // A client listens for three seconds for what a build that failed still has to say.
    assert!(begin.elapsed() < Duration::from_secs(2));
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let daemon = Daemon::start().await;
    let fails = |request: SolveRequest| {
        let mut control = daemon.control();
        async move {
            control
                .solve(request)
                .await
                .unwrap_err()
                .message()
                .to_owned()
        }
    };
    let exporter = |kind: &str| control::Exporter {
        r#type: kind.into(),
        ..control::Exporter::default()
    };
    let cases = [
        (
            SolveRequest {
                frontend: "cobol.v0".into(),
                ..SolveRequest::default()
            },
            "invalid frontend: cobol.v0",
        ),
        (
            SolveRequest {
                frontend: "gateway.v0".into(),
                ..SolveRequest::default()
            },
            "frontend gateway.v0 is not supported by this builder: it runs no frontend images",
        ),
        (
            SolveRequest {
                definition: Some(file("x", "y")),
                frontend: "dockerfile.v0".into(),
                ..SolveRequest::default()
            },
            "cannot solve with both Definition and Frontend specified",
        ),
        (
            SolveRequest {
                entitlements: vec!["network.host".into()],
                ..SolveRequest::default()
            },
            "granting entitlement network.host is not allowed by build daemon configuration",
        ),
        (
            SolveRequest {
                exporters: vec![exporter("moby")],
                ..SolveRequest::default()
            },
            "exporter \"moby\" could not be found",
        ),
        (
            SolveRequest {
                exporter_deprecated: "other".into(),
                ..SolveRequest::default()
            },
            "exporter \"other\" could not be found",
        ),
        (
            SolveRequest {
                cache: Some(control::CacheOptions {
                    export_ref_deprecated: "example.com/x".into(),
                    ..control::CacheOptions::default()
                }),
                ..SolveRequest::default()
            },
            "unknown cache exporter: \"registry\"",
        ),
        (
            SolveRequest {
                definition: Some(pb::Definition {
                    def: vec![vec![1].into()],
                    ..pb::Definition::default()
                }),
                ..SolveRequest::default()
            },
            "failed to load LLB",
        ),
    ];
    for (number, (mut request, expected)) in cases.into_iter().enumerate() {
        request.r#ref = number.to_string();
        let message = fails(request).await;
        assert!(message.starts_with(expected), "{message}");
    }
    let request = control::UpdateBuildHistoryRequest {
        r#ref: "x".into(),
        delete: true,
        ..control::UpdateBuildHistoryRequest::default()
    };
    let error = daemon
        .control()
        .update_build_history(request)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    daemon.stop().await;
}

#[tokio::test]
async fn a_cache_that_cannot_be_looked_into_fails_a_vertex_and_not_the_build() {
    let daemon = Daemon::start().await;
    let attrs = BTreeMap::from([("ref".to_owned(), "example.com/cache".to_owned())]);
    let request = SolveRequest {
        r#ref: "one".into(),
        definition: Some(file("hello", "world")),
        cache: Some(control::CacheOptions {
            imports: vec![control::CacheOptionsEntry {
                r#type: "registry".into(),
                attrs,
            }],
            ..control::CacheOptions::default()
        }),
        ..SolveRequest::default()
    };
    daemon.control().solve(request).await.unwrap();
    let seen = daemon.statuses("one").await;
    let import = "importing cache manifest from example.com/cache";
    let import = seen.iter().find(|vertex| vertex.name == import).unwrap();
    assert_eq!(import.error, "unknown cache importer: registry");
    daemon.stop().await;
}

#[tokio::test]
async fn clients_find_out_that_the_history_can_be_asked_for() {
    let daemon = Daemon::start().await;
    let probe = BuildHistoryRequest {
        active_only: true,
        r#ref: "buildx-test-history-api-feature".into(),
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let answer = daemon.control().listen_build_history(probe).await;
    assert!(
        answer
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap()
            .is_none()
    );

    let listen = BuildHistoryRequest::default();
    let answer = daemon.control().listen_build_history(listen).await;
    let mut news = answer.unwrap().into_inner();
    for (id, internal) in [("hidden", true), ("shown", false)] {
        let request = SolveRequest {
            r#ref: id.into(),
            definition: Some(file("hello", "world")),
            internal,
            ..SolveRequest::default()
        };
        daemon.control().solve(request).await.unwrap();
    }
    for kind in [
        control::BuildHistoryEventType::Started,
        control::BuildHistoryEventType::Complete,
    ] {
        let event = news.message().await.unwrap().unwrap();
        assert_eq!(event.r#type, kind as i32);
        let record = event.record.unwrap();
        assert_eq!(record.r#ref, "shown");
        let complete = kind == control::BuildHistoryEventType::Complete;
        assert_eq!(record.completed_at.is_some(), complete);
    }
    drop(news);
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_step_along_and_nobody_elses() {
    let mut daemon = Daemon::start().await;
    let request = |id: &str| SolveRequest {
        r#ref: id.into(),
        definition: Some(daemon::forever()),
        ..SolveRequest::default()
    };
    let first = daemon.solving(request("first"));
    daemon.step_begins().await;
    let second = daemon.solving(request("second"));
    daemon.until_joined("second").await;
    first.abort();
    daemon.until_ended("first").await;
    assert!(!daemon.step_ended());
    second.abort();
    daemon.step_ends().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_frontend_that_panics_loses_its_own_build_only() {
    let daemon = Daemon::start().await;
    let request = |id: &str, frontend: &str| SolveRequest {
        r#ref: id.into(),
        frontend: frontend.into(),
        ..SolveRequest::default()
    };
    let answer = daemon.control().solve(request("one", "panics")).await;
    let error = answer.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert!(error.message().contains("panicked"), "{error}");
    let request = SolveRequest {
        r#ref: "two".into(),
        definition: Some(file("hello", "world")),
        ..SolveRequest::default()
    };
    daemon.control().solve(request).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn what_was_built_can_be_listed_and_pruned() {
    let daemon = Daemon::start().await;
    let request = SolveRequest {
        r#ref: "one".into(),
        definition: Some(file("hello", "world")),
        ..SolveRequest::default()
    };
    daemon.control().solve(request).await.unwrap();
    let usage = |filter: &[&str], age: Duration| {
        let request = control::DiskUsageRequest {
            filter: filter.iter().map(|text| (*text).to_owned()).collect(),
            age_limit: i64::try_from(age.as_nanos()).unwrap(),
        };
        let mut control = daemon.control();
        async move {
            control
                .disk_usage(request)
                .await
                .unwrap()
                .into_inner()
                .record
        }
    };
    let all = usage(&[], Duration::ZERO).await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0].record_type, "regular");
    assert!(all[0].created_at.is_some());
    assert_eq!(usage(&["type==regular"], Duration::ZERO).await.len(), 1);
    let id = format!("id=={}", all[0].id);
    assert_eq!(usage(&["type==x", &id], Duration::ZERO).await.len(), 1);
    assert_eq!(usage(&["inuse"], Duration::ZERO).await.len(), 0);
    assert_eq!(usage(&["immutable,private"], Duration::ZERO).await.len(), 1);
    assert_eq!(usage(&[], Duration::from_secs(60)).await.len(), 0);

    let prune = |filter: &str| {
        let request = control::PruneRequest {
            filter: vec![filter.to_owned()],
            ..control::PruneRequest::default()
        };
        let mut control = daemon.control();
        async move {
            let mut stream = control.prune(request).await.unwrap().into_inner();
            let mut gone = Vec::new();
            while let Some(record) = stream.message().await.unwrap() {
                gone.push(record.id);
            }
            gone
        }
    };
    assert_eq!(prune("mutable").await, [""; 0]);
    assert_eq!(prune("").await, [all[0].id.as_str()]);
    assert_eq!(usage(&[], Duration::ZERO).await, []);
    daemon.stop().await;
}
