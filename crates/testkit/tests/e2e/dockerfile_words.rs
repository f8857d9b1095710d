//! The words of Dockerfiles, one after the other.

use cooper_testkit::{Client, Context, Daemon, Pulled, Registry, leak, push_busybox};
use serde_json::json;

use crate::Out;

/// A daemon with both clients, and busybox.
pub(crate) struct Kit {
    watch: leak::Watch,
    pub(crate) registry: Registry,
    pub(crate) base: String,
    pub(crate) daemon: Daemon,
}

impl Kit {
    pub(crate) fn start() -> Self {
        Self::with_config("")
    }

    pub(crate) fn with_config(config: &str) -> Self {
        let watch = leak::Watch::begin();
        let registry = Registry::start();
        let base = push_busybox(&registry);
        Self {
            watch,
            base,
            registry,
            daemon: Daemon::with_config(config),
        }
    }

    /// What the file `out` holds after a build of this Dockerfile by each client.
    #[track_caller]
    fn out(&self, dockerfile: impl AsRef<[u8]>, args: &[&str]) -> String {
        let context = Context::new()
            .file("Dockerfile", dockerfile)
            .file("in", "in\n");
        let mut seen = Vec::new();
        for client in Client::of(&self.daemon) {
            let out = Out::new();
            let local = out.local("x");
            let args: Vec<_> = args.iter().copied().chain([local.as_str()]).collect();
            client.build(&context, &args).success();
            seen.push(out.read("x/out"));
        }
        assert_eq!(seen[0], seen[1]);
        seen.remove(0)
    }

    #[track_caller]
    fn fails(&self, dockerfile: impl AsRef<[u8]>, parts: &[&str]) {
        let context = Context::new()
            .file("Dockerfile", dockerfile)
            .file("in", "in\n");
        for client in Client::of(&self.daemon) {
            client
                .build(&context, &["--output=type=cacheonly"])
                .fails_with(parts);
        }
    }

    #[track_caller]
    pub(crate) fn end(self) {
        drop((self.daemon, self.registry));
        self.watch.check();
    }
}

#[test]
fn df02_directives_comments_and_continuations_are_read() {
    let kit = Kit::start();
    let base = &kit.base;
    let last = "FROM scratch\nCOPY --from=work /out /\n";
    // A byte order mark, a comment within a command, white space around, an empty line at its end.
    let text = format!(
        "\u{feff}# escape=\\\n  # a comment\n\n  FROM {base} AS work\n\
         RUN echo one \\\n  # not a part of it\n    two \\\n\t&& true > /dev/null; \\\n  echo 'a # b' > /out\n\
         RUN echo \"c   d\" >>/out \\   \n && echo e >> /out\n{last}"
    );
    assert_eq!(kit.out(&text, &[]), "a # b\nc   d\ne\n");
    assert_eq!(
        kit.out(text.replace('\n', "\r\n"), &[]),
        "a # b\nc   d\ne\n"
    );
    // Another sign of continuation.
    let text = format!(
        "# escape=`\nFROM {base} AS work\nRUN echo a `\n  b > /out && `\n  \
         echo 'c\\' >> /out\n{last}"
    );
    assert_eq!(kit.out(text, &[]), "a b\nc\\\n");
    // After the first line that is no directive there are no more of them.
    let text =
        format!("# a comment\n# escape=`\nFROM {base} AS work\nRUN echo a \\\n  b > /out\n{last}");
    assert_eq!(kit.out(text, &[]), "a b\n");
    // Both forms of commands; what is no JSON is a command of the shell.
    let text = format!(
        "FROM {base} AS work\nENV V=v\nRUN [\"/bin/sh\", \"-c\", \"echo $V $0 > /out\", \"zero\"]\n\
         RUN [ \"$V\" = v ] && echo shell >> /out\nRUN [\"/bin/touch\",\"/a b\"]\n\
         COPY [\"in\", \"/c d/\"]\nRUN ls '/a b' '/c d' >> /out\n{last}"
    );
    assert_eq!(kit.out(text, &[]), "v zero\nshell\n/a b\n\n/c d:\nin\n");
    let from = format!("FROM {base}\n");
    for (text, parts) in [
        (
            "# escape=x\nFROM scratch\n".to_owned(),
            &["invalid escape token 'x' does not match ` or \\"][..],
        ),
        (
            "# escape=\\\n# escape=\\\nFROM scratch\n".to_owned(),
            &["only one escape parser directive can be used"],
        ),
        (
            format!("{from}run exit 3\n"),
            &["Dockerfile:2", "exit code: 3"],
        ),
        (
            format!("{from}RUN [\"/nowhere/x\", \"a\"]\n"),
            &["/nowhere/x a"],
        ),
    ] {
        kit.fails(text, parts);
    }
    kit.end();
}

