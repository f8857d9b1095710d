//! Against the digests that BuildKit's own tests expect (`cache/contenthash/checksum_test.go`).

mod listing;
mod noting;
mod received;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cooper_content::digest_of;
use cooper_snapshot::Mount;

use super::scan::{Failure, Scan};
use super::tree::{EntryKind, HashedChange, Tree};
use super::{ChecksumOptions, FileHasher, FileStat, run};

const FILE: &str = "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b";
const DIR: &str = "sha256:d47454417d2c554067fbefe5f5719edc49f3cfe969c36b62e34a187a4da0cc9a";
const DIR_BY_FILE: &str = "sha256:6b612ad5c13159112ae26357ef7bd34df29916941ba40ec2ce38dfb70c6c60c3";
const DIR_MODIFIED: &str =
    "sha256:555ffa3028630d97ba37832b749eda85ab676fd64ffb629fbf0f4ec8c1e3bff1";
const DOUBLE_STAR: &str = "sha256:aa7448215bbf5b837b35ce64467857d8b9747965573d14d4b31b370586370971";
const DATA1: &str = "sha256:c2b5e234f5f38fc5864da7def04782f82501a40d46192e4207d5b3f0c3c4732b";
const DATA2: &str = "sha256:1c67653c3cf95b12a0014e2c4cd1d776b474b3218aee54155d6ae27b9b999c54";
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Files in the words of BuildKit's tests: `dir`, `file data`, `file >/other name`, `symlink to`.
struct Files {
    dir: tempfile::TempDir,
    tree: Tree,
}

impl Files {
    fn new(lines: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        set_mode(&root, 0o755);
        for line in lines {
            let mut words = line.split(' ');
            let path = root.join(words.next().unwrap());
            match (words.next().unwrap(), words.next()) {
                ("dir", _) => {
                    std::fs::create_dir(&path).unwrap();
                    set_mode(&path, 0o755);
                }
                ("symlink", Some(to)) => symlink(to, path).unwrap(),
                ("file", data) => match data.and_then(|data| data.strip_prefix(">/")) {
                    Some(other) => std::fs::hard_link(root.join(other), path).unwrap(),
                    None => {
                        std::fs::write(&path, data.unwrap_or("")).unwrap();
                        set_mode(&path, 0o644);
                    }
                },
                _ => panic!("{line}"),
            }
        }
        Self {
            dir,
            tree: Tree::unknown(),
        }
    }

    fn received(changes: &[&str]) -> Self {
        let mut files = Self::new(&[]);
        files.tree = Tree::received(true);
        files.change(changes);
        files
    }

    fn change(&mut self, lines: &[&str]) {
        self.tree.change(lines.iter().map(|line| change(line)));
    }

    fn sum(&mut self, path: &str, options: &ChecksumOptions) -> Result<String, String> {
        let mounts = vec![Mount::bind(&self.dir.path().join("root"), true)];
        let folder = self.dir.path().join("mounts");
        let mut scan = Scan::on(mounts, folder, Default::default());
        match run(&mut self.tree, &mut scan, Path::new(path), options) {
            Ok(digest) => Ok(digest.to_string()),
            Err(Failure::Cache(error)) => Err(error.to_string()),
            Err(Failure::NeedsDisk) => panic!("there is a disk"),
        }
    }

    fn plain(&mut self, path: &str) -> String {
        self.sum(path, &ChecksumOptions::default()).unwrap()
    }

