//! What is listed behind a checksum.

use super::super::listing::{ListedFile, files};
use super::*;

const LINES: [&str; 7] = [
    "ADD /a dir",
    "ADD /a/one file 1",
    "ADD /a/two file 2",
    "ADD /b dir 700",
    "ADD /b/c dir",
    "ADD /b/c/deep file 3",
    "ADD /link symlink a",
];

fn tree(lines: &[&str]) -> Tree {
    let mut tree = Tree::received(true);
    tree.change(lines.iter().map(|line| change(line)));
    tree
}

fn hash(tree: &mut Tree, path: &str, options: &ChecksumOptions) {
    run(tree, &mut Scan::without_disk(), Path::new(path), options).unwrap();
}

fn list(path: &str, options: &ChecksumOptions, most: usize) -> Vec<ListedFile> {
    let mut tree = tree(&LINES);
    hash(&mut tree, path, options);
    files(&mut tree, Path::new(path), options, most).unwrap()
}

fn names(listed: &[ListedFile]) -> Vec<String> {
    let name = |one: &ListedFile| format!("{}{}", one.path, if one.closed { "+" } else { "" });
    listed.iter().map(name).collect()
}

#[test]
fn everything_is_listed_with_its_permissions() {
    let plain = ChecksumOptions::default();
    let all = list("/", &plain, 100);
    let expected = [
        "/",
        "/a",
        "/b",
        "/link",
        "/a/one",
        "/a/two",
        "/b/c",
        "/b/c/deep",
    ];
    assert_eq!(names(&all), expected);
    let mode = |path: &str| all.iter().find(|one| one.path == path).unwrap().mode;
    assert_eq!((mode("/a/one"), mode("/b")), (Some(0o644), Some(0o700)));
    // By the name that was asked for, not where a link leads.
    let follow = ChecksumOptions {
        follow_links: true,
        ..plain.clone()
    };
    assert_eq!(
        names(&list("/link", &follow, 100)),
        ["/link", "/link/one", "/link/two"]
    );
    assert_eq!(names(&list("/a/one", &plain, 100)), ["/a/one"]);
    let globs = list("/*/o*", &wild(false), 100);
    assert_eq!(names(&globs), ["/a/one"]);
}

#[test]
fn a_change_is_seen_in_what_is_above_it() {
    let plain = ChecksumOptions::default();
    let mut changed = tree(&LINES);
    changed.change([change("ADD /b/c/deep file 4")]);
    hash(&mut changed, "/", &plain);
    let after = files(&mut changed, Path::new("/"), &plain, 100).unwrap();
    let before = list("/", &plain, 100);
    let differ: Vec<_> = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before.digest != after.digest)
        .map(|(before, _)| before.path.as_str())
        .collect();
    assert_eq!(differ, ["/", "/b", "/b/c", "/b/c/deep"]);
}

#[test]
fn where_there_is_no_room_a_directory_stands_for_its_files() {
    let plain = ChecksumOptions::default();
    let few = list("/", &plain, 5);
    assert_eq!(names(&few), ["/", "/a+", "/b", "/link", "/b/c+"]);
    let filtered = include(&["**/*"], false);
    let few = list("/", &filtered, 5);
    assert_eq!(names(&few), ["/a+", "/b+", "/link"]);
    assert_ne!(few[0].digest, few[1].digest);
}

#[test]
fn permissions_are_stored() {
    let mut tree = tree(&LINES);
    let plain = ChecksumOptions::default();
    hash(&mut tree, "/", &plain);
    let text = super::super::saved::write(&tree);
    let mut read = super::super::saved::read(&text).unwrap();
    assert_eq!(read.nodes(), tree.nodes());
    assert_eq!(
        files(&mut read, Path::new("/"), &plain, 100).unwrap(),
        list("/", &plain, 100)
    );
}
