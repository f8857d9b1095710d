use super::*;
use crate::Compression;
use crate::unpack::{Limits, unpack};
use cooper_content::{BlobReader, MemoryContentStore, digest_of};
use cooper_snapshot::{
    ActiveKey, NativeSnapshotter, OverlaySnapshotter, SnapshotName, Snapshotter,
};
use cooper_store::Store;
use proptest::prelude::*;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};

fn content() -> Arc<dyn ContentStore> {
    Arc::new(MemoryContentStore::default())
}

fn plain() -> CompressionOptions {
    CompressionOptions {
        kind: Compression::Uncompressed,
        ..CompressionOptions::default()
    }
}

async fn tar_of(lower: Vec<Mount>, upper: Vec<Mount>) -> Vec<u8> {
    let content = content();
    let layer = pack(&content, "test", lower, upper, &plain())
        .await
        .unwrap();
    let tar = content
        .read_all(layer.descriptor.digest(), 1 << 30)
        .await
        .unwrap();
    assert_eq!(layer.diff_id, digest_of(&tar));
    tar.to_vec()
}

#[tokio::test]
async fn nothing_has_the_digests_that_everybody_knows() {
    let (a, content) = (tempfile::tempdir().unwrap(), content());
    let mounts = vec![Mount::bind(a.path(), true)];
    let options = CompressionOptions::default();
    let layer = pack(&content, "empty", mounts.clone(), mounts, &options)
        .await
        .unwrap();
    assert_eq!(layer.diff_id.as_ref(), EMPTY_DIFF_ID);
    assert_eq!(
        layer.descriptor.digest().as_ref(),
        "sha256:4f4fb700ef54461cfa02571ae0db9a0dc1e0cdb5577484a6d75e68dc38e8acc1"
    );
    assert_eq!(layer.descriptor.size(), 32);
    assert_eq!(
        layer.descriptor.media_type().as_ref(),
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
}

#[tokio::test]
async fn other_tools_read_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
    std::fs::create_dir(dir.path().join("d".repeat(120))).unwrap();
    std::fs::write(dir.path().join(&long), "long").unwrap();
    std::fs::write(dir.path().join("ünïcode"), "text").unwrap();
    std::fs::hard_link(dir.path().join("ünïcode"), dir.path().join("zlink")).unwrap();
    symlink("t".repeat(200), dir.path().join("soft")).unwrap();
    std::os::unix::fs::lchown(dir.path().join("soft"), Some(3_000_000), Some(4_000_000)).unwrap();
    let tar = tar_of(vec![], vec![Mount::bind(dir.path(), true)]).await;
    let mut found: Vec<String> = Vec::new();
    for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
        let entry = entry.unwrap();
        found.push(entry.path().unwrap().display().to_string());
        if found.last().unwrap() == "soft" {
            assert_eq!(entry.link_name().unwrap().unwrap().as_os_str().len(), 200);
            assert_eq!(entry.header().uid().unwrap(), 3_000_000);
        }
        if found.last().unwrap() == "ünïcode" {
            assert_eq!(entry.header().entry_type(), tar::EntryType::Link);
        }
    }
    let folder = format!("{}/", "d".repeat(120));
    assert_eq!(found, [&folder, &long, "soft", "zlink", "ünïcode"]);
    let mut child = std::process::Command::new("tar")
        .args(["-tv", "--numeric-owner"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("3000000/4000000"), "{text}");
}

#[tokio::test]
async fn the_same_files_give_the_same_bytes_and_sockets_are_left_out() {
    let mut tars = Vec::new();
    for order in [["a", "b", "c"], ["c", "b", "a"]] {
        let dir = tempfile::tempdir().unwrap();
        for name in order {
            std::fs::write(dir.path().join(name), name).unwrap();
            let file = std::fs::File::options()
                .write(true)
                .open(dir.path().join(name))
                .unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_millis(5500))
                .unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        tars.push(tar_of(vec![], vec![Mount::bind(dir.path(), true)]).await);
    }
    assert!(tars[0] == tars[1]);
    let mut archive = tar::Archive::new(&tars[0][..]);
    let times: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().header().mtime().unwrap())
        .collect();
    assert_eq!(times, [5, 5, 5], "seconds alone");
}

#[tokio::test]
async fn deletions_and_their_folders_are_named() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&a, &b] {
        std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
        let status = std::process::Command::new("touch")
            .args(["-d", "@1000", dir.path().join("d/e").to_str().unwrap()])
            .status();
        assert!(status.unwrap().success());
    }
    std::fs::write(a.path().join("d/e/gone"), "").unwrap();
    let mounts = |dir: &tempfile::TempDir| vec![Mount::bind(dir.path(), true)];
    let tar = tar_of(mounts(&a), mounts(&b)).await;
    let mut archive = tar::Archive::new(&tar[..]);
    let entries: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            (
                path,
                entry.header().mtime().unwrap(),
                entry.header().mode().unwrap(),
            )
        })
        .collect();
    assert_eq!(entries[0].0, "d/");
    assert_eq!(entries[1].0, "d/e/");
    assert_eq!(entries[2], ("d/e/.wh.gone".to_owned(), 0, 0));
    assert_eq!(entries.len(), 3);
}

