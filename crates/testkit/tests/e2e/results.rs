//! What the daemon keeps of builds, and what it makes anew.

use std::time::Duration;

use cooper_llb::build::{Constraints, CopySpec, Local, State};
use cooper_proto::control::{self, DiskUsageRequest, PruneRequest, StatusResponse, UsageRecord};
use cooper_proto::pb;
use futures::StreamExt;

use crate::client::{
    Bench, Files, bind, copy, exporter, local, mkdir, mkfile, read_only, request, rm, sh, with_dir,
};
use crate::read;

fn usage(bench: &Bench) -> Vec<UsageRecord> {
    let usage = bench.client.disk_usage(DiskUsageRequest::default());
    bench.rt.block_on(usage).unwrap()
}

fn prune(bench: &Bench, filter: &[String], all: bool) -> Vec<UsageRecord> {
    bench.rt.block_on(async {
        let request = PruneRequest {
            filter: filter.to_vec(),
            all,
            ..PruneRequest::default()
        };
        let pruned = bench.client.prune(request).await.unwrap();
        pruned.map(Result::unwrap).collect().await
    })
}

/// Solves and gives all that was told of it.
fn watched(bench: &Bench, state: &State) -> Vec<StatusResponse> {
    let mut seen = Vec::new();
    let mut progress = |status| seen.push(status);
    let solving = bench.client.solve(request(state), &mut progress);
    bench.rt.block_on(Box::pin(solving)).unwrap();
    seen
}

/// Whether the step whose name holds `part` was found in the cache; `None` when it was not seen.
fn cached(seen: &[StatusResponse], part: &str) -> Option<bool> {
    let vertexes = seen.iter().flat_map(|status| &status.vertexes);
    let mut of = vertexes.filter(|vertex| vertex.name.contains(part) && vertex.completed.is_some());
    of.next().map(|vertex| vertex.cached)
}

const UUID: &str = "cat /proc/sys/kernel/random/uuid";

#[test]
fn cm01_cm04_results_are_of_kinds_and_know_their_parents() {
    let bench = Bench::start();
    let base = bench
        .image()
        .run(sh("head -c 2000000 /dev/urandom > /base-file"));
    let upper = base.run(sh("echo upper > /upper-file"));
    let other = State::scratch().files(vec![mkfile("/other-file", "x")]);
    let diff = State::diff(&base, &upper, Constraints::named("difference"));
    let merge = State::merge(&[other, diff.clone()], Constraints::named("union"));
    let out = bench.files(&merge);
    assert_eq!(read(&out.path().join("upper-file")), "upper\n");
    assert!(!out.path().join("base-file").exists());
    let all = usage(&bench);
    let find = |part: &str| {
        let found = all.iter().find(|record| record.description.contains(part));
        found.unwrap_or_else(|| panic!("no {part} in {all:#?}"))
    };
    let image = find("pulled from");
    let (base, upper, other) = (find("base-file"), find("upper-file"), find("other-file"));
    assert!(image.parents.is_empty() && other.parents.is_empty());
    assert_eq!(base.parents, std::slice::from_ref(&image.id));
    assert_eq!(upper.parents, std::slice::from_ref(&base.id));
    assert!((2_000_000..4_300_000).contains(&base.size), "{base:?}");
    assert!(upper.size < 100_000, "{upper:?}");
    let (difference, union) = (find("difference"), find("union"));
    // Both are made of what is there, which stays as long as they do.
    assert_eq!(difference.parents, std::slice::from_ref(&upper.id));
    assert_eq!(union.parents, [other.id.clone(), upper.id.clone()]);
    for record in &all {
        assert!(!record.mutable && !record.in_use, "{record:?}");
        assert_eq!(record.record_type, "regular", "{record:?}");
        assert!(record.created_at.is_some());
    }
    // What another result stands on is not removed without it.
    let pruned = prune(&bench, &[format!("id=={}", image.id)], true);
    assert!(pruned.is_empty(), "{pruned:?}");
    let pruned = prune(&bench, &["description~=upper-file".to_owned()], true);
    assert!(pruned.is_empty(), "{pruned:?}");
    let names = ["description~=union", "description~=difference"].map(str::to_owned);
    assert_eq!(prune(&bench, &names, true).len(), 2);
    let pruned = prune(&bench, &["description~=upper-file".to_owned()], true);
    assert_eq!(pruned.len(), 1, "{pruned:?}");
    bench.end();
}

