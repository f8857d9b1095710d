#![allow(clippy::unwrap_used)]
use super::*;
use crate::parse;

fn stages(text: &str) -> Program {
    program(&parse(text.as_bytes()).unwrap()).unwrap()
}

fn only(line: &str) -> Instruction {
    let mut program = stages(&format!("FROM x\n{line}\n"));
    program.stages[0].commands.remove(0).instruction
}

fn fails(line: &str) -> String {
    let dockerfile = parse(format!("FROM x\n{line}\n").as_bytes()).unwrap();
    let error = program(&dockerfile).unwrap_err();
    assert_eq!(error.span().unwrap().start, 2, "{line}");
    let text = error.to_string();
    text.strip_prefix("dockerfile parse error on line 2: ")
        .unwrap()
        .to_owned()
}

#[test]
fn stages_and_arguments() {
    let program = stages(
        "# V the version\nARG V=1 W\n# build compiles\nFROM --platform=$P a As Build\nRUN x\nFROM b\n",
    );
    let Instruction::Arg(args) = &program.arguments[0].instruction else {
        panic!("not ARG")
    };
    assert_eq!(args[0].value.as_deref(), Some("1"));
    assert_eq!(args[0].description, "the version");
    assert_eq!((args[1].key.as_str(), &args[1].value), ("W", &None));
    let build = &program.stages[0];
    assert_eq!(build.name, "build");
    assert_eq!(build.written_name, "Build");
    assert_eq!(build.keyword_as, "As");
    assert_eq!(build.platform, "$P");
    assert_eq!(build.description, "compiles");
    assert_eq!(build.commands.len(), 1);
    assert_eq!(program.stages[1].name, "");
}

#[test]
fn copies() {
    let Instruction::Copy(copy) = only(
        "COPY --from=s --chown=1:2 --chmod=755 --link --parents --exclude=a --exclude=b c d /e/",
    ) else {
        panic!("not COPY")
    };
    assert_eq!((copy.from.as_str(), copy.chown.as_str()), ("s", "1:2"));
    assert!(copy.link && copy.parents);
    assert_eq!(copy.exclude, ["a", "b"]);
    assert_eq!(
        (copy.sources.paths.len(), copy.sources.dest.as_str()),
        (2, "/e/")
    );

    let Instruction::Add(add) =
        only("ADD --keep-git-dir=false --checksum=x --unpack a <<-E /b\n\tq\nE\n")
    else {
        panic!("not ADD")
    };
    assert_eq!(add.keep_git_dir, Some(false));
    assert_eq!(add.unpack, Some(true));
    assert_eq!(add.sources.contents[0].data, "q\n");
    assert_eq!(add.sources.contents[0].path, "E");
}

#[test]
fn health_checks() {
    let Instruction::Healthcheck(health) =
        only("HEALTHCHECK --interval=30s --start-interval=1s --retries=3 CMD curl x")
    else {
        panic!("not HEALTHCHECK")
    };
    assert_eq!(health.test, ["CMD-SHELL", "curl x"]);
    assert_eq!(health.interval, 30_000_000_000);
    assert_eq!(health.retries, 3);
    let Instruction::Healthcheck(health) = only("HEALTHCHECK NONE") else {
        panic!("not HEALTHCHECK")
    };
    assert_eq!(health.test, ["NONE"]);
}

#[test]
fn onbuild_keeps_its_text() {
    assert_eq!(
        only("onbuild   RUN  a  b"),
        Instruction::Onbuild("RUN  a  b".into())
    );
    assert_eq!(
        only("ONBUILD COPY <<E /x\nq\nE\n"),
        Instruction::Onbuild("COPY <<E /x\nq\nE".into())
    );
}