#[tokio::test]
async fn a_layer_is_packed_anew_with_another_compression() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "text ".repeat(1000)).unwrap();
    let content = content();
    let mounts = vec![Mount::bind(dir.path(), true)];
    let gzip = pack(
        &content,
        "x",
        vec![],
        mounts,
        &CompressionOptions::default(),
    )
    .await
    .unwrap();
    for kind in [
        Compression::Zstd,
        Compression::Uncompressed,
        Compression::Gzip,
    ] {
        let options = CompressionOptions {
            kind,
            ..CompressionOptions::default()
        };
        let other = convert(&content, &gzip, &options).await.unwrap();
        assert_eq!(other.diff_id, gzip.diff_id);
        assert_eq!(Compression::of(other.descriptor.media_type()), Some(kind));
        if kind == Compression::Gzip {
            assert_eq!(other.descriptor, gzip.descriptor, "the same bytes again");
        }
    }
    let mut wrong = gzip.clone();
    wrong.diff_id = digest_of(b"other");
    let error = convert(&content, &wrong, &plain()).await.unwrap_err();
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
}

/// A change to a tree.
#[derive(Clone, Debug)]
enum Act {
    File(usize, u8),
    Dir(usize),
    Link(usize),
    Hard(usize, usize),
    Fifo(usize),
    Remove(usize),
    Mode(usize, u32),
    Owner(usize, u32),
    Attribute(usize, u8),
    Sparse(usize),
    Rename(usize, usize),
}

/// Few paths, so that acts meet.
const PATHS: [&str; 9] = [
    "a",
    "b",
    "a/x",
    "a/y",
    "b/x",
    "a/x/1",
    "a/x/2",
    "b/x/1",
    "long-name-\u{e9}",
];

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let path = 0..PATHS.len();
    let act = prop_oneof![
        4 => (path.clone(), any::<u8>()).prop_map(|(p, n)| Act::File(p, n)),
        4 => path.clone().prop_map(Act::Dir),
        1 => path.clone().prop_map(Act::Link),
        1 => (path.clone(), path.clone()).prop_map(|(a, b)| Act::Hard(a, b)),
        1 => path.clone().prop_map(Act::Fifo),
        3 => path.clone().prop_map(Act::Remove),
        1 => (path.clone(), prop_oneof![Just(0o4755u32), Just(0o600), Just(0o1777), Just(0o2711)])
            .prop_map(|(p, m)| Act::Mode(p, m)),
        1 => (path.clone(), 1u32..5).prop_map(|(p, o)| Act::Owner(p, o)),
        1 => (path.clone(), any::<u8>()).prop_map(|(p, v)| Act::Attribute(p, v)),
        1 => path.clone().prop_map(Act::Sparse),
        1 => (path.clone(), path).prop_map(|(a, b)| Act::Rename(a, b)),
    ];
    proptest::collection::vec(act, 1..14)
}

/// Does it as far as it can be done.
fn act(root: &Path, act: &Act) {
    let at = |index: &usize| root.join(PATHS[*index]);
    let plain = |path: &Path| path.symlink_metadata().is_ok_and(|m| !m.is_symlink());
    let _ = match act {
        // Writing to a FIFO would wait for a reader.
        Act::File(path, n) => match at(path).metadata() {
            Ok(meta) if !meta.is_file() => Ok(()),
            _ => std::fs::write(at(path), vec![*n; usize::from(*n) * 3]),
        },
        Act::Dir(path) => std::fs::create_dir(at(path)),
        Act::Link(path) => symlink("../b", at(path)),
        Act::Hard(from, to) => match at(from).symlink_metadata() {
            Ok(meta) if !meta.is_dir() => std::fs::hard_link(at(from), at(to)),
            _ => Ok(()),
        },
        Act::Fifo(path) => {
            rustix::fs::mknodat(rustix::fs::CWD, at(path), FileType::Fifo, Mode::RWXU, 0)
                .map_err(Into::into)
        }
        Act::Remove(path) => match at(path).symlink_metadata() {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(at(path)),
            _ => std::fs::remove_file(at(path)),
        },
        Act::Mode(path, mode) if plain(&at(path)) => {
            std::fs::set_permissions(at(path), PermissionsExt::from_mode(*mode))
        }
        Act::Owner(path, owner) => std::os::unix::fs::lchown(at(path), Some(*owner), Some(9)),
        Act::Attribute(path, value) if plain(&at(path)) => {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(at(path), "user.test", &[*value], flags).map_err(Into::into)
        }
        Act::Sparse(path) => match at(path).symlink_metadata() {
            Ok(meta) if !meta.is_file() => Ok(()),
            _ => std::fs::File::create(at(path)).and_then(|file| file.write_all_at(b"x", 300_000)),
        },
        Act::Rename(from, to) => std::fs::rename(at(from), at(to)),
        _ => Ok(()),
    };
}

