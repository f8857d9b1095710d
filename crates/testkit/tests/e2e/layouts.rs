//! Image layouts that clients keep: results that are written to them, and builds from them.

use std::path::Path;
use std::process::Command;

use cooper_client::Solve;
use cooper_llb::build::{Constraints, OciLayout, State};
use cooper_proto::gateway as api;
use cooper_proto::pb;
use cooper_session::serve::Layout;
use cooper_testkit::{Client, Context, Daemon, Registry, leak, push_busybox, run};
use sha2::{Digest as _, Sha256};

use crate::client::{Bench, Files, exporter, mkdir, mkfile, read_only, request, sh};
use crate::client_frontend::{build, nothing};
use crate::{Out, read};

fn layout(dir: &Path, writable: bool) -> Layout {
    Layout {
        dir: dir.to_owned(),
        writable,
    }
}

/// Solves, and the result's blobs go to a new layout.
#[track_caller]
fn export(
    bench: &Bench,
    mut solve: Solve,
    kind: &str,
    attrs: &[(&str, &str)],
) -> tempfile::TempDir {
    let out = bench.folder();
    let mut all = vec![("tar", "false")];
    all.extend(attrs);
    solve.request.exporters.push(exporter(kind, &all));
    let layouts = &mut solve.services.layouts;
    layouts.insert("export".into(), layout(out.path(), true));
    bench.try_solve(solve).unwrap();
    out
}

fn with_layout(mut solve: Solve, store: &str, dir: &Path) -> Solve {
    let layouts = &mut solve.services.layouts;
    layouts.insert(format!("oci:{store}"), layout(dir, false));
    solve
}

fn write_blob(dir: &Path, bytes: &[u8]) -> String {
    let digest = hex::encode(Sha256::digest(bytes));
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(&digest), bytes).unwrap();
    format!("sha256:{digest}")
}

/// Writes an image with one file into a layout; gives the digests of its manifest and its layer.
fn made_by_hand(dir: &Path, content: &str) -> (String, String) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "first", content.as_bytes())
        .unwrap();
    let layer = tar.into_inner().unwrap();
    let size = layer.len();
    let layer = write_blob(dir, &layer);
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "config": {"Env": ["HAND=made"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    })
    .to_string();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": write_blob(dir, config.as_bytes()),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer,
            "size": size,
        }],
    });
    (write_blob(dir, manifest.to_string().as_bytes()), layer)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&read(path)).unwrap()
}

fn blob(dir: &Path, digest: &serde_json::Value) -> std::path::PathBuf {
    let digest = digest.as_str().unwrap().replace(':', "/");
    dir.join("blobs").join(digest)
}

fn source(digest: &str, session: &str, store: &str) -> State {
    let layout = OciLayout {
        session: session.into(),
        store: store.into(),
        ..OciLayout::default()
    };
    State::oci_layout(
        &format!("not/real@{digest}"),
        layout,
        Constraints::default(),
    )
}

#[test]
fn exp03_a_layout_is_written_without_a_tar() {
    let bench = Bench::start();
    let state = bench
        .image()
        .files(vec![mkdir("/dir"), mkfile("/dir/file", "content")]);
    for kind in ["oci", "docker"] {
        let out = export(
            &bench,
            request(&state),
            kind,
            &[("name", "example.com/a:1,b")],
        );
        let out = out.path();
        let index = json(&out.join("index.json"));
        let manifests = index["manifests"].as_array().unwrap();
        let names: Vec<_> = manifests
            .iter()
            .map(|entry| entry["annotations"]["io.containerd.image.name"].clone())
            .collect();
        assert_eq!(names, ["example.com/a:1", "docker.io/library/b:latest"]);
        let manifest = json(&blob(out, &manifests[0]["digest"]));
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2, "{manifest}");
        for part in layers.iter().chain([&manifest["config"]]) {
            let size = std::fs::metadata(blob(out, &part["digest"])).unwrap().len();
            assert_eq!(part["size"], size);
        }
        // Others read it.
        let seen = run(Command::new("skopeo")
            .args(["inspect", "--config"])
            .arg(format!("oci:{}:1", out.display())));
        assert!(seen.success().output.contains("diff_ids"));
        // And nothing else is there.
        let mut found: Vec<_> = std::fs::read_dir(out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, ["blobs", "index.json", "oci-layout"]);
    }
    // A client that keeps no layout is told so.
    let mut solve = request(&state);
    solve
        .request
        .exporters
        .push(exporter("oci", &[("tar", "false")]));
    let error = bench.try_solve(solve).unwrap_err().to_string();
    assert!(error.contains("not supported by the client"), "{error}");
    // What it cannot write to is an error, too.
    let out = bench.folder();
    let mut solve = request(&state);
    solve
        .request
        .exporters
        .push(exporter("oci", &[("tar", "false")]));
    let layouts = &mut solve.services.layouts;
    layouts.insert("export".into(), layout(out.path(), false));
    let error = bench.try_solve(solve).unwrap_err().to_string();
    assert!(error.contains("cannot be written to"), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    bench.end();
}

