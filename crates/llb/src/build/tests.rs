#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use cooper_proto::pb::{self, file_action::Action};
use prost::Message;

use super::*;
use crate::{LoadOptions, Op, load, platform};

fn amd64() -> pb::Platform {
    platform::parse("linux/amd64").unwrap()
}

fn options() -> MarshalOptions {
    MarshalOptions {
        platform: Some(amd64()),
        ..MarshalOptions::default()
    }
}

fn alpine() -> State {
    State::image(
        "docker.io/library/alpine:latest",
        Image::default(),
        Constraints::default().platform(amd64()),
    )
}

fn context() -> State {
    State::local(
        "context",
        Local {
            session: "s".into(),
            follow: vec!["a&b".into(), "c".into()],
            shared_key_hint: "context".into(),
            ..Local::default()
        },
        Constraints::named("[internal] load build context"),
    )
}

fn ops(definition: &pb::Definition) -> Vec<pb::Op> {
    definition
        .def
        .iter()
        .map(|raw| pb::Op::decode(raw.as_ref()).unwrap())
        .collect()
}

fn copy(source: State, src: &str, dest: &str) -> FileAction {
    FileAction::Copy(Box::new(CopySpec {
        source,
        src: src.into(),
        dest: dest.into(),
        ..CopySpec::default()
    }))
}

#[test]
fn sources_have_the_attributes_of_buildkit() {
    let definition = context().marshal(&options());
    let [source, pointer] = ops(&definition).try_into().unwrap();
    let Some(Op::Source(local)) = source.op else {
        panic!("not a source")
    };
    assert_eq!(local.identifier, "local://context");
    assert_eq!(source.platform, None);
    assert_eq!(
        local.attrs["local.followpaths"], "[\"a\\u0026b\",\"c\"]",
        "as Go's JSON"
    );
    assert_eq!(local.attrs["local.session"], "s");
    assert_eq!(pointer.op, None);
    let graph = load(&definition, LoadOptions::default()).unwrap();
    assert_eq!(graph.vertex(0).name, "[internal] load build context");
    let caps: Vec<_> = graph.vertex(0).metadata.caps.keys().collect();
    assert_eq!(
        caps,
        [
            "source.local",
            "source.local.followpaths",
            "source.local.sessionid",
            "source.local.sharedkeyhint"
        ]
    );
    let all = crate::CapSet::all_llb();
    let checked = LoadOptions {
        caps: Some(&all),
        ..LoadOptions::default()
    };
    load(&definition, checked).unwrap();
}

#[test]
fn a_command_has_sorted_mounts_and_equal_inputs_are_one() {
    let state = alpine()
        .add_env("A", "1")
        .add_env("B", "2")
        .add_env("A", "3")
        .dir("/x")
        .dir("y");
    let bind = |target: &str, source: State, no_output: bool| MountSpec {
        target: target.into(),
        source,
        selector: "/sub".into(),
        read_only: !no_output,
        no_output,
        kind: MountKind::Bind,
    };
    let run = state.run(Exec {
        args: vec!["true".into()],
        mounts: vec![
            bind("/z", context(), true),
            MountSpec {
                kind: MountKind::Cache {
                    id: "c".into(),
                    sharing: pb::CacheSharingOpt::Locked,
                },
                ..bind("/cache", State::scratch(), true)
            },
            bind("/a", alpine(), false),
        ],
        secrets: vec![SecretSpec {
            target: Some("/run/secrets/t".into()),
            env: Some("T".into()),
            options: pb::SecretOpt {
                id: "t".into(),
                mode: 0o400,
                ..pb::SecretOpt::default()
            },
        }],
        ssh: vec![SshSpec::default()],
        ..Exec::default()
    });
    let definition = run.marshal(&options());
    let op = ops(&definition).swap_remove(definition.def.len() - 2);
    assert_eq!(
        op.inputs.len(),
        2,
        "the image is once the root and once a mount"
    );
    let Some(Op::Exec(exec)) = op.op else {
        panic!("not an exec")
    };
    let mounts: Vec<_> = exec
        .mounts
        .iter()
        .map(|m| (m.dest.as_str(), m.input, m.output))
        .collect();
    assert_eq!(
        mounts,
        [
            ("/", 0, 0),
            ("/a", 0, -1),
            ("/cache", -1, -1),
            ("/z", 1, -1),
            ("/run/secrets/t", -1, 0),
            ("/run/buildkit/ssh_agent.0", -1, 0),
        ]
    );
    let meta = exec.meta.unwrap();
    assert_eq!(
        meta.env,
        ["B=2", "A=3", "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"]
    );
    assert_eq!(meta.cwd, "/x/y");
    assert!(meta.remove_mount_stubs_recursive);
    assert_eq!(exec.secretenv[0].name, "T");
    assert_eq!(op.platform, Some(amd64()));
    load(&definition, LoadOptions::default()).unwrap();
}

