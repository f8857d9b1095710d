use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use cooper_proto::pb;
use cooper_sys::Root;

use super::copy;
use crate::file::act::Scene;
use crate::file::paths::Failure;

struct Pair {
    dir: tempfile::TempDir,
    owner: Option<(u32, u32)>,
}

fn pair() -> Pair {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("from")).unwrap();
    std::fs::create_dir(dir.path().join("to")).unwrap();
    Pair { dir, owner: None }
}

fn action(src: &str, dest: &str) -> pb::FileActionCopy {
    // As a Dockerfile's COPY has it.
    pb::FileActionCopy {
        src: src.into(),
        dest: dest.into(),
        mode: -1,
        timestamp: -1,
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..pb::FileActionCopy::default()
    }
}

impl Pair {
    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    fn write(&self, path: &str) {
        let path = self.from(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
    }

    fn copy(&self, action: &pb::FileActionCopy) -> Result<(), Failure> {
        let (source, target) = (
            Root::open(self.from("")).unwrap(),
            Root::open(self.to("")).unwrap(),
        );
        let scene = Scene {
            target: &target,
            source: Some(&source),
            owner: self.owner,
            stop: &AtomicBool::new(false),
        };
        copy(&scene, action)
    }

    /// All paths below the target, ordered.
    fn found(&self) -> Vec<String> {
        fn walk(dir: &std::path::Path, top: &std::path::Path, all: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                all.push(path.strip_prefix(top).unwrap().display().to_string());
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, top, all);
                }
            }
        }
        let (top, mut all) = (self.to(""), Vec::new());
        walk(&top, &top, &mut all);
        all.sort();
        all
    }
}

#[test]
fn files_go_to_names_and_into_directories() {
    for (src, dest, expected) in [
        ("/file", "/new", &["new"][..]),
        ("/file", "/dir/", &["dir", "dir/file"]),
        ("/file", "/a/b/new", &["a", "a/b", "a/b/new"]),
        ("/file", "/", &["file"]),
        ("/file", "/there", &["there", "there/file"]),
        ("/tree", "/", &["deep", "deep/x", "y"]),
        ("/tree", "/new", &["new", "new/deep", "new/deep/x", "new/y"]),
        (
            "/tree/",
            "/there/",
            &["there", "there/deep", "there/deep/x", "there/y"],
        ),
        ("/tree/*", "/", &["x", "y"]),
        ("/*/y", "/out/", &["out", "out/y"]),
        ("/none*", "/out/", &[]),
    ] {
        let pair = pair();
        pair.write("file");
        pair.write("tree/deep/x");
        pair.write("tree/y");
        if dest.starts_with("/there") {
            std::fs::create_dir(pair.to("there")).unwrap();
        }
        pair.copy(&action(src, dest)).unwrap();
        assert_eq!(pair.found(), expected, "{src} to {dest}");
    }
}

#[test]
fn a_directory_as_such_goes_into_one_that_is_there() {
    let pair = pair();
    pair.write("tree/y");
    std::fs::create_dir(pair.to("there")).unwrap();
    let as_such = pb::FileActionCopy {
        dir_copy_contents: false,
        ..action("/tree", "/there")
    };
    pair.copy(&as_such).unwrap();
    assert_eq!(pair.found(), ["there", "there/tree", "there/tree/y"]);
}

