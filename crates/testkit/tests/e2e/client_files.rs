//! File operations, as programs ask for them.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use cooper_llb::build::{ChmodSpec, Constraints, CopySpec, FileAction, Owner, State};

use crate::client::{
    Archive, Bench, Files, copy, local, mkdir, mkfile, read_only, request, rm, sh, with_dir,
};
use crate::read;

fn tree(bench: &Bench, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = bench.folder();
    for (path, data) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    dir
}

fn absent(dir: &Path, path: &str) {
    assert!(!dir.join(path).exists(), "{path}");
}

#[test]
fn fil06_files_are_made_and_removed_in_order() {
    let bench = Bench::start();
    let made = State::scratch().files(vec![mkdir("/foo"), mkfile("bar", "contents")]);
    let out = bench.files(&made);
    assert!(out.path().join("foo").is_dir());
    assert_eq!(read(&out.path().join("bar")), "contents");

    let one = tree(
        &bench,
        &[
            ("myfile", "data0"),
            ("sub/foo", "foo0"),
            ("sub/bar", "bar0"),
        ],
    );
    let two = tree(&bench, &[("file2", "file2")]);
    let mine = local("mylocal");
    let made = State::scratch().files(vec![
        FileAction::Copy(Box::new(copy(&mine, "myfile", "myfile2"))),
        FileAction::Copy(Box::new(copy(&mine, "sub", "out"))),
        rm("out/foo"),
        FileAction::Copy(Box::new(copy(&local("mylocal2"), "file2", "/"))),
    ]);
    let solve = with_dir(request(&made), "mylocal", one.path());
    let out = bench.export(with_dir(solve, "mylocal2", two.path()));
    assert_eq!(read(&out.path().join("myfile2")), "data0");
    assert_eq!(read(&out.path().join("out/bar")), "bar0");
    absent(out.path(), "out/foo");
    assert_eq!(read(&out.path().join("file2")), "file2");

    let tree = tree(
        &bench,
        &[
            ("foo/target", "1"),
            ("bar/target", "2"),
            ("bar/remaining", "3"),
        ],
    );
    let made = State::scratch()
        .copy(copy(&mine, "foo", "foo"))
        .copy(copy(&mine, "bar", "bar"))
        .files(vec![FileAction::Rm {
            path: "*/target".into(),
            allow_not_found: false,
            allow_wildcard: true,
        }]);
    let out = bench.export(with_dir(request(&made), "mylocal", tree.path()));
    assert!(out.path().join("foo").is_dir());
    absent(out.path(), "foo/target");
    absent(out.path(), "bar/target");
    assert_eq!(read(&out.path().join("bar/remaining")), "3");
    bench.end();
}

#[test]
fn fil04_a_link_is_removed_and_not_what_it_leads_to() {
    let bench = Bench::start();
    let made = bench
        .image()
        .run(sh("mkdir /mydir; touch /mydir/f; ln -s /mydir /link"));
    let out = bench.files(&State::scratch().copy(CopySpec {
        dir_contents_only: true,
        ..copy(&made.files(vec![rm("link")]), "/", "/")
    }));
    assert!(out.path().join("mydir/f").exists());
    assert!(out.path().join("link").symlink_metadata().is_err());

    let link = FileAction::Symlink {
        old: "/elsewhere".into(),
        new: "/link".into(),
        owner: Some(Owner::ids(3, 4)),
        created: Some(1_000_000_000),
    };
    let archive = bench.stream(request(&State::scratch().files(vec![link])), "tar", &[]);
    let header = &archive.entry("link").header;
    assert_eq!(
        header.link_name().unwrap().unwrap().to_str(),
        Some("/elsewhere")
    );
    assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (3, 4));
    assert_eq!(header.mtime().unwrap(), 1);
    bench.end();
}

