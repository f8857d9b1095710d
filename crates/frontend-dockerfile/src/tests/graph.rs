use super::*;

#[test]
fn a_simple_build() {
    let outcome = build(
        "FROM alpine\nWORKDIR /src\nCOPY a b/\nRUN make  all\nCMD [\"x\"]\n",
        &[],
    );
    let from = format!("[1/4] FROM docker.io/library/alpine:latest@{DIGEST}");
    assert_eq!(
        outcome.names(),
        [
            from.as_str(),
            "[2/4] WORKDIR /src",
            "[internal] load build context",
            "[3/4] COPY a b/",
            "[4/4] RUN make  all",
        ]
    );
    assert_eq!(
        *outcome.fake.solved.lock().unwrap(),
        [
            "[internal] load build definition from Dockerfile",
            "[internal] load .dockerignore",
            "[4/4] RUN make  all"
        ]
    );
    let looked_up = outcome.fake.looked_up.lock().unwrap();
    assert_eq!(looked_up[0].0, "docker.io/library/alpine:latest");
    assert_eq!(
        looked_up[0].1.log_name,
        "[internal] load metadata for docker.io/library/alpine:latest"
    );
    let exec = outcome.exec("RUN");
    let meta = exec.meta.unwrap();
    assert_eq!(meta.args, ["/bin/sh", "-c", "make  all"]);
    assert_eq!(meta.env, ["PATH=/bin"]);
    assert_eq!(meta.cwd, "/src");
    assert_eq!((exec.mounts[0].input, exec.mounts[0].output), (0, 0));
    let context = outcome.attrs("local://context");
    assert_eq!(context["local.followpaths"], "[\"a\"]");
    assert_eq!(context["local.session"], "session");
    assert_eq!(context["local.sharedkeyhint"], "context");
    assert!(!context.contains_key("local.differ"));
    let vertex = outcome.vertex("RUN");
    assert_eq!(
        vertex.metadata.description["com.docker.dockerfile.v1.command"],
        "RUN make  all"
    );
    let definition = outcome.definition();
    let source = definition.source.unwrap();
    assert_eq!(source.infos[0].language, "Dockerfile");
    let digest: &str = vertex.digest.as_ref();
    let range = &source.locations[digest].locations[0].ranges[0];
    assert_eq!(range.start.unwrap().line, 4);
}

#[test]
fn copy_has_the_fields_of_buildkit() {
    let outcome = build(
        "FROM alpine\nCOPY --chown=1:bin --chmod=0644 a* /dest/\n",
        &[],
    );
    assert_eq!(
        outcome.copy("COPY"),
        pb::FileActionCopy {
            src: "/a*".into(),
            dest: "/dest/".into(),
            owner: Some(pb::ChownOpt {
                user: Some(pb::UserOpt {
                    user: Some(pb::user_opt::User::ById(1)),
                }),
                group: Some(pb::UserOpt {
                    user: Some(pb::user_opt::User::ByName(pb::NamedUserOpt {
                        name: "bin".into(),
                        input: 0,
                    })),
                }),
            }),
            mode: 0o644,
            follow_symlink: true,
            dir_copy_contents: true,
            create_dest_path: true,
            allow_wildcard: true,
            allow_empty_wildcard: true,
            timestamp: -1,
            ..pb::FileActionCopy::default()
        }
    );
    let outcome = build("FROM alpine\nADD a.tar .\n", &[]);
    let copy = outcome.copy("ADD");
    assert!(copy.attempt_unpack_docker_compatibility);
    assert_eq!((copy.mode, copy.dest.as_str()), (-1, "/"));
    let outcome = build(
        "FROM alpine\nCOPY --exclude=*.o --parents x/./y/z /d/\n",
        &[],
    );
    let copy = outcome.copy("COPY");
    assert_eq!(
        (copy.src.as_str(), copy.include_patterns),
        ("/x", vec!["y/z".to_owned()])
    );
    assert_eq!(copy.required_paths, ["/x/y/z"]);
    assert_eq!(copy.exclude_patterns, ["*.o"]);
}

