use super::*;

fn fails(dockerfile: &str, opts: &[(&str, &str)]) -> (String, Option<i32>) {
    build(dockerfile, opts).error()
}

#[test]
fn mistakes_are_located() {
    for (text, error, line) in [
        (
            "FROM alpine\n\nFRO x\n",
            "dockerfile parse error on line 3: unknown instruction: FRO (did you mean FROM?)",
            Some(3),
        ),
        ("FROM alpine\nRUN <<E\nx\n", "unterminated heredoc", Some(2)),
        ("# nothing\n", "file with no instructions", Some(1)),
        ("ARG x\n", "dockerfile contains no stages to build", None),
        ("RUN x\n", "no build stage in current context", Some(1)),
        (
            "FROM UPPER\n",
            "failed to parse stage name \"UPPER\": invalid reference format: repository name (library/UPPER) must be lowercase",
            Some(1),
        ),
        ("FROM $x\n", "base name ($x) should not be blank", Some(1)),
        (
            "FROM ${x\n",
            "failed to process \"${x\": unsupported modifier (\u{fffd}) in substitution",
            Some(1),
        ),
        (
            "FROM nowhere\n",
            "nowhere: failed to resolve source metadata for docker.io/library/nowhere:latest: docker.io/library/nowhere:latest: not found",
            Some(1),
        ),
        (
            "FROM alpin\n",
            "alpin: failed to resolve source metadata for docker.io/library/alpin:latest: docker.io/library/alpin:latest: not found (did you mean alpine?)",
            Some(1),
        ),
        (
            "FROM --platform=$P alpine\n",
            "empty platform value from expression $P",
            Some(1),
        ),
        (
            "FROM alpine AS a\nFROM alpine\nCOPY --from=$X a b\n",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            Some(3),
        ),
        (
            "FROM alpine\nCOPY --from=7 a b\n",
            "invalid stage index 7",
            None,
        ),
        (
            "FROM alpine AS a\nCOPY --from=b x y\nFROM alpine AS b\nCOPY --from=a x y\n",
            "circular dependency detected on stage: a",
            Some(2),
        ),
        (
            "FROM alpine\nCOPY https://h/x /y\n",
            "source can't be a URL for COPY",
            Some(2),
        ),
        (
            "FROM alpine\nCOPY git@h:x /y\n",
            "source can't be a git ref for COPY",
            Some(2),
        ),
        (
            "FROM alpine\nADD --checksum=x a /y\n",
            "checksum requires HTTP(S) or Git sources",
            Some(2),
        ),
        (
            "FROM alpine\nCOPY --chmod=99 a /y\n",
            "invalid chmod parameter: '99'. it should be octal string and between 0 and 07777",
            Some(2),
        ),
        (
            "FROM alpine\nSTOPSIGNAL FOO\n",
            "invalid signal: FOO",
            Some(2),
        ),
        (
            "FROM alpine\nEXPOSE x\n",
            "invalid containerPort: x",
            Some(2),
        ),
        (
            "FROM alpine\nVOLUME $x\n",
            "VOLUME specified can not be an empty string",
            Some(2),
        ),
        (
            "FROM alpine\nENV a=${b?missing}\n",
            "failed to process \"${b?missing}\": b: missing",
            Some(2),
        ),
        (
            "FROM alpine\nRUN --mount=target=/ x\n",
            "invalid mount target \"/\"",
            Some(2),
        ),
        (
            "FROM alpine\nRUN --mount=type=cach,target=/x x\n",
            "unsupported mount type \"cach\" (did you mean cache?)",
            Some(2),
        ),
        (
            "FROM alpine\nRUN --mount=type=ssh,source=x x\n",
            "ssh does not support source",
            Some(2),
        ),
    ] {
        assert_eq!(fails(text, &[]), (error.to_owned(), line), "{text}");
    }
}

#[test]
fn requests_that_cannot_be_met() {
    let text = "FROM alpine AS build\n";
    for (opts, error) in [
        (
            [("target", "buil")],
            "target stage \"buil\" could not be found (did you mean build?)",
        ),
        (
            [("target", "xyzzy")],
            "target stage \"xyzzy\" could not be found",
        ),
        (
            [("requestid", "frontend.foo")],
            "unsupported request frontend.foo",
        ),
        (
            [("frontend.caps", "moby.buildkit.frontend.inputs,foo.bar")],
            "unsupported frontend capability foo.bar",
        ),
        (
            [("build-arg:SOURCE_DATE_EPOCH", "x")],
            "invalid SOURCE_DATE_EPOCH: x",
        ),
        (
            [("filename", "Other")],
            "failed to read dockerfile: open Other: no such file or directory",
        ),
        (
            [("context:build", "foo:x")],
            "unsupported context source foo for build",
        ),
    ] {
        assert_eq!(fails(text, &opts).0, error);
    }
    let doubled = format!("FROM alpine\nENV a=xxxxxxxx\n{}", "ENV a=$a$a\n".repeat(40));
    let (error, line) = fails(&doubled, &[]);
    assert!(error.ends_with("the expansion is too long"), "{error}");
    assert_eq!(line, Some(20));
    assert_eq!(fails("", &[]).0, "the Dockerfile cannot be empty");
    let old = Fake::new(text).without_cap("file.base").run(&[]);
    assert!(old.error().0.starts_with("needs BuildKit 0.5 or later: "));
}

#[test]
fn the_name_of_the_file_may_be_in_lower_case() {
    let mut fake = Fake::new("FROM alpine\n");
    let text = fake
        .files
        .get_mut("dockerfile")
        .unwrap()
        .remove("Dockerfile")
        .unwrap();
    let outcome = fake.file("dockerfile", "dockerfile", &text).run(&[]);
    assert!(outcome.result.is_ok());
}
