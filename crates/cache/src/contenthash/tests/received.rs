//! Hashes that are told by who wrote the files, and what is stored of a tree.

use std::path::PathBuf;

use cooper_content::digest_of;
use proptest::prelude::*;

use super::super::saved;
use super::*;

#[test]
fn other_names_of_a_file() {
    let lines = [
        "abc dir",
        "abc/foo file data0",
        "ln file >/abc/foo",
        "ln2 file >/abc/foo",
    ];
    let changes: Vec<String> = lines.iter().map(|line| format!("ADD {line}")).collect();
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    let mut received = Files::received(&changes);
    for path in ["abc/foo", "ln", "ln2"] {
        assert_eq!(Files::new(&lines).plain(path), FILE);
        assert_eq!(received.plain(path), FILE);
    }
    received.change(&["ADD abc/foo file data1", "ADD ln file >/abc/foo"]);
    assert_eq!(received.plain("abc/foo"), DATA1);
    assert_eq!(received.plain("ln"), DATA1);
    assert_eq!(received.plain("ln2"), FILE);
    // The content of the first name may be told after the second.
    let mut late = Files::received(&["ADD ln file >/foo", "ADD foo file data0"]);
    assert_eq!(late.plain("ln"), FILE);
}

#[test]
fn what_was_received_is_not_read_again() {
    let mut files = Files::received(&[
        "ADD foo file data0",
        "ADD bar file data1",
        "ADD d0 dir",
        "ADD d0/abc file data0",
        "ADD d0/def symlink abc",
        "ADD d0/ghi symlink nosuchfile",
    ]);
    assert_eq!(files.follow("foo").unwrap(), FILE);
    assert_eq!(files.follow("d0/def").unwrap(), FILE);
    assert_eq!(files.follow("d0").unwrap(), DIR);
    files.change(&["DEL d0/ghi file"]);
    assert_eq!(files.follow("d0").unwrap(), DIR_MODIFIED);
    files.change(&["DEL d0 dir", "DEL d0/abc file"]);
    assert_eq!(files.follow("d0").unwrap_err(), "\"/d0\": not found");
    assert_eq!(
        files.follow("d0/abc").unwrap_err(),
        "\"/d0/abc\": not found"
    );
}

#[test]
fn a_directory_changes() {
    let mut files = Files::received(&[
        "ADD d0 dir",
        "ADD d0/foo dir",
        "ADD d0/foo/bar file data0",
        "ADD d0/foo/subdir1 dir",
        "ADD d0/foo/subdir1/baz file data1",
        "ADD d0/foo/subdir2 dir",
    ]);
    let first = "sha256:e76717544f71725bd759a981554ca17c286b3d222598f46a671b983fd2b8172d";
    assert_eq!(files.plain("d0/foo"), first);
    files.change(&["CHG d0/foo dir 700"]);
    let second = "sha256:3a729f6ba0d3d74c6ade7d118b08b46e37e447afdad7fc6e258dbba12fa80141";
    assert_eq!(files.plain("d0/foo"), second);
    assert_eq!(files.plain("d0/foo/bar"), FILE);
    files.change(&["CHG d0/foo file data2"]);
    assert_eq!(files.plain("d0/foo"), DATA2);
    assert!(
        files
            .follow("d0/foo/bar")
            .unwrap_err()
            .ends_with("not found")
    );
}

#[test]
fn names_that_sort_before_a_slash() {
    let mut files = Files::received(&[
        "ADD d0 dir",
        "ADD d0/foo dir",
        "ADD d0/foo/bar file data0",
        "ADD d0/foo-subdir dir",
        "ADD d0/foo.subdir file data1",
    ]);
    let expected = "sha256:14276c302c940a80f82ca5477bf766c98a24702d6a9948ee71bb277cdad3ae05";
    assert_eq!(files.plain("d0"), expected);
}

#[test]
fn attributes_and_modes_count() {
    let stat = FileStat {
        mode: 0o755 | 1 << 23,
        ..FileStat::default()
    };
    let plain = FileHasher::new(&FileStat {
        mode: 0o4755,
        ..FileStat::default()
    });
    // Set-uid is a bit of its own in Go's modes.
    assert_ne!(
        FileHasher::new(&stat).finish().to_string(),
        plain.finish().to_string()
    );
    let with = |name: &str| {
        let mut stat = stat.clone();
        stat.xattrs.insert(name.into(), b"1".to_vec());
        FileHasher::new(&stat).finish()
    };
    let without = FileHasher::new(&stat).finish();
    for (name, counts) in [
        ("user.x", true),
        ("security.capability", true),
        ("security.selinux", false),
        ("system.posix_acl_access", false),
        ("com.apple.x", false),
        ("trusted.x", true),
    ] {
        assert_eq!(with(name) != without, counts, "{name}");
    }
}

#[test]
fn only_what_is_asked_for_is_looked_at() {
    let mut files = Files::new(&["a dir", "a/b file data0", "c dir", "c/d file data1"]);
    assert_eq!(files.plain("a/b"), FILE);
    assert!(files.tree.get(b"\0c").is_some());
    assert!(files.tree.get(b"\0c\0d").is_none());
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1u8..=255, 1..6)
        .prop_map(|name| name.into_iter().filter(|byte| *byte != b'/').collect())
        .prop_filter("a name", |name: &Vec<u8>| {
            !name.is_empty() && name != b"." && name != b".."
        })
}

proptest! {
    /// What is stored is read again as it was, whatever the names are.
    #[test]
    fn a_tree_survives_being_stored(names in proptest::collection::vec(names(), 0..12)) {
        use std::os::unix::ffi::OsStringExt;
        let mut tree = Tree::received(true);
        for (index, name) in names.iter().enumerate() {
            let path = PathBuf::from(std::ffi::OsString::from_vec(name.clone()));
            let kind = match index % 3 {
                0 => EntryKind::File,
                1 => EntryKind::Directory,
                _ => EntryKind::Symlink { target: name.clone() },
            };
            let digest = digest_of(name);
            tree.change([HashedChange::Set {
                path,
                kind,
                digest,
                mode: 0,
            }]);
        }
        tree.fold(b"");
        let again = saved::read(&saved::write(&tree)).unwrap();
        prop_assert_eq!(again.nodes(), tree.nodes());
    }
}