#[test]
fn df03_variables_are_expanded() {
    let kit = Kit::start();
    let base = &kit.base;
    let cases = [
        ("$A", "abcabc"),
        ("${A}x", "abcabcx"),
        ("${NONE:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY-default}", ""),
        ("${NONE-default}", "default"),
        ("${A:+set}", "set"),
        ("${EMPTY:+set}", ""),
        ("${EMPTY+set}", "set"),
        ("${NONE+set}", ""),
        ("${A:?needed}", "abcabc"),
        ("${NONE:-${A}}", "abcabc"),
        ("${NONE:-a b}", "a b"),
        ("${A#a}", "bcabc"),
        ("${A#*b}", "cabc"),
        ("${A##*b}", "c"),
        ("${A%c}", "abcab"),
        ("${A%b*}", "abca"),
        ("${A%%b*}", "a"),
        ("${A/b/X}", "aXcabc"),
        ("${A//b/X}", "aXcaXc"),
        ("${A/?c/X}", "aXabc"),
        ("${A//x/y}", "abcabc"),
        ("\\$A", "$A"),
        ("\\\\$A", "\\abcabc"),
        ("'$A'", "$A"),
    ];
    let mut text = format!("FROM {base} AS work\nENV A=abcabc EMPTY=\n");
    for (number, (words, _)) in cases.iter().enumerate() {
        // In double quotes, but for one that has its own.
        match words.starts_with('\'') {
            true => text += &format!("ENV R{number}={words}\n"),
            false => text += &format!("ENV R{number}=\"{words}\"\n"),
        }
    }
    text += "RUN ";
    for number in 0..cases.len() {
        text += &format!("printf '%s\\n' \"$R{number}\" >> /out; ");
    }
    text += "\nFROM scratch\nCOPY --from=work /out /\n";
    let found = kit.out(text, &[]);
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines.len(), cases.len(), "{found}");
    for ((words, expected), line) in cases.iter().zip(lines) {
        assert_eq!(line, *expected, "{words}");
    }
    // Where they are expanded: paths, users, labels, names of stages and images; not in RUN.
    let text = format!(
        "ARG NAME=work BASE={base}\nFROM $BASE AS one\nARG DIR=/d SRC=in\nENV DEEP=$DIR/e\n\
         WORKDIR $DEEP\nCOPY ${{SRC}} ${{DEEP}}/copied\nADD $SRC ./added\nARG LATE=${{DIR#/}}\n\
         RUN pwd > /out && ls >> /out && echo $LATE >> /out\n\
         FROM one AS two\nRUN echo \"[$DIR] [$DEEP]\" >> /out\n\
         FROM scratch\nCOPY --from=two /out /\n"
    );
    assert_eq!(kit.out(text, &[]), "/d/e\nadded\ncopied\nd\n[/d] [/d/e]\n");
    // One instruction sees what was there before it, not what it sets.
    let text = format!(
        "FROM {base} AS work\nENV a=hello\nENV a=bye b=$a\nENV c=$a\nRUN echo $a $b $c > /out\n\
         FROM scratch\nCOPY --from=work /out /\n"
    );
    assert_eq!(kit.out(text, &[]), "bye hello bye\n");
    for (text, part) in [
        ("ENV B=\"${NONE:?is needed}\"\n", "NONE: is needed"),
        ("ENV B=${A!x}\n", "unsupported modifier"),
        ("ENV B=${}\n", "syntax error"),
    ] {
        kit.fails(
            format!("FROM {base}\nENV A=a\n{text}"),
            &["Dockerfile:3", part],
        );
    }
    kit.end();
}

