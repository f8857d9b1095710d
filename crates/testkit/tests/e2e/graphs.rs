//! Graphs that no client of good will sends.

use std::collections::BTreeMap;
use std::time::Duration;

use cooper_proto::control::control_client::ControlClient;
use cooper_proto::control::{DiskUsageRequest, SolveRequest};
use cooper_proto::pb;
use cooper_testkit::{Daemon, leak};
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn source(identifier: &str) -> pb::Op {
    pb::Op {
        op: Some(pb::op::Op::Source(pb::SourceOp {
            identifier: identifier.into(),
            ..pb::SourceOp::default()
        })),
        ..pb::Op::default()
    }
}

/// A file on an empty file system.
fn file() -> pb::Op {
    let action = pb::FileAction {
        input: -1,
        secondary_input: -1,
        output: 0,
        action: Some(pb::file_action::Action::Mkfile(pb::FileActionMkFile {
            path: "/file".into(),
            mode: 0o644,
            data: b"content".to_vec(),
            timestamp: -1,
            ..pb::FileActionMkFile::default()
        })),
    };
    pb::Op {
        op: Some(pb::op::Op::File(pb::FileOp {
            actions: vec![action],
        })),
        ..pb::Op::default()
    }
}

fn input(digest: &str, index: i64) -> pb::Input {
    pb::Input {
        digest: digest.into(),
        index,
    }
}

/// The operations, and a last one that takes output `index` of the last of them.
fn definition(ops: &[pb::Op], index: i64) -> pb::Definition {
    let mut def: Vec<Vec<u8>> = ops.iter().map(Message::encode_to_vec).collect();
    let last = digest(def.last().unwrap());
    let root = pb::Op {
        inputs: vec![input(&last, index)],
        ..pb::Op::default()
    };
    def.push(root.encode_to_vec());
    pb::Definition {
        def: def.into_iter().map(Into::into).collect(),
        ..pb::Definition::default()
    }
}

fn with_input(mut op: pb::Op, digest: &str) -> pb::Op {
    op.inputs = vec![input(digest, 0)];
    op
}

fn exec(meta: Option<pb::Meta>, mounts: Vec<pb::Mount>, inputs: Vec<pb::Input>) -> pb::Op {
    pb::Op {
        inputs,
        op: Some(pb::op::Op::Exec(pb::ExecOp {
            meta,
            mounts,
            ..pb::ExecOp::default()
        })),
        ..pb::Op::default()
    }
}

async fn solve(
    client: &mut ControlClient<Channel>,
    name: &str,
    definition: pb::Definition,
) -> Result<(), Status> {
    let request = SolveRequest {
        r#ref: format!("graphs-{name}"),
        definition: Some(definition),
        ..SolveRequest::default()
    };
    let answer = tokio::time::timeout(Duration::from_secs(20), client.solve(request)).await;
    let answer = answer.unwrap_or_else(|_| panic!("{name}: no answer"));
    answer.map(drop)
}

fn faults() -> Vec<(&'static str, pb::Definition, &'static str)> {
    let nobody = digest(b"nobody");
    let root = pb::Mount {
        input: 0,
        dest: "/".into(),
        ..pb::Mount::default()
    };
    let meta = || {
        Some(pb::Meta {
            args: vec!["true".into()],
            cwd: "/".into(),
            ..pb::Meta::default()
        })
    };
    let mut cap = definition(&[file()], 0);
    let op = digest(&cap.def[0]);
    let unknown = pb::OpMetadata {
        caps: BTreeMap::from([("nobody.knows.this".to_owned(), true)]),
        ..pb::OpMetadata::default()
    };
    cap.metadata.insert(op.clone(), unknown);
    let mut garbage = definition(&[file()], 0);
    garbage.def[0] = vec![0xff; 8].into();
    // What stands in the metadata is no reason to trust a digest: this is the claim of a cycle.
    let mut cycle = definition(&[with_input(file(), &nobody)], 0);
    cycle
        .metadata
        .insert(nobody.clone(), pb::OpMetadata::default());
    vec![
        ("garbage", garbage, ""),
        (
            "missing-input",
            definition(&[with_input(file(), &nobody)], 0),
            "invalid missing input digest",
        ),
        ("cycle", cycle, "invalid missing input digest"),
        (
            "no-digest",
            definition(&[with_input(file(), "sha256:xyz")], 0),
            "",
        ),
        ("no-output", definition(&[file()], 7), ""),
        ("negative-output", definition(&[file()], -2), ""),
        ("no-operation", definition(&[pb::Op::default()], 0), ""),
        ("unknown-cap", cap, "nobody.knows.this"),
        (
            "unknown-scheme",
            definition(&[source("weird://x")], 0),
            "weird",
        ),
        ("no-scheme", definition(&[source("nothing")], 0), ""),
        (
            "no-meta",
            definition(&[exec(None, vec![root.clone()], Vec::new())], 0),
            "",
        ),
        (
            "no-root",
            definition(&[exec(meta(), Vec::new(), Vec::new())], 0),
            "",
        ),
        (
            "mount-of-nothing",
            definition(
                &[exec(
                    meta(),
                    vec![pb::Mount { input: 5, ..root }],
                    Vec::new(),
                )],
                0,
            ),
            "",
        ),
        (
            "one-operation",
            pb::Definition {
                def: vec![file().encode_to_vec().into()],
                ..pb::Definition::default()
            },
            "",
        ),
    ]
}

#[test]
fn llb01_a_graph_that_is_none_is_refused_and_the_daemon_goes_on() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let path = daemon.address().trim_start_matches("unix://").to_owned();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connect).await.unwrap();
        let mut client = ControlClient::new(channel);
        for (name, definition, part) in faults() {
            let status = match solve(&mut client, name, definition).await {
                Ok(()) => panic!("{name}: was solved"),
                Err(status) => status,
            };
            eprintln!("{name}: {:?} {}", status.code(), status.message());
            assert!(!status.message().is_empty(), "{name}");
            assert!(status.message().contains(part), "{name}: {status:?}");
            assert_ne!(
                status.code(),
                tonic::Code::Unavailable,
                "{name}: {status:?}"
            );
        }
        // The connection that brought all this still works.
        solve(&mut client, "sound", definition(&[file()], 0))
            .await
            .unwrap();
        client
            .disk_usage(DiskUsageRequest::default())
            .await
            .unwrap();
    });
    assert!(daemon.is_running(), "{}", daemon.log());
    drop(runtime);
    drop(daemon);
    watch.check();
}