#[test]
fn cm02_what_is_written_belongs_to_one_at_a_time() {
    let bench = Bench::start();
    let mount = || {
        let kind = cooper_llb::build::MountKind::Cache {
            id: "mine".into(),
            sharing: pb::CacheSharingOpt::Private,
        };
        crate::client::mount("/c", &State::scratch(), kind)
    };
    // A private cache that is in use is another one for the next.
    let step = |name: &str| {
        let mut exec = sh(&format!(
            "ls /c | wc -l > /o/count; touch /c/{name}; sleep 1; ls /c >> /o/count"
        ));
        exec.mounts = vec![mount(), bind("/o", &State::scratch())];
        bench.image().run_mounted(exec, "/o").unwrap()
    };
    let (one, two) = (step("one"), step("two"));
    let both = State::scratch()
        .copy(copy(&one, "/count", "/one"))
        .copy(copy(&two, "/count", "/two"));
    let out = bench.files(&both);
    assert_eq!(read(&out.path().join("one")), "0\none\n");
    assert_eq!(read(&out.path().join("two")), "0\ntwo\n");
    let all = usage(&bench);
    let caches: Vec<_> = all
        .iter()
        .filter(|record| record.record_type == "exec.cachemount")
        .collect();
    assert_eq!(caches.len(), 2, "{all:#?}");
    assert!(caches.iter().all(|record| record.mutable), "{caches:?}");
    // And while one is written it says that it is in use.
    let busy = step("three");
    bench.rt.block_on(async {
        let mut discard = |_| ();
        let solving = Box::pin(bench.client.solve(request(&busy), &mut discard));
        let looking = async {
            for _ in 0..100 {
                let all = bench
                    .client
                    .disk_usage(DiskUsageRequest::default())
                    .await
                    .unwrap();
                if all
                    .iter()
                    .any(|record| record.record_type == "exec.cachemount" && record.in_use)
                {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            false
        };
        let (solved, busy) = tokio::join!(solving, looking);
        solved.unwrap();
        assert!(busy);
    });
    bench.end();
}

#[test]
fn cm06_sol19_a_prune_in_the_middle_takes_nothing_away() {
    let bench = Bench::start();
    let first = bench.image().run(sh(&format!("{UUID} > /id; echo first")));
    let side = State::scratch().files(vec![mkfile("/side", "side")]);
    let mut exec = sh("cp /id /again; sleep 2; cat /side/side >> /again");
    exec.mounts.push(read_only("/side", &side));
    let second = first.run(exec);
    let third = State::scratch().copy(copy(&second, "/again", "/"));
    let out = bench.rt.block_on(async {
        let out = bench.folder();
        let output = cooper_session::serve::Output::Dir(out.path().to_owned());
        let solve = crate::client::solve_to(request(&third), "local", &[], output);
        let mut discard = |_| ();
        let solving = Box::pin(bench.client.solve(solve, &mut discard));
        let pruning = async {
            for _ in 0..12 {
                tokio::time::sleep(Duration::from_millis(250)).await;
                let all = PruneRequest {
                    all: true,
                    ..PruneRequest::default()
                };
                let pruned = bench.client.prune(all).await.unwrap();
                pruned
                    .for_each(|record| async { drop(record.unwrap()) })
                    .await;
            }
        };
        let (solved, ()) = tokio::join!(solving, pruning);
        solved.unwrap();
        out
    });
    let text = read(&out.path().join("again"));
    assert!(text.len() == 41 && text.ends_with("side"), "{text}");
    bench.end();
}

#[test]
fn cm07_src01_images_with_the_same_layers_share_them() {
    let bench = Bench::start();
    let host = bench.registry.host();
    let push = |state: &State, name: &str| {
        let name = format!("{host}/{name}:1");
        let mut solve = request(state);
        let attrs = [("name", name.as_str()), ("push", "true")];
        solve.request.exporters.push(exporter("image", &attrs));
        bench.try_solve(solve).unwrap();
        name
    };
    let below = bench
        .image()
        .run(sh("head -c 3000000 /dev/urandom > /large"));
    let one = push(&below.run(sh("echo one > /name")), "one");
    let two = push(&below.run(sh("echo two > /name")), "two");
    // A new daemon in effect: all of it comes from the registry.
    prune(&bench, &[], true);
    assert_eq!(usage(&bench), []);
    let image = |name: &str| State::image(name, Default::default(), Constraints::default());
    for (name, expected) in [(&one, "one\n"), (&two, "two\n")] {
        let out = bench.files(&State::scratch().copy(copy(&image(name), "/name", "/")));
        assert_eq!(read(&out.path().join("name")), expected);
    }
    let all = usage(&bench);
    let large: Vec<_> = all
        .iter()
        .filter(|record| record.size > 5_500_000)
        .collect();
    assert_eq!(large.len(), 1, "{all:#?}");
    // The two are children of it.
    let children = all
        .iter()
        .filter(|record| record.parents.contains(&large[0].id));
    assert_eq!(children.count(), 2, "{all:#?}");
    bench.end();
}

/// What a union begins with is taken as it is.
#[test]
fn cm13_a_union_is_no_second_copy_of_its_base() {
    let bench = Bench::start();
    let one = bench.image().run(sh(
        "mkdir /d; head -c 9000000 /dev/urandom > /d/large; echo 1 > /d/one",
    ));
    let two = State::scratch().files(vec![mkdir("/d"), mkfile("/d/two", "2"), mkfile("/x", "x")]);
    let total = || usage(&bench).iter().map(|record| record.size).sum::<i64>();
    bench.solve(&one);
    let before = total();
    let merged = State::merge(&[one, two], Constraints::default());
    let mut exec =
        sh("[ $(stat -c %s /m/d/large) = 9000000 ]; cat /m/d/one /m/d/two /m/x > /o/all");
    exec.mounts = vec![read_only("/m", &merged), bind("/o", &State::scratch())];
    let out = bench.files(&bench.image().run_mounted(exec, "/o").unwrap());
    assert_eq!(read(&out.path().join("all")), "1\n2x");
    let more = total() - before;
    assert!(more < 1_000_000, "{more} {:#?}", usage(&bench));
    // Nor is writing on it: what lies below stays as it is.
    let changed = merged.files(vec![rm("/d/one"), mkfile("/d/three", "3")]);
    let out = bench.files(&State::scratch().copy(copy(&changed, "/d", "/")));
    assert!(!out.path().join("d/one").exists());
    assert_eq!(read(&out.path().join("d/three")), "3");
    let out = bench.files(&State::scratch().copy(copy(&merged, "/d/one", "/")));
    assert_eq!(read(&out.path().join("one")), "1\n");
    // What is laid over it has its files once, too.
    let mut exec = sh("mkdir /o/d; head -c 9000000 /dev/urandom > /o/d/over");
    exec.mounts = vec![bind("/o", &State::scratch())];
    let over = bench.image().run_mounted(exec, "/o").unwrap();
    bench.solve(&over);
    let before = total();
    let wide = State::merge(&[merged, over], Constraints::default());
    let checked = wide.run(sh("[ $(stat -c %s /d/over) = 9000000 ]; cat /d/one /d/two"));
    bench.solve(&checked);
    let more = total() - before;
    assert!(more < 1_000_000, "{more} {:#?}", usage(&bench));
    bench.end();
}

/// What a copy takes counts with its names, modes and content, and with nothing else.
#[test]
fn cm14_fil07_sol04_content_decides_what_is_the_same() {
    let bench = Bench::start();
    let dir = bench.folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("d/sub")).unwrap();
    for (name, text) in [
        ("d/a.txt", "a"),
        ("d/b.md", "b"),
        ("d/sub/c.txt", "c"),
        ("target", "t"),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    std::os::unix::fs::symlink("target", at("link")).unwrap();
    let build = |spec: CopySpec| {
        let chosen = bench.image().copy(spec);
        let made = chosen.run(sh(&format!("{UUID} > /id")));
        let made = State::scratch().copy(copy(&made, "/id", "/"));
        let solve = with_dir(request(&made), "mine", dir.path());
        read(&bench.export(solve).path().join("id"))
    };
    let source = || local("mine");
    let folder = || copy(&source(), "/d", "/copied");
    let wild = || CopySpec {
        allow_wildcard: true,
        create_dest_path: true,
        ..copy(&source(), "/d/*.txt", "/copied/")
    };
    let followed = || CopySpec {
        follow_symlinks: true,
        ..copy(&source(), "/link", "/copied")
    };
    let (all, some, one) = (build(folder()), build(wild()), build(followed()));
    let time = |name: &str| {
        let time = std::time::SystemTime::now() - Duration::from_secs(5000);
        std::fs::File::open(at(name))
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    // Times do not count.
    for name in ["d/a.txt", "d", "target"] {
        time(name);
    }
    assert_eq!(
        [build(folder()), build(wild()), build(followed())],
        [all.clone(), some.clone(), one.clone()]
    );
    // A file that the pattern leaves out counts for the folder alone.
    std::fs::write(at("d/b.md"), "other").unwrap();
    let all_2 = build(folder());
    assert_ne!(all_2, all);
    assert_eq!(build(wild()), some);
    // Modes count.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(at("d/a.txt"), mode).unwrap();
    let (all_3, some_3) = (build(folder()), build(wild()));
    assert_ne!(all_3, all_2);
    assert_ne!(some_3, some);
    // What a link leads to counts where it is followed.
    std::fs::write(at("target"), "other").unwrap();
    assert_ne!(build(followed()), one);
    assert_eq!(build(folder()), all_3);
    // A name counts.
    std::fs::rename(at("d/sub/c.txt"), at("d/sub/d.txt")).unwrap();
    assert_ne!(build(folder()), all_3);
    assert_eq!(build(wild()), some_3);
    // As it was, it is the same as it was.
    std::fs::rename(at("d/sub/d.txt"), at("d/sub/c.txt")).unwrap();
    assert_eq!(build(folder()), all_3);
    bench.end();
}

/// Who has the result needs nothing of what led to it.
#[test]
fn sol02_what_is_not_needed_is_not_made_again() {
    let bench = Bench::start();
    let first = bench
        .image()
        .run(sh(&format!("{UUID} > /id; echo to-be-removed")));
    let last = State::scratch().copy(copy(&first, "/id", "/"));
    let id = |state: &State| read(&bench.files(state).path().join("id"));
    let before = id(&last);
    let gone = prune(&bench, &["description~=to-be-removed".to_owned()], true);
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert_eq!(id(&last), before);
    let seen = watched(&bench, &last);
    assert_ne!(cached(&seen, "to-be-removed"), Some(false));
    // What does need it makes it again, and the copy of that is another one.
    let more = State::scratch().copy(copy(&first, "/id", "/id"));
    let more = more.files(vec![mkfile("/x", "x")]);
    assert_ne!(id(&more), before);
    let anew = first.run(sh("cp /id /second"));
    let anew = State::scratch().copy(copy(&anew, "/second", "/id"));
    assert_eq!(id(&anew), id(&more));
    bench.end();
}

/// One that fails takes others along only if they need it.
#[test]
fn sol08_many_steps_side_by_side_end_as_each_has_to() {
    let bench = Bench::start();
    let image = bench.image();
    // Layers of steps, each of which needs two of the layer before.
    let mut layer: Vec<State> = (0..6)
        .map(|number| State::scratch().files(vec![mkfile(&format!("/n{number}"), "x")]))
        .collect();
    for depth in 0..6 {
        layer = (0..layer.len())
            .map(|number| {
                let other = &layer[(number + 1 + depth) % layer.len()];
                let one = layer[number].copy(CopySpec {
                    dir_contents_only: true,
                    ..copy(other, "/", "/")
                });
                one.files(vec![mkfile(&format!("/d{depth}-{number}"), "x")])
            })
            .collect();
    }
    let all = State::merge(&layer, Constraints::default());
    let out = bench.files(&all);
    let names = std::fs::read_dir(out.path()).unwrap().count();
    assert_eq!(names, 6 + 6 * 6);

    let mut exec = sh("true");
    for (number, state) in layer.iter().enumerate() {
        exec.mounts.push(read_only(&format!("/m{number}"), state));
    }
    let failing = image.run(sh("sleep 0.3; exit 4"));
    exec.mounts.push(read_only("/failing", &failing));
    let error = bench.fails(&image.run(exec));
    assert!(error.contains("exit code: 4"), "{error}");
    // And what did not fail is there.
    let seen = watched(&bench, &all);
    let made = seen.iter().flat_map(|status| &status.vertexes);
    // What has no inputs is asked for its key, which counts as work.
    let made = made
        .filter(|vertex| vertex.completed.is_some() && !vertex.cached && !vertex.inputs.is_empty());
    let made: Vec<_> = made.map(|vertex| vertex.name.as_str()).collect();
    assert_eq!(made, Vec::<&str>::new());
    bench.end();
}

#[test]
fn sol05_an_input_is_brought_to_disk_before_its_step_begins() {
    let bench = Bench::start();
    // Lazy when it is solved, needed by the step.
    let mut exec = sh("ls -l /m/bin/busybox; sleep 1");
    exec.mounts.push(read_only("/m", &bench.image()));
    let seen = watched(&bench, &bench.image().run(exec));
    let statuses: Vec<_> = seen.iter().flat_map(|status| &status.statuses).collect();
    let vertexes: Vec<_> = seen.iter().flat_map(|status| &status.vertexes).collect();
    let stamp = |time: &Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
    let step = vertexes
        .iter()
        .find(|vertex| vertex.started.is_some() && vertex.name.contains("ls -l"));
    let begun = stamp(&step.unwrap().started).unwrap();
    let layers: Vec<_> = statuses
        .iter()
        .filter(|status| status.id.contains("extracting"))
        .collect();
    assert!(!layers.is_empty(), "{statuses:#?}");
    let first_line = seen.iter().flat_map(|status| &status.logs).next().unwrap();
    for layer in layers {
        if let Some(done) = stamp(&layer.completed) {
            assert!(done <= stamp(&first_line.timestamp).unwrap(), "{layer:?}");
        }
    }
    assert!(begun <= stamp(&first_line.timestamp).unwrap());
    bench.end();
}

#[test]
fn sol16_exe22_llb03_progress_tells_of_each_step() {
    let bench = Bench::start();
    let named = Constraints::named("[my step] do it").progress_group("g1", "the group", true);
    let mut exec = sh("echo to-out; echo to-err >&2");
    exec.constraints = named;
    let state = bench.image().run(exec);
    let seen = watched(&bench, &state);
    let vertexes: Vec<_> = seen.iter().flat_map(|status| &status.vertexes).collect();
    let mine: Vec<_> = vertexes
        .iter()
        .filter(|vertex| vertex.name == "[my step] do it")
        .collect();
    let last = mine.last().unwrap();
    assert!(last.started.is_some() && last.completed.is_some() && last.error.is_empty());
    let group = last.progress_group.as_ref().unwrap();
    assert_eq!(
        (group.id.as_str(), group.name.as_str(), group.weak),
        ("g1", "the group", true)
    );
    // The step's input is a vertex as well.
    let image = vertexes
        .iter()
        .find(|vertex| vertex.name.contains("docker-image://"))
        .unwrap();
    assert_eq!(last.inputs, std::slice::from_ref(&image.digest));
    let logs: Vec<_> = seen.iter().flat_map(|status| &status.logs).collect();
    for (stream, text) in [(1, "to-out\n"), (2, "to-err\n")] {
        let of = logs
            .iter()
            .filter(|log| log.stream == stream && log.vertex == last.digest);
        let all: Vec<u8> = of.flat_map(|log| log.msg.to_vec()).collect();
        assert_eq!(all, text.as_bytes());
    }
    // The image's layers are bars with a size.
    let bars: Vec<_> = seen.iter().flat_map(|status| &status.statuses).collect();
    assert!(
        bars.iter()
            .any(|bar| bar.vertex == image.digest && bar.total > 0 && bar.current == bar.total),
        "{bars:#?}"
    );
    // Again it is cached, and says nothing more.
    let again = watched(&bench, &state);
    assert_eq!(cached(&again, "[my step] do it"), Some(true));
    assert!(again.iter().all(|status| status.logs.is_empty()));
    // A failure is told where it was.
    let mut failed: Vec<control::Vertex> = Vec::new();
    let mut progress = |status: StatusResponse| failed.extend(status.vertexes);
    let mut exec = sh("exit 9");
    exec.constraints = Constraints::named("fails");
    let solving = bench
        .client
        .solve(request(&bench.image().run(exec)), &mut progress);
    bench.rt.block_on(Box::pin(solving)).unwrap_err();
    let told: Vec<_> = failed
        .iter()
        .filter(|vertex| !vertex.error.is_empty())
        .collect();
    assert!(
        !told.is_empty() && told.iter().all(|vertex| vertex.name == "fails"),
        "{told:?}"
    );
    assert!(told[0].error.contains("exit code: 9") && told[0].completed.is_some());

    // Made anew on request, and what was made anew is what there is from then on.
    let id = |ignore: bool| {
        let mut exec = sh(&format!("{UUID} > /id"));
        exec.constraints = Constraints::default().ignore_cache(ignore);
        let made = State::scratch().copy(copy(&bench.image().run(exec), "/id", "/"));
        read(&bench.files(&made).path().join("id"))
    };
    let (first, second) = (id(false), id(true));
    assert_ne!(first, second);
    assert_ne!(id(true), second);
    bench.end();
}

#[test]
fn llb04_platforms_are_the_same_in_whatever_way_they_are_written() {
    let bench = Bench::start();
    let id = |os: &str, architecture: &str, variant: &str| {
        let platform = pb::Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
            ..pb::Platform::default()
        };
        let mut exec = sh(&format!("{UUID} > /o/id"));
        exec.mounts.push(bind("/o", &State::scratch()));
        exec.constraints = Constraints::default().platform(platform);
        // The image is this machine's whatever the step says that it is for.
        let made = bench.image().run_mounted(exec, "/o").unwrap();
        read(&bench.files(&made).path().join("id"))
    };
    let native = id("linux", "amd64", "");
    assert_eq!(id("linux", "x86_64", ""), native);
    assert_eq!(id("Linux", "x86-64", "v1"), native);
    let arm = id("linux", "arm64", "");
    assert_ne!(arm, native);
    assert_eq!(id("linux", "aarch64", ""), arm);
    assert_eq!(id("linux", "arm64", "v8"), arm);
    assert_ne!(id("linux", "arm64", "v9"), arm);
    bench.end();
}

#[test]
fn snp01_snp02_snp03_all_snapshotters_give_the_same_files() {
    let mut seen = Vec::new();
    for (config, expected) in [
        ("native", "native"),
        ("overlayfs", "overlayfs"),
        ("auto", "overlayfs"),
    ] {
        let bench = Bench::with_config(&format!("[worker.oci]\n  snapshotter = \"{config}\"\n"));
        let workers = bench.rt.block_on(bench.client.workers(Vec::new())).unwrap();
        let label = &workers[0].labels["org.mobyproject.buildkit.worker.snapshotter"];
        assert_eq!(label, expected);
        let base = bench.image().run(sh(
            "mkdir -p /t/keep /t/gone /t/made; echo 1 > /t/keep/one; echo 2 > /t/gone/two; \
             echo 3 > /t/made/three; ln /t/keep/one /t/keep/same; ln -s one /t/keep/link; \
             chmod 1751 /t/keep; chown 5:6 /t/keep/one; mknod /t/keep/null c 1 3; mkfifo /t/fifo; \
             touch -d @1000000000 /t/made/three",
        ));
        let changed = base.run(sh(
            "rm -r /t/gone; mkdir /t/gone; echo new > /t/gone/new; rm /t/made/three; \
             mkdir /t/made/three; mv /t/fifo /t/pipe; chmod 600 /t/keep",
        ));
        let diff = State::diff(&base, &changed, Constraints::default());
        let other = State::scratch().files(vec![
            mkdir("/t"),
            mkdir("/t/gone"),
            mkfile("/t/gone/two", "x"),
        ]);
        let merged = State::merge(&[other, diff], Constraints::default());
        let show = |state: &State| {
            let archive = bench.stream(request(state), "tar", &[]);
            let entries = archive.0.iter().filter(|(name, _)| name.starts_with("t/"));
            let lines = entries.map(|(name, entry)| {
                let header = &entry.header;
                format!(
                    "{name} {:?} {:o} {}:{} {:?} {:?}",
                    header.entry_type(),
                    header.mode().unwrap(),
                    header.uid().unwrap(),
                    header.gid().unwrap(),
                    header.link_name().unwrap(),
                    String::from_utf8_lossy(&entry.data)
                )
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        let text = [&base, &changed, &merged].map(show).join("\n\n");
        assert!(
            text.contains("t/gone/new") && text.contains("t/keep/null"),
            "{text}"
        );
        // And it is all there for a step, and for the next build.
        bench.solve(&changed.run(sh(
            "[ -d /t/made/three ]; [ ! -e /t/gone/two ]; [ -p /t/pipe ]",
        )));
        let seen_again = watched(&bench, &changed);
        assert_eq!(cached(&seen_again, "rm -r /t/gone"), Some(true));
        seen.push(text);
        bench.end();
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[1], seen[2]);
}

/// Of a directory of the client that two builds need with other patterns, each has its own.
#[test]
fn src02_patterns_of_one_build_are_not_those_of_another() {
    let bench = Bench::start();
    let dir = bench.folder();
    for name in ["a", "b", "c"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    let chosen = |include: &[&str]| {
        let include = include.iter().map(|one| (*one).to_owned()).collect();
        let filter = Local {
            include,
            shared_key_hint: "same".into(),
            ..Local::default()
        };
        let state = State::local("mine", filter, Constraints::default());
        let mut solve = with_dir(request(&state), "mine", dir.path());
        solve.shared_key = "same".into();
        let out = bench.export(solve);
        let mut names: Vec<_> = std::fs::read_dir(out.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.concat()
    };
    for (include, expected) in [
        (&["a", "b"][..], "ab"),
        (&["b", "c"], "bc"),
        (&["c"], "c"),
        (&[], "abc"),
    ] {
        assert_eq!(chosen(include), expected);
    }
    bench.end();
}

/// Without an exporter a build is carried out and kept, and there is nothing to tell of it.
#[test]
fn exp07_a_build_without_an_exporter_is_carried_out_and_kept() {
    let bench = Bench::start();
    let state = bench.image().run(sh("echo it ran; touch /made"));
    let response = bench.try_solve(request(&state)).unwrap();
    assert!(response.exporter_response.is_empty(), "{response:?}");
    assert_eq!(cached(&watched(&bench, &state), "it ran"), Some(true));
    let out = bench.files(&State::scratch().copy(copy(&state, "/made", "/")));
    assert!(out.path().join("made").exists());
    // What fails fails all the same.
    let error = bench.fails(&state.run(sh("exit 6")));
    assert!(error.contains("exit code: 6"), "{error}");
    bench.end();
}
