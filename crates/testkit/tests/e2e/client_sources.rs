//! Files of the client and images, as programs ask for them.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::SystemTime;

use cooper_llb::build::{Constraints, Local, State};

use crate::client::{Bench, Files, local, mkfile, read_only, request, sh, with_dir};
use crate::read;

fn filtered(name: &str, filter: Local) -> State {
    State::local(name, filter, Constraints::default())
}

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|one| (*one).to_owned()).collect()
}

#[test]
fn src02_the_content_counts_only_if_metadata_is_not_compared() {
    let bench = Bench::start();
    let at = SystemTime::now();
    for (no_differ, second) in [(true, "bar"), (false, "foo")] {
        let dir = bench.folder();
        let path = dir.path().join("foo");
        let write = |content: &str| {
            std::fs::write(&path, content).unwrap();
            std::fs::File::open(&path)
                .unwrap()
                .set_modified(at)
                .unwrap();
        };
        let name = format!("mylocal{no_differ}");
        let state = filtered(
            &name,
            Local {
                no_differ,
                ..Local::default()
            },
        );
        for (content, expected) in [("foo", "foo"), ("bar", second)] {
            write(content);
            let out = bench.export(with_dir(request(&state), &name, dir.path()));
            assert_eq!(read(&out.path().join("foo")), expected, "{no_differ}");
        }
    }
    bench.end();
}

#[test]
fn src02_ses13_hard_links_stay_links_among_what_is_chosen() {
    let bench = Bench::start();
    let dir = bench.folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("bar"), "bar").unwrap();
    for link in ["foo1", "foo2"] {
        std::fs::hard_link(at("bar"), at(link)).unwrap();
    }
    let state = filtered(
        "mylocal",
        Local {
            follow: strings(&["foo*"]),
            ..Local::default()
        },
    );
    let out = bench.export(with_dir(request(&state), "mylocal", dir.path()));
    assert!(!out.path().join("bar").exists());
    assert_eq!(read(&out.path().join("foo1")), "bar");
    let inode = |name: &str| out.path().join(name).metadata().unwrap().ino();
    assert_eq!(inode("foo1"), inode("foo2"));
    bench.end();
}

#[test]
fn src02_links_are_followed_and_never_out_of_the_folder() {
    let bench = Bench::start();
    let dir = bench.folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("sub/sub2")).unwrap();
    symlink("/etc/passwd", at("foo")).unwrap();
    symlink("../../../etc/group", at("sub/bar")).unwrap();
    symlink("bay", at("bax")).unwrap();
    for file in ["bay", "sub/sub2/file", "baz"] {
        std::fs::write(at(file), "").unwrap();
    }
    let script = "set -ex\n[ -L /mount/foo ]\n[ -L /mount/sub/bar ]\n[ -L /mount/bax ]\n\
                  [ -f /mount/bay ]\n[ -f /mount/sub/sub2/file ]\n[ ! -f /mount/baz ]\n\
                  [ ! -f /mount/etc/passwd ]\n[ ! -f /mount/etc/group ]\n\
                  [ $(readlink /mount/foo) = /etc/passwd ]\n\
                  [ $(readlink /mount/sub/bar) = ../../../etc/group ]\n";
    std::fs::write(at("test.sh"), script).unwrap();
    std::fs::set_permissions(at("test.sh"), PermissionsExt::from_mode(0o700)).unwrap();
    let follow = strings(&["test.sh", "foo", "sub/bar", "bax", "sub/sub2/file"]);
    let state = filtered(
        "mylocal",
        Local {
            follow,
            ..Local::default()
        },
    );
    let mut run = sh("sh /mount/test.sh");
    run.mounts.push(read_only("/mount", &state));
    let solve = with_dir(request(&bench.image().run(run)), "mylocal", dir.path());
    bench.try_solve(solve).unwrap();
    bench.end();
}

#[test]
fn src02_ses03_patterns_choose_what_is_sent() {
    let bench = Bench::start();
    let dir = bench.folder();
    for path in [
        "a/b/c.txt",
        "a/b/d.md",
        "a/e.txt",
        "f.txt",
        "node/x/y",
        "node/keep",
    ] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    let chosen = |include: &[&str], exclude: &[&str]| {
        let state = filtered(
            "mylocal",
            Local {
                include: strings(include),
                exclude: strings(exclude),
                ..Local::default()
            },
        );
        let solve = with_dir(request(&state), "mylocal", dir.path());
        let archive = bench.stream(solve, "tar", &[]);
        let names = archive.0.into_keys().filter(|name| !name.ends_with('/'));
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen(&["**/*.txt"], &[]), "a/b/c.txt a/e.txt f.txt");
    assert_eq!(chosen(&[], &["**/*.txt", "node"]), "a/b/d.md");
    assert_eq!(chosen(&["a"], &["a/b", "!a/b/d.md"]), "a/b/d.md a/e.txt");
    assert_eq!(chosen(&[], &["node", "!node/keep", "a"]), "f.txt node/keep");
    bench.end();
}

#[test]
fn src02_builds_side_by_side_do_not_mix_their_files() {
    let bench = Bench::start();
    let dirs: Vec<_> = (0..3)
        .map(|number| {
            let dir = bench.folder();
            std::fs::write(dir.path().join(format!("test{number}")), "contents").unwrap();
            (dir, bench.folder())
        })
        .collect();
    bench.rt.block_on(async {
        let builds = dirs.iter().map(|(dir, out)| {
            use cooper_session::serve::Output;
            let output = Output::Dir(out.path().to_owned());
            let solve = with_dir(request(&local("source")), "source", dir.path());
            let solve = crate::client::solve_to(solve, "local", &[], output);
            let client = bench.client.clone();
            async move { client.solve(solve, &mut |_| ()).await.unwrap() }
        });
        futures::future::join_all(builds).await;
    });
    for (number, (_, out)) in dirs.iter().enumerate() {
        let entries: Vec<_> = std::fs::read_dir(out.path()).unwrap().collect();
        assert_eq!(entries.len(), 1);
        assert_eq!(read(&out.path().join(format!("test{number}"))), "contents");
    }
    bench.end();
}

