//! What a frontend may ask of the daemon.

use cooper_client::Solve;
use cooper_llb::build::{FileAction, MarshalOptions, State};
use cooper_proto::gateway::result::Result as Refs;
use cooper_proto::{control, gateway as api, pb, rpc};
use cooper_session::serve::Output;
use prost::Message;
use tonic::{Code, Status};

use crate::client::{Bench, Files, args, exporter, mkdir, mkfile, sh, solve_to};
use crate::client_frontend::{build, nothing, single};
use crate::read;

#[test]
fn gw06_results_are_looked_into() {
    let bench = Bench::start();
    let state = bench.image().files(vec![
        mkdir("/d"),
        mkdir("/d/sub"),
        mkfile("/d/one.txt", "0123456789"),
        mkfile("/d/two.txt", "2"),
        mkfile("/d/three.md", "3"),
        FileAction::Symlink {
            old: "one.txt".into(),
            new: "/d/link".into(),
            owner: None,
            created: None,
        },
        FileAction::Symlink {
            old: "../../../../etc/hostname".into(),
            new: "/d/out".into(),
            owner: None,
            created: None,
        },
    ]);
    build(&bench, Solve::default(), async |mut gateway| {
        let found = gateway.solve(&state, false).await?;
        let file = |path: &str, range: Option<(i64, i64)>| api::ReadFileRequest {
            r#ref: found.id.clone(),
            file_path: path.into(),
            range: range.map(|(offset, length)| api::FileRange { offset, length }),
            ..api::ReadFileRequest::default()
        };
        for (path, range, expected) in [
            ("/d/one.txt", None, "0123456789"),
            ("d/one.txt", Some((2, 3)), "234"),
            ("/d/one.txt", Some((8, 100)), "89"),
            ("/d/one.txt", Some((100, 5)), ""),
            ("/d/link", None, "0123456789"),
        ] {
            let read = gateway.0.read_file(file(path, range)).await?.into_inner();
            assert_eq!(read.data, expected.as_bytes(), "{path} {range:?}");
        }
        // A link that leads out ends at the root of the result, which has no such file.
        for path in ["/d/out", "/d/none", "/../../etc/hostname"] {
            let error = gateway.0.read_file(file(path, None)).await.unwrap_err();
            assert!(error.message().contains("no such file"), "{path}: {error}");
        }
        let error = gateway.0.read_file(file("/d", None)).await.unwrap_err();
        assert!(error.message().contains("/d"), "{error}");

        let list = |path: &str, pattern: &str| api::ReadDirRequest {
            r#ref: found.id.clone(),
            dir_path: path.into(),
            include_pattern: pattern.into(),
            ..api::ReadDirRequest::default()
        };
        for (pattern, expected) in [
            ("", "link one.txt out sub three.md two.txt"),
            ("*.txt", "one.txt two.txt"),
            ("t*", "three.md two.txt"),
            ("none", ""),
        ] {
            let entries = gateway
                .0
                .read_dir(list("/d", pattern))
                .await?
                .into_inner()
                .entries;
            let names: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
            assert_eq!(names.join(" "), expected, "{pattern}");
        }
        for path in ["/none", "/d/one.txt"] {
            gateway.0.read_dir(list(path, "")).await.unwrap_err();
        }

        let stat = |path: &str| api::StatFileRequest {
            r#ref: found.id.clone(),
            path: path.into(),
            ..api::StatFileRequest::default()
        };
        let one = gateway
            .0
            .stat_file(stat("/d/one.txt"))
            .await?
            .into_inner()
            .stat
            .unwrap();
        // Go's bits: permissions alone for a file, the highest for a folder. Links are followed.
        assert_eq!(
            (one.path.as_str(), one.size, one.mode),
            ("one.txt", 10, 0o600)
        );
        let sub = gateway
            .0
            .stat_file(stat("/d/sub"))
            .await?
            .into_inner()
            .stat
            .unwrap();
        assert_eq!(sub.mode, 1 << 31 | 0o700);
        let link = gateway
            .0
            .stat_file(stat("/d/link"))
            .await?
            .into_inner()
            .stat
            .unwrap();
        assert_eq!((link.mode, link.size), (0o600, 10));
        let error = gateway.0.stat_file(stat("/none")).await.unwrap_err();
        assert!(error.message().contains("no such file"), "{error}");

        // What is no result of this build cannot be looked at.
        let mut other = file("/d/one.txt", None);
        other.r#ref = "nobody".into();
        gateway.0.read_file(other).await.unwrap_err();
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw07_inputs_are_given_as_they_came() {
    let bench = Bench::start();
    let input = State::scratch().files(vec![mkfile("/input", "given")]);
    let definition = input.marshal(&MarshalOptions::default());
    let mut solve = Solve::default();
    let inputs = &mut solve.request.frontend_inputs;
    inputs.insert("one".into(), definition.clone());
    inputs.insert("empty".into(), pb::Definition::default());
    let out = bench.folder();
    let solve = solve_to(solve, "local", &[], Output::Dir(out.path().to_owned()));
    build(&bench, solve, async |mut gateway| {
        let inputs = gateway
            .0
            .inputs(api::InputsRequest {})
            .await?
            .into_inner()
            .definitions;
        assert_eq!(inputs.len(), 2, "{inputs:?}");
        assert_eq!(inputs["one"].def, definition.def);
        assert!(inputs["empty"].def.is_empty());
        let request = api::SolveRequest {
            definition: Some(inputs["one"].clone()),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..api::SolveRequest::default()
        };
        let solved = gateway.0.solve(request).await?.into_inner().result.unwrap();
        let Some(Refs::Ref(found)) = solved.result else {
            panic!("{solved:?}");
        };
        // The graph of a result can be had, and is the one that was solved.
        let written = found.def.clone().unwrap();
        assert_eq!(written.def, definition.def);
        single(found)
    })
    .unwrap();
    assert_eq!(read(&out.path().join("input")), "given");
    bench.end();
}

#[test]
fn gw08_warnings_reach_the_user_with_their_place() {
    let bench = Bench::start();
    let id = "warner";
    let mut solve = Solve::default();
    solve.request.r#ref = id.into();
    let state = State::scratch().files(vec![mkfile("/x", "x")]);
    let seen = bench.rt.block_on(async {
        let mut seen: Vec<control::VertexWarning> = Vec::new();
        let mut progress = |status: control::StatusResponse| seen.extend(status.warnings);
        let solving = Box::pin(bench.client.solve(solve, &mut progress));
        let building = async {
            let mut gateway = crate::client_frontend::gateway(&bench, id).await;
            let definition = state.marshal(&MarshalOptions::default());
            let digest = definition.metadata.keys().next().unwrap().clone();
            let found = gateway.solve(&state, true).await.unwrap();
            let position = |line| Some(pb::Position { line, character: 0 });
            let warning = api::WarnRequest {
                digest: digest.clone(),
                level: 1,
                short: b"a short one".to_vec(),
                detail: vec![b"and".to_vec(), b"more".to_vec()],
                url: "https://example.com/why".into(),
                info: Some(pb::SourceInfo {
                    filename: "Dockerfile".into(),
                    data: b"FROM x".to_vec(),
                    ..pb::SourceInfo::default()
                }),
                ranges: vec![pb::Range {
                    start: position(3),
                    end: position(4),
                }],
            };
            gateway.0.warn(warning).await.unwrap();
            let result = api::ReturnRequest {
                result: single(found).ok(),
                error: None,
            };
            gateway.0.r#return(result).await.unwrap();
            digest
        };
        let (solved, digest) = tokio::join!(solving, building);
        solved.unwrap();
        assert!(
            seen.iter().all(|warning| warning.vertex == digest),
            "{seen:?}"
        );
        seen
    });
    assert_eq!(seen.len(), 1, "{seen:?}");
    let warning = &seen[0];
    assert_eq!(
        (warning.level, &warning.short[..]),
        (1, &b"a short one"[..])
    );
    assert_eq!(warning.detail.len(), 2);
    assert_eq!(warning.url, "https://example.com/why");
    assert_eq!(warning.info.as_ref().unwrap().filename, "Dockerfile");
    assert_eq!(warning.ranges[0].start.unwrap().line, 3);
    bench.end();
}

/// What a frontend returns is what the client gets: metadata, several results, errors with their
/// code and details.
#[test]
fn gw03_a_return_says_how_the_build_ended() {
    let bench = Bench::start();
    let failed = build(&bench, Solve::default(), async |_| {
        let details = rpc::Status {
            code: Code::ResourceExhausted as i32,
            message: "too much".into(),
            details: vec![prost_types::Any {
                type_url: "github.com/moby/buildkit/errdefs.Subrequest+json".into(),
                value: br#"{"name":"mine"}"#.to_vec(),
            }],
        };
        Err(Status::with_details(
            Code::ResourceExhausted,
            "too much",
            details.encode_to_vec().into(),
        ))
    });
    let error = failed.unwrap_err();
    assert!(error.to_string().contains("too much"), "{error}");
    let cooper_client::ClientError::Call { status, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    let told = rpc::Status::decode(status.details()).unwrap();
    assert!(
        told.details
            .iter()
            .any(|any| any.type_url.ends_with("errdefs.Subrequest+json")),
        "{told:?}"
    );

    // By hand: what the call itself answers, and what becomes of the build.
    let returned = |id: &str, results: Vec<api::Result>| {
        let mut solve = Solve::default();
        solve.request.r#ref = id.into();
        bench.rt.block_on(async {
            let mut discard = |_| ();
            let solving = Box::pin(bench.client.solve(solve, &mut discard));
            let building = async {
                let mut gateway = crate::client_frontend::gateway(&bench, id).await;
                let mut answers = Vec::new();
                for result in results {
                    let request = api::ReturnRequest {
                        result: Some(result),
                        error: None,
                    };
                    answers.push(gateway.0.r#return(request).await.map(drop));
                }
                answers
            };
            tokio::join!(solving, building)
        })
    };
    // A result of another build is none of this one.
    let other = api::Ref {
        id: "nobody".into(),
        def: None,
    };
    let (solved, answers) = returned("stranger", vec![single(other).unwrap()]);
    let error = answers[0].as_ref().unwrap_err();
    assert!(error.message().contains("nobody not found"), "{error}");
    let error = solved.unwrap_err().to_string();
    assert!(error.contains("nobody not found"), "{error}");
    // Twice is once too often.
    let (solved, answers) = returned(
        "twice",
        vec![api::Result::default(), api::Result::default()],
    );
    solved.unwrap();
    assert!(answers[0].is_ok() && answers[1].is_err(), "{answers:?}");
    bench.end();
}

/// Metadata of a frontend's result reach the exporter, which answers with its own.
#[test]
fn gw02_gw14_a_frontend_of_the_daemon_may_be_asked_for_a_part() {
    let bench = Bench::start();
    let dockerfile = "FROM scratch\nCOPY in /\nENV A=b\n";
    let mut solve = Solve::default();
    solve
        .request
        .exporters
        .push(exporter("image", &[("name", "example.com/n:1")]));
    let solved = build(&bench, solve, async |mut gateway| {
        let input = |path: &str, data: &str| {
            let state = State::scratch().files(vec![mkfile(path, data)]);
            state.marshal(&MarshalOptions::default())
        };
        let request = |frontend: &str| api::SolveRequest {
            frontend: frontend.into(),
            frontend_inputs: [
                ("context".to_owned(), input("/in", "x")),
                ("dockerfile".to_owned(), input("/Dockerfile", dockerfile)),
            ]
            .into(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..api::SolveRequest::default()
        };
        let result = gateway
            .0
            .solve(request("dockerfile.v0"))
            .await?
            .into_inner()
            .result
            .unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&result.metadata["containerimage.config"]).unwrap();
        let env = config["config"]["Env"].as_array().unwrap();
        assert!(env.iter().any(|one| one == "A=b"), "{config}");
        let error = gateway.0.solve(request("nothing.v0")).await.unwrap_err();
        assert!(
            error.message().contains("invalid frontend: nothing.v0"),
            "{error}"
        );
        // A part that fails says which operation it was, and the build goes on.
        let failing = bench.image().run(args(&["sh", "-c", "exit 7"]));
        let error = gateway.solve(&failing, true).await.unwrap_err();
        let details = rpc::Status::decode(error.details()).unwrap().details;
        for name in ["errdefs.Vertex", "gatewayapi.ExitMessage"] {
            assert!(
                details.iter().any(|any| any.type_url.contains(name)),
                "{name}: {details:?}"
            );
        }
        Ok(result)
    });
    let response = solved.unwrap().exporter_response;
    assert!(response["containerimage.config.digest"].starts_with("sha256:"));
    bench.end();
}

/// The same step is one step, however often and from wherever in a build it is asked for.
#[test]
fn sol14_solves_inside_of_a_build_share_their_steps() {
    let bench = Bench::start();
    let state = bench
        .image()
        .run(sh("sleep 1; cat /proc/sys/kernel/random/uuid > /id"));
    let mut ids = Vec::new();
    build(&bench, Solve::default(), async |gateway| {
        let (mut one, mut two) = (gateway.clone(), gateway.clone());
        let (first, second) = tokio::join!(one.solve(&state, true), two.solve(&state, false));
        let (first, second) = (first?, second?);
        let later = one
            .solve(&state.files(vec![mkfile("/more", "x")]), false)
            .await?;
        for found in [&first, &second, &later] {
            ids.push(one.read(found, "/id").await?);
        }
        nothing()
    })
    .unwrap();
    // And the next build finds it.
    build(&bench, Solve::default(), async |mut gateway| {
        let found = gateway.solve(&state, true).await?;
        ids.push(gateway.read(&found, "/id").await?);
        nothing()
    })
    .unwrap();
    assert_eq!(ids.len(), 4);
    assert!(
        ids.iter().all(|id| id.len() == 37 && *id == ids[0]),
        "{ids:?}"
    );
    bench.end();
}