#[test]
fn failures_are_worded_as_buildkit_does() {
    let pair = pair();
    pair.write("file");
    pair.write("tree/y");
    std::fs::write(pair.to("file"), "").unwrap();
    std::fs::create_dir_all(pair.to("dir/file")).unwrap();
    let failed = |action: &pb::FileActionCopy| pair.copy(action).unwrap_err();
    let missing = failed(&action("/none", "/"));
    assert_eq!(missing, "lstat /none: no such file or directory");
    let empty = pb::FileActionCopy {
        allow_empty_wildcard: false,
        ..action("/none*", "/")
    };
    assert_eq!(failed(&empty), "/none* not found");
    let no_parent = pb::FileActionCopy {
        create_dest_path: false,
        ..action("/file", "/no/file")
    };
    assert_eq!(
        failed(&no_parent),
        "failed to stat /no/file: lstat /no: no such file or directory"
    );
    let over = failed(&action("/tree", "/file"));
    assert!(over.contains("cannot copy to non-directory"), "{over}");
    let over = failed(&action("/file", "/dir/"));
    assert!(over.contains("cannot replace to directory"), "{over}");
    let replace = pb::FileActionCopy {
        always_replace_existing_dest_paths: true,
        ..action("/file", "/dir/")
    };
    pair.copy(&replace).unwrap();
    assert!(pair.to("dir/file").is_file());
    let required = pb::FileActionCopy {
        required_paths: vec!["/tree/y".into(), "/tree/none".into()],
        ..action("/tree", "/required")
    };
    assert_eq!(failed(&required), r#""/tree/none": not found"#);
    let pattern = pb::FileActionCopy {
        exclude_patterns: vec!["[".into()],
        ..action("/tree", "/")
    };
    assert!(failed(&pattern).starts_with("invalid excludepatterns"));
}

#[test]
fn patterns_choose_and_what_is_not_chosen_leaves_no_directory() {
    let pair = pair();
    for path in ["a/x.go", "a/b/y.go", "a/b/z.txt", "c/w.txt", "v.go"] {
        pair.write(path);
    }
    let patterns = |include: &[&str], exclude: &[&str]| pb::FileActionCopy {
        include_patterns: include.iter().map(|p| (*p).to_owned()).collect(),
        exclude_patterns: exclude.iter().map(|p| (*p).to_owned()).collect(),
        ..action("/", "/")
    };
    pair.copy(&patterns(&["**/*.go"], &["a/x.go"])).unwrap();
    assert_eq!(pair.found(), ["a", "a/b", "a/b/y.go", "v.go"]);
    pair.copy(&patterns(&[], &["*", "!c"])).unwrap();
    assert_eq!(
        pair.found(),
        ["a", "a/b", "a/b/y.go", "c", "c/w.txt", "v.go"]
    );
}

#[test]
fn owner_mode_and_time_are_set_on_all_that_is_made() {
    let mut pair = pair();
    pair.owner = Some((3, 4));
    pair.write("tree/deep/x");
    let changed = pb::FileActionCopy {
        mode_str: "u=rwX,go=rX".into(),
        timestamp: 5_000_000_000,
        ..action("/tree", "/made/new")
    };
    pair.copy(&changed).unwrap();
    for (path, mode) in [
        ("made/new", 0o755),
        ("made/new/deep", 0o755),
        ("made/new/deep/x", 0o644),
    ] {
        let stat = pair.to(path).metadata().unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mtime()), (3, 4, 5), "{path}");
        assert_eq!(stat.mode() & 0o7777, mode, "{path}");
    }
    assert_eq!(pair.to("made").metadata().unwrap().uid(), 3);
    let fixed = pb::FileActionCopy {
        mode: 0o4711,
        ..action("/tree/deep/x", "/x")
    };
    pair.copy(&fixed).unwrap();
    assert_eq!(pair.to("x").metadata().unwrap().mode() & 0o7777, 0o4711);
}

#[test]
fn a_directory_that_is_there_keeps_its_mode_and_those_in_it_do_not() {
    let pair = pair();
    pair.write("tree/sub/x");
    let chmod = |path: PathBuf, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(pair.from("tree"), 0o700);
    chmod(pair.from("tree/sub"), 0o700);
    std::fs::create_dir_all(pair.to("there/sub")).unwrap();
    chmod(pair.to("there"), 0o751);
    chmod(pair.to("there/sub"), 0o751);
    pair.copy(&action("/tree", "/there")).unwrap();
    let mode = |path: &str| pair.to(path).metadata().unwrap().mode() & 0o777;
    assert_eq!((mode("there"), mode("there/sub")), (0o751, 0o700));
}