#[test]
fn src02_a_folder_that_nobody_offers_is_named() {
    let bench = Bench::start();
    let error = bench.fails(&local("nothing"));
    assert!(
        error.contains("nothing") || error.contains("no local sources"),
        "{error}"
    );
    let dir = bench.folder();
    let solve = with_dir(request(&local("nothing")), "other", dir.path());
    let error = bench.try_solve(solve).unwrap_err().to_string();
    assert!(
        error.contains("no access allowed to dir \"nothing\""),
        "{error}"
    );
    bench.end();
}

/// An image that is only pushed on is not unpacked.
#[test]
fn src01_images_stay_where_they_are_until_they_are_needed() {
    let bench = Bench::start();
    let target = format!("{}/copy:latest", bench.registry.host());
    let mut solve = request(&bench.image());
    let attrs = [("name", target.as_str()), ("push", "true")];
    solve
        .request
        .exporters
        .push(crate::client::exporter("image", &attrs));
    let response = bench.try_solve(solve).unwrap().exporter_response;
    assert!(
        response["containerimage.digest"].starts_with("sha256:"),
        "{response:?}"
    );
    let usage = bench
        .rt
        .block_on(bench.client.disk_usage(Default::default()))
        .unwrap();
    // Of the image there are the manifest and the configuration, and no layer. containerd's store of
    // images has no image without its blobs.
    let layers = usage
        .iter()
        .filter(|record| record.description.starts_with("pulled from"));
    let sizes: Vec<_> = layers.map(|record| record.size).collect();
    let lazy = sizes == [0];
    assert!(lazy || cooper_testkit::by_containerd(), "{usage:?}");
    let copy = State::image(&target, Default::default(), Constraints::default());
    bench.solve(&copy.run(sh("true")));

    let wrong = format!("{target}@sha256:{}", "0".repeat(64));
    let error = bench.fails(&State::image(
        &wrong,
        Default::default(),
        Constraints::default(),
    ));
    assert!(error.contains("not found"), "{error}");
    bench.end();
}

#[test]
fn slv04_exporters_work_side_by_side_and_mistakes_are_named() {
    use cooper_session::serve::Output;
    let bench = Bench::start();
    let state = State::scratch().files(vec![mkfile("/foo", "data")]);
    let mut solve = request(&state);
    solve
        .request
        .exporters
        .push(crate::client::exporter("invalid", &[]));
    let error = bench.try_solve(solve).unwrap_err().to_string();
    assert!(
        error.contains("exporter \"invalid\" could not be found"),
        "{error}"
    );

    let out = bench.folder();
    let at = |name: &str| out.path().join(name);
    let solve = crate::client::solve_to(request(&state), "local", &[], Output::Dir(at("dir")));
    let solve = crate::client::solve_to(solve, "tar", &[], Output::File(at("one.tar")));
    let name = [("name", "example.com/x:y"), ("annotation.k", "v")];
    let solve = crate::client::solve_to(solve, "oci", &name, Output::File(at("oci.tar")));
    let solve =
        crate::client::solve_to(solve, "docker", &name[..1], Output::File(at("docker.tar")));
    let response = bench.try_solve(solve).unwrap().exporter_response;
    assert!(
        response["containerimage.digest"].starts_with("sha256:"),
        "{response:?}"
    );
    assert_eq!(read(&at("dir/foo")), "data");
    let archive = |name: &str| crate::client::Archive::read(&std::fs::read(at(name)).unwrap());
    assert_eq!(archive("one.tar").names(), ["foo"]);
    let oci = archive("oci.tar");
    assert_eq!(oci.manifest()["annotations"]["k"], "v");
    assert_eq!(oci.last_layer().names(), ["foo"]);
    assert!(archive("docker.tar").0.contains_key("manifest.json"));

    // No output for the exporter's stream.
    let mut solve = request(&state);
    solve
        .request
        .exporters
        .push(crate::client::exporter("oci", &[]));
    assert!(bench.try_solve(solve).is_err());
    bench.end();
}

#[test]
fn ctl04_ctl05_the_daemon_says_what_it_is_and_has() {
    let bench = Bench::start();
    bench.solve(&bench.image().run(sh("true")));
    bench.rt.block_on(async {
        let info = bench.client.info().await.unwrap().buildkit_version.unwrap();
        assert!(!info.version.is_empty() && !info.package.is_empty());
        let workers = bench.client.workers(Vec::new()).await.unwrap();
        assert_eq!(workers.len(), 1);
        assert!(!workers[0].platforms.is_empty() && !workers[0].id.is_empty());
        let none = bench
            .client
            .workers(vec!["id==nothing".into()])
            .await
            .unwrap();
        assert!(none.is_empty());
        let usage = bench.client.disk_usage(Default::default()).await.unwrap();
        assert!(
            usage
                .iter()
                .any(|record| record.description.contains("sh -e -c true")),
            "{usage:?}"
        );
        let request = cooper_proto::control::DiskUsageRequest {
            filter: vec![format!("id=={}", usage[0].id)],
            ..Default::default()
        };
        assert_eq!(bench.client.disk_usage(request).await.unwrap().len(), 1);
    });
    bench.end();
}