#[test]
fn the_path_is_the_builders_to_set_if_it_can() {
    let run = alpine().run(Exec {
        args: vec!["true".into()],
        ..Exec::default()
    });
    let env = |caps: Option<crate::CapSet>| {
        let definition = run.marshal(&MarshalOptions { caps, ..options() });
        let op = ops(&definition).swap_remove(1);
        let Some(Op::Exec(exec)) = op.op else {
            panic!("not an exec")
        };
        exec.meta.unwrap().env
    };
    assert_eq!(env(Some(crate::CapSet::all_llb())), Vec::<String>::new());
    assert_eq!(
        env(Some(crate::CapSet::default())),
        [format!("PATH={DEFAULT_PATH}")]
    );
}

#[test]
fn file_actions_are_chained() {
    let built = alpine().dir("/w").file(
        vec![
            copy(context(), "/a", "b/"),
            copy(context(), "/c", "/d/."),
            FileAction::Mkdir {
                path: "e".into(),
                mode: 0o1755,
                make_parents: true,
                owner: Some(Owner::parse("bin:3")),
                created: Some(5),
            },
        ],
        Constraints::default(),
    );
    let definition = built.marshal(&options());
    let op = ops(&definition).swap_remove(definition.def.len() - 2);
    assert_eq!(op.inputs.len(), 2);
    let Some(Op::File(file)) = op.op else {
        panic!("not a file op")
    };
    let places: Vec<_> = file
        .actions
        .iter()
        .map(|a| (a.input, a.secondary_input, a.output))
        .collect();
    assert_eq!(places, [(0, 1, -1), (2, 1, -1), (3, -1, 0)]);
    let Some(Action::Copy(copy)) = &file.actions[0].action else {
        panic!("not a copy")
    };
    assert_eq!((copy.src.as_str(), copy.dest.as_str()), ("/a", "/w/b/"));
    assert_eq!((copy.mode, copy.timestamp), (-1, -1));
    let Some(Action::Mkdir(mkdir)) = &file.actions[2].action else {
        panic!("not a mkdir")
    };
    assert_eq!((mkdir.path.as_str(), mkdir.mode), ("/w/e", 0o755));
    assert_eq!(mkdir.timestamp, 5);
    let owner = mkdir.owner.clone().unwrap();
    assert_eq!(
        owner.user.unwrap().user,
        Some(pb::user_opt::User::ByName(pb::NamedUserOpt {
            name: "bin".into(),
            input: 0
        }))
    );
    assert_eq!(owner.group.unwrap().user, Some(pb::user_opt::User::ById(3)));
}

#[test]
fn a_file_of_nothing_has_no_input() {
    let built = State::scratch().file(
        vec![FileAction::Mkfile {
            path: "f".into(),
            mode: 0o644,
            data: b"x".to_vec(),
            owner: None,
            created: None,
        }],
        Constraints::default().platform(amd64()),
    );
    let definition = built.marshal(&options());
    let op = ops(&definition).swap_remove(0);
    let Some(Op::File(file)) = op.op else {
        panic!("not a file op")
    };
    assert_eq!(op.inputs, []);
    assert_eq!(
        (file.actions[0].input, file.actions[0].secondary_input),
        (-1, -1)
    );
    assert_eq!(
        State::scratch().marshal(&options()),
        pb::Definition::default()
    );
}

