//! Dockerfiles built by a client that says itself what the frontend is to do.

use std::collections::BTreeMap;
use std::path::Path;

use cooper_client::Solve;

use crate::client::{Bench, with_dir, with_secrets};
use crate::dockerfile_git::Files;

/// A build of the Dockerfile, with other files beside it.
fn dockerfile(folder: &Path, text: impl AsRef<[u8]>, attrs: &[(&str, &str)]) -> Solve {
    std::fs::write(folder.join("Dockerfile"), text).unwrap();
    let mut solve = Solve::default();
    solve.request.frontend = "dockerfile.v0".into();
    let attrs = attrs.iter();
    let attrs = attrs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    solve.request.frontend_attrs = attrs.collect::<BTreeMap<_, _>>().into_iter().collect();
    with_dir(with_dir(solve, "dockerfile", folder), "context", folder)
}

#[track_caller]
fn fails(bench: &Bench, solve: Solve) -> String {
    bench.try_solve(solve).unwrap_err().to_string()
}

#[test]
fn df01_a_user_has_the_groups_of_its_name_and_no_others() {
    let bench = Bench::start();
    let folder = bench.folder();
    let mut text = format!(
        "FROM {} AS base\nRUN mkdir -p /etc && \
         printf 'root:x:0:0::/:/bin/sh\\ndaemon:x:1:1::/:/bin/false\\nio:x:1001:1001::/:/bin/sh\\n' > /etc/passwd && \
         printf 'root:x:0:\\nwheel:x:10:root\\ndaemon:x:1:\\nio:x:1001:\\nmore:x:1002:io\\n' > /etc/group\n",
        bench.busybox
    );
    for (user, expected) in [
        ("", "0:0/0 10"),
        ("root", "0:0/0 10"),
        ("io", "1001:1001/1001 1002"),
        ("1001", "1001:1001/1001 1002"),
        ("io:io", "1001:1001/1001"),
        ("1001:io", "1001:1001/1001"),
        ("io:1001", "1001:1001/1001"),
        ("1001:1001", "1001:1001/1001"),
        ("io:more", "1001:1002/1002"),
        ("1001:1002", "1001:1002/1002"),
        ("1042:1043", "1042:1043/1043"),
        ("1234", "1234:0/0"),
        ("daemon", "1:1/1"),
    ] {
        if !user.is_empty() {
            text += &format!("USER {user}\n");
        }
        text += &format!("RUN [ \"$(id -u):$(id -g)/$(id -G)\" = '{expected}' ]\n");
    }
    bench
        .try_solve(dockerfile(folder.path(), text, &[]))
        .unwrap();
    bench.end();
}

#[test]
fn df12_parents_that_match_nothing_are_left_out() {
    let bench = Bench::start();
    let folder = bench.folder();
    let base = &bench.busybox;
    let text = format!(
        "FROM {base} AS base\nRUN mkdir -p /test/a/b/c/d/e && touch /test/a/b/c/d/foo\n\
         FROM {base} AS missing\nCOPY --from=base --parents /test/none /out/\n\
         FROM {base} AS none\nCOPY --from=base --parents /test/a/b2*/c /out/\nRUN [ -d /out ] && [ ! -d /out/a ]\n\
         FROM {base} AS pivot\nCOPY --from=base --parents /test/a/b/./c2* /out/\nRUN [ -d /out ] && [ ! -d /out/a ]\n\
         FROM {base} AS whole\nCOPY --from=base --parents ./test/a/b/c/d/. /out/\nRUN [ -f /out/test/a/b/c/d/foo ]\n"
    );
    let target = |name| dockerfile(folder.path(), &text, &[("target", name)]);
    for name in ["none", "pivot", "whole"] {
        bench.try_solve(target(name)).unwrap();
    }
    let error = fails(&bench, target("missing"));
    assert!(
        error.contains("failed to calculate checksum of ref"),
        "{error}"
    );
    assert!(error.contains("\"/test/none\": not found"), "{error}");
    bench.end();
}

