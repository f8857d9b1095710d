//! Exporters and their attributes, as programs use them.

use std::collections::BTreeMap;

use base64::Engine as _;
use cooper_client::Solve;
use cooper_llb::build::State;
use cooper_proto::control::SolveResponse;
use cooper_proto::gateway as api;
use cooper_session::serve::Output;
use cooper_testkit::{Pulled, run};

use crate::client::{Archive, Bench, Files, exporter, mkdir, mkfile, request, sh, solve_to};
use crate::client_frontend::{build, single};
use crate::read;

const EPOCH: &str = "1700000000";

fn image(bench: &Bench, state: &State, attrs: &[(&str, &str)]) -> SolveResponse {
    let mut solve = request(state);
    solve.request.exporters.push(exporter("image", attrs));
    bench.try_solve(solve).unwrap()
}

fn json(text: &[u8]) -> serde_json::Value {
    serde_json::from_slice(text).unwrap()
}

#[test]
fn exp01_values_that_make_no_sense_are_refused_before_anything_is_built() {
    let bench = Bench::start();
    let state = bench.image().run(sh("exit 9"));
    for (kind, key, value, part) in [
        ("image", "push", "yes", "non-bool value specified for push"),
        (
            "image",
            "push-by-digest",
            "x",
            "non-bool value specified for push-by-digest",
        ),
        (
            "image",
            "registry.insecure",
            "2",
            "non-bool value specified for registry.insecure",
        ),
        ("image", "store", "x", "non-bool value specified for store"),
        (
            "image",
            "unpack",
            "x",
            "non-bool value specified for unpack",
        ),
        (
            "image",
            "name-canonical",
            "x",
            "non-bool value specified for name-canonical",
        ),
        (
            "image",
            "oci-mediatypes",
            "x",
            "non-bool value specified for oci-mediatypes",
        ),
        (
            "image",
            "force-compression",
            "x",
            "non-bool value specified for force-compression",
        ),
        (
            "image",
            "rewrite-timestamp",
            "x",
            "non-bool value specified for rewrite-timestamp",
        ),
        (
            "image",
            "prefer-nondist-layers",
            "x",
            "non-bool value specified for prefer-nondist-layers",
        ),
        (
            "image",
            "compression",
            "lz4",
            "unsupported compression type lz4",
        ),
        (
            "image",
            "compression-level",
            "high",
            "non-integer value high specified for compression-level",
        ),
        (
            "image",
            "source-date-epoch",
            "now",
            "invalid SOURCE_DATE_EPOCH",
        ),
        (
            "image",
            "annotation-x.y",
            "z",
            "unrecognized annotation type x",
        ),
        ("oci", "tar", "x", "non-bool value specified for tar"),
        ("local", "platform-split", "x", "platform-split"),
        (
            "local",
            "mode",
            "backup",
            "invalid local exporter mode \"backup\"",
        ),
    ] {
        let mut solve = request(&state);
        solve
            .request
            .exporters
            .push(exporter(kind, &[(key, value)]));
        let error = bench.try_solve(solve).unwrap_err().to_string();
        assert!(error.contains(part), "{kind} {key}={value}: {error}");
        assert!(!error.contains("exit code"), "{error}");
    }
    let mut solve = request(&state);
    let both = [("rewrite-timestamp", "true"), ("unpack", "true")];
    solve.request.exporters.push(exporter("image", &both));
    let error = bench.try_solve(solve).unwrap_err().to_string();
    assert!(
        error.contains("exporter option \"rewrite-timestamp\" conflicts with \"unpack\""),
        "{error}"
    );
    bench.end();
}

#[test]
fn exp01_names_are_given_taken_or_made_of_the_digest() {
    let bench = Bench::start();
    let host = bench.registry.host().to_owned();
    let state = bench.image().files(vec![mkfile("/named", "x")]);
    let (one, two) = (format!("{host}/one:1"), format!("{host}/two:2"));
    let both = format!("{one},{two}");
    let told = image(&bench, &state, &[("name", &both), ("push", "true")]);
    assert_eq!(told.exporter_response["image.name"], both);
    let digest = &told.exporter_response["containerimage.digest"];
    for name in [&one, &two] {
        let pulled = Pulled::registry(name);
        assert_eq!(pulled.digest(), *digest);
    }
    let dangling = |attrs: &[(&str, &str)]| {
        let told = image(&bench, &state, attrs);
        told.exporter_response.get("image.name").cloned()
    };
    let made = format!("none@{digest}");
    assert_eq!(dangling(&[]), None);
    assert_eq!(
        dangling(&[("dangling-name-prefix", "none")]),
        Some(made.clone())
    );
    let named = [("dangling-name-prefix", "none"), ("name", "a")];
    assert_eq!(dangling(&named), Some(format!("a,{made}")));
    let only = [named[0], named[1], ("danging-name-empty-only", "true")];
    assert_eq!(dangling(&only), Some("a".to_owned()));
    // Nobody knows these, so they belong to the result.
    let config = r#"{"os":"linux","architecture":"arm64","config":{"User":"me"}}"#;
    let name = format!("{host}/configured:1");
    let attrs = [
        ("name", name.as_str()),
        ("push", "true"),
        ("containerimage.config", config),
    ];
    image(&bench, &state, &attrs);
    assert_eq!(Pulled::registry(&name).config["config"]["User"], "me");
    for (attrs, part) in [
        (&[("push", "true")][..], "name"),
        (
            &[("push", "true"), ("name", "Upper")],
            "failed to parse Upper",
        ),
        (
            &[("push", "true"), ("push-by-digest", "true"), ("name", &one)],
            "can't push tagged ref",
        ),
    ] {
        let mut solve = request(&state);
        solve.request.exporters.push(exporter("image", attrs));
        let error = bench.try_solve(solve).unwrap_err().to_string();
        assert!(error.contains(part), "{attrs:?}: {error}");
    }
    bench.end();
}

