use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use cooper_proto::fsutil::Stat;
use sha2::{Digest, Sha256};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::stat::mode;
use crate::writer::{Change, Differ};

/// Remembers what it is told.
#[derive(Default)]
struct Log {
    changes: Mutex<BTreeMap<String, Option<String>>>,
    bytes: AtomicU64,
}

impl Watch for Log {
    fn changed(&self, change: Change<'_>) {
        let (path, digest) = match change {
            Change::Set { path, digest, .. } => (path, Some(hex::encode(digest))),
            Change::Removed { path } => (path, None),
        };
        let told = self.changes.lock().unwrap().insert(path.to_owned(), digest);
        assert_eq!(told, None, "{path} was told twice");
    }

    fn transferred(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Log {
    fn paths(&self) -> Vec<String> {
        let changes = self.changes.lock().unwrap();
        let paths = changes.iter().map(|(path, digest)| match digest {
            Some(_) => path.clone(),
            None => format!("-{path}"),
        });
        paths.collect()
    }

    fn digest(&self, path: &str) -> String {
        self.changes.lock().unwrap()[path].clone().unwrap()
    }
}

async fn sync_with(tree: Tree, target: &Path, options: Options) -> Result<Log, SessionError> {
    let (sent, packets) = mpsc::channel(QUEUE);
    let (asked, requests) = mpsc::channel(QUEUE);
    let log = Arc::new(Log::default());
    let send = send(
        ReceiverStream::new(requests).map(Ok),
        sent,
        vec![tree],
        Arc::new(()),
        "test",
    );
    let packets = ReceiverStream::new(packets).map(Ok);
    let receive = receive(packets, asked, target, options, log.clone(), "test");
    let (sent, received) = tokio::join!(send, receive);
    received?;
    sent?;
    Ok(Arc::into_inner(log).unwrap())
}

async fn sync(from: &Path, to: &Path) -> Log {
    sync_with(Tree::new(from), to, Options::default())
        .await
        .unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn same(a: &Path, b: &Path) {
    let list = |root: &Path| {
        let mut stats = Vec::new();
        let walked = Tree::new(root).walk(&mut |stat| {
            stats.push(stat);
            Ok(())
        });
        walked.unwrap();
        stats
    };
    assert_eq!(list(a), list(b));
}

#[tokio::test]
async fn everything_about_a_file_arrives_and_then_only_what_changed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (from.path(), to.path());
    let big: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7) as u8).collect();
    fs::create_dir_all(from.join("dir/deep")).unwrap();
    fs::write(from.join("dir/big"), &big).unwrap();
    fs::write(from.join("dir/deep/empty"), "").unwrap();
    fs::write(from.join("suid"), "suid").unwrap();
    fs::set_permissions(from.join("suid"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(from.join("suid"), Some(12), Some(34)).unwrap();
    fs::hard_link(from.join("dir/big"), from.join("hard")).unwrap();
    symlink("../../outside", from.join("dir/link")).unwrap();
    symlink("loop", from.join("loop")).unwrap();
    fs::set_permissions(from.join("dir/deep"), fs::Permissions::from_mode(0o1500)).unwrap();
    let attribute = |name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(from.join("suid"), name, value, flags).is_ok()
    };
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert!(attribute("security.capability", capability));
    fs::write(to.join("stale"), "").unwrap();
    fs::create_dir_all(to.join("stale-dir/x")).unwrap();
    fs::write(to.join("hard"), "other").unwrap();

    let log = sync(from, to).await;
    same(from, to);
    let all = [
        "dir",
        "dir/big",
        "dir/deep",
        "dir/deep/empty",
        "dir/link",
        "hard",
        "loop",
        "-stale",
        "-stale-dir",
        "suid",
    ];
    assert_eq!(log.paths(), all);
    assert_eq!(log.digest("dir/big"), sha256(&big));
    assert_eq!(log.digest("dir/deep/empty"), sha256(b""));
    assert!(log.bytes.load(Ordering::Relaxed) > 1_000_000);
    let inode = |path: &str| fs::metadata(to.join(path)).unwrap().ino();
    assert_eq!(inode("dir/big"), inode("hard"));

    let log = sync(from, to).await;
    assert_eq!(log.paths(), [""; 0], "nothing changed");
    assert!(
        log.bytes.load(Ordering::Relaxed) < 5_000,
        "no content was sent"
    );

    fs::write(from.join("dir/big"), "small now").unwrap();
    fs::remove_dir_all(from.join("dir/deep")).unwrap();
    fs::write(from.join("dir/deep"), "a file now").unwrap();
    fs::remove_file(from.join("loop")).unwrap();
    fs::create_dir(from.join("loop")).unwrap();
    let log = sync(from, to).await;
    same(from, to);
    // The second name of a changed file changed too.
    assert_eq!(log.paths(), ["dir/big", "dir/deep", "hard", "loop"]);
    assert_eq!(inode("dir/big"), inode("hard"));

    let options = Options {
        differ: Differ::None,
        ..Options::default()
    };
    let log = sync_with(Tree::new(from), to, options).await.unwrap();
    assert_eq!(log.paths().len(), 7, "all of them: {:?}", log.paths());
    same(from, to);
}

#[tokio::test]
async fn ten_thousand_files() {
    // In memory: making a file is what a disk is slow at.
    let dir = || tempfile::tempdir_in("/dev/shm").unwrap();
    let (from, to) = (dir(), dir());
    for dir in 0..100 {
        let dir = from.path().join(format!("{dir}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..100 {
            fs::write(dir.join(format!("{file}")), format!("{file}")).unwrap();
        }
    }
    let log = sync(from.path(), to.path()).await;
    assert_eq!(log.paths().len(), 10_100);
    same(from.path(), to.path());
    assert!(sync(from.path(), to.path()).await.paths().is_empty());
}

#[tokio::test]
async fn merging_keeps_what_is_there_and_goes_through_no_link() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let (from, to) = (from.path(), to.path());
    fs::create_dir(from.join("dir")).unwrap();
    fs::write(from.join("dir/file"), "new").unwrap();
    fs::write(from.join("over"), "new").unwrap();
    fs::write(to.join("kept"), "old").unwrap();
    fs::write(outside.path().join("target"), "old").unwrap();
    symlink(outside.path(), to.join("dir")).unwrap();
    symlink(outside.path().join("target"), to.join("over")).unwrap();
    let options = Options {
        merge: true,
        own: true,
        ..Options::default()
    };
    sync_with(Tree::new(from), to, options).await.unwrap();
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!(read(to.join("kept")), "old");
    assert_eq!(read(to.join("dir/file")), "new");
    assert_eq!(read(to.join("over")), "new");
    assert_eq!(read(outside.path().join("target")), "old");
    assert!(!outside.path().join("file").exists());
}

fn stat(path: &str, mode: u32, linkname: &str) -> Packet {
    Packet {
        r#type: PacketType::PacketStat.into(),
        stat: Some(Stat {
            path: path.into(),
            mode,
            linkname: linkname.into(),
            ..Stat::default()
        }),
        ..Packet::default()
    }
}

fn packet(kind: PacketType, id: u32, data: &'static [u8]) -> Packet {
    Packet {
        r#type: kind.into(),
        id,
        data: Bytes::from_static(data),
        ..Packet::default()
    }
}

/// Sends `packets` whatever is asked, and then hangs up.
async fn hostile(packets: Vec<Packet>) -> (tempfile::TempDir, Result<(), SessionError>) {
    let outer = tempfile::tempdir().unwrap();
    let target = outer.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::write(outer.path().join("secret"), "untouched").unwrap();
    let (asked, _requests) = mpsc::channel(QUEUE);
    let packets = futures::stream::iter(packets).map(Ok);
    let options = Options::default();
    let result = receive(packets, asked, &target, options, Arc::new(()), "test").await;
    let secret = fs::read_to_string(outer.path().join("secret")).unwrap();
    assert_eq!(secret, "untouched");
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    (outer, result)
}

#[tokio::test]
async fn a_hostile_sender_gets_an_error() {
    use PacketType::{PacketData, PacketErr, PacketFin, PacketStat};
    let end = || packet(PacketStat, 0, b"");
    let cases: Vec<(&str, Vec<Packet>, &str)> = vec![
        ("up", vec![stat("../x", 0o644, "")], "invalid path"),
        (
            "up within",
            vec![stat("a/../../x", 0o644, "")],
            "unclean path",
        ),
        ("absolute", vec![stat("/x", 0o644, "")], "absolute path"),
        ("the top", vec![stat(".", mode::DIR, "")], "invalid path"),
        ("no name", vec![stat("", 0o644, "")], "unclean path"),
        (
            "twice",
            vec![stat("a", 0, ""), stat("a", 0, "")],
            "out of order",
        ),
        ("no directory", vec![stat("a/b", 0, "")], "out of order"),
        (
            "through a link",
            vec![stat("a", mode::SYMLINK, ".."), stat("a/secret", 0, "")],
            "out of order",
        ),
        (
            "a link to outside",
            vec![stat("a", 0o644, "../secret"), end()],
            "invalid link a to unknown path: \"../secret\"",
        ),
        (
            "a link to a link",
            vec![
                stat("a", mode::SYMLINK, "../secret"),
                stat("b", 0o644, "a"),
                end(),
            ],
            "invalid link b to unknown path",
        ),
        (
            "a device",
            vec![stat("a", mode::DEVICE | 0o666, "")],
            "device a is not allowed",
        ),
        (
            "content unasked",
            vec![packet(PacketData, 0, b"x")],
            "invalid file request 0",
        ),
        (
            "content of a directory",
            vec![stat("a", mode::DIR, ""), packet(PacketData, 0, b"x")],
            "invalid file request 0",
        ),
        (
            "content after its end",
            vec![
                stat("a", 0o644, ""),
                packet(PacketData, 0, b"x"),
                packet(PacketData, 0, b""),
                packet(PacketData, 0, b"y"),
            ],
            "invalid file request 0",
        ),
        ("a file after the last", vec![end(), end()], ""),
        (
            "an early end",
            vec![stat("a", 0, ""), packet(PacketFin, 0, b"")],
            "ended too early",
        ),
        (
            "an error",
            vec![packet(PacketErr, 0, b"no way")],
            "error from sender: no way",
        ),
        ("silence", vec![], "session closed"),
        (
            "a long name",
            vec![stat(&"x".repeat(300), 0o644, "")],
            "make",
        ),
    ];
    for (name, packets, expected) in cases {
        let (_dir, result) = hostile(packets).await;
        let error = match result {
            Err(error) => error.to_string(),
            Ok(()) => panic!("{name} was taken"),
        };
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[tokio::test]
async fn marks_of_overlayfs_are_not_set() {
    let mut packet = stat("a", mode::DIR | 0o755, "");
    let attributes = &mut packet.stat.as_mut().unwrap().xattrs;
    attributes.insert("trusted.overlay.opaque".into(), b"y".to_vec());
    attributes.insert("user.mine".into(), b"y".to_vec());
    let (dir, _) = hostile(vec![
        packet,
        super::tests::packet(PacketType::PacketStat, 0, b""),
    ])
    .await;
    let mut value = [0; 8];
    let made = dir.path().join("target/a");
    let read = rustix::fs::lgetxattr(&made, "trusted.overlay.opaque", &mut value[..]);
    assert!(read.is_err());
}

#[tokio::test]
async fn a_sender_does_not_give_what_it_did_not_list() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("a"), "x").unwrap();
    let (sent, packets) = mpsc::channel(QUEUE);
    let keep = async { ReceiverStream::new(packets).collect::<Vec<_>>().await };
    let requests = futures::stream::iter([Ok(packet(PacketType::PacketReq, 7, b""))]);
    let tree = vec![Tree::new(from.path())];
    let send = send(requests, sent, tree, Arc::new(()), "test");
    let (result, _) = tokio::join!(send, keep);
    assert_eq!(result.unwrap_err().to_string(), "invalid file id 7");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_at_both_ends() {
    let to = tempfile::tempdir().unwrap();
    let tree = Tree::new("/nonexistent");
    let result = sync_with(tree, to.path(), Options::default()).await;
    let error = result.err().unwrap().to_string();
    assert_eq!(error, "error from sender: open : no such file or directory");
}

/// What happens to one path of a tree between two syncs.
#[derive(Clone, Debug)]
enum Act {
    Remove,
    Dir(u32),
    File(u8, u32),
    Link(u8),
    HardLink(u8),
    Touch,
}

const PLACES: [&str; 9] = ["a", "a/a", "a/a/b", "a/b", "a-b", "a.b", "b", "b/a", "c"];

fn act(root: &Path, place: usize, act: &Act) {
    let path = root.join(PLACES[place]);
    if path.parent().unwrap().is_symlink() || !path.parent().unwrap().is_dir() {
        return;
    }
    let clear = || {
        let _ = fs::remove_dir_all(&path);
        let _ = fs::remove_file(&path);
    };
    let other = |index: u8| root.join(PLACES[usize::from(index) % PLACES.len()]);
    match act {
        Act::Remove => clear(),
        Act::Dir(mode) => {
            if !path.is_dir() || path.is_symlink() {
                clear();
                fs::create_dir(&path).unwrap();
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Act::File(byte, mode) => {
            clear();
            fs::write(&path, vec![*byte; usize::from(*byte) * 300]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Act::Link(target) => {
            clear();
            symlink(PLACES[usize::from(*target) % PLACES.len()], &path).unwrap();
        }
        Act::HardLink(target) => {
            let target = other(*target);
            if target.is_file() && !target.is_symlink() && target != path {
                clear();
                // The target may have been below what was cleared.
                let _ = fs::hard_link(target, &path);
            }
        }
        Act::Touch => {
            if let Ok(file) = fs::OpenOptions::new().append(true).open(&path) {
                io::Write::write_all(&mut &file, b"more").unwrap();
            }
        }
    }
}

mod changes {
    use proptest::prelude::*;

    use super::*;

    fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
        let mode = prop::sample::select(vec![0o644, 0o755, 0o4711, 0o700]);
        let one = prop_oneof![
            Just(Act::Remove),
            mode.clone().prop_map(Act::Dir),
            (any::<u8>(), mode).prop_map(|(byte, mode)| Act::File(byte, mode)),
            any::<u8>().prop_map(Act::Link),
            any::<u8>().prop_map(Act::HardLink),
            Just(Act::Touch),
        ];
        prop::collection::vec((0..PLACES.len(), one), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever changed since the last sync, the next one makes both sides equal, and the
        /// one after that sends nothing.
        #[test]
        fn any_changes_are_followed(rounds in prop::collection::vec(acts(), 1..4)) {
            let dir = || tempfile::tempdir_in("/dev/shm").unwrap();
            let (from, to) = (dir(), dir());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for round in rounds {
                for (place, change) in &round {
                    act(from.path(), *place, change);
                }
                runtime.block_on(async {
                    sync(from.path(), to.path()).await;
                    same(from.path(), to.path());
                    let log = sync(from.path(), to.path()).await;
                    assert!(log.paths().is_empty(), "{:?}", log.paths());
                });
            }
        }
    }
}