#[test]
fn fil07_patterns_choose_and_files_that_are_not_chosen_do_not_matter() {
    let bench = Bench::start();
    let dir = tree(
        &bench,
        &[
            ("myfile", "data0"),
            ("sub/foo", "foo0"),
            ("sub/bar", "bar0"),
        ],
    );
    let build = || {
        let chosen = State::scratch().copy(CopySpec {
            include: vec!["sub/*".into()],
            exclude: vec!["sub/bar".into()],
            ..copy(&local("mylocal"), "/", "/")
        });
        let mut run = sh("head -c 100 /dev/urandom | sha256sum > unique");
        run.mounts.push(crate::client::bind("/wd", &chosen));
        let made = bench.image().dir("/wd").run_mounted(run, "/wd").unwrap();
        bench.export(with_dir(request(&made), "mylocal", dir.path()))
    };
    let first = build();
    assert_eq!(read(&first.path().join("sub/foo")), "foo0");
    absent(first.path(), "myfile");
    absent(first.path(), "sub/bar");
    std::fs::write(dir.path().join("unmatched"), "x").unwrap();
    let second = build();
    let unique = |dir: &tempfile::TempDir| read(&dir.path().join("unique"));
    assert_eq!(unique(&first), unique(&second));
    bench.end();
}

#[test]
fn fil01_what_is_in_the_way_is_replaced_if_wanted() {
    let bench = Bench::start();
    let dest = tree(
        &bench,
        &[
            ("root/overwritedir/subfile", ""),
            ("root/overwritefile", ""),
            ("root/dir/dirfile1", ""),
            ("root/dir/overwritesubfile", ""),
        ],
    );
    std::fs::create_dir(dest.path().join("root/dir/overwritesubdir")).unwrap();
    symlink("dir", dest.path().join("root/overwritesymlink")).unwrap();
    symlink("dirfile1", dest.path().join("root/dir/overwritesymlink")).unwrap();
    let src = tree(
        &bench,
        &[
            ("root/overwritedir", ""),
            ("root/overwritefile/foo", ""),
            ("root/dir/dirfile2", ""),
            ("root/dir/overwritesubdir", ""),
        ],
    );
    for dir in [
        "overwritesymlink",
        "dir/overwritesubfile",
        "dir/overwritesymlink",
    ] {
        std::fs::create_dir(src.path().join("root").join(dir)).unwrap();
    }
    let made = local("dest").copy(CopySpec {
        dir_contents_only: true,
        replace_existing: true,
        ..copy(&local("src"), "/", "/")
    });
    let solve = with_dir(request(&made), "dest", dest.path());
    let out = bench.export(with_dir(solve, "src", src.path()));
    let root = out.path().join("root");
    let is_dir = |path: &str| root.join(path).symlink_metadata().unwrap().is_dir();
    for dir in [
        "overwritefile",
        "overwritesymlink",
        "dir",
        "dir/overwritesubfile",
    ] {
        assert!(is_dir(dir), "{dir}");
    }
    assert!(is_dir("dir/overwritesymlink"));
    for file in [
        "overwritedir",
        "overwritefile/foo",
        "dir/dirfile1",
        "dir/dirfile2",
    ] {
        assert!(
            root.join(file).symlink_metadata().unwrap().is_file(),
            "{file}"
        );
    }
    assert!(!is_dir("dir/overwritesubdir"));
    bench.end();
}

#[test]
fn fil01_permissions_are_set_as_chmod_sets_them() {
    let bench = Bench::start();
    let cases = [
        ("file", "f1", "go-w"),
        ("file", "f2", "o-rwx,g+x"),
        ("file", "f3", "u=rwx,g=,o="),
        ("file", "f4", "u+rw,g+r,o-x,o+w"),
        ("dir", "d1", "a+X"),
        ("dir", "d2", "g+rw,o+rw"),
        ("dir", "d3", "u=rwX,go=rX"),
    ];
    let mut script = "mkdir /input; touch /input/file; mkdir /input/dir; chmod 0500 /input/dir; \
                      mkdir /expected"
        .to_owned();
    for (src, dest, mode) in cases {
        script += &format!("; cp -a /input/{src} /expected/{dest}; chmod {mode} /expected/{dest}");
    }
    let made = bench.image().run(sh(&script));
    let mut actual = State::scratch();
    for (src, dest, mode) in cases {
        actual = actual.copy(CopySpec {
            mode: Some(ChmodSpec::Text(mode.into())),
            ..copy(&made, &format!("/input/{src}"), &format!("/{dest}"))
        });
    }
    let expected = bench.files(&State::scratch().copy(copy(&made, "/expected", "/expected")));
    let actual = bench.files(&actual);
    for (_, dest, mode) in cases {
        let mode_of = |path: std::path::PathBuf| path.metadata().unwrap().permissions().mode();
        let wanted = mode_of(expected.path().join("expected").join(dest));
        let found = mode_of(actual.path().join(dest));
        assert_eq!(found, wanted, "{mode}: {found:o} {wanted:o}");
    }
    bench.end();
}