#[test]
fn links_are_followed_where_they_are_named_and_nowhere_else() {
    let pair = pair();
    pair.write("real/x");
    symlink("/real", pair.from("link")).unwrap();
    symlink("/real/x", pair.from("real/inner")).unwrap();
    symlink("/../../etc", pair.from("out")).unwrap();
    symlink("/target", pair.to("dest")).unwrap();
    pair.copy(&action("/link", "/a")).unwrap();
    assert!(pair.to("a/inner").symlink_metadata().unwrap().is_symlink());
    let plain = pb::FileActionCopy {
        follow_symlink: false,
        ..action("/link", "/b")
    };
    pair.copy(&plain).unwrap();
    assert_eq!(pair.to("b").read_link().unwrap(), PathBuf::from("/real"));
    pair.copy(&action("/real/x", "/dest/x")).unwrap();
    assert!(pair.to("target/x").is_file());
    let error = pair.copy(&action("/out/passwd", "/p")).unwrap_err();
    assert_eq!(error, "lstat /out/passwd: no such file or directory");
}

fn archive(compress: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind.is_dir() { 0o750 } else { 0o640 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        if link.is_empty() {
            tar.append_data(&mut header, path, data).unwrap();
        } else {
            tar.append_link(&mut header, path, link).unwrap();
        }
    };
    add("dir/", tar::EntryType::Directory, "", b"");
    add("dir/file", tar::EntryType::Regular, "", b"content");
    add("dir/hard", tar::EntryType::Link, "dir/file", b"");
    add("out", tar::EntryType::Symlink, "/", b"");
    add("out/inside", tar::EntryType::Regular, "", b"x");
    compress(tar.into_inner().unwrap())
}

#[test]
fn archives_are_unpacked_whatever_they_are_packed_with() {
    let gzip = |data: Vec<u8>| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&data).unwrap();
        encoder.finish().unwrap()
    };
    for (name, bytes) in [
        ("plain.tar", archive(|data| data)),
        ("a.tar.gz", archive(gzip)),
        (
            "a.tar.zst",
            archive(|data| zstd::encode_all(&data[..], 1).unwrap()),
        ),
    ] {
        let pair = pair();
        std::fs::write(pair.from(name), bytes).unwrap();
        let add = pb::FileActionCopy {
            attempt_unpack_docker_compatibility: true,
            ..action(name, "/to/")
        };
        pair.copy(&add).unwrap();
        let expected = [
            "inside",
            "to",
            "to/dir",
            "to/dir/file",
            "to/dir/hard",
            "to/out",
        ];
        let found: Vec<_> = pair.found();
        // The link leads to the root of what is unpacked, and so does the file behind it.
        let inside: Vec<_> = expected
            .iter()
            .map(|path| path.replace("inside", "to/inside"))
            .collect();
        let mut inside: Vec<_> = inside.iter().map(String::as_str).collect();
        inside.sort_unstable();
        assert_eq!(found, inside, "{name}");
        let stat = pair.to("to/dir").metadata().unwrap();
        assert_eq!(
            (stat.uid(), stat.gid(), stat.mode() & 0o777, stat.mtime()),
            (7, 8, 0o750, 9)
        );
        assert_eq!(pair.to("to/dir/hard").metadata().unwrap().nlink(), 2);
    }
}

#[test]
fn what_is_no_archive_is_copied() {
    let pair = pair();
    pair.write("file.tar.gz");
    let add = pb::FileActionCopy {
        attempt_unpack_docker_compatibility: true,
        ..action("/file.tar.gz", "/")
    };
    pair.copy(&add).unwrap();
    assert_eq!(pair.found(), ["file.tar.gz"]);
}

/// Kind, name, target of a link.
type RawEntry = (tar::EntryType, &'static str, &'static str);