#[test]
fn exp08_the_client_is_told_what_it_can_find_the_image_by() {
    let bench = Bench::start();
    let state = State::scratch().files(vec![mkfile("/file", "x")]);
    let out = bench.folder();
    for kind in ["image", "oci", "docker"] {
        let path = out.path().join(kind);
        let mut solve = request(&state);
        let attrs = [("name", "example.com/told:1")];
        match kind {
            "image" => solve.request.exporters.push(exporter(kind, &attrs)),
            _ => solve = solve_to(solve, kind, &attrs, Output::File(path.clone())),
        }
        let told = bench.try_solve(solve).unwrap().exporter_response;
        let descriptor = &told["containerimage.descriptor"];
        let descriptor = base64::prelude::BASE64_STANDARD.decode(descriptor).unwrap();
        let descriptor = json(&descriptor);
        assert_eq!(descriptor["digest"], told["containerimage.digest"].as_str());
        assert_eq!(told["image.name"], "example.com/told:1");
        assert!(descriptor["size"].as_u64().unwrap() > 0);
        if kind != "image" {
            let archive = Archive::read(&std::fs::read(&path).unwrap());
            let index = archive.json("index.json");
            assert_eq!(index["manifests"][0]["digest"], descriptor["digest"]);
            let manifest = archive.manifest();
            let config = told["containerimage.config.digest"].as_str();
            assert_eq!(manifest["config"]["digest"], config);
        }
    }
    bench.end();
}

#[test]
fn exp10_equal_files_make_equal_images_whenever_they_are_made() {
    let bench = Bench::start();
    let host = bench.registry.host().to_owned();
    let build = |number: u32, attrs: &[(&str, &str)]| {
        let name = format!("{host}/timeless:{number}");
        // Files of now, of then and of the far future.
        let script = format!(
            "echo same > /now && touch -d @7 /then && mkdir /dir && touch -d @4102444800 /dir \
             && : {number}"
        );
        let state = bench.image().run(sh(&script));
        let mut all = vec![("name", name.as_str()), ("push", "true")];
        all.extend(attrs);
        image(&bench, &state, &all);
        Pulled::registry(&name)
    };
    let diff_ids = |pulled: &Pulled| {
        pulled.config["rootfs"]["diff_ids"]
            .as_array()
            .unwrap()
            .clone()
    };
    let epoch = [("source-date-epoch", EPOCH), ("rewrite-timestamp", "true")];
    let plain = build(0, &epoch[..1]);
    let (one, two) = (build(1, &epoch), build(2, &epoch));
    assert_eq!(diff_ids(&one), diff_ids(&two));
    assert_ne!(diff_ids(&plain), diff_ids(&one));
    // Without a configuration of the base there is no telling what belongs to it.
    let times = |pulled: &Pulled| {
        let layer = Archive::read(&pulled.layer(pulled.layers() - 1));
        let time = |name: &str| layer.entry(name).header.mtime().unwrap();
        ["now", "then", "dir/"].map(time)
    };
    let latest: u64 = EPOCH.parse().unwrap();
    assert_eq!(times(&one), [latest, 7, latest]);
    assert!(times(&plain)[0] > latest);
    // With nothing to rewrite to it is as if nobody had asked.
    let without = build(3, &epoch[1..]);
    assert!(times(&without)[0] > latest);
    // Both compressions.
    let zstd = build(
        4,
        &[
            epoch[0],
            epoch[1],
            ("compression", "zstd"),
            ("force-compression", ""),
        ],
    );
    assert_eq!(diff_ids(&zstd), diff_ids(&one));
    drop((plain, one, two, without, zstd));
    bench.end();
}

