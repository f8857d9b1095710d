//! Steps that fail, and what a program is told of them so that it can look into them.

use cooper_client::Solve;
use cooper_llb::build::{Constraints, FileAction, MountSpec, State};
use cooper_proto::rpc;
use cooper_proto::{gateway as api, pb};
use prost::Message as _;
use serde_json::Value;
use tonic::Status;

use crate::client::{Bench, Files, bind, copy, mkfile, read_only, sh};
use crate::client_frontend::{build, nothing};

/// The details of an error, by their names.
fn details(status: &Status) -> Vec<(String, Value)> {
    let decoded = rpc::Status::decode(status.details()).unwrap();
    let details = decoded.details.into_iter();
    details
        .map(|detail| {
            let name = detail
                .type_url
                .trim_start_matches("github.com/moby/buildkit/");
            let value = serde_json::from_slice(&detail.value).unwrap();
            (name.trim_end_matches("+json").to_owned(), value)
        })
        .collect()
}

#[track_caller]
fn detail(status: &Status, name: &str) -> Value {
    let all = details(status);
    let found = all.iter().find(|(found, _)| found == name);
    found
        .unwrap_or_else(|| panic!("no {name}: {all:?}"))
        .1
        .clone()
}

fn at(dest: &str, id: &Value) -> pb::Mount {
    pb::Mount {
        dest: dest.into(),
        result_id: id.as_str().unwrap().into(),
        output: -1,
        ..pb::Mount::default()
    }
}

#[test]
fn err04_the_files_of_a_failed_step_can_be_looked_at() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        let data = State::scratch().files(vec![mkfile("/data", "before")]);
        let mut step = sh("echo left > /root-file; echo changed > /rw/data; \
                           echo thrown > /scratch/file; cat /ro/data > /copied; exit 7");
        step.mounts.push(bind("/rw", &data));
        step.mounts.push(read_only("/ro", &data));
        let mut scratch = bind("/scratch", &State::scratch());
        scratch.no_output = true;
        step.mounts.push(scratch);
        step.constraints = Constraints::named("the step");
        let state = bench.image().run(step);
        let error = gateway.solve(&state, true).await.unwrap_err();
        assert!(error.message().contains("exit code: 7"), "{error}");
        assert_eq!(detail(&error, "gatewayapi.ExitMessage")["Code"], 7);
        let vertex = detail(&error, "errdefs.Vertex");
        assert!(vertex["digest"].as_str().unwrap().starts_with("sha256:"));
        let solve = detail(&error, "errdefs.Solve");
        let (inputs, mounts) = (&solve["inputIDs"], &solve["mountIDs"]);
        let exec = &solve["op"]["exec"];
        assert_eq!(exec["meta"]["args"][0], "sh");
        let dests = exec["mounts"].as_array().unwrap();
        let place = |dest: &str| {
            let found = dests.iter().position(|mount| mount["dest"] == dest);
            found.unwrap_or_else(|| panic!("no {dest} in {exec}"))
        };
        assert_eq!(solve["description"]["llb.customname"], "the step");
        assert_eq!(inputs.as_array().unwrap().len(), dests.len());
        assert_eq!(mounts.as_array().unwrap().len(), dests.len());
        assert_eq!(inputs[place("/scratch")], "");
        assert_ne!(inputs[place("/rw")], mounts[place("/rw")]);

        // As the step left it.
        let mut own = vec![at("/", &mounts[place("/")])];
        for dest in ["/rw", "/ro", "/scratch"] {
            own.push(at(dest, &mounts[place(dest)]));
        }
        gateway.container("after", own).await?;
        let mut processes = gateway.processes().await;
        let script = "cat /root-file /rw/data /scratch/file /copied";
        let ended = processes.run("after", &["sh", "-c", script]).await;
        assert_eq!(
            ended.output, "left\nchanged\nthrown\nbefore",
            "{}",
            ended.errors
        );
        // And as it was.
        let before = vec![
            at("/", &inputs[place("/")]),
            at("/rw", &inputs[place("/rw")]),
        ];
        gateway.container("before", before).await?;
        let ended = processes
            .run(
                "before",
                &["sh", "-c", "cat /rw/data; test ! -e /root-file"],
            )
            .await;
        assert_eq!((ended.output.as_str(), ended.code), ("before", 0));
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn err04_a_failed_action_on_files_is_named() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        let missing = FileAction::Rm {
            path: "/none".into(),
            allow_not_found: false,
            allow_wildcard: false,
        };
        let state = State::scratch().files(vec![mkfile("/a", "a"), missing]);
        let lazy = gateway.solve(&state, false).await?;
        let request = api::ReadFileRequest {
            r#ref: lazy.id,
            file_path: "/a".into(),
            ..api::ReadFileRequest::default()
        };
        let error = gateway.0.read_file(request).await.unwrap_err();
        let solve = detail(&error, "errdefs.Solve");
        assert_eq!(solve["file"]["index"], "1", "{solve}");
        assert!(solve["op"]["file"]["actions"].is_array());
        // One for each action: what the failed one worked on is there, as it left it.
        assert!(solve.get("inputIDs").is_none());
        let mounts = solve["mountIDs"].as_array().unwrap();
        assert_eq!((mounts.len(), &mounts[0]), (2, &Value::from("")));
        let image = gateway.solve(&bench.image(), false).await?;
        let own = vec![at("/", &image.id.into()), at("/left", &mounts[1])];
        gateway.container("after", own).await?;
        let mut processes = gateway.processes().await;
        let ended = processes.run("after", &["cat", "/left/a"]).await;
        assert_eq!((ended.output.as_str(), ended.code), ("a", 0));
        nothing()
    })
    .unwrap();
    bench.end();
}