#[test]
fn stages_that_nothing_needs_are_left_out() {
    let text = "FROM alpine AS a\nRUN a\nFROM nowhere AS b\nRUN b\nFROM busybox\nCOPY --from=a /x /y\nCOPY --from=0 /z /\n";
    let outcome = build(text, &[]);
    let names = outcome.names();
    assert!(names.contains(&"[a 2/2] RUN a".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("RUN b")));
    assert!(names.contains(&"[stage-2 3/3] COPY --from=0 /z /".to_owned()));
    assert_eq!(outcome.fake.looked_up.lock().unwrap().len(), 2);
    let same = build(
        "FROM alpine AS a\nFROM alpine\nCOPY --from=a / /\nCOPY --from=alpine / /\n",
        &[],
    );
    assert_eq!(same.fake.looked_up.lock().unwrap().len(), 1);
    assert_eq!(outcome.copy("COPY --from=a").src, "/x");
    let outcome = build(text, &[("target", "A")]);
    assert_eq!(outcome.names().last().unwrap(), "[a 2/2] RUN a");
}

#[test]
fn a_stage_is_built_on_another() {
    let outcome = build(
        "FROM alpine AS base\nENV A=1\nWORKDIR /w\nUSER u\nFROM base AS next\nRUN $A\n",
        &[],
    );
    let meta = outcome.exec("RUN").meta.unwrap();
    assert_eq!(meta.env, ["PATH=/bin", "A=1"]);
    assert_eq!((meta.cwd.as_str(), meta.user.as_str()), ("/w", "u"));
    assert!(outcome.names().contains(&"[next 1/1] RUN 1".to_owned()));
}

#[test]
fn arguments_have_scopes() {
    let text = "ARG TAG=latest\nARG BASE=alpine:$TAG\nFROM $BASE\nARG TAG\nARG X=x-$TAG\nARG HTTP_PROXY\nRUN echo $X\n";
    let outcome = build(text, &[("build-arg:HTTP_PROXY", "http://p")]);
    let meta = outcome.exec("RUN").meta.unwrap();
    assert_eq!(
        meta.env,
        [
            "PATH=/bin",
            "TAG=latest",
            "X=x-latest",
            "HTTP_PROXY=http://p"
        ]
    );
    assert_eq!(meta.proxy_env.unwrap().http_proxy, "http://p");
    assert_eq!(
        outcome.history().last().unwrap(),
        "RUN |3 TAG=latest X=x-latest HTTP_PROXY=http://p /bin/sh -c echo $X # buildkit"
    );
    let outcome = build(text, &[("build-arg:BASE", "busybox"), ("build-arg:X", "y")]);
    let meta = outcome.exec("RUN").meta.unwrap();
    assert!(meta.env.contains(&"X=y".to_owned()));
    assert!(outcome.names()[0].contains("busybox"));
}

#[test]
fn platforms_have_arguments() {
    let outcome = build(
        "FROM --platform=$BUILDPLATFORM alpine\nARG TARGETARCH TARGETVARIANT BUILDOS TARGETSTAGE\nRUN x\n",
        &[("platform", "linux/arm64/v8")],
    );
    let meta = outcome.exec("RUN").meta.unwrap();
    assert_eq!(
        meta.env,
        [
            "PATH=/bin",
            "TARGETARCH=arm64",
            "TARGETVARIANT=",
            "BUILDOS=linux",
            "TARGETSTAGE=default"
        ]
    );
    assert_eq!(outcome.vertex("RUN").platform.architecture, "amd64");
    assert_eq!(outcome.image()["architecture"], "arm64");
}