    fn follow(&mut self, path: &str) -> Result<String, String> {
        self.sum(path, &follow())
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn follow() -> ChecksumOptions {
    ChecksumOptions {
        follow_links: true,
        ..ChecksumOptions::default()
    }
}

fn wild(follow_links: bool) -> ChecksumOptions {
    ChecksumOptions {
        follow_links,
        wildcard: true,
        ..ChecksumOptions::default()
    }
}

fn include(patterns: &[&str], wildcard: bool) -> ChecksumOptions {
    ChecksumOptions {
        wildcard,
        include: patterns.iter().map(|&pattern| pattern.into()).collect(),
        ..ChecksumOptions::default()
    }
}

/// A change as a client's transfer would tell it.
fn change(line: &str) -> HashedChange {
    let words: Vec<&str> = line.split(' ').collect();
    let path = PathBuf::from(words[1]);
    let (kind, mut stat, data) = match (words[0], words[2], words.get(3)) {
        ("DEL", ..) => return HashedChange::Delete { path },
        (_, "dir", mode) => {
            let mode = mode.map_or(0o755, |mode| u32::from_str_radix(mode, 8).unwrap());
            (EntryKind::Directory, FileStat::default(), mode | 1 << 31)
        }
        (_, "symlink", Some(to)) => {
            let target = to.as_bytes().to_vec();
            let stat = FileStat {
                linkname: target.clone(),
                ..FileStat::default()
            };
            (EntryKind::Symlink { target }, stat, 0o777 | 1 << 27)
        }
        (_, "file", Some(data)) if data.starts_with('>') => {
            let target = PathBuf::from(&data[1..]);
            let stat = FileStat {
                linkname: data[1..].into(),
                ..FileStat::default()
            };
            (EntryKind::Hardlink { target }, stat, 0o644)
        }
        (_, "file", data) => {
            let size = data.map_or(0, |data| data.len() as i64);
            let stat = FileStat {
                size,
                ..FileStat::default()
            };
            (EntryKind::File, stat, 0o644)
        }
        _ => panic!("{line}"),
    };
    stat.mode = data;
    let mut hasher = FileHasher::new(&stat);
    if kind == EntryKind::File {
        hasher.update(words.get(3).copied().unwrap_or("").as_bytes());
    }
    let digest = hasher.finish();
    HashedChange::Set {
        path,
        kind,
        digest,
        mode: stat.permissions(),
    }
}

#[test]
fn files_and_directories() {
    let mut files = Files::new(&[
        "foo file data0",
        "bar file data1",
        "d0 dir",
        "d0/abc file data0",
        "d0/def symlink abc",
        "d0/ghi symlink nosuchfile",
    ]);
    assert_eq!(
        files.follow("nosuch").unwrap_err(),
        "\"/nosuch\": not found"
    );
    for path in ["foo", "d0/abc", "d0/abc", "d0/def"] {
        assert_eq!(files.follow(path).unwrap(), FILE, "{path}");
    }
    assert_eq!(files.follow("bar").unwrap(), DATA1);
    assert_eq!(
        files.follow("d0/ghi").unwrap_err(),
        "\"/d0/ghi\": not found"
    );
    let root = "sha256:427c9cf9ae98c0f81fb57a3076b965c7c149b6b0a85625ad4e884236649a42c6";
    assert_eq!(files.follow("/").unwrap(), root);
    assert_eq!(files.follow("d0").unwrap(), DIR);
    // The same directory as a root.
    let lines = [
        "abc file data0",
        "def symlink abc",
        "ghi symlink nosuchfile",
    ];
    assert_eq!(Files::new(&lines).follow("/").unwrap(), DIR);
    assert_eq!(Files::new(&lines[..2]).follow("/").unwrap(), DIR_MODIFIED);
}

#[test]
fn a_nested_file_before_its_neighbours() {
    let mut files = Files::new(&[
        "abc dir",
        "abc/aa dir",
        "abc/aa/foo file data2",
        "d0 dir",
        "d0/abc file data0",
        "d0/def symlink abc",
        "d0/ghi symlink nosuchfile",
    ]);
    assert_eq!(files.follow("abc/aa/foo").unwrap(), DATA2);
    assert_eq!(files.follow("d0").unwrap(), DIR);
}

#[test]
fn links_on_the_way_are_followed() {
    let mut files = Files::new(&[
        "target dir",
        "target/file file data0",
        "link1 dir",
        "link1/target_file symlink ../target/file",
        "link1/target_file_abs symlink /target/file",
        "link1/target_dir symlink ../target",
        "link1/target_dir_abs symlink /target",
        "link2 dir",
        "link2/link1_rel symlink ../link1",
        "link2/link1_abs symlink /link1",
        "link3 dir",
        "link3/target symlink ../link2/link1_rel/target_dir",
        "link3/target_file symlink ../link2/link1_rel/target_file",
        "lib dir",
        "lib/sub dir",
        "lib/sub/foo file data0",
        "lib/sub/link symlink ../../lib2",
        "lib2 dir",
        "lib2/sub dir",
        "lib2/sub/foo file data0",
        "up1 symlink /lib",
        "up2 symlink /lib/",
        "up3 symlink /lib/.",
        "up4 symlink /lib/../lib",
        "up5 symlink ../lib",
        "loop symlink loop",
    ]);
    for path in [
        "target/file",
        "link1/target_file",
        "link1/target_dir/file",
        "link2/link1_rel/target_file",
        "link2/link1_rel/target_file_abs",
        "link2/link1_rel/target_dir/file",
        "link2/link1_rel/target_dir_abs/file",
        "link2/link1_abs/target_dir_abs/file",
        "link3/target_file",
        "link3/target/file",
        "up1/sub/foo",
        "up2/sub/foo",
        "up3/sub/foo",
        "up4/sub/foo",
        "up5/sub/foo",
        "up1/sub/link/sub/foo",
        "../../../up5/sub/foo",
    ] {
        assert_eq!(files.follow(path).unwrap(), FILE, "{path}");
    }
    for path in ["link1/target_dir/file", "link2/link1_rel/target_dir/file"] {
        assert_eq!(files.plain(path), FILE, "{path}");
    }
    let link = files.plain("link1/target_file");
    assert_ne!(link, FILE);
    assert_eq!(files.plain("link2/link1_rel/target_file"), link);
    assert_eq!(files.follow("loop").unwrap_err(), "too many links");
}

#[test]
fn wildcards() {
    let mut files = Files::new(&[
        "bar file data1",
        "foo file data0",
        "fox file data2",
        "x dir",
        "x/d0 dir",
        "x/d0/abc file data0",
        "x/d0/def symlink abc",
        "x/d0/ghi symlink nosuchfile",
        "y1 symlink foo",
        "y2 symlink fox",
    ]);
    let one = digest_of(format!("\0foo{FILE}").as_bytes()).to_string();
    assert_eq!(files.sum("f*o", &wild(false)).unwrap(), one);
    let foos = "sha256:0b6731924f0a32a812bf8a729202e55e54ded331f9e4ff2397f681e43694e086";
    assert_eq!(files.sum("f*", &wild(false)).unwrap(), foos);
    assert_eq!(files.sum("x/d?", &wild(false)).unwrap(), DIR_BY_FILE);
    assert_eq!(files.sum("x/d?/def", &wild(true)).unwrap(), FILE);
    let links = "sha256:982153600b9653a1decb0f961e09e2bc1be335cfcaac9b39dbd1120b65fdf92c";
    assert_eq!(files.sum("y*", &wild(true)).unwrap(), links);
    assert_eq!(files.sum("nothing*", &wild(true)).unwrap(), EMPTY);
    assert!(files.sum("a[", &wild(true)).is_err());
    // A trailing slash asks for what is in the directory.
    let inside = files.sum("x/d0/", &wild(false)).unwrap();
    assert_ne!(inside, files.sum("x/d0", &wild(false)).unwrap());
    assert_ne!(inside, EMPTY);
}

#[test]
fn links_that_are_not_followed() {
    let mut files = Files::new(&[
        "target file data0",
        "sym symlink target",
        "sym2 symlink target2",
        "foo dir",
        "foo/ghi symlink target",
        "y1 symlink foo/ghi",
    ]);
    let sym = "sha256:a2ba571981f48ec34eb79c9a3ab091b6491e825c2f7e9914ea86e8e958be7fae";
    for path in ["sym", "foo/ghi"] {
        assert_eq!(files.sum(path, &wild(false)).unwrap(), sym);
        assert_eq!(files.plain(path), sym);
    }
    assert_ne!(files.sum("sym2", &wild(false)).unwrap(), sym);
    for path in ["foo/ghi", "y1"] {
        let error = files.sum(path, &wild(true)).unwrap_err();
        assert_eq!(error, format!("\"/{path}\": not found"));
    }
    let dir = "sha256:9b761577efcb1239cf4be971914c5d7404914dd32ff436401af1764dc5446b83";
    assert_eq!(files.follow("foo").unwrap(), dir);
    let wildcard = "sha256:2797e710c6d1a89ff2d91c834b828b1dc500f2982430a58241df8e146f4c4bb4";
    // A link that leads nowhere is not followed in a directory.
    let result = files.sum("fo?", &wild(true));
    assert_eq!(result.as_deref(), Ok(wildcard));
    let options = ChecksumOptions {
        exclude: vec!["*.git".into()],
        ..follow()
    };
    assert_eq!(files.sum("foo", &options).as_deref(), Ok(dir));
}

#[test]
fn patterns_choose() {
    for wildcard in [false, true] {
        let mut before = Files::new(&[
            "foo file data0",
            "bar file data1",
            "d0 dir",
            "d0/abc file abc",
            "d1 dir",
            "d1/def file def",
        ]);
        let mut after = Files::new(&[
            "foo file data0",
            "bar file data1",
            "baz file data2",
            "d0 dir",
            "d0/abc file abc",
            "d0/xyz file xyz",
            "d1 dir",
            "d1/def file def",
            "d2 dir",
        ]);
        let mut both = |patterns: &[&str]| {
            let options = include(patterns, wildcard);
            let sums = [&mut before, &mut after].map(|files| files.sum("", &options).unwrap());
            sums.into()
        };
        let same = [
            &["foo"][..],
            &["foo", "bar"],
            &["d1"],
            &["d0/a*"],
            &["d1/*"],
            &["**/abc"],
        ];
        for patterns in same {
            let (before, after): (String, String) = both(patterns);
            assert_eq!(before, after, "{patterns:?}");
            assert_ne!(before, EMPTY, "{patterns:?}");
        }
        for patterns in [["d0"], ["d0/*"]] {
            let (before, after) = both(&patterns);
            assert_ne!(before, after, "{patterns:?}");
        }
        assert_eq!(both(&["d0/*"]).0, both(&["d0/a*"]).0);
        assert_eq!(both(&["d0/a*"]).0, both(&["**/abc"]).0);
        assert_eq!(both(&["d2/foo"]), (EMPTY.into(), EMPTY.into()));
        let mut options = include(&["d0/*"], wildcard);
        options.exclude = vec!["d0/xyz".into()];
        let spared = after.sum("", &options).unwrap();
        let one = before.sum("", &include(&["d0/*"], wildcard)).unwrap();
        assert_eq!(spared, one);
        assert_eq!(
            after.sum("d2", &include(&["foo"], wildcard)).unwrap(),
            EMPTY
        );
    }
}

#[test]
fn patterns_for_any_depth() {
    let dirs = [
        "prefix dir",
        "prefix/a dir",
        "prefix/a/b dir",
        "prefix/a/b/c dir",
    ];
    let mut more = dirs.to_vec();
    more.extend(["prefix/a/b/c/foo dir", "prefix/a/b/c/foo/bar file abc"]);
    for wildcard in [false, true] {
        let none = include(&["**/foo/**"], wildcard);
        assert_eq!(Files::new(&dirs).sum("prefix/a", &none).unwrap(), EMPTY);
        for patterns in [["**/foo/**", "**/report"], ["**/foo", "**/report"]] {
            let found = Files::new(&more).sum("prefix/a", &include(&patterns, wildcard));
            assert_eq!(found.as_deref(), Ok(DOUBLE_STAR), "{patterns:?} {wildcard}");
        }
    }
}

#[test]
fn patterns_below_links() {
    let mut files = Files::new(&[
        "data dir",
        "data/d0 dir",
        "data/d0/d1 dir",
        "data/d0/d1/d2 dir",
        "mnt dir",
        "mnt/data symlink ../data",
        "data/d0/d1/d2/foo file abc",
        "data/symlink-to-d0 symlink d0",
    ]);
    let mut sum = |path: &str, wildcard| files.sum(path, &include(&["**/foo"], wildcard)).unwrap();
    for (path, same, wildcard) in [
        ("data/d0", "mnt/data/d0", false),
        ("data/d0/d1/d2", "mnt/data/d0/d1/d2", false),
        ("data/d0", "mnt/data/d0", true),
        ("data/d*", "mnt/data/d*", true),
        ("data/d0/d1/d*", "mnt/data/d0/d1/d*", true),
        ("mnt/data/d0/d*/d2", "mnt/data/symlink-to-d0/d*/d2", true),
    ] {
        let found = sum(path, wildcard);
        assert_ne!(found, EMPTY, "{path}");
        assert_eq!(found, sum(same, wildcard), "{path}");
    }
}

#[test]
fn patterns_that_leave_nothing_out_change_nothing() {
    let mut files = Files::new(&["test dir", "test/foo file data0"]);
    let expected = "sha256:8f36dfd60011a21345427f4d3177b1223e11fbb732c18dd07cd8b2a27a0b53ca";
    assert_eq!(files.plain("test"), expected);
    let options = ChecksumOptions {
        exclude: vec!["*.git".into()],
        ..ChecksumOptions::default()
    };
    assert_eq!(files.sum("test", &options).unwrap(), expected);
}
