//! Results that programs give back, and what exporters make of them.

use cooper_client::Solve;
use cooper_llb::build::State;
use cooper_proto::gateway::{self as api, result::Result as Refs};
use cooper_session::serve::Output;

use crate::client::{Bench, Files, mkfile, solve_to};
use crate::client_frontend::{build, single};
use crate::read;

/// A result that makes no sense is refused in BuildKit's words.
#[test]
fn sol20_results_are_checked_before_they_are_exported() {
    let bench = Bench::start();
    for (key, value, part) in [
        (
            "containerimage.config",
            "null",
            "invalid null image config for export",
        ),
        (
            "containerimage.config",
            r#"{"architecture":"amd64","os":"","config":{},"rootfs":{"type":"","diff_ids":null}}"#,
            "invalid image config: os and architecture must be specified together",
        ),
        (
            "refs.platforms",
            "null",
            "invalid empty platforms index for exporter",
        ),
        (
            "refs.platforms",
            r#"{"Platforms":[{"ID":"","Platform":{"architecture":"","os":""}}]}"#,
            "invalid empty platform key for exporter",
        ),
        (
            "refs.platforms",
            r#"{"Platforms":[{"ID":"foo","Platform":{"architecture":"","os":""}}]}"#,
            "invalid platform value",
        ),
    ] {
        let out = bench.folder();
        let solve = solve_to(
            Solve::default(),
            "oci",
            &[],
            Output::File(out.path().join("x")),
        );
        let failed = build(&bench, solve, async |_| {
            let mut result = api::Result::default();
            result.metadata.insert(key.into(), value.into());
            Ok(result)
        });
        let error = failed.unwrap_err().to_string();
        assert!(error.contains(part), "{value}: {error}");
    }
    bench.end();
}

#[test]
fn sol20_exp04_results_of_several_platforms_are_exported_apart() {
    let bench = Bench::start();
    let platforms = ["linux/amd64", "linux/arm64"];
    let run = |attrs: &[(&str, &str)], name: &dyn Fn(&str) -> String, dir: &std::path::Path| {
        let solve = solve_to(
            Solve::default(),
            "local",
            attrs,
            Output::Dir(dir.to_owned()),
        );
        build(&bench, solve, async |mut gateway| {
            let mut refs = api::RefMap::default();
            for platform in platforms {
                let state = State::scratch().files(vec![mkfile(&name(platform), platform)]);
                let found = gateway.solve(&state, false).await?;
                refs.refs.insert(platform.into(), found);
            }
            let described = platforms.map(|platform| {
                let (os, architecture) = platform.split_once('/').unwrap();
                serde_json::json!({"ID": platform, "Platform": {"os": os, "architecture": architecture}})
            });
            let described = serde_json::json!({ "Platforms": described });
            let mut result = api::Result {
                result: Some(Refs::Refs(refs)),
                ..api::Result::default()
            };
            let metadata = &mut result.metadata;
            metadata.insert("refs.platforms".into(), described.to_string().into());
            Ok(result)
        })
    };
    let out = bench.folder();
    run(&[], &|_| "foo".into(), out.path()).unwrap();
    assert_eq!(read(&out.path().join("linux_amd64/foo")), "linux/amd64");
    assert_eq!(read(&out.path().join("linux_arm64/foo")), "linux/arm64");
    let out = bench.folder();
    let split = [("platform-split", "false")];
    run(&split, &|platform| platform.replace('/', "-"), out.path()).unwrap();
    assert_eq!(read(&out.path().join("linux-arm64")), "linux/arm64");
    let error = run(&split, &|_| "hello".into(), bench.folder().path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot overwrite hello from"), "{error}");
    assert!(error.contains("when split option is disabled"), "{error}");
    // One platform on request.
    let out = bench.folder();
    let attrs = [("platform-split", "true")];
    let solve = solve_to(
        Solve::default(),
        "local",
        &attrs,
        Output::Dir(out.path().to_owned()),
    );
    build(&bench, solve, async |mut gateway| {
        single(
            gateway
                .solve(&State::scratch().files(vec![mkfile("foo", "x")]), false)
                .await?,
        )
    })
    .unwrap();
    let entries = std::fs::read_dir(out.path()).unwrap();
    assert_eq!(entries.count(), 1);
    assert!(!out.path().join("foo").exists());
    bench.end();
}