#[test]
fn commands_have_mounts() {
    let text = "FROM alpine AS s\nFROM alpine\nENV T=/t\nRUN --mount=target=/src --mount=type=bind,from=s,source=/x,target=$T,rw --mount=type=cache,target=/c,sharing=locked --mount=type=cache,id=k,target=/d,uid=5 --mount=type=tmpfs,target=/m,size=1k --mount=type=secret,id=tok,env=TOK --mount=type=secret,target=/f --mount=type=ssh make $TOK\n";
    let outcome = build(text, &[("build-arg:BUILDKIT_CACHE_MOUNT_NS", "ns")]);
    let exec = outcome.exec("RUN");
    let found: Vec<_> = exec
        .mounts
        .iter()
        .map(|m| (m.dest.as_str(), m.selector.as_str(), m.output, m.readonly))
        .collect();
    assert_eq!(
        found,
        [
            ("/", "", 0, false),
            ("/c", "", -1, false),
            ("/d", "/cache", -1, false),
            ("/m", "", -1, false),
            ("/src", "", -1, true),
            ("/t", "/x", -1, false),
            ("/f", "", 0, false),
            ("/run/buildkit/ssh_agent.0", "", 0, false),
        ]
    );
    assert_eq!(exec.mounts[1].input, -1);
    assert_eq!(exec.mounts[1].cache_opt.as_ref().unwrap().id, "ns//c");
    assert_eq!(exec.mounts[2].cache_opt.as_ref().unwrap().id, "ns/k");
    assert_eq!(exec.mounts[3].tmpfs_opt.as_ref().unwrap().size, 1024);
    assert_eq!(exec.mounts[6].secret_opt.as_ref().unwrap().id, "f");
    assert_eq!(exec.secretenv[0].id, "tok");
    assert!(outcome.names().last().unwrap().ends_with("make ****"));
    assert!(
        !outcome
            .attrs("local://context")
            .contains_key("local.followpaths")
    );
}

#[test]
fn commands_have_networks_and_rights() {
    let outcome = build(
        "FROM alpine\nRUN --network=none a\nRUN --network=host --security=insecure b\nRUN c\n",
        &[
            ("force-network-mode", "host"),
            ("add-hosts", "h=1.2.3.4"),
            ("hostname", "box"),
            ("ulimit", "nofile=1:2"),
            ("shm-size", "1024"),
            ("cgroup-parent", "/p"),
            ("memory", "1048576"),
            ("memory-swap", "-1"),
            ("cpusetcpus", "0-1"),
            ("no-cache", ""),
        ],
    );
    assert_eq!(
        outcome.exec("RUN --network=none").network(),
        pb::NetMode::None
    );
    let b = outcome.exec("insecure b");
    assert_eq!(b.security(), pb::SecurityMode::Insecure);
    let c = outcome.exec("RUN c");
    assert_eq!(c.network(), pb::NetMode::Host);
    let meta = c.meta.unwrap();
    assert_eq!(
        (meta.hostname.as_str(), meta.cgroup_parent.as_str()),
        ("box", "/p")
    );
    assert_eq!(
        (meta.extra_hosts[0].ip.as_str(), meta.ulimit[0].hard),
        ("1.2.3.4", 2)
    );
    assert_eq!(c.mounts[1].dest, "/dev/shm");
    assert!(outcome.vertex("RUN c").ignore_cache());
    let limits = outcome.vertex("RUN c").metadata.linux_resources.clone();
    let expected = pb::LinuxResources {
        memory: 1 << 20,
        memory_swap: -1,
        cpuset_cpus: "0-1".into(),
        ..pb::LinuxResources::default()
    };
    assert_eq!(limits, Some(expected));
}