#[test]
fn df07_caches_are_mounted_as_asked() {
    let kit = Kit::start();
    let base = &kit.base;
    let last = "FROM scratch\nCOPY --from=work /out /\n";
    // Owner and mode are those of the folder when it is made; the base is what it begins with.
    let text = format!(
        "FROM {base} AS seed\nRUN mkdir -p /s/sub && echo seed > /s/sub/file\n\
         FROM {base} AS work\n\
         RUN --mount=type=cache,target=/c,uid=12,gid=34,mode=0711 stat -c '%u:%g %a' /c > /out\n\
         RUN --mount=type=cache,target=/s,id=seeded,from=seed,source=/s/sub \
         cat /s/file >> /out && echo more > /s/more\n\
         RUN --mount=type=cache,target=/t,id=seeded,from=seed,source=/s/sub ls /t | tr '\\n' ' ' >> /out\n\
         RUN --mount=type=cache,target=/t,id=seeded,from=seed,source=/s/sub,readonly \
         ! touch /t/x 2>/dev/null && echo ro >> /out\n\
         RUN [ ! -e /s ] && [ ! -e /c ] && [ ! -e /t ]\n{last}"
    );
    assert_eq!(kit.out(text, &[]), "12:34 711\nseed\nfile more ro\n");
    // By id, or by the target when there is none; a variable may be in both.
    let text = format!(
        "FROM {base} AS work\nARG WHERE=/one ID=named\n\
         RUN --mount=type=cache,target=$WHERE touch $WHERE/by-target\n\
         RUN --mount=type=cache,target=/two,id=$WHERE ls /two > /out\n\
         RUN --mount=type=cache,target=/two,id=$ID touch /two/by-id\n\
         RUN --mount=type=cache,target=/one,id=named,sharing=locked ls /one >> /out\n\
         WORKDIR /w\nRUN --mount=type=cache,target=rel touch rel/x && ls /w/rel >> /out\n{last}"
    );
    assert_eq!(kit.out(text, &[]), "by-target\nby-id\nx\n");
    for (mount, part) in [
        ("type=cache", "invalid mount target \"/\""),
        (
            "type=cache,target=/c,sharing=none",
            "unsupported sharing value \"none\"",
        ),
        (
            "type=cache,target=/c,mode=abc",
            "invalid value abc for mode",
        ),
        ("type=cache,target=/c,uid=x", "invalid value x for uid"),
        (
            "type=cache,target=/c,nonsense=1",
            "unexpected key 'nonsense'",
        ),
        ("type=other,target=/c", "unsupported mount type \"other\""),
        ("type=cache,target=/", "invalid mount target \"/\""),
    ] {
        kit.fails(
            format!("FROM {base}\nRUN --mount={mount} true\n"),
            &["Dockerfile:2", part],
        );
    }
    kit.end();
}

/// What a base wants done by those who build on it is done once, before their own.
#[test]
fn df17_df01_a_base_may_leave_instructions_and_they_are_done_once() {
    let kit = Kit::start();
    let base = &kit.base;
    let host = kit.registry.host();
    let parent = format!("{host}/parent:1");
    let context = Context::new()
        .file(
            "Dockerfile",
            format!(
                "FROM {base}\nENV A=parent\nLABEL from=parent both=parent\nWORKDIR /p\n\
                 ENTRYPOINT [\"/entry\"]\nCMD [\"parent\"]\n\
                 ONBUILD ARG WHO=nobody\nONBUILD COPY in /copied\n\
                 ONBUILD RUN echo $WHO-$A > /on-build && [ ! -e /own ]\n"
            ),
        )
        .file("in", "in\n");
    let client = Client::buildx(&kit.daemon);
    let push = ["--provenance=false", "--push", "--tag"];
    client
        .build(&context, &[&push[..], &[&parent]].concat())
        .success();
    let pulled = Pulled::registry(&parent);
    assert_eq!(
        pulled.config["config"]["OnBuild"],
        json!([
            "ARG WHO=nobody",
            "COPY in /copied",
            "RUN echo $WHO-$A > /on-build && [ ! -e /own ]"
        ])
    );
    let child = Context::new()
        .file(
            "Dockerfile",
            format!("FROM {parent} AS one\nRUN touch /own\nLABEL both=child\nFROM one\nENTRYPOINT [\"/own\"]\n"),
        )
        .file("in", "in\n");
    for (number, client) in Client::of(&kit.daemon).into_iter().enumerate() {
        let name = format!("{host}/child:{number}");
        let more = ["--build-arg=WHO=somebody", "--label=cli=yes"];
        client
            .build(&child, &[&["--push", "--tag", &name][..], &more].concat())
            .success();
        let pulled = Pulled::registry(&name);
        let config = &pulled.config["config"];
        assert!(config["OnBuild"].is_null(), "{config}");
        assert_eq!(
            config["Labels"],
            json!({ "from": "parent", "both": "child", "cli": "yes" })
        );
        assert_eq!(config["WorkingDir"], "/p");
        // Another entry point takes the command of the base away.
        assert_eq!(config["Entrypoint"], json!(["/own"]));
        assert!(config["Cmd"].is_null(), "{config}");
        let history = pulled.config["history"].as_array().unwrap();
        let of = |part: &str| {
            let found = history
                .iter()
                .filter(|one| one["created_by"].as_str().unwrap_or("").contains(part));
            found.cloned().collect::<Vec<_>>()
        };
        assert_eq!(of("touch /own").len(), 1, "{history:?}");
        assert_eq!(of("COPY in /copied").len(), 1, "{history:?}");
        assert_eq!(of("LABEL both=child")[0]["empty_layer"], true);
        let root = pulled.unpack();
        assert_eq!(crate::read(&root.join("on-build")), "somebody-parent\n");
        assert_eq!(crate::read(&root.join("copied")), "in\n");
    }
    drop((client, context, child, pulled));
    kit.fails(
        format!("FROM {base}\nONBUILD FROM {base}\n"),
        &["Dockerfile:2", "ONBUILD"],
    );
    kit.fails(
        format!("FROM {base}\nONBUILD ONBUILD RUN x\n"),
        &["Dockerfile:2", "ONBUILD"],
    );
    kit.end();
}