#[test]
fn fil01_owners_come_along_and_are_part_of_the_key() {
    let bench = Bench::start();
    for (script, owner) in [
        ("echo 123 > /foo; chown 1000:1000 /foo", 1000),
        ("echo 123 > /foo", 0),
    ] {
        let made = bench.image().run(sh(script));
        let made = State::scratch().copy(copy(&made, "foo", "foo"));
        let archive = bench.stream(request(&made), "tar", &[]);
        let header = &archive.entry("foo").header;
        assert_eq!(
            (header.uid().unwrap(), header.gid().unwrap()),
            (owner, owner)
        );
    }
    // By name, looked up in the state that is changed.
    let base = bench.image().run(sh(
        "echo me:x:101:102:::/bin/sh >> /etc/passwd; echo us:x:103: >> /etc/group",
    ));
    for (owner, ids) in [("me", (101, 102)), ("me:us", (101, 103)), ("7:8", (7, 8))] {
        let made = base.files(vec![FileAction::Mkfile {
            path: "/owned".into(),
            mode: 0o644,
            data: Vec::new(),
            owner: Some(Owner::parse(owner)),
            created: None,
        }]);
        let made = State::scratch().copy(copy(&made, "/owned", "/"));
        let archive = bench.stream(request(&made), "tar", &[]);
        let header = &archive.entry("owned").header;
        let found = (header.uid().unwrap(), header.gid().unwrap());
        assert_eq!(found, ids, "{owner}");
    }
    bench.end();
}

#[test]
fn fil06_fil07_other_inputs_in_the_same_places_are_another_operation() {
    let bench = Bench::start();
    let base = State::scratch().files(vec![mkfile("/foo", "foo")]);
    let src = State::scratch().files(vec![mkfile("/bar", "bar")]);
    bench.solve(&base.copy(copy(&src, "/bar", "/baz")));
    let error = bench.fails(&base.copy(copy(&base, "/bar", "/baz")));
    assert!(error.contains("bar: no such file"), "{error}");
    bench.end();
}

#[test]
fn fil01_the_empty_file_system_is_a_source_like_others() {
    let bench = Bench::start();
    let empty = State::scratch();
    bench.solve(&State::scratch().copy(copy(&empty, "/", "/")));
    let error = bench.fails(&State::scratch().copy(copy(&empty, "/foo", "/")));
    assert!(error.contains("/foo: no such file or directory"), "{error}");
    let mut run = sh("[ $(ls /scratch | wc -l) = 0 ]");
    run.mounts.push(read_only("/scratch", &empty));
    bench.solve(&bench.image().run(run));
    bench.end();
}