#[test]
fn documents_are_run_and_copied() {
    let outcome = build(
        "FROM alpine\nRUN <<EOF\na\nb\nEOF\nRUN <<X\n#!/bin/env py\nz\nX\nRUN cat <<A && cat <<B\na\nA\nb\nB\nCOPY <<F <<\"G\" /d/\n$PATH '\nF\n$PATH\nG\n",
        &[],
    );
    let args = |text| outcome.exec(text).meta.unwrap().args;
    assert_eq!(args("RUN <<EOF (a...)"), ["/bin/sh", "-c", "a\nb\n"]);
    let script = outcome.exec("RUN <<X");
    assert_eq!(script.meta.unwrap().args, ["/bin/sh", "-c", "/dev/pipes/X"]);
    assert_eq!(script.mounts[1].dest, "/dev/pipes/");
    assert_eq!(
        args("RUN cat"),
        ["/bin/sh", "-c", "cat <<A && cat <<B\na\nA\nb\nB"]
    );
    let Op::File(file) = outcome.vertex("COPY <<F").op else {
        panic!("not a file op")
    };
    assert_eq!(file.actions.len(), 2);
    let graph = outcome.graph();
    let documents: Vec<_> = graph
        .vertices()
        .iter()
        .filter(|v| v.name == "[internal] preparing inline document")
        .filter_map(|v| match &v.op {
            Op::File(file) => match &file.actions[0].action {
                Some(pb::file_action::Action::Mkfile(file)) => Some((
                    file.path.clone(),
                    String::from_utf8_lossy(&file.data).into_owned(),
                )),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert!(
        documents.contains(&("/F".into(), "/bin '\n".into())),
        "{documents:?}"
    );
    assert!(documents.contains(&("/G".into(), "$PATH\n".into())));
}

#[test]
fn links_are_merged_if_the_builder_can() {
    let text = "FROM alpine\nCOPY --link a /a\n";
    let outcome = build(text, &[]);
    let names = outcome.names();
    assert_eq!(
        &names[2..],
        ["[2/2] COPY --link a /a", "[2/2] LINK COPY --link a /a"]
    );
    let link = outcome.vertex("LINK").metadata.progress_group.unwrap();
    assert_eq!(link.name, "[2/2] COPY --link a /a");
    let outcome = Fake::new(text).without_cap("mergeop").run(&[]);
    let file = outcome.vertex("COPY --link");
    assert_eq!(file.inputs.len(), 2);
}

#[test]
fn downloads_and_repositories_are_added() {
    let outcome = build(
        &format!(
            "FROM alpine\nADD --checksum={DIGEST} https://h/p/f.tar.gz /x/\nADD --keep-git-dir=true https://h/r.git#v1:d /r\n"
        ),
        &[],
    );
    let http = outcome.attrs("https://h/p/f.tar.gz");
    assert_eq!(
        (
            http["http.filename"].as_str(),
            http["http.checksum"].as_str()
        ),
        ("f.tar.gz", DIGEST)
    );
    let copy = outcome.copy("f.tar.gz /x/");
    assert_eq!(copy.src, "/f.tar.gz");
    assert!(!copy.attempt_unpack_docker_compatibility && !copy.follow_symlink);
    let git = outcome.attrs("git://h/r.git#v1:d");
    assert_eq!(git["git.fullurl"], "https://h/r.git");
    assert_eq!(git["git.keepgitdir"], "true");
}

#[test]
fn an_image_leaves_instructions_to_do() {
    let onbuild = ALPINE.replace(
        "\"Env\"",
        "\"OnBuild\":[\"COPY --from=busybox /b /c\",\"RUN trigger\"],\"Env\"",
    );
    let outcome = Fake::new("FROM parent\nRUN own\n")
        .image("parent", &onbuild)
        .run(&[]);
    let names = outcome.names();
    assert!(
        names.contains(&"[2/4] ONBUILD COPY --from=busybox /b /c".to_owned()),
        "{names:?}"
    );
    assert!(names.contains(&"[3/4] ONBUILD RUN trigger".to_owned()));
    assert!(names.contains(&"[4/4] RUN own".to_owned()));
    assert!(outcome.image()["config"].get("OnBuild").is_none());
    let outcome = build(
        "FROM alpine AS a\nONBUILD RUN later\nFROM a\nRUN own\n",
        &[],
    );
    assert!(
        outcome
            .names()
            .iter()
            .any(|name| name.ends_with("ONBUILD RUN later"))
    );
}

#[test]
fn nothing_is_a_base_too() {
    let outcome = build("FROM scratch\nCOPY a /\n", &[]);
    assert_eq!(
        outcome.names(),
        ["[internal] load build context", "[1/1] COPY a /"]
    );
    let outcome = build("FROM scratch\nLABEL a=b\n", &[]);
    assert!(outcome.result.as_ref().unwrap().reference.is_none());
    assert_eq!(outcome.image()["config"]["Labels"]["a"], "b");
}

#[test]
fn the_same_text_gives_the_same_bytes() {
    let text = "FROM alpine AS a\nRUN --mount=type=cache,target=/c x\nFROM alpine\nCOPY --link --from=a / /\nCOPY . .\n";
    assert_eq!(build(text, &[]).definition(), build(text, &[]).definition());
}
