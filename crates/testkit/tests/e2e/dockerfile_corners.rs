//! Corners of Dockerfiles in which builders differ easily.

use cooper_testkit::{Client, Context, Daemon, Registry, leak, push_busybox};

use crate::Out;

#[test]
fn df12_copies_keep_parents_links_and_modes() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let dockerfile = format!(
        "FROM {base} AS files\n\
         RUN mkdir -p /t/a/b/c/d /t/a/b2/c && touch /t/a/b/c/d/x /t/a/b2/c/y && chmod 700 /t/a\n\
         FROM {base} AS work\n\
         COPY --from=files --parents /t/a/b/./c/d /pivot/\n\
         COPY --from=files --parents /t/a/b*/./c/** /wild/\n\
         COPY --from=files --chmod=711 /t/a /made/of/new\n\
         COPY --link --chown=3:4 one /linked/one\n\
         ADD archive.tar /unpacked/\n\
         RUN find /pivot /wild -type f | sort > /found && \
         stat -c '%a %u:%g %n' /made /made/of/new /made/of/new/b /linked/one /unpacked/file > /modes\n\
         FROM scratch\n\
         COPY --from=work /found /modes /\n"
    );
    let context = Context::new()
        .file("Dockerfile", dockerfile)
        .file("one", "1")
        .file("archive.tar", hard_linked());
    let out = Out::new();
    for client in Client::of(&daemon) {
        client.build(&context, &[&out.local("x")]).success();
        assert_eq!(
            out.read("x/found"),
            "/pivot/c/d/x\n/wild/c/d/x\n/wild/c/y\n"
        );
        assert_eq!(
            out.read("x/modes"),
            "711 0:0 /made\n711 0:0 /made/of/new\n711 0:0 /made/of/new/b\n\
             644 3:4 /linked/one\n600 7:8 /unpacked/file\n"
        );
    }
    context.write(
        "Dockerfile",
        format!("FROM {base} AS files\nFROM scratch\nCOPY --from=files --parents /etc/./no /\n"),
    );
    Client::buildx(&daemon)
        .build(&context, &[])
        .fails_with(&["Dockerfile:3", "\"/etc/no\": not found"]);
    drop((daemon, registry, out, context));
    watch.check();
}

/// A file and another name of it, whose entry has other metadata: the last one counts.
fn hard_linked() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(1);
    archive.append_data(&mut header, "file", &b"x"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_mode(0o600);
    header.set_uid(7);
    header.set_gid(8);
    header.set_size(0);
    archive.append_link(&mut header, "name", "file").unwrap();
    archive.into_inner().unwrap()
}

#[test]
fn df16_mistakes_of_the_rarer_kinds_are_told() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let client = Client::buildx(&daemon);
    let from = format!("FROM {base}\n");
    let cases: [(Vec<u8>, &[&str]); 7] = [
        (format!("{from}RUN echo \"").into_bytes(), &["Dockerfile:2"]),
        (
            [from.as_bytes(), b"RUN echo \xe9\n"].concat(),
            &["failed to marshal LLB definition: string field contains invalid UTF-8"],
        ),
        (
            format!("{from}RUN --device=vendor/x=y,required true\n").into_bytes(),
            &[
                "Dockerfile:2",
                "required device \"vendor/x=y\" is not registered",
            ],
        ),
        (
            format!("{from}RUN --network=x true\n").into_bytes(),
            &["Dockerfile:2", "invalid network mode \"x\""],
        ),
        (
            format!("# check=error=true\n{from}CMD true\n").into_bytes(),
            &["lint violation found for rules: JSONArgsRecommended"],
        ),
        (
            format!("{from}ADD --checksum=md5:12 http://127.0.0.1/x /\n").into_bytes(),
            &["Dockerfile:2", "unsupported digest algorithm"],
        ),
        (
            format!("{from}RUN a=1 \\\n\n  exit 3\n").into_bytes(),
            &[
                "NoEmptyContinuation: Empty continuation line (line 4)",
                "exit code: 3",
            ],
        ),
    ];
    for (dockerfile, errors) in cases {
        let context = Context::new().file("Dockerfile", dockerfile);
        client.build(&context, &[]).fails_with(errors);
    }
    drop((daemon, client, registry));
    watch.check();
}
