use proptest::prelude::*;

use super::*;

fn json(outcome: &Outcome) -> serde_json::Value {
    serde_json::from_str(&outcome.metadata("result.json")).unwrap()
}

const TEXT: &str = "# V the version\nARG V=1\n# build compiles\nFROM alpine AS build\nARG V\nRUN --mount=type=secret,id=s,required x\nFROM alpine\nCOPY --from=build / /\n";

#[test]
fn questions_are_listed() {
    let outcome = build(TEXT, &[("requestid", "frontend.subrequests.describe")]);
    let all = json(&outcome);
    let names: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].clone())
        .collect();
    assert!(names.contains(&"frontend.targets".into()));
    assert!(outcome.metadata("result.txt").starts_with("NAME"));
}

#[test]
fn targets_are_listed() {
    let outcome = build(TEXT, &[("requestid", "frontend.targets")]);
    let targets = json(&outcome)["targets"].clone();
    assert_eq!(targets[0]["name"], "build");
    assert_eq!(targets[0]["description"], "compiles");
    assert_eq!(targets[0]["location"]["ranges"][0]["start"]["line"], 4);
    assert_eq!(targets[1]["default"], true);
    let text = outcome.metadata("result.txt");
    assert_eq!(
        text,
        "TARGET      DESCRIPTION\nbuild       compiles\n(default)\n"
    );
}

#[test]
fn parameters_are_listed() {
    let outcome = build(TEXT, &[("requestid", "frontend.outline")]);
    let outline = json(&outcome);
    assert_eq!(outline["args"][0]["name"], "V");
    assert_eq!(outline["args"][0]["value"], "1");
    assert_eq!(outline["args"][0]["description"], "the version");
    assert_eq!(outline["secrets"][0]["name"], "s");
    assert_eq!(outline["secrets"][0]["required"], true);
}

#[test]
fn checks_are_answered() {
    let outcome = build(
        "from alpine AS Unused\nRUN x\nFROM nowhere\n",
        &[("requestid", "frontend.lint")],
    );
    let found = json(&outcome);
    let rules: Vec<_> = found["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w["ruleName"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        rules,
        [
            "StageNameCasing",
            "FromAsCasing",
            "ConsistentInstructionCasing"
        ]
    );
    assert!(
        found["buildError"]["message"]
            .as_str()
            .unwrap()
            .contains("not found")
    );
    assert_eq!(outcome.metadata("result.statuscode"), "1");
    assert!(outcome.metadata("result.txt").contains(">>> from alpine"));
    let outcome = build("FROM alpine\n", &[("requestid", "frontend.lint")]);
    assert_eq!(outcome.metadata("result.statuscode"), "0");
}

#[test]
fn builds_warn() {
    for (text, warning) in [
        (
            "FROM alpine AS A\n",
            "StageNameCasing: Stage name 'A' should be lowercase (line 1)",
        ),
        (
            "FROM alpine as a\n",
            "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)",
        ),
        (
            "FROM alpine\nRUN a \\\n\nb\n",
            "NoEmptyContinuation: Empty continuation line (line 4)",
        ),
        (
            "FROM alpine\nRun x\n",
            "ConsistentInstructionCasing: Command 'Run' should match the case of the command majority (uppercase) (line 2)",
        ),
        (
            "FROM alpine AS a\nFROM alpine AS a\n",
            "DuplicateStageName: Duplicate stage name \"a\", stage names should be unique (line 2)",
        ),
        (
            "FROM alpine AS context\n",
            "ReservedStageName: Stage name should not use the same name as reserved stage \"context\" (line 1)",
        ),
        (
            "FROM alpine\nCMD x\n",
            "JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals (line 2)",
        ),
        (
            "FROM alpine\nMAINTAINER me\n",
            "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)",
        ),
        (
            "ARG IMG=alpine\nFROM ${IMGG:-alpine}\n",
            "UndefinedArgInFrom: FROM argument 'IMGG' is not declared (did you mean IMG?) (line 2)",
        ),
        (
            "FROM alpine\nWORKDIR a\n",
            "WorkdirRelativePath: Relative workdir \"a\" can have unexpected results if the base image changes (line 2)",
        ),
        (
            "FROM alpine\nCOPY $PAHT /\n",
            "UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?) (line 2)",
        ),
        (
            "FROM alpine\nCMD [\"a\"]\nCMD [\"b\"]\n",
            "MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used (line 2)",
        ),
        (
            "FROM alpine\nENV a b\n",
            "LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format (line 2)",
        ),
        (
            "FROM --platform=$TARGETPLATFORM alpine\n",
            "RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior (line 1)",
        ),
        (
            "FROM alpine\nARG MY_TOKEN\n",
            "SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"MY_TOKEN\") (line 2)",
        ),
        (
            "FROM --platform=linux/amd64 alpine\n",
            "FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/amd64\" (line 1)",
        ),
        (
            "FROM alpine\nEXPOSE 80/TCP\n",
            "ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase (line 2)",
        ),
        (
            "FROM alpine\nEXPOSE 1:80\n",
            "ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '1:80' (line 2)",
        ),
        (
            "FROM --platform=linux/arm64 alpine AS arm64\n",
            "InvalidBaseImagePlatform: Base image alpine was pulled with platform \"linux/amd64\", expected \"linux/arm64\" for current build (line 1)",
        ),
    ] {
        assert_eq!(build(text, &[]).warnings(), [warning], "{text}");
    }
    let text = "# about\nARG A B\n# x y\n# build it\nFROM ${A:-alpine} AS build\n# no\nARG C\n";
    let all = [("build-arg:BUILDKIT_DOCKERFILE_CHECK", "experimental=all")];
    assert_eq!(
        build(text, &all).warnings(),
        [
            "InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>` (line 2)",
            "InvalidDefinitionDescription: Comment for ARG should follow the format: `# C <description>` (line 7)",
        ]
    );
    let outcome = build("ARG I\nFROM $I\n", &[("build-arg:I", "alpine")]);
    assert_eq!(
        outcome.warnings(),
        [
            "InvalidDefaultArgInFrom: Default value for ARG $I results in empty or invalid base image name (line 2)"
        ]
    );
    let outcome = Fake::new("FROM alpine\nCOPY a/b /\n")
        .file("context", ".dockerignore", "a\n")
        .run(&[]);
    assert_eq!(
        outcome.warnings(),
        [
            "CopyIgnoredFile: Attempting to Copy file \"a/b\" that is excluded by .dockerignore (line 2)"
        ]
    );
}

#[test]
fn warnings_can_be_skipped_or_be_errors() {
    let text = "# check=skip=StageNameCasing\nFROM alpine AS A\n";
    assert_eq!(build(text, &[]).warnings(), Vec::<String>::new());
    let strict = [("build-arg:BUILDKIT_DOCKERFILE_CHECK", "error=true")];
    let outcome = build(text, &strict);
    assert_eq!(
        outcome.error(),
        (
            "lint violation found for rules: StageNameCasing".to_owned(),
            Some(2)
        )
    );
    assert_eq!(outcome.warnings().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_text_makes_it_panic(
        text in "(FROM (alpine|a|\\$X|scratch)( AS [ab])?\n((RUN|COPY|ADD|ENV|ARG|WORKDIR|EXPOSE|VOLUME|ONBUILD RUN|LABEL|CMD|HEALTHCHECK CMD)( --(from|mount|chown|link|network)=?([ab0/]|target=/x|type=cache,target=y)?)?( [a-c=\"$/{}:.]{1,6}){0,3}\n){0,4}){1,4}"
    ) {
        let _ = build(&text, &[]).result;
    }
}