#[test]
fn src05_a_build_starts_from_a_layout() {
    let bench = Bench::start();
    let state = bench.image().files(vec![mkfile("/first", "1")]);
    let state = state.files(vec![mkfile("/second", "2")]);
    let kept = export(&bench, request(&state), "oci", &[]);
    bench.check_releasable();
    let digest = json(&kept.path().join("index.json"))["manifests"][0]["digest"].clone();
    let digest = digest.as_str().unwrap();
    let from = source(digest, "", "base");
    let solve = |state: &State| with_layout(request(state), "base", kept.path());
    // As files, as the ground of a step and as a mount of one; and not fetched twice.
    let out = bench.export(solve(&from));
    assert_eq!(read(&out.path().join("second")), "2");
    assert!(out.path().join("bin/sh").exists());
    let ran = from.run(sh("cat /first /second > /third"));
    let out = bench.export(solve(&ran));
    assert_eq!(read(&out.path().join("third")), "12");
    let mut step = sh("cat /mnt/first > /fourth");
    step.mounts.push(read_only("/mnt", &from));
    let out = bench.export(solve(&bench.image().run(step)));
    assert_eq!(read(&out.path().join("fourth")), "1");
    // An image on top of it leaves lazily: its lower layers come from the layout.
    bench.check_releasable();
    let again = export(
        &bench,
        solve(&from.files(vec![mkfile("/top", "3")])),
        "oci",
        &[],
    );
    let index = json(&again.path().join("index.json"));
    let manifest = json(&blob(again.path(), &index["manifests"][0]["digest"]));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 4);
    bench.check_releasable();
    // The first layers alone.
    let limited = State::oci_layout(
        &format!("not/real@{digest}"),
        OciLayout {
            store: "base".into(),
            layer_limit: 2,
            ..OciLayout::default()
        },
        Constraints::default(),
    );
    let out = bench.export(solve(&limited));
    assert!(out.path().join("first").exists() && !out.path().join("second").exists());

    // Of an image that is not known yet the session is not there, or the layout, or the image.
    let absent = format!("sha256:{}", "0".repeat(64));
    let error = |state: &State| bench.try_solve(solve(state)).unwrap_err().to_string();
    let failed = error(&source(&absent, "nobody", "base"));
    assert!(failed.contains("no active session for nobody"), "{failed}");
    let failed = error(&source(&absent, "", "other"));
    assert!(
        failed.contains("unknown store oci:other: not found"),
        "{failed}"
    );
    let failed = error(&source(&absent, "", "base"));
    assert!(failed.contains("not found"), "{failed}");
    let named = State::oci_layout(
        "not/real:latest",
        OciLayout {
            store: "base".into(),
            ..OciLayout::default()
        },
        Constraints::default(),
    );
    assert!(error(&named).contains("does not have a digest"));
    bench.end();
}

