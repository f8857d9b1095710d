//! What ordinary Dockerfiles are written with.

use cooper_testkit::{Client, Context, Daemon, Pulled, Registry, leak, push_busybox};
use serde_json::{Value, json};

use crate::Out;

#[test]
fn df01_df17_the_configuration_says_what_the_dockerfile_says() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let dockerfile = "ARG BASE\n\
        FROM ${BASE} AS base\n\
        ARG VERSION=1\n\
        ARG UNSET\n\
        ENV APP=/app MODE=test\n\
        ENV GREETING=\"hello ${MODE:-none} ${UNSET:-nothing}\"\n\
        LABEL org.example.version=$VERSION other=\"two words\"\n\
        WORKDIR ${APP}\n\
        WORKDIR sub\n\
        RUN echo \"$GREETING v$VERSION\" > /greeting\n\
        EXPOSE 8080 9000/udp\n\
        VOLUME /data\n\
        STOPSIGNAL SIGINT\n\
        HEALTHCHECK --interval=5s --retries=3 CMD true\n\
        SHELL [\"/bin/sh\", \"-e\", \"-c\"]\n\
        RUN case $- in *e*) ;; *) exit 1 ;; esac\n\
        RUN chmod 1777 /tmp\n\
        USER 1000:1000\n\
        RUN id -u > /tmp/uid\n\
        ENTRYPOINT [\"/bin/sh\", \"-c\"]\n\
        CMD [\"cat /greeting\"]\n";
    let context = Context::new().file("Dockerfile", dockerfile);
    let base_argument = format!("--build-arg=BASE={base}");
    for (number, client) in Client::of(&daemon).into_iter().enumerate() {
        let name = format!("{}/configured:{number}", registry.host());
        client
            .build(
                &context,
                &[
                    "--push",
                    "--tag",
                    &name,
                    &base_argument,
                    "--build-arg=VERSION=2",
                ],
            )
            .success();
        let pulled = Pulled::registry(&name);
        let config = &pulled.config["config"];
        let expected = json!({
            "User": "1000:1000",
            "ExposedPorts": { "8080/tcp": {}, "9000/udp": {} },
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["cat /greeting"],
            "Volumes": { "/data": {} },
            "WorkingDir": "/app/sub",
            "Labels": { "org.example.version": "2", "other": "two words" },
            "StopSignal": "SIGINT",
            "Shell": ["/bin/sh", "-e", "-c"],
        });
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&config[key], value, "{key}: {config}");
        }
        let health = &config["Healthcheck"];
        assert_eq!(health["Interval"], 5_000_000_000_u64, "{health}");
        let env = config["Env"].as_array().unwrap();
        for part in ["APP=/app", "MODE=test", "GREETING=hello test nothing"] {
            assert!(env.contains(&Value::from(part)), "{part}: {env:?}");
        }
        assert!(env[0].as_str().unwrap().starts_with("PATH="), "{env:?}");
        history_fits(&pulled);
        let root = pulled.unpack();
        let read = |path: &str| crate::read(&root.join(path));
        assert_eq!(read("greeting"), "hello test nothing v2\n");
        assert_eq!(read("tmp/uid"), "1000\n");
    }
    drop((daemon, registry, context));
    watch.check();
}

/// One entry for each layer, a time in each, and a digest for each layer.
#[track_caller]
fn history_fits(pulled: &Pulled) {
    let history = pulled.config["history"].as_array().unwrap();
    let layers = history
        .iter()
        .filter(|entry| entry["empty_layer"] != true)
        .count();
    let diff_ids = pulled.config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!((layers, diff_ids.len()), (pulled.layers(), pulled.layers()));
    let made = history
        .iter()
        .filter(|entry| entry["comment"] == "buildkit.dockerfile.v0");
    for entry in made {
        let time = entry["created"].as_str().unwrap_or_default();
        assert!(time.starts_with("20"), "{entry}");
    }
    assert!(pulled.config["created"].as_str().unwrap().starts_with("20"));
}

