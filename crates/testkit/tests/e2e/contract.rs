//! What programs rely on that speak BuildKit's API, in its less trodden corners.

use cooper_client::{Client, Solve};
use cooper_llb::build::{Constraints, MarshalOptions, State};
use cooper_proto::content::{InfoRequest, ReadContentRequest, WriteContentRequest};
use cooper_proto::gateway::exec_message::Input;
use cooper_proto::gateway::result::Result as Refs;
use cooper_proto::{control, fsutil, gateway as api, pb};
use futures::StreamExt;
use prost::Message;
use tonic::Code;

use crate::client::{Bench, Files, args, blobs, exporter, local, mkfile, request, sh, with_dir};
use crate::client_frontend::{build, gateway, nothing, single};
use crate::read;

/// The blobs of the daemon are there to be read, and for nothing else. That none is left after
/// everything was pruned is looked at in every case that has a bench.
#[test]
fn ctl14_blobs_are_listed_and_read_and_not_written() {
    let bench = Bench::start();
    let image = bench.stream(request(&bench.image()), "oci", &[]);
    let manifest = image.json("index.json")["manifests"][0].clone();
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    bench.rt.block_on(async {
        let all = blobs(&bench.client).await;
        let found = all.iter().find(|info| info.digest == digest).unwrap();
        assert_eq!(Some(found.size), manifest["size"].as_i64());
        let mut client = bench.client.content();
        let info = InfoRequest {
            digest: digest.clone(),
        };
        let answer = client.info(info).await.unwrap().into_inner();
        assert_eq!(answer.info.as_ref().map(|info| info.size), Some(found.size));

        let read = async |offset: i64, size: i64| {
            let request = ReadContentRequest {
                digest: digest.clone(),
                offset,
                size,
            };
            let answers = bench.client.content().read(request).await?.into_inner();
            let pieces: Vec<_> = answers.collect().await;
            let mut data = Vec::new();
            for piece in pieces {
                let piece = piece?;
                assert_eq!(piece.offset, offset + data.len() as i64);
                data.extend_from_slice(&piece.data);
            }
            Ok::<_, tonic::Status>(data)
        };
        let whole = image.blob(&manifest["digest"]);
        assert_eq!(read(0, 0).await.unwrap(), whole);
        assert_eq!(read(3, 5).await.unwrap(), whole[3..8]);
        assert_eq!(read(whole.len() as i64, 0).await.unwrap(), b"");
        assert_eq!(read(5, 1 << 40).await.unwrap(), whole[5..]);
        let past = read(whole.len() as i64 + 1, 0).await.unwrap_err();
        assert_eq!(past.code(), Code::OutOfRange);

        for (digest, code) in [
            (format!("sha256:{}", "0".repeat(64)), Code::NotFound),
            ("none".to_owned(), Code::InvalidArgument),
        ] {
            let error = client.info(InfoRequest { digest }).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
        }
        let write = futures::stream::iter([WriteContentRequest::default()]);
        let error = client.write(write).await.unwrap_err();
        assert_eq!(error.message(), "read-only content store");
    });
    bench.end();
}

/// The definition of `state`, each of whose operations `change` may change: who names a changed
/// one names it by its new digest.
fn changed(state: &State, change: impl Fn(&mut pb::Op)) -> pb::Definition {
    let mut definition = state.marshal(&MarshalOptions::default());
    let mut names = std::collections::BTreeMap::new();
    for raw in &mut definition.def {
        let before = cooper_llb::digest_of(raw).to_string();
        let mut op = pb::Op::decode(raw.as_ref()).unwrap();
        for input in &mut op.inputs {
            if let Some(name) = names.get(&input.digest) {
                input.digest = String::clone(name);
            }
        }
        change(&mut op);
        *raw = op.encode_to_vec().into();
        let after = cooper_llb::digest_of(raw).to_string();
        if let Some(metadata) = definition.metadata.remove(&before) {
            definition.metadata.insert(after.clone(), metadata);
        }
        names.insert(before, after);
    }
    definition
}