#[test]
fn src05_blobs_of_a_layout_are_verified() {
    let bench = Bench::start();
    let kept = bench.folder();
    let solve = |manifest: &str| {
        let from = source(manifest, "", "base");
        let solve = with_layout(request(&from), "base", kept.path());
        let out = bench.folder();
        let output = cooper_session::serve::Output::Dir(out.path().to_owned());
        let solve = crate::client::solve_to(solve, "local", &[], output);
        bench.try_solve(solve).map(|_| out)
    };
    let (manifest, layer) = made_by_hand(kept.path(), "1");
    let layer = blob(kept.path(), &layer.into());
    let bytes = std::fs::read(&layer).unwrap();
    let mut other = bytes.clone();
    other[512] ^= 1;
    std::fs::write(&layer, &other).unwrap();
    let error = solve(&manifest).unwrap_err().to_string();
    assert!(error.contains("digest"), "{error}");
    std::fs::write(&layer, &bytes).unwrap();
    let out = solve(&manifest).unwrap();
    assert_eq!(read(&out.path().join("first")), "1");
    let (manifest, _) = made_by_hand(kept.path(), "2");
    std::fs::write(blob(kept.path(), &manifest.as_str().into()), "{}").unwrap();
    let error = solve(&manifest).unwrap_err().to_string();
    assert!(error.contains("digest"), "{error}");
    bench.end();
}

#[test]
fn src05_buildx_builds_from_a_layout() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let busybox = push_busybox(&registry);
    let daemon = Daemon::start();
    let out = Out::new();
    let base = Context::new().file(
        "Dockerfile",
        format!("FROM {busybox}\nENV LAYOUT=yes\nRUN echo kept > /kept\n"),
    );
    let top = Context::new().file(
        "Dockerfile",
        "FROM base\nRUN echo $LAYOUT > /env\nFROM scratch\n\
         COPY --from=base /kept /kept\nCOPY --from=0 /env /env\n",
    );
    for client in Client::of(&daemon) {
        let name = client.name();
        let dir = out.path(&format!("layout-{name}"));
        let output = format!("--output=type=oci,tar=false,dest={}", dir.display());
        client.build(&base, &["--tag=app:v1", &output]).success();
        let digest = json(&dir.join("index.json"))["manifests"][0]["digest"].clone();
        let digest = digest.as_str().unwrap();
        let built = format!(
            "--build-context=base=oci-layout://{}@{digest}",
            dir.display()
        );
        client.build(&top, &[&built, &out.local(name)]).success();
        assert_eq!(out.read(&format!("{name}/kept")), "kept\n");
        assert_eq!(out.read(&format!("{name}/env")), "yes\n");
    }
    drop((daemon, registry, base, top, out));
    watch.check();
}

#[test]
fn gw04_the_configuration_of_an_image_in_a_layout_is_found() {
    let bench = Bench::start();
    let kept = bench.folder();
    let (digest, _) = made_by_hand(kept.path(), "1");
    let (unseen, _) = made_by_hand(kept.path(), "2");
    let solve = with_layout(Solve::default(), "base", kept.path());
    build(&bench, solve, async |mut gateway| {
        let ask = |digest: &str, store: &str| api::ResolveImageConfigRequest {
            r#ref: format!("not/real@{digest}"),
            resolver_type: 1,
            store_id: store.into(),
            ..api::ResolveImageConfigRequest::default()
        };
        let found = gateway.0.resolve_image_config(ask(&digest, "base")).await?;
        let found = found.into_inner();
        assert_eq!(found.digest, digest);
        let config: serde_json::Value = serde_json::from_slice(&found.config).unwrap();
        assert_eq!(config["os"], "linux");
        assert_eq!(config["config"]["Env"][0], "HAND=made");
        let error = gateway.0.resolve_image_config(ask(&unseen, "none")).await;
        let error = error.unwrap_err();
        assert!(
            error.message().contains("unknown store oci:none"),
            "{error}"
        );
        let meta = api::ResolveSourceMetaRequest {
            source: Some(pb::SourceOp {
                identifier: format!("oci-layout://not/real@{digest}"),
                attrs: [("oci.store".to_owned(), "base".to_owned())].into(),
            }),
            ..api::ResolveSourceMetaRequest::default()
        };
        let found = gateway.0.resolve_source_meta(meta).await?.into_inner();
        let image = found.image.unwrap();
        assert_eq!(image.digest, digest);
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&image.config).unwrap(),
            config
        );
        nothing()
    })
    .unwrap();
    bench.end();
}