/// Both ways of a removal: in a layer it is one mark for a folder, none for what was in it.
#[test]
fn cm11_a_removed_folder_is_one_mark_in_a_layer() {
    let bench = Bench::start();
    let run = |script: &str, state: &State| {
        let mut run = sh(script);
        run.mounts.push(crate::client::bind("/wd", state));
        bench.image().dir("/wd").run_mounted(run, "/wd").unwrap()
    };
    let made = run("mkdir -p d0 d1; echo -n first > d1/bar", &State::scratch());
    let made = run("rm -rf d0 d1", &made);
    let layer = bench.stream(request(&made), "oci", &[]).last_layer();
    assert_eq!(layer.names(), [".wh.d0", ".wh.d1"]);

    let made = run("mkdir -p foo; echo -n first > foo/bar", &State::scratch());
    let made = run("rm foo/bar", &made);
    let layer = bench.stream(request(&made), "oci", &[]).last_layer();
    assert_eq!(layer.names(), ["foo/", "foo/.wh.bar"]);

    let made = run("mkdir foo; touch foo/a; mv foo bar", &State::scratch());
    let made = run("mv bar foo", &made);
    let layer = bench.stream(request(&made), "oci", &[]).last_layer();
    assert_eq!(layer.names(), [".wh.bar", "foo/", "foo/a"]);
    bench.end();
}

#[test]
fn fil02_fil03_times_and_modes_are_those_that_were_asked_for() {
    let bench = Bench::start();
    let at = 1_234_567_890;
    let made = State::scratch().files(vec![
        FileAction::Mkdir {
            path: "/a/b".into(),
            mode: 0o750,
            make_parents: true,
            owner: None,
            created: Some(at * 1_000_000_000),
        },
        mkdir("/c"),
        FileAction::Mkfile {
            path: "/c/c".into(),
            mode: 0o640,
            data: b"x".to_vec(),
            owner: None,
            created: Some(at * 1_000_000_000),
        },
    ]);
    let copied = State::scratch().copy(CopySpec {
        created: Some((at + 1) * 1_000_000_000),
        ..copy(&made, "/c/c", "/d")
    });
    let both = State::merge(&[made, copied], Constraints::default());
    let archive: Archive = bench.stream(request(&both), "tar", &[]);
    let of = |name: &str| {
        let header = &archive.entry(name).header;
        (header.mtime().unwrap(), header.mode().unwrap() & 0o7777)
    };
    let at = at.unsigned_abs();
    assert_eq!(of("a/b/"), (at, 0o750));
    assert_eq!(of("c/c"), (at, 0o640));
    assert_eq!(of("d"), (at + 1, 0o640));
    let out = bench.files(&both);
    assert_eq!(
        out.path()
            .join("d")
            .metadata()
            .unwrap()
            .mtime()
            .unsigned_abs(),
        at + 1
    );
    bench.end();
}

#[test]
fn fil01_fil02_fil03_fil04_paths_that_are_not_there_are_named() {
    let bench = Bench::start();
    let base = State::scratch().files(vec![mkdir("/dir"), mkfile("/dir/file", "x")]);
    for (state, part) in [
        (base.files(vec![rm("/nothing")]), "nothing"),
        (base.files(vec![mkdir("/no/where")]), "no"),
        (base.files(vec![mkfile("/no/where", "")]), "no"),
        (base.copy(copy(&base, "/none*", "/x")), "none*"),
        (
            base.copy(CopySpec {
                allow_wildcard: true,
                ..copy(&base, "/none*", "/x")
            }),
            "none*",
        ),
        (
            base.copy(CopySpec {
                required_paths: vec!["absent".into()],
                ..copy(&base, "/dir", "/x")
            }),
            "absent",
        ),
    ] {
        let error = bench.fails(&state);
        assert!(error.contains(part), "{error}");
        assert!(
            error.contains("no such file") || error.contains("not found"),
            "{error}"
        );
    }
    bench.solve(&base.copy(CopySpec {
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..copy(&base, "/none*", "/x")
    }));
    bench.end();
}