/// Where there are stages of the same name, numbers, and references among them.
#[test]
fn df14_stages_are_found_by_name_and_number() {
    let kit = Kit::start();
    let base = &kit.base;
    let text = format!(
        "FROM {base} AS One\nRUN echo first > /out\nFROM {base}\nRUN echo second > /out\n\
         FROM one AS three\nCOPY --from=1 /out /second\nCOPY --from=ONE /out /first\n\
         RUN cat /first /second /out > /all\nFROM scratch\nCOPY --from=2 /all /out\n"
    );
    assert_eq!(kit.out(text, &[]), "first\nsecond\nfirst\n");
    let text =
        format!("FROM {base} AS a\nRUN exit 1\nFROM scratch AS b\nCOPY in /out\nFROM a AS c\n");
    for target in ["--target=b", "--target=B"] {
        assert_eq!(kit.out(&text, &[target]), "in\n");
    }
    for (text, parts) in [
        (
            "FROM scratch AS 1a\n",
            &["Dockerfile:1", "invalid name for build stage"][..],
        ),
        (
            "FROM scratch\nCOPY --from=5 /x /\n",
            &["invalid stage index 5"],
        ),
        (
            "FROM scratch AS a\nCOPY --from=a /x /\n",
            &["Dockerfile:2", "circular dependency"],
        ),
        (
            "FROM ${NONE}\n",
            &["Dockerfile:1", "base name (${NONE}) should not be blank"],
        ),
    ] {
        kit.fails(text, parts);
    }
    kit.end();
}

/// Of the stages that are built anew on request the results are new, and so is what is made of
/// them.
#[test]
fn sol17_df14_some_stages_are_built_anew() {
    let kit = Kit::start();
    let base = &kit.base;
    let uuid = "cat /proc/sys/kernel/random/uuid >";
    let text = format!(
        "FROM {base} AS one\nRUN {uuid} /one\nFROM {base} AS two\nRUN {uuid} /two\n\
         FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n"
    );
    let context = Context::new().file("Dockerfile", text);
    let client = Client::buildx(&kit.daemon);
    let build = |args: &[&str]| {
        let out = Out::new();
        let local = out.local("x");
        let args: Vec<_> = args.iter().copied().chain([local.as_str()]).collect();
        client.build(&context, &args).success();
        (out.read("x/one"), out.read("x/two"))
    };
    let first = build(&[]);
    assert_eq!(build(&[]), first);
    let second = build(&["--no-cache-filter=two"]);
    assert_eq!(second.0, first.0);
    assert_ne!(second.1, first.1);
    // From then on the new one is what there is.
    assert_eq!(build(&[]), second);
    let third = build(&["--no-cache"]);
    assert!(third.0 != second.0 && third.1 != second.1);
    assert_eq!(build(&[]), third);
    drop((client, context));
    kit.end();
}