#[test]
fn layers_are_merged_and_compared() {
    let one = alpine().file(vec![copy(context(), "/a", "/a")], Constraints::default());
    assert!(
        State::merge(&[State::scratch()], Constraints::default())
            .output()
            .is_none()
    );
    let merged = State::merge(
        &[one.clone(), State::scratch(), alpine()],
        Constraints::default(),
    );
    let definition = merged.marshal(&options());
    let op = ops(&definition).swap_remove(definition.def.len() - 2);
    assert_eq!(op.platform, None);
    let Some(Op::Merge(merge)) = op.op else {
        panic!("not a merge")
    };
    assert_eq!(merge.inputs.len(), 2);
    let diff = State::diff(&alpine(), &one, Constraints::default());
    let graph = load(&diff.marshal(&options()), LoadOptions::default()).unwrap();
    assert!(graph.vertices().last().unwrap().name.starts_with("diff ("));
}

#[test]
fn what_is_deferred_is_filled_in_before_it_is_written() {
    let deferred = Deferred::default();
    let built = alpine().file(
        vec![copy(State::deferred(&deferred), "/a", "/a")],
        Constraints::default(),
    );
    deferred.fill(context().output().cloned());
    let direct = alpine().file(vec![copy(context(), "/a", "/a")], Constraints::default());
    assert_eq!(built.marshal(&options()), direct.marshal(&options()));
}

#[test]
fn what_others_wrote_is_taken_over() {
    let written = Arc::new(context().marshal(&options()));
    let state = State::definition(written.clone()).unwrap();
    assert_eq!(state.marshal(&options()), *written);
    let built = alpine().file(vec![copy(state, "/a", "/a")], Constraints::default());
    let direct = alpine().file(vec![copy(context(), "/a", "/a")], Constraints::default());
    assert_eq!(built.marshal(&options()), direct.marshal(&options()));
    let empty = State::definition(Arc::default()).unwrap();
    assert!(empty.output().is_none());
}

#[test]
fn operations_know_their_lines() {
    let map = SourceMap {
        info: Arc::new(pb::SourceInfo {
            filename: "Dockerfile".into(),
            ..pb::SourceInfo::default()
        }),
    };
    let range = pb::Range {
        start: Some(pb::Position {
            line: 2,
            character: 0,
        }),
        end: Some(pb::Position {
            line: 2,
            character: 0,
        }),
    };
    let run = alpine().run(Exec {
        args: vec!["true".into()],
        constraints: Constraints::named("[2/2] RUN true")
            .location(&map, vec![range])
            .ignore_cache(true)
            .progress_group("g", "group", true),
        ..Exec::default()
    });
    let definition = run.marshal(&options());
    let source = definition.source.clone().unwrap();
    assert_eq!(source.infos[0].filename, "Dockerfile");
    let graph = load(&definition, LoadOptions::default()).unwrap();
    let vertex = graph.vertices().last().unwrap();
    let digest: &str = vertex.digest.as_ref();
    assert_eq!(source.locations[digest].locations[0].ranges, [range]);
    assert!(vertex.ignore_cache());
    assert_eq!(vertex.metadata.progress_group.clone().unwrap().id, "g");
}

#[test]
fn paths_are_cleaned() {
    for (dir, path, keep, expected) in [
        ("/", "a", true, "/a"),
        ("/w", "a/", true, "/w/a/"),
        ("/w", "a/", false, "/w/a"),
        ("/w", ".", true, "/w"),
        ("/w", "./", true, "/w/"),
        ("/w", "a/.", true, "/w/a/."),
        ("/w", "/.", true, "/."),
        ("/w", "../../a", true, "/a"),
        ("/w", "/a//b/../c", true, "/a/c"),
        ("w", "a", true, "/w/a"),
    ] {
        assert_eq!(normalize(dir, path, keep), expected, "{dir} {path}");
    }
}

#[test]
fn a_long_chain_does_not_exhaust_the_stack() {
    let mut state = alpine();
    for i in 0..50_000 {
        state = state.run(Exec {
            args: vec![i.to_string()],
            ..Exec::default()
        });
    }
    assert_eq!(state.marshal(&options()).def.len(), 50_002);
    drop(state);
}