#[test]
fn df19_a_client_adds_mounts_to_every_run() {
    let bench = Bench::start();
    let folder = bench.folder();
    std::fs::write(folder.path().join("config"), "here").unwrap();
    let base = &bench.busybox;
    let text = format!(
        "FROM {base} AS one\nRUN [ \"$(cat /run/secrets/token)\" = hidden ] && echo x > /cache/one\n\
         FROM {base}\nRUN --mount=type=tmpfs,target=/own [ -f /run/secrets/token ] && [ \"$(cat /ctx/config)\" = here ]\n\
         COPY --from=one /bin/busybox /x\nRUN [ -f /cache/one ] && touch /scratch/y\nRUN [ ! -e /scratch/y ]\n"
    );
    let mounts = [
        (
            "automount:0",
            "type=secret,id=token,target=/run/secrets/token",
        ),
        ("automount:1", "type=cache,target=/cache"),
        ("automount:2", "type=bind,source=.,target=/ctx"),
        ("automount:10", "type=tmpfs,target=/scratch"),
    ];
    let solve = dockerfile(folder.path(), &text, &mounts);
    let secrets = [("token", "hidden")];
    bench.try_solve(with_secrets(solve, &secrets)).unwrap();
    for (spec, expected) in [
        (
            "type=bind,from=one,target=/d",
            "automount does not support 'from' option",
        ),
        ("nonsense", "failed to parse automount"),
    ] {
        let error = fails(
            &bench,
            dockerfile(folder.path(), &text, &[("automount:0", spec)]),
        );
        assert!(error.contains(expected), "{error}");
    }

    let hook = format!(
        r#"{{"RUN": {{"entrypoint": ["/dev/.hook/bin/busybox", "env", "FOO=BAR"],
            "mounts": [{{"from": "{base}", "target": "/dev/.hook"}}]}}}}"#
    );
    let text = format!(
        "FROM {base} AS work\nRUN echo \"$FOO\" > /foo\nFROM scratch\nCOPY --from=work /foo /\n"
    );
    for (attrs, expected) in [(&[][..], "\n"), (&[("hook", hook.as_str())], "BAR\n")] {
        let out = bench.export(dockerfile(folder.path(), &text, attrs));
        let found = std::fs::read_to_string(out.path().join("foo")).unwrap();
        assert_eq!(found, expected);
    }
    bench.end();
}

type Attrs<'a> = &'a [(&'a str, &'a str)];
/// A Dockerfile, options, attributes of the exporter, and the time of the layer.
type Dated<'a> = (&'a str, Attrs<'a>, Attrs<'a>, Option<u64>);

#[test]
fn df20_results_are_dated_by_what_the_dockerfile_says() {
    let bench = Bench::start();
    let folder = bench.folder();
    let served = bench.folder();
    let times = [1_700_000_302, 1_700_000_000];
    let mut tar = tar::Builder::new(Vec::new());
    for (name, time) in ["new", "old"].iter().zip(times) {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        header.set_mtime(time);
        tar.append_data(&mut header, name, &b"x"[..]).unwrap();
    }
    let text = "FROM scratch\nCOPY new /\n";
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(5);
    tar.append_data(&mut header, "Dockerfile", text.as_bytes())
        .unwrap();
    std::fs::write(served.path().join("c.tar"), tar.into_inner().unwrap()).unwrap();
    let server = Files::serve(served.path());
    let archive = format!("http://{}/c.tar", server.host);

    let stage = format!(
        "ARG SOURCE_DATE_EPOCH=mine\nFROM scratch AS mine\nADD {archive} /\nFROM {} AS last\n\
         ARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /epoch\nFROM scratch\nCOPY --from=last /epoch /\n",
        bench.busybox
    );
    let arg = "build-arg:SOURCE_DATE_EPOCH";
    let named = "ARG SOURCE_DATE_EPOCH=mine\nFROM scratch\nCOPY Dockerfile /\n";
    let number = "ARG SOURCE_DATE_EPOCH=1445412480\nFROM scratch\nCOPY Dockerfile /\n";
    let by_context = [("context", archive.as_str()), (arg, "context")];
    let rewrite: Attrs<'_> = &[("rewrite-timestamp", "true")];
    let reset: Attrs<'_> = &[("rewrite-timestamp", "true"), ("source-date-epoch", "")];
    let cases: [Dated<'_>; 8] = [
        (number, &[], rewrite, Some(1_445_412_480)),
        (number, &[(arg, "1700000002")], rewrite, Some(1_700_000_002)),
        (number, &[], reset, None),
        (number, &[(arg, "context")], rewrite, None),
        (&stage, &[], rewrite, Some(times[0])),
        (&stage, &[(arg, "7")], rewrite, Some(7)),
        (
            named,
            &[("context:mine", archive.as_str())],
            rewrite,
            Some(times[0]),
        ),
        ("", &by_context, rewrite, Some(times[0])),
    ];
    for (text, attrs, exporter, expected) in cases {
        let solve = dockerfile(folder.path(), text, attrs);
        let image = bench.stream(solve, "oci", exporter);
        let manifest = image.manifest();
        let found = &manifest["layers"][0]["annotations"]["buildkit/rewritten-timestamp"];
        let expected = expected.map(|time| time.to_string());
        assert_eq!(found.as_str(), expected.as_deref(), "{text} {attrs:?}");
        if text == stage && attrs.is_empty() {
            let layer = image.last_layer();
            assert_eq!(
                layer.entry("epoch").data,
                format!("{}\n", times[0]).as_bytes()
            );
        }
    }
    let local =
        "ARG SOURCE_DATE_EPOCH=mine\nFROM scratch AS mine\nCOPY Dockerfile /\nFROM scratch\n";
    for (text, expected) in [
        (
            local,
            "SOURCE_DATE_EPOCH stage does not meet source-only requirements",
        ),
        (
            "ARG SOURCE_DATE_EPOCH=not-a-time\nFROM scratch\n",
            "invalid SOURCE_DATE_EPOCH: not-a-time",
        ),
    ] {
        let error = fails(&bench, dockerfile(folder.path(), text, &[]));
        assert!(error.contains(expected), "{error}");
    }
    drop(server);
    bench.end();
}