#[test]
fn df12_df05_files_are_copied_as_asked() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let dockerfile = format!(
        "FROM {base} AS base\n\
         RUN echo 'worker:x:1234:5678::/:/bin/sh' >> /etc/passwd && \
         echo 'crew:x:5678:' >> /etc/group\n\
         FROM base AS files\n\
         COPY . /all/\n\
         COPY --chown=worker:crew data /owned/\n\
         COPY --chown=7:8 --chmod=0600 one.txt /one\n\
         COPY *.txt /texts/\n\
         COPY one.txt two.txt /both/\n\
         ADD archive.tar /unpacked/\n\
         FROM files AS checked\n\
         RUN set -e; [ \"$(stat -c %u:%g /owned/deep/file)\" = 1234:5678 ]; \
         [ \"$(stat -c %u:%g:%a /one)\" = 7:8:600 ]; [ \"$(readlink /all/link)\" = one.txt ]; \
         [ \"$(stat -c %a /all/run.sh)\" = 755 ]; [ -e /all/keep.secret ]; \
         [ ! -e /all/drop.secret ]; [ ! -e /all/ignored ]; [ -e /unpacked/inside ]; \
         ls /texts /both > /names\n\
         FROM scratch\n\
         COPY --from=checked /names /\n\
         COPY --from={base} /etc/passwd /passwd\n"
    );
    let archive = tar_of("inside");
    let context = Context::new()
        .file("Dockerfile", dockerfile)
        .file(
            ".dockerignore",
            "# comment\n*.secret\n!keep.secret\nignored/\n",
        )
        .file("one.txt", "1")
        .file("two.txt", "2")
        .file("data/deep/file", "x")
        .file("keep.secret", "x")
        .file("drop.secret", "x")
        .file("ignored/file", "x")
        .file("archive.tar", archive)
        .program("run.sh", "#!/bin/sh\n");
    std::os::unix::fs::symlink("one.txt", context.path().join("link")).unwrap();
    let out = Out::new();
    for client in Client::of(&daemon) {
        client.build(&context, &[&out.local("x")]).success();
        assert_eq!(
            out.read("x/names"),
            "/both:\none.txt\ntwo.txt\n\n/texts:\none.txt\ntwo.txt\n"
        );
        assert!(out.read("x/passwd").starts_with("root:"));
    }
    // What is ignored is no reason to build again.
    context.write("drop.secret", "changed");
    let again = Client::buildx(&daemon)
        .build(&context, &[&out.local("x")])
        .success();
    assert!(again.cached("COPY . /all/"), "{}", again.output);
    drop((daemon, registry, out, context));
    watch.check();
}

fn tar_of(name: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(1);
    archive.append_data(&mut header, name, &b"x"[..]).unwrap();
    archive.into_inner().unwrap()
}

#[test]
fn df04_df06_mounts_and_here_documents_work() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let dockerfile = format!(
        "# syntax and escape are comments to this one\n\
         FROM {base} AS tools\n\
         RUN echo tool > /tool\n\
         FROM {base} AS work\n\
         RUN --mount=type=bind,target=/context,readonly cat /context/one.txt > /bound\n\
         RUN --mount=type=bind,from=tools,source=/tool,target=/t cat /t >> /bound\n\
         RUN --mount=type=tmpfs,target=/mem touch /mem/x && [ -e /mem/x ]\n\
         RUN [ ! -e /mem/x ] && [ ! -e /t ] && [ ! -e /context/one.txt ]\n\
         RUN --mount=type=secret,id=key cat /run/secrets/key > /secret-length && \
         wc -c < /run/secrets/key > /secret-length\n\
         RUN --network=none ! grep -q eth /proc/net/dev\n\
         RUN <<END\nset -e\necho first > /here\necho second >> /here\nEND\n\
         COPY <<TEXT /text\nfrom the Dockerfile\nTEXT\n\
         FROM scratch\nCOPY --from=work /bound /here /text /secret-length /\n"
    );
    let context = Context::new()
        .file("Dockerfile", dockerfile)
        .file("one.txt", "one\n");
    let out = Out::new();
    std::fs::write(out.path("key"), "12345").unwrap();
    let secret = format!("--secret=id=key,src={}", out.path("key").display());
    for client in Client::of(&daemon) {
        client
            .build(&context, &[&out.local("x"), &secret])
            .success();
        assert_eq!(out.read("x/bound"), "one\ntool\n");
        assert_eq!(out.read("x/here"), "first\nsecond\n");
        assert_eq!(out.read("x/text"), "from the Dockerfile\n");
        assert_eq!(out.read("x/secret-length"), "5\n");
    }
    drop((daemon, registry, out, context));
    watch.check();
}