/// All that a layer carries, path by path.
fn describe(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut first: HashMap<u64, PathBuf> = HashMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        let mut names: Vec<_> = std::fs::read_dir(root.join(&dir))
            .unwrap()
            .map(|entry| dir.join(entry.unwrap().file_name()))
            .collect();
        names.sort();
        for path in names {
            let full = root.join(&path);
            let meta = full.symlink_metadata().unwrap();
            let kind = meta.file_type();
            let what = if kind.is_dir() {
                open.push(path.clone());
                "dir".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", full.read_link().unwrap().display())
            } else if kind.is_fifo() {
                "fifo".to_owned()
            } else {
                let content = std::fs::read(&full).unwrap();
                format!("{} bytes {}", content.len(), digest_of(&content))
            };
            // Whether a name is that of another file: links inside one layer are kept.
            let linked = match (kind.is_dir(), first.get(&meta.ino())) {
                (false, Some(other)) => format!(" = {}", other.display()),
                _ => String::new(),
            };
            first.entry(meta.ino()).or_insert_with(|| path.clone());
            let time = if kind.is_dir() { 0 } else { meta.mtime() };
            found.push(format!(
                "{} {:o} {}:{} @{time} {:?} {what}{linked}",
                path.display(),
                meta.mode(),
                meta.uid(),
                meta.gid(),
                cooper_sys::copy::xattrs(&full).unwrap(),
            ));
        }
    }
    found.sort();
    found
}

struct Snapshots {
    dir: tempfile::TempDir,
    snapshots: Arc<dyn Snapshotter>,
}

impl Snapshots {
    fn new(overlay: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        let store = Store::in_memory().unwrap();
        let snapshots: Arc<dyn Snapshotter> = if overlay {
            let options = OverlaySnapshotter::probe(&root).unwrap();
            Arc::new(OverlaySnapshotter::open(&root, store, options).unwrap())
        } else {
            Arc::new(NativeSnapshotter::open(&root, store).unwrap())
        };
        Self { dir, snapshots }
    }

    async fn prepare(&self, name: &str, parent: Option<&str>) -> Vec<Mount> {
        let parent = parent.map(SnapshotName::new);
        let key = ActiveKey::new(name);
        self.snapshots.prepare(&key, parent.as_ref()).await.unwrap();
        self.snapshots.mounts(&key).await.unwrap()
    }

    async fn commit(&self, name: &str) {
        let (key, name) = (ActiveKey::new(name), SnapshotName::new(name));
        self.snapshots.commit(&key, &name).await.unwrap();
    }

    async fn view(&self, name: &str) -> Vec<Mount> {
        let key = ActiveKey::new(format!("view-{name}"));
        let parent = SnapshotName::new(name);
        self.snapshots.view(&key, Some(&parent)).await.unwrap();
        self.snapshots.mounts(&key).await.unwrap()
    }

    fn see<T>(&self, mounts: &[Mount], look: impl FnOnce(&Path) -> T) -> T {
        let mounted = MountedDir::mount(mounts, &self.dir.path().join("mnt")).unwrap();
        let result = look(mounted.path());
        mounted.close().unwrap();
        result
    }
}

/// Makes states one on the other, packs what each changes, unpacks all elsewhere, and compares.
async fn there_and_back(states: &[Vec<Act>], from_overlay: bool, to_overlay: bool) {
    let (from, to) = (Snapshots::new(from_overlay), Snapshots::new(to_overlay));
    let content = content();
    let mut parent: Option<String> = None;
    let mut lower = Vec::new();
    for (index, state) in states.iter().enumerate() {
        let name = format!("n{index}");
        let mounts = from.prepare(&name, parent.as_deref()).await;
        from.see(&mounts, |dir| state.iter().for_each(|one| act(dir, one)));
        from.commit(&name).await;
        let upper = from.view(&name).await;
        let expected = from.see(&upper, describe);
        let options = CompressionOptions {
            kind: [
                Compression::Gzip,
                Compression::Zstd,
                Compression::Uncompressed,
            ][index % 3],
            ..CompressionOptions::default()
        };
        let layer = pack(&content, &name, lower, upper.clone(), &options)
            .await
            .unwrap();
        lower = upper;

        let mounts = to.prepare(&name, parent.as_deref()).await;
        let blob = content.open(layer.descriptor.digest()).await.unwrap();
        let unpacked = unpack(BlobReader::new(blob), &mounts, &Limits::default()).unwrap();
        assert_eq!(unpacked.diff_id, layer.diff_id);
        to.commit(&name).await;
        let found = to.see(&to.view(&name).await, describe);
        // A link between two layers is not in either: the files are the same without it.
        let bare = |lines: &[String]| -> Vec<String> {
            let cut = |line: &String| line.split(" = ").next().unwrap_or_default().to_owned();
            lines.iter().map(cut).collect()
        };
        if index == 0 {
            assert_eq!(found, expected);
        } else {
            assert_eq!(bare(&found), bare(&expected), "state {index}: {states:?}");
        }
        parent = Some(name);
    }
}

fn run(states: &[Vec<Act>], from: bool, to: bool) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(there_and_back(states, from, to));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn layers_bring_back_what_was_packed(
        states in proptest::collection::vec(acts(), 1..4),
        from in any::<bool>(),
        to in any::<bool>(),
    ) {
        run(&states, from, to);
    }
}