#[test]
fn mistakes_are_explained() {
    for (line, error) in [
        ("FOO x", "unknown instruction: FOO (did you mean FROM?)"),
        (
            "COPPY a b",
            "unknown instruction: COPPY (did you mean COPY?)",
        ),
        ("runn a", "unknown instruction: runn (did you mean run?)"),
        (
            "COPY --form=a b c",
            "unknown flag: --form (did you mean from?)",
        ),
        ("COPY --from b c", "missing a value on flag: --from"),
        (
            "COPY --from=a --from=b c d",
            "duplicate flag specified: --from",
        ),
        (
            "COPY --link=maybe a b",
            "expecting boolean value for flag --link, not: maybe",
        ),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "COPY a <<E\nE",
            "COPY cannot accept a heredoc as a destination",
        ),
        ("FROM a b", "FROM requires either one or three arguments"),
        (
            "FROM a AS 1b",
            "invalid name for build stage: \"1b\", name can't start with a number or contain symbols",
        ),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =a", "ENV names can not be blank"),
        ("ARG =a", "ARG names can not be blank"),
        ("ARG", "ARG requires at least one argument"),
        ("USER", "USER requires exactly one argument"),
        (
            "SHELL sh -c",
            "SHELL requires the arguments to be in JSON form",
        ),
        ("SHELL []", "SHELL requires at least one argument"),
        (
            "VOLUME [\" \"]",
            "VOLUME specified can not be an empty string",
        ),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        (
            "ONBUILD ONBUILD RUN x",
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        (
            "HEALTHCHECK FOO x",
            "Unknown type \"FOO\" in HEALTHCHECK (try CMD)",
        ),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        (
            "HEALTHCHECK --interval=1us CMD a",
            "Interval \"interval\" cannot be less than 1ms",
        ),
        (
            "HEALTHCHECK --retries=-1 CMD a",
            "--retries cannot be negative (-1)",
        ),
        ("RUN --network=x a", "invalid network mode \"x\""),
        ("RUN --security=x a", "security \"x\" is not valid"),
        (
            "RUN --mount=from=$a,target=/x b",
            "'from' doesn't support variable expansion, define alias stage instead",
        ),
    ] {
        assert_eq!(fails(line), error, "{line}");
    }
    let error = program(&parse(b"RUN x\nFROM y").unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "no build stage in current context");
}

fn mount(value: &str) -> Result<Mount, String> {
    let mut expand = |text: &str| Ok(text.replace("$X", "x"));
    parse_mount(value, Some(&mut expand)).map_err(|error| error.to_string())
}

#[test]
fn mounts() {
    let bind = mount("target=/a,src=$X").unwrap();
    assert_eq!(bind.kind, MountKind::Bind);
    assert_eq!((bind.source.as_str(), bind.read_only), ("x", true));
    assert!(!mount("target=/a,rw").unwrap().read_only);
    assert!(!mount("target=/a,readonly=false").unwrap().read_only);

    let cache = mount("type=cache,id=i,target=/c,sharing=Locked,mode=0750,uid=1,gid=2").unwrap();
    assert_eq!(cache.sharing, Some(CacheSharing::Locked));
    assert_eq!(
        (cache.mode, cache.uid, cache.gid),
        (Some(0o750), Some(1), Some(2))
    );
    assert!(!cache.read_only);

    assert_eq!(
        mount("type=tmpfs,target=/t,size=64m").unwrap().size,
        64 << 20
    );
    let secret = mount("type=secret,id=s,env=TOKEN,required").unwrap();
    assert_eq!(secret.env.as_deref(), Some("TOKEN"));
    assert!(secret.required);
    assert_eq!(mount("\"target=/a,b\",ro").unwrap().target, "/a,b");
    let early = parse_mount("type=$T,from=stage,target=$X", None).unwrap();
    assert_eq!((early.from.as_str(), early.target.as_str()), ("stage", ""));

    for (value, error) in [
        ("type=foo", "unsupported mount type \"foo\""),
        (
            "type=cach",
            "unsupported mount type \"cach\" (did you mean cache?)",
        ),
        (
            "tgt=/a",
            "unexpected key 'tgt' in 'tgt=/a' (did you mean dst?)",
        ),
        ("foo", "invalid field 'foo' must be a key=value pair"),
        (
            "target=/a,mode=0700",
            "mode not allowed for \"bind\" type mounts",
        ),
        (
            "target=/a,required",
            "unexpected key 'required' for mount type 'bind'",
        ),
        (
            "target=/a,size=1",
            "unexpected key 'size' for mount type 'bind'",
        ),
        ("target=/a,ro=x", "invalid value for ro: x"),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,sharing=x", "unsupported sharing value \"x\""),
        (
            "target=/a,sharing=shared",
            "invalid cache sharing set for bind mount",
        ),
        (
            "type=secret",
            "invalid secret mount. one of source, target required",
        ),
        (
            "type=secret,id=a,source=b",
            "both source and id can't be set",
        ),
        (
            "type=secret,id=a,from=b",
            "secret mount should not have a from",
        ),
    ] {
        let found = mount(value).unwrap_err();
        assert!(found.starts_with(error), "{value}: {found}");
    }
}