#[test]
fn exp04_a_folder_can_be_made_equal_to_the_result() {
    let bench = Bench::start();
    let out = bench.folder();
    let fill = || {
        std::fs::create_dir_all(out.path().join("old/deep")).unwrap();
        std::fs::write(out.path().join("old/deep/file"), "old").unwrap();
        std::fs::write(out.path().join("kept"), "old").unwrap();
    };
    let state = State::scratch().files(vec![
        mkdir("/new"),
        mkfile("/new/file", "new"),
        mkfile("/kept", "new"),
    ]);
    let export = |mode: &str, output: Output| {
        let solve = solve_to(request(&state), "local", &[("mode", mode)], output);
        bench.try_solve(solve)
    };
    fill();
    let dir = || out.path().to_owned();
    export("copy", Output::Dir(dir())).unwrap();
    assert_eq!(read(&out.path().join("old/deep/file")), "old");
    assert_eq!(read(&out.path().join("kept")), "new");
    // A client that mirrors does so only when it is told that this is all.
    let error = export("copy", Output::Mirror(dir()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("mode=delete requires"), "{error}");
    assert!(out.path().join("old/deep/file").exists());
    export("delete", Output::Mirror(dir())).unwrap();
    assert!(!out.path().join("old").exists());
    assert_eq!(read(&out.path().join("new/file")), "new");
    bench.end();
}

#[test]
fn exp04_several_platforms_are_mirrored_at_once() {
    let bench = Bench::start();
    let platforms = ["linux/arm64", "linux/amd64"];
    for split in ["true", "false"] {
        let out = bench.folder();
        std::fs::write(out.path().join("old"), "old").unwrap();
        let attrs = [("mode", "delete"), ("platform-split", split)];
        let output = Output::Mirror(out.path().to_owned());
        let solve = solve_to(Solve::default(), "local", &attrs, output);
        build(&bench, solve, async |mut gateway| {
            let mut refs = api::RefMap::default();
            let mut described = Vec::new();
            for platform in platforms {
                let (os, architecture) = platform.split_once('/').unwrap();
                let file = format!("/dir/{architecture}");
                let files = vec![mkdir("/dir"), mkfile(&file, platform)];
                let found = gateway.solve(&State::scratch().files(files), false).await?;
                refs.refs.insert(platform.into(), found);
                described.push(serde_json::json!({
                    "ID": platform, "Platform": {"os": os, "architecture": architecture}
                }));
            }
            let described = serde_json::json!({ "Platforms": described }).to_string();
            Ok(api::Result {
                result: Some(api::result::Result::Refs(refs)),
                metadata: BTreeMap::from([("refs.platforms".to_owned(), described.into_bytes())])
                    .into_iter()
                    .collect(),
                ..api::Result::default()
            })
        })
        .unwrap();
        assert!(!out.path().join("old").exists());
        for platform in platforms {
            let (os, architecture) = platform.split_once('/').unwrap();
            let path = match split {
                "true" => format!("{os}_{architecture}/dir/{architecture}"),
                _ => format!("dir/{architecture}"),
            };
            assert_eq!(read(&out.path().join(path)), platform);
        }
    }
    bench.end();
}

#[test]
fn exp11_what_a_frontend_says_of_its_result_is_in_the_image() {
    let bench = Bench::start();
    let name = format!("{}/described:1", bench.registry.host());
    let mut solve = Solve::default();
    let attrs = [("name", "*"), ("push", "true")];
    solve.request.exporters.push(exporter("image", &attrs));
    let told = build(&bench, solve, async |mut gateway| {
        let state = bench.image().files(vec![mkfile("/file", "x")]);
        let mut result = single(gateway.solve(&state, false).await?)?;
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64",
            "config": {"Env": ["A=b"], "Labels": {"l": "v"}},
            "history": [{"created_by": "base"}, {"created_by": "file", "comment": "c"}],
        });
        let metadata = &mut result.metadata;
        let mut put = |key: &str, value: &str| metadata.insert(key.into(), value.into());
        put("containerimage.config", &config.to_string());
        put("image.name", &name);
        put("frontend.said", "this");
        put("annotation.org.example.key", "value");
        put(
            "annotation-manifest-descriptor.org.example.key",
            "of the descriptor",
        );
        Ok(result)
    })
    .unwrap()
    .exporter_response;
    assert_eq!(told["image.name"], name);
    assert_eq!(told["frontend.said"], "this");
    let descriptor = base64::prelude::BASE64_STANDARD
        .decode(&told["containerimage.descriptor"])
        .unwrap();
    let annotations = &json(&descriptor)["annotations"];
    assert_eq!(annotations["org.example.key"], "of the descriptor");
    let pulled = Pulled::registry(&name);
    assert_eq!(pulled.manifest["annotations"]["org.example.key"], "value");
    assert_eq!(pulled.config["config"]["Env"][0], "A=b");
    assert_eq!(pulled.config["history"][1]["created_by"], "file");
    let seen = run(std::process::Command::new("skopeo")
        .args(["inspect", "--tls-verify=false"])
        .arg(format!("docker://{name}")));
    assert!(seen.success().output.contains("\"l\": \"v\""));
    drop(pulled);
    bench.end();
}