#[test]
fn fil02_fil03_what_is_made_is_made_as_asked() {
    let bench = Bench::start();
    let base = State::scratch().files(vec![mkdir("/d"), mkfile("/d/f", "old")]);
    let file = |path: &str, mode: u32, data: &str| FileAction::Mkfile {
        path: path.into(),
        mode,
        data: data.into(),
        owner: None,
        created: None,
    };
    let made = base.files(vec![
        // What is there gets another content and keeps its mode.
        file("/d/f", 0o4711, "new"),
        file("relative", 0o4711, ""),
        FileAction::Mkdir {
            path: "/a/b/c".into(),
            mode: 0o1770,
            make_parents: true,
            owner: Some(Owner::ids(7, 8)),
            created: None,
        },
        // One that is there is no mistake when the ones above are made as well.
        FileAction::Mkdir {
            path: "/d".into(),
            mode: 0o777,
            make_parents: true,
            owner: None,
            created: None,
        },
    ]);
    let archive = bench.stream(request(&made), "tar", &[]);
    let of = |name: &str| {
        let header = &archive.entry(name).header;
        (
            header.mode().unwrap() & 0o7777,
            header.uid().unwrap(),
            header.gid().unwrap(),
        )
    };
    assert_eq!(archive.entry("d/f").data, b"new");
    assert_eq!(of("d/f"), (0o600, 0, 0));
    // Permissions are those of user, group and others.
    assert_eq!(of("relative"), (0o711, 0, 0));
    assert_eq!(of("a/b/c/"), (0o770, 7, 8));
    // A file over a folder, and a folder below a file.
    for action in [
        file("/d", 0o644, "x"),
        FileAction::Mkdir {
            path: "/d/f/g".into(),
            mode: 0o755,
            make_parents: true,
            owner: None,
            created: None,
        },
    ] {
        let error = bench.fails(&base.files(vec![action.clone()]));
        assert!(
            ["file exists", "is a directory", "not a directory"]
                .iter()
                .any(|part| error.contains(part)),
            "{action:?}: {error}"
        );
    }
    // Through a link that leads out it is made within.
    let out = base
        .files(vec![FileAction::Symlink {
            old: "../../../../outside".into(),
            new: "/link".into(),
            owner: None,
            created: None,
        }])
        .files(vec![mkdir("/outside"), file("/link/f", 0o644, "in")]);
    let out = bench.files(&out);
    assert_eq!(read(&out.path().join("outside/f")), "in");
    bench.end();
}

#[test]
fn fil04_removing_takes_what_it_names_and_no_more() {
    let bench = Bench::start();
    let base = State::scratch().files(vec![
        mkdir("/d"),
        mkdir("/d/sub"),
        mkfile("/d/sub/x", "x"),
        mkfile("/d/a.txt", "a"),
        mkfile("/d/b.txt", "b"),
        mkfile("/d/[a].md", "c"),
        mkfile("/top", "t"),
        FileAction::Symlink {
            old: "/top".into(),
            new: "/d/link".into(),
            owner: None,
            created: None,
        },
        FileAction::Symlink {
            old: "/".into(),
            new: "/root".into(),
            owner: None,
            created: None,
        },
    ]);
    let names = |path: &str, allow_not_found: bool, allow_wildcard: bool| {
        let removed = base.files(vec![FileAction::Rm {
            path: path.into(),
            allow_not_found,
            allow_wildcard,
        }]);
        let archive = bench.stream(request(&removed), "tar", &[]);
        let all: Vec<_> = base_names(&bench, &base)
            .into_iter()
            .filter(|name| !archive.0.contains_key(name))
            .collect();
        all.join(" ")
    };
    assert_eq!(names("/d/sub", false, false), "d/sub/ d/sub/x");
    assert_eq!(names("d/*.txt", false, true), "d/a.txt d/b.txt");
    // A name with signs of a pattern is a name unless it is said to be one.
    assert_eq!(names("/d/[a].md", false, false), "d/[a].md");
    assert_eq!(names("/d/[a]*", false, true), "d/a.txt");
    assert_eq!(names("/d/link", false, false), "d/link");
    assert_eq!(names("/none", true, false), "");
    assert_eq!(names("/d/*.none", true, true), "");
    // Through a link, and by a path that leads out and comes back.
    assert_eq!(names("/root/top", false, false), "top");
    assert_eq!(names("/../../d/../top", false, false), "top");
    bench.fails(&base.files(vec![rm("/d/none")]));
    bench.end();
}

fn base_names(bench: &Bench, base: &State) -> Vec<String> {
    bench
        .stream(request(base), "tar", &[])
        .0
        .into_keys()
        .collect()
}