#[test]
fn df09_secrets_are_not_in_the_names_of_steps_and_long_files_are_refused() {
    let bench = Bench::start();
    let folder = bench.folder();
    let text = format!(
        "FROM {}\nENV SECRET=foo\nRUN --mount=type=secret,id=s,env=SECRET [ \"$SECRET\" = pw ] && [ ! -f /run/secrets/s ]\n",
        bench.busybox
    );
    let solve = with_secrets(dockerfile(folder.path(), text, &[]), &[("s", "pw")]);
    let mut names = Vec::new();
    bench.rt.block_on(async {
        let mut note = |status: cooper_proto::control::StatusResponse| {
            names.extend(status.vertexes.into_iter().map(|vertex| vertex.name));
        };
        bench.client.solve(solve, &mut note).await.unwrap();
    });
    let run = names.iter().find(|name| name.contains("/run/secrets/s"));
    let run = run.expect("the step is shown");
    assert!(run.contains("[ \"****\" = pw ]"), "{run}");

    let mut long = b"FROM scratch\n".to_vec();
    let line = [b"# ".as_slice(), &[b'x'; 4096], b"\n"].concat();
    while long.len() < 17 << 20 {
        long.extend_from_slice(&line);
    }
    let error = fails(&bench, dockerfile(folder.path(), long, &[]));
    assert!(
        error.contains("Dockerfile exceeds maximum allowed size"),
        "{error}"
    );
    bench.end();
}