fn solve_of(definition: pb::Definition) -> Solve {
    let mut solve = Solve::default();
    solve.request.definition = Some(definition);
    solve
}

#[test]
fn exe11_a_number_that_is_no_mode_is_refused() {
    let bench = Bench::start();
    for (change, expected) in [
        (
            (|exec: &mut pb::ExecOp| exec.security = 2) as fn(&mut pb::ExecOp),
            "invalid security mode",
        ),
        (|exec| exec.network = 9, "invalid network mode"),
    ] {
        let definition = changed(&bench.image().run(args(&["true"])), |op| {
            if let Some(pb::op::Op::Exec(exec)) = &mut op.op {
                change(exec);
            }
        });
        let error = bench.try_solve(solve_of(definition)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    build(&bench, Solve::default(), async |mut gateway| {
        gateway.busybox(&bench, "c").await;
        let mut processes = gateway.processes().await;
        let meta = pb::Meta {
            args: vec!["true".into()],
            ..pb::Meta::default()
        };
        let init = api::InitMessage {
            container_id: "c".into(),
            meta: Some(meta),
            security: 2,
            ..api::InitMessage::default()
        };
        processes.say("p", Input::Init(init)).await;
        let ended = processes.done("p").await;
        let error = ended.error.unwrap();
        assert!(error.message.contains("invalid security mode"), "{error:?}");
        nothing()
    })
    .unwrap();
    bench.end();
}

/// One operation that gives on some of its inputs, for `inputs`, the outputs of which are
/// `outputs`; what is built is its output `index`.
fn passthrough(inputs: &[&State], outputs: &[i64], index: i64) -> pb::Definition {
    let mut all = pb::Definition::default();
    let mut op = pb::Op {
        op: Some(pb::op::Op::Passthrough(pb::PassthroughOp {
            id: "test".into(),
            outputs: outputs.to_vec(),
        })),
        ..pb::Op::default()
    };
    for input in inputs {
        let mut definition = input.marshal(&MarshalOptions::default());
        // The last one only says which one is meant.
        let last = definition.def.pop().unwrap();
        op.inputs.extend(pb::Op::decode(last).unwrap().inputs);
        all.def.append(&mut definition.def);
        all.metadata.append(&mut definition.metadata);
    }
    let raw = op.encode_to_vec();
    let end = pb::Op {
        inputs: vec![pb::Input {
            digest: cooper_llb::digest_of(&raw).to_string(),
            index,
        }],
        ..pb::Op::default()
    };
    all.def.push(raw.into());
    all.def.push(end.encode_to_vec().into());
    all
}

#[test]
fn ops04_some_inputs_are_given_on_and_all_are_needed() {
    let bench = Bench::start();
    let file = |name: &str| State::scratch().files(vec![mkfile(name, name)]);
    let (a, c) = (file("/a"), file("/c"));
    let step = bench.image().run(sh("touch /never-seen"));
    for (index, name) in [(0, "a"), (1, "c")] {
        let definition = passthrough(&[&a, &step, &c], &[0, 2], index);
        let out = bench.export(solve_of(definition));
        assert_eq!(read(&out.path().join(name)), format!("/{name}"));
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
    }
    let failing = bench.image().run(sh("exit 42"));
    let definition = passthrough(&[&a, &failing], &[0], 0);
    let error = bench.try_solve(solve_of(definition)).unwrap_err();
    assert!(error.to_string().contains("exit code: 42"), "{error}");
    for outputs in [&[][..], &[3], &[-1]] {
        let definition = passthrough(&[&a, &c], outputs, 0);
        let error = bench.try_solve(solve_of(definition)).unwrap_err();
        assert!(error.to_string().contains("invalid passthrough"), "{error}");
    }
    bench.end();
}

/// Reads a listing of files: their metadata, each with its length before it.
fn listed(mut bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let stat = fsutil::Stat::decode(&rest[..length]).unwrap();
        names.push(stat.path);
        bytes = &rest[length..];
    }
    names
}

#[test]
fn src02_some_files_come_and_of_the_others_their_metadata() {
    let bench = Bench::start();
    let dir = bench.folder();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for name in ["data", "dir/file1", "dir/file2", "foo"] {
        write(name, name);
    }
    for name in ["dir/sub/bar1", "dir/sub/bar2", "dir/sub2/bar3"] {
        write(name, name);
    }
    let transfer = |state: &State| {
        let definition = changed(state, |op| {
            if let Some(pb::op::Op::Source(source)) = &mut op.op {
                let attrs = [
                    ("local.metadatatransfer", "true"),
                    ("local.metadatatransferexclude", r#"["dir/**/*1","foo"]"#),
                ];
                let attrs = attrs.map(|(name, value)| (name.to_owned(), value.to_owned()));
                source.attrs.extend(attrs);
            }
        });
        with_dir(solve_of(definition), "source", dir.path())
    };
    let there = |out: &tempfile::TempDir| {
        let mut found = Vec::new();
        let mut open = vec![out.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(out.path()).unwrap();
                found.push(name.to_str().unwrap().to_owned());
                if path.is_dir() {
                    open.push(path);
                }
            }
        }
        found.sort();
        found.join(" ")
    };
    let metadata = |out: &tempfile::TempDir| {
        let bytes = std::fs::read(out.path().join(".fsutil-metadata")).unwrap();
        listed(&bytes).join(" ")
    };

    let out = bench.export(transfer(&local("source")));
    let expected = ".fsutil-metadata dir dir/file1 dir/sub dir/sub/bar1 foo";
    assert_eq!(there(&out), expected);
    let all = "data dir dir/file1 dir/file2 dir/sub dir/sub/bar1 dir/sub/bar2 dir/sub2 \
               dir/sub2/bar3 foo";
    assert_eq!(metadata(&out), all);

    // What is there from before is brought up to date.
    std::fs::remove_dir_all(dir.path().join("dir/sub")).unwrap();
    write("dir/file1", "file1-updated");
    write("dir/bar1", "bar1");
    let out = bench.export(transfer(&local("source")));
    assert_eq!(there(&out), ".fsutil-metadata dir dir/bar1 dir/file1 foo");
    assert_eq!(read(&out.path().join("dir/file1")), "file1-updated");
    let all = "data dir dir/bar1 dir/file1 dir/file2 dir/sub2 dir/sub2/bar3 foo";
    assert_eq!(metadata(&out), all);
    // And the whole folder is not taken for it.
    let out = bench.export(with_dir(request(&local("source")), "source", dir.path()));
    assert_eq!(
        there(&out),
        "data dir dir/bar1 dir/file1 dir/file2 dir/sub2 dir/sub2/bar3 foo"
    );
    bench.end();
}

/// The warnings of a build whose client is its own frontend and gives back `result`.
fn warnings(
    bench: &Bench,
    id: &str,
    platform: &str,
    result: impl AsyncFnOnce(&mut crate::client_frontend::Gateway) -> api::Result,
) -> Vec<String> {
    let mut solve = Solve::default();
    solve.request.r#ref = id.into();
    if !platform.is_empty() {
        let attrs = &mut solve.request.frontend_attrs;
        attrs.insert("platform".into(), platform.into());
    }
    bench.rt.block_on(async {
        let mut seen = Vec::new();
        let mut progress = |status: control::StatusResponse| {
            let short = status.warnings.into_iter().map(|warning| warning.short);
            seen.extend(short.map(|short| String::from_utf8_lossy(&short).into_owned()));
        };
        let solving = Box::pin(bench.client.solve(solve, &mut progress));
        let building = async {
            let mut gateway = gateway(bench, id).await;
            let result = result(&mut gateway).await;
            let request = api::ReturnRequest {
                result: Some(result),
                error: None,
            };
            gateway.0.r#return(request).await.unwrap();
        };
        tokio::join!(solving, building).0.unwrap();
        seen
    })
}

#[test]
fn sol20_platforms_that_do_not_fit_are_warned_of() {
    const TWO: &str = "linux/amd64,linux/arm64";
    let bench = Bench::start();
    let state = State::scratch().files(vec![mkfile("/foo", "data")]);
    let one = async |gateway: &mut crate::client_frontend::Gateway| {
        single(gateway.solve(&state, false).await.unwrap()).unwrap()
    };
    let both = async |gateway: &mut crate::client_frontend::Gateway| {
        let found = gateway.solve(&state, false).await.unwrap();
        let names = TWO.split(',');
        let platform = |name: &str| {
            let (os, architecture) = name.split_once('/').unwrap();
            serde_json::json!({
                "ID": name,
                "Platform": { "os": os, "architecture": architecture },
            })
        };
        let all: Vec<_> = names.clone().map(platform).collect();
        let text = serde_json::json!({ "Platforms": all }).to_string();
        api::Result {
            // One state may be that of several platforms.
            result: Some(Refs::Refs(api::RefMap {
                refs: names.map(|name| (name.to_owned(), found.clone())).collect(),
            })),
            metadata: [("refs.platforms".to_owned(), text.into_bytes())].into(),
            ..api::Result::default()
        }
    };
    let not_multi = "Multiple platforms requested but result is not multi-platform";
    assert_eq!(warnings(&bench, "w1", TWO, one), [not_multi]);
    assert_eq!(warnings(&bench, "w2", "", one), [""; 0]);
    assert_eq!(warnings(&bench, "w3", TWO, both), [""; 0]);
    let seen = warnings(&bench, "w4", "", both);
    assert_eq!(seen.len(), 1, "{seen:?}");
    let text = "do not match result platforms linux/amd64,linux/arm64";
    assert!(seen[0].ends_with(text), "{seen:?}");
    // What only describes a build has no platforms.
    let described = async |gateway: &mut crate::client_frontend::Gateway| {
        let options = [("requestid".to_owned(), "frontend.lint".to_owned())];
        let request = api::SolveRequest {
            frontend_opt: options.into(),
            allow_result_array_ref: true,
            ..api::SolveRequest::default()
        };
        let answer = gateway.0.solve(request).await.unwrap().into_inner();
        answer.result.unwrap()
    };
    assert_eq!(warnings(&bench, "w5", TWO, described), [""; 0]);
    bench.end();
}

/// Attributes that an exporter does not know belong to somebody else.
#[test]
fn exp01_unknown_attributes_are_no_mistake() {
    let bench = Bench::start();
    let mut solve = request(&State::scratch());
    let name = format!("{}/empty:latest", bench.registry.host());
    solve.request.exporters.push(exporter(
        "image",
        &[
            ("name", &name),
            ("push", "true"),
            ("unpack", "true"),
            ("compression", "uncompressed"),
            ("attest:provenance", "mode=max"),
        ],
    ));
    let answer = bench.try_solve(solve).unwrap();
    assert!(
        answer
            .exporter_response
            .contains_key("containerimage.digest")
    );
    let again = State::image(&name, Default::default(), Constraints::default());
    let out = bench.files(&again);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    bench.end();
}

/// What is in the cache after a build is there once: building it again adds nothing.
#[test]
fn cm15_the_same_build_again_takes_no_more_space() {
    let bench = Bench::start();
    let dir = bench.folder();
    std::fs::write(dir.path().join("Dockerfile"), "FROM scratch\nCOPY foo /\n").unwrap();
    std::fs::write(dir.path().join("foo"), "contents").unwrap();
    let count = || {
        let solve = with_dir(Solve::default(), "context", dir.path());
        let mut solve = with_dir(solve, "dockerfile", dir.path());
        solve.request.frontend = "dockerfile.v0".into();
        bench.try_solve(solve).unwrap();
        let usage = Client::disk_usage(&bench.client, control::DiskUsageRequest::default());
        bench.rt.block_on(usage).unwrap().len()
    };
    let first = count();
    assert_eq!(count(), first);
    bench.end();
}
