use super::*;

#[test]
fn an_ignore_file_filters_the_context() {
    let text = "FROM alpine\nCOPY . /\n";
    let outcome = Fake::new(text)
        .file("context", ".dockerignore", "# c\na\n!/b/\n")
        .run(&[]);
    let context = outcome.attrs("local://context");
    assert_eq!(context["local.excludepatterns"], "[\"a\",\"!b\"]");
    assert!(!context.contains_key("local.followpaths"));
    // One beside the Dockerfile comes first.
    let outcome = Fake::new(text)
        .file("context", ".dockerignore", "a\n")
        .file("dockerfile", "Dockerfile.dockerignore", "z\n")
        .run(&[]);
    assert_eq!(
        outcome.attrs("local://context")["local.excludepatterns"],
        "[\"z\"]"
    );
    let solved = outcome.fake.solved.lock().unwrap();
    assert!(!solved.iter().any(|name| name.contains(".dockerignore")));
}

#[test]
fn only_what_is_copied_is_asked_for() {
    let outcome = build(
        "FROM alpine AS a\nCOPY x/../y ./z /\nFROM alpine\nCOPY --from=a q /\nADD https://h/f w /\nRUN --mount=target=/m,source=s x\n",
        &[],
    );
    let context = outcome.attrs("local://context");
    assert_eq!(context["local.followpaths"], "[\"s\",\"w\",\"y\",\"z\"]");
}

#[test]
fn images_are_replaced_by_name() {
    let outcome = build(
        "FROM alpine\nCOPY --from=tools /t /\n",
        &[
            ("context:alpine", "docker-image://busybox"),
            ("context:tools::linux/amd64", "local:dir"),
            ("sharedkey:localdir:tools::linux/amd64", "k"),
        ],
    );
    let names = outcome.names();
    assert!(
        names[0].starts_with("[context alpine] busybox"),
        "{names:?}"
    );
    let dir = outcome.attrs("local://dir");
    assert_eq!(dir["local.followpaths"], "[\"t\"]");
    assert_eq!(dir["local.sharedkeyhint"], "context:tools::linux/amd64-k");
    assert!(names.contains(&"[context tools::linux/amd64] load from client".to_owned()));
    let looked_up = outcome.fake.looked_up.lock().unwrap();
    assert_eq!(looked_up.len(), 1);
    assert_eq!(
        looked_up[0].1.log_name,
        "[context alpine] load metadata for busybox"
    );
    assert_eq!(
        outcome.image()["config"]["Cmd"],
        serde_json::json!(["/bin/sh"])
    );
}

#[test]
fn a_stage_is_replaced_with_all_it_does() {
    let outcome = build(
        "FROM nowhere AS base\nRUN never\nFROM base\nRUN own\n",
        &[("context:base", "docker-image://alpine")],
    );
    let names = outcome.names();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("[context base]"));
}

#[test]
fn contexts_may_be_remote() {
    let outcome = build(
        "FROM alpine\nCOPY a /\n",
        &[
            ("context", "https://h/r.git#main:sub"),
            ("dockerfilekey", "dockerfile"),
        ],
    );
    let git = outcome.attrs("git://h/r.git#main:sub");
    assert_eq!(git["git.fullurl"], "https://h/r.git");
    assert!(
        outcome
            .names()
            .contains(&"[internal] load git source https://h/r.git#main:sub".to_owned())
    );
}

#[test]
fn a_context_may_be_a_dockerfile_alone() {
    let outcome = Fake::new("")
        .file("h/Dockerfile", "context", "FROM alpine\nCOPY context /\n")
        .run(&[("context", "https://h/Dockerfile")]);
    assert!(
        outcome
            .names()
            .contains(&"[internal] load remote build context".to_owned())
    );
}

#[test]
fn inputs_stand_in_for_local_files() {
    let given = build("FROM alpine\nRUN given\n", &[]).definition();
    let fake = Arc::new(Fake::new("FROM alpine\nCOPY a /\n"));
    let inputs = Inputs::from([("context".to_owned(), given)]);
    let solve = DockerfileFrontend.solve(fake.clone(), BTreeMap::new(), inputs);
    let result = futures::executor::block_on(solve);
    let outcome = Outcome { fake, result };
    let names = outcome.names();
    assert!(
        names.iter().any(|name| name.ends_with("RUN given")),
        "{names:?}"
    );
    assert!(!names.iter().any(|name| name.contains("load build context")));
}