#[test]
fn df16_ignored_files_are_told_even_where_some_are_not() {
    let bench = Bench::start();
    let folder = bench.folder();
    let path = folder.path();
    std::fs::create_dir(path.join("sub")).unwrap();
    std::fs::write(path.join("sub/b.txt"), "b").unwrap();
    std::fs::write(path.join(".dockerignore"), "sub\n!sub/b.txt\n").unwrap();
    let warned = |text: &str| {
        let mut seen = Vec::new();
        let solve = dockerfile(path, text, &[]);
        let outcome = bench.rt.block_on(async {
            let mut note = |status: cooper_proto::control::StatusResponse| {
                seen.extend(status.warnings.into_iter().map(|warning| warning.short));
            };
            bench.client.solve(solve, &mut note).await
        });
        drop(outcome);
        let text = |short: Vec<u8>| String::from_utf8(short).unwrap();
        seen.into_iter().map(text).collect::<Vec<_>>()
    };
    let expected = "CopyIgnoredFile: Attempting to Copy file \"sub/a.txt\" that is excluded by .dockerignore (line 2)";
    assert_eq!(warned("FROM scratch\nCOPY sub/a.txt /\n"), [expected]);
    for source in ["sub", ".", "sub/b.txt", "sub/*.txt"] {
        let text = format!("FROM scratch\nCOPY {source} /\n");
        assert_eq!(warned(&text), [""; 0], "{source}");
    }
    // A frontend that would be an image may be told to be this one.
    let text = "# syntax=docker/dockerfile:9\nFROM scratch\nCOPY sub/b.txt /\n";
    let attrs = [("source", "dockerfile.v0"), ("cmdline", "dockerfile.v0")];
    let mut solve = dockerfile(path, text, &attrs);
    solve.request.frontend = "gateway.v0".into();
    bench.try_solve(solve).unwrap();
    let skipped = "# check=skip=CopyIgnoredFile\nFROM scratch\nCOPY sub/a.txt /\n";
    assert_eq!(warned(skipped), [""; 0]);
    bench.end();
}

#[test]
fn df17_platforms_have_their_own_shells_and_mount_points_leave_little() {
    let bench = Bench::start();
    let folder = bench.folder();
    let text = "FROM scratch\nENTRYPOINT foo bar\nCOPY Dockerfile .\n";
    let both = [("platform", "windows/amd64,linux/amd64")];
    let image = bench.stream(dockerfile(folder.path(), text, &both), "oci", &[]);
    let outer = image.json("index.json");
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let index = parse(image.blob(&outer["manifests"][0]["digest"]));
    let configs = index["manifests"].as_array().unwrap().iter().map(|each| {
        let manifest = parse(image.blob(&each["digest"]));
        parse(image.blob(&manifest["config"]["digest"]))
    });
    let configs: Vec<_> = configs.collect();
    let [windows, linux] = configs.as_slice() else {
        panic!("{index}");
    };
    let entrypoint = |config: &serde_json::Value| config["config"]["Entrypoint"].to_string();
    assert_eq!(entrypoint(windows), r#"["cmd","/S","/C","foo bar"]"#);
    assert_eq!(entrypoint(linux), r#"["/bin/sh","-c","foo bar"]"#);
    let path = |config: &serde_json::Value| config["config"]["Env"].to_string();
    assert!(!path(windows).contains("PATH=/"), "{windows}");
    assert!(path(linux).contains("PATH=/usr/local/sbin"), "{linux}");

    // What is mounted into a step needs directories; those of the runtime stay.
    let text = format!(
        "FROM scratch\nCOPY --from={} /bin/busybox /bin/busybox\nRUN [\"/bin/busybox\", \"true\"]\n",
        bench.busybox
    );
    let image = bench.stream(dockerfile(folder.path(), text, &[]), "oci", &[]);
    let layer = image.last_layer();
    assert_eq!(layer.names(), ["dev/", "proc/", "sys/"]);
    for entry in layer.0.values() {
        let header = &entry.header;
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        assert_eq!((header.mode().unwrap() & 0o7777, owner), (0o755, (0, 0)));
    }
    bench.end();
}

#[test]
fn df07_a_step_that_is_built_anew_has_an_empty_cache_with_its_owner() {
    let bench = Bench::start();
    let folder = bench.folder();
    let text = format!(
        "FROM {} AS base\nARG FOO=abc\n\
         RUN --mount=type=cache,target=/cache,mode=0773,uid=5 touch /cache/$FOO && \
         ls /cache | wc -l > /out && stat -c '%a %u' /cache >> /out\n\
         FROM scratch\nCOPY --from=base /out /\n",
        bench.busybox
    );
    for (attrs, expected) in [
        (&[][..], "1\n773 5\n"),
        (&[("no-cache", ""), ("build-arg:FOO", "def")], "1\n773 5\n"),
        (&[("build-arg:FOO", "ghi")], "2\n773 5\n"),
    ] {
        let out = bench.export(dockerfile(folder.path(), &text, attrs));
        let found = std::fs::read_to_string(out.path().join("out")).unwrap();
        assert_eq!(found, expected, "{attrs:?}");
    }
    bench.end();
}