/// What it read, and what it worked on.
#[test]
fn sol15_what_a_failed_copy_read_can_be_looked_at() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        let read = State::scratch().files(vec![mkfile("/data", "read")]);
        let copy = FileAction::Copy(Box::new(copy(&read, "/data", "/none/data")));
        let state = State::scratch().files(vec![mkfile("/a", "a"), copy]);
        let error = gateway.solve(&state, true).await.unwrap_err();
        let solve = detail(&error, "errdefs.Solve");
        let inputs = solve["inputIDs"].as_array().unwrap();
        let mounts = solve["mountIDs"].as_array().unwrap();
        assert_eq!((inputs.len(), mounts.len()), (1, 2), "{solve}");
        let image = gateway.solve(&bench.image(), false).await?;
        let own = vec![
            at("/", &image.id.into()),
            at("/read", &inputs[0]),
            at("/left", &mounts[1]),
        ];
        gateway.container("after", own).await?;
        let mut processes = gateway.processes().await;
        let script = "cat /read/data /left/a";
        let ended = processes.run("after", &["sh", "-c", script]).await;
        assert_eq!((ended.output.as_str(), ended.code), ("reada", 0));
        nothing()
    })
    .unwrap();
    bench.end();
}

/// A part of an input that is not there: the input can be looked at.
#[test]
fn sol15_an_input_without_a_key_of_its_content_can_be_looked_at() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        let data = State::scratch().files(vec![mkfile("/data", "there")]);
        let mut step = sh("true");
        step.mounts.push(MountSpec {
            selector: "/none".into(),
            ..read_only("/src", &data)
        });
        let state = bench.image().run(step);
        let error = gateway.solve(&state, true).await.unwrap_err();
        assert!(error.message().contains("/none"), "{error}");
        let solve = detail(&error, "errdefs.Solve");
        assert!(solve["op"]["exec"].is_object());
        assert!(solve["cache"].is_object(), "{solve}");
        assert!(solve.get("mountIDs").is_none());
        let inputs = solve["inputIDs"].as_array().unwrap();
        assert_eq!(inputs.len(), 1);
        let image = gateway.solve(&bench.image(), false).await?;
        let own = vec![at("/", &image.id.into()), at("/problem", &inputs[0])];
        gateway.container("after", own).await?;
        let mut processes = gateway.processes().await;
        let ended = processes.run("after", &["cat", "/problem/data"]).await;
        assert_eq!((ended.output.as_str(), ended.code), ("there", 0));
        nothing()
    })
    .unwrap();
    bench.end();
}

/// What a program returns comes back to its client as it was.
#[test]
fn err02_codes_and_details_go_through_a_frontend() {
    let bench = Bench::start();
    let failed = build(&bench, Solve::default(), async |mut gateway| {
        let state = bench.image().run(sh("exit 5"));
        Err(gateway.solve(&state, true).await.unwrap_err())
    });
    let error = failed.unwrap_err();
    let status = error.status().unwrap();
    assert_eq!(detail(status, "gatewayapi.ExitMessage")["Code"], 5);
    assert!(detail(status, "errdefs.Vertex")["digest"].is_string());
    let failed = build(&bench, Solve::default(), async |_| {
        Err(Status::resource_exhausted("mine"))
    });
    let error = failed.unwrap_err();
    let status = error.status().unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.message().contains("mine"));
    bench.end();
}
