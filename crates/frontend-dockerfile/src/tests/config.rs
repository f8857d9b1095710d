use super::*;

#[test]
fn the_configuration_says_what_the_instructions_do() {
    let outcome = build(
        "FROM alpine\nMAINTAINER me\nENV A=\"x y\" B=2\nENV A=z\nLABEL l=v\nEXPOSE 90 80/udp\nVOLUME /v [\"w\"]\nUSER u:g\nWORKDIR sub\nWORKDIR dir\nSTOPSIGNAL SIGTERM\nSHELL [\"/bin/bash\",\"-c\"]\nHEALTHCHECK --interval=90s CMD curl x\nENTRYPOINT [\"e\"]\nCMD echo \"hi\"\nONBUILD RUN later\n",
        &[("label:given", "yes")],
    );
    let image = outcome.image();
    let config = &image["config"];
    assert_eq!(image["author"], "me");
    assert_eq!(
        config["Env"],
        serde_json::json!(["PATH=/bin", "A=z", "B=2"])
    );
    assert_eq!(
        config["Labels"],
        serde_json::json!({"given": "yes", "l": "v"})
    );
    assert_eq!(
        config["ExposedPorts"],
        serde_json::json!({"80/udp": {}, "90/tcp": {}})
    );
    assert_eq!(config["User"], "u:g");
    assert_eq!(config["WorkingDir"], "/sub/dir");
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Shell"], serde_json::json!(["/bin/bash", "-c"]));
    assert_eq!(config["Entrypoint"], serde_json::json!(["e"]));
    assert_eq!(
        config["Cmd"],
        serde_json::json!(["/bin/bash", "-c", "echo \"hi\""])
    );
    assert_eq!(config["ArgsEscaped"], true);
    assert_eq!(config["OnBuild"], serde_json::json!(["RUN later"]));
    assert_eq!(config["Healthcheck"]["Interval"], 90_000_000_000_i64);
    assert_eq!(
        outcome.history(),
        [
            "base",
            "MAINTAINER me",
            "ENV A=x y B=2",
            "ENV A=z",
            "LABEL l=v",
            "EXPOSE [80/udp 90/tcp]",
            "VOLUME [/v [w]]",
            "USER u:g",
            "WORKDIR /sub",
            "WORKDIR /sub/dir",
            "STOPSIGNAL SIGTERM",
            "SHELL [/bin/bash -c]",
            r#"HEALTHCHECK &{["CMD-SHELL" "curl x"] "1m30s" "0s" "0s" "0s" '\x00'}"#,
            "ENTRYPOINT [\"e\"]",
            "CMD [\"/bin/bash\" \"-c\" \"echo \\\"hi\\\"\"]",
        ]
    );
    let history = image["history"].as_array().unwrap();
    assert_eq!(history[8]["comment"], "buildkit.dockerfile.v0");
    assert!(
        history[8].get("empty_layer").is_none(),
        "WORKDIR makes a layer"
    );
    assert_eq!(history[2]["empty_layer"], true);
    assert!(history[2].get("created").is_none());
}

#[test]
fn steps_are_in_the_history() {
    let outcome = build(
        "FROM alpine\nCOPY --chown=1 --chmod=755 a b /c/\nADD <<E /d\nx\nE\nRUN [\"a\", \"b c\"]\nARG X=1 Y\n",
        &[],
    );
    assert_eq!(
        outcome.history()[1..],
        [
            "COPY --chown=1 --chmod=755 a b /c/ # buildkit",
            "ADD <<E /d # buildkit",
            "RUN a b c # buildkit",
            "ARG X=1 Y",
        ]
    );
}

#[test]
fn an_entrypoint_forgets_the_bases_command() {
    let outcome = build("FROM alpine\nENTRYPOINT [\"e\"]\n", &[]);
    assert!(outcome.image()["config"].get("Cmd").is_none());
    let outcome = build("FROM alpine\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n", &[]);
    assert_eq!(outcome.image()["config"]["Cmd"], serde_json::json!(["c"]));
    let base: serde_json::Value =
        serde_json::from_str(&outcome.metadata("containerimage.base.config")).unwrap();
    assert_eq!(base["config"]["Cmd"], serde_json::json!(["/bin/sh"]));
}

#[test]
fn an_epoch_dates_things() {
    let outcome = build(
        "FROM alpine\nWORKDIR /w\n",
        &[("build-arg:SOURCE_DATE_EPOCH", "86400")],
    );
    assert_eq!(
        outcome.image()["history"][1]["created"],
        "1970-01-02T00:00:00Z"
    );
    let Op::File(file) = outcome.vertex("WORKDIR").op else {
        panic!("not a file op")
    };
    let Some(pb::file_action::Action::Mkdir(mkdir)) = &file.actions[0].action else {
        panic!("not a mkdir")
    };
    assert_eq!(mkdir.timestamp, 86_400_000_000_000);
    assert!(mkdir.make_parents);
}

#[test]
fn nothing_has_a_path_too() {
    let outcome = build("FROM scratch\nCMD [\"x\"]\n", &[]);
    let text = outcome.metadata("containerimage.config");
    assert_eq!(
        text,
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"CMD [\"x\"]","comment":"buildkit.dockerfile.v0","empty_layer":true}],"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["x"],"WorkingDir":"/","ArgsEscaped":true}}"#
    );
}

#[test]
fn there_is_one_result_for_each_platform() {
    let outcome = build(
        "FROM alpine\nRUN x\n",
        &[("platform", "linux/amd64,linux/arm64")],
    );
    let result = outcome.result.as_ref().unwrap();
    let ids: Vec<_> = result.references.keys().collect();
    assert_eq!(ids, ["linux/amd64", "linux/arm64"]);
    assert!(
        result
            .metadata
            .contains_key("containerimage.config/linux/arm64")
    );
    assert_eq!(
        outcome.metadata("refs.platforms"),
        r#"{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}"#
    );
    let solved = outcome.fake.solved.lock().unwrap();
    assert!(
        solved.contains(&"[linux/arm64 2/2] RUN x".to_owned()),
        "{solved:?}"
    );
    let loads = solved.iter().filter(|name| name.contains("dockerignore"));
    assert_eq!(loads.count(), 1);
}