/// An archive of entries that a packer would not make.
fn raw_archive(entries: &[RawEntry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        let data: &[u8] = if *kind == tar::EntryType::Regular {
            b"content"
        } else {
            b""
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, data).unwrap();
    }
    tar.into_inner().unwrap()
}

/// What unpacking the entries into `/to/` says, and what is there afterwards.
fn unpacked(entries: &[RawEntry]) -> (Result<(), String>, Vec<String>) {
    let pair = pair();
    std::fs::write(pair.from("a.tar"), raw_archive(entries)).unwrap();
    let add = pb::FileActionCopy {
        attempt_unpack_docker_compatibility: true,
        ..action("a.tar", "/to/")
    };
    let result = pair.copy(&add);
    (result, pair.found())
}

#[test]
fn entries_that_lead_out_of_the_destination_are_refused() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let cases: [(&[RawEntry], &str); 9] = [
        (
            &[(Regular, "../out", "")],
            "archive path \"../out\" is outside extraction root",
        ),
        (
            &[(Regular, "a/../../out", "")],
            "archive path \"a/../../out\" is outside extraction root",
        ),
        (
            &[(Directory, "/../out/", "")],
            "archive path \"/../out/\" is outside extraction root",
        ),
        (
            &[(Symlink, "up", "../elsewhere"), (Regular, "up/out", "")],
            "archive path \"up/out\" points outside extraction root",
        ),
        (
            &[(Regular, "file", ""), (Link, "hard", "../../file")],
            "archive path \"../../file\" is outside extraction root",
        ),
        (
            &[(Link, "hard", "/")],
            "archive hardlink \"hard\" targets extraction root",
        ),
        (
            &[
                (Symlink, "a", "b"),
                (Symlink, "b", "a"),
                (Regular, "a/x", ""),
            ],
            "too many symlinks resolving archive path \"a/x\"",
        ),
        (
            &[(Regular, "file", ""), (Regular, "file/below", "")],
            "file/below: not a directory",
        ),
        (
            &[(tar::EntryType::new(b'V'), "label", "")],
            "unsupported tar entry \"label\" type V",
        ),
    ];
    for (entries, expected) in cases {
        let (result, found) = unpacked(entries);
        let error = result.unwrap_err();
        assert!(error.contains("failed to unpack a.tar: "), "{error}");
        assert!(error.contains(expected), "{expected}: {error}");
        let outside = |path: &&String| **path != "to" && !path.starts_with("to/");
        assert_eq!(found.iter().find(outside), None, "{entries:?}");
    }
}

#[test]
fn entries_are_placed_where_their_names_lead_inside_the_destination() {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let cases: [(&[RawEntry], &[&str]); 6] = [
        (&[(Regular, "/absolute", "")], &["to", "to/absolute"]),
        (&[(Regular, "a/../b", "")], &["to", "to/b"]),
        (
            &[(Symlink, "link", "/etc"), (Regular, "link/passwd", "")],
            &["to", "to/etc", "to/etc/passwd", "to/link"],
        ),
        (
            // The folder that the link led to is known, and is another one in between.
            &[
                (Directory, "one/", ""),
                (Directory, "two/", ""),
                (Symlink, "link", "one"),
                (Regular, "link/a", ""),
                (Symlink, "link", "two"),
                (Regular, "link/b", ""),
            ],
            &["to", "to/link", "to/one", "to/one/a", "to/two", "to/two/b"],
        ),
        (
            &[(Regular, "file", ""), (Link, "hard", "/file")],
            &["to", "to/file", "to/hard"],
        ),
        (
            // No ways to the machine, and what is there already stays.
            &[
                (Regular, "null", ""),
                (Char, "null", ""),
                (Block, "disk", ""),
                (Fifo, "pipe", ""),
            ],
            &["to", "to/null"],
        ),
    ];
    for (entries, expected) in cases {
        let (result, found) = unpacked(entries);
        result.unwrap();
        assert_eq!(found, expected, "{entries:?}");
    }
}
