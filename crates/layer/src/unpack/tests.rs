use super::*;
use cooper_content::digest_of;
use std::os::unix::fs::{MetadataExt, symlink};

/// A tar, entry by entry.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(flag: u8, path: &str) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_mode(if flag == b'5' { 0o755 } else { 0o644 });
        header.set_mtime(1_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        // Not through the library, which refuses what has to be tried here.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header
    }

    fn add(mut self, mut header: tar::Header, content: &[u8]) -> Self {
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(Self::header(b'0', path), content.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.add(Self::header(b'5', path), b"")
    }

    fn link(self, flag: u8, path: &str, target: &str) -> Self {
        let mut header = Self::header(flag, path);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self.add(header, b"")
    }

    fn xattrs(mut self, pairs: &[(&str, &[u8])]) -> Self {
        let keys: Vec<_> = pairs
            .iter()
            .map(|(key, value)| (format!("SCHILY.xattr.{key}"), *value))
            .collect();
        let records = keys.iter().map(|(key, value)| (key.as_str(), *value));
        self.0.append_pax_extensions(records).unwrap();
        self
    }

    fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Lower and upper folders of an overlay that is not mounted, or of a plain tree.
struct Place {
    dir: tempfile::TempDir,
    overlay: bool,
}

impl Place {
    fn plain() -> Self {
        Self::new(false)
    }

    fn new(overlay: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work", "lower"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, overlay }
    }

    /// What was there before the layer is written here.
    fn before(&self) -> PathBuf {
        self.dir
            .path()
            .join(if self.overlay { "lower" } else { "upper" })
    }

    fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    fn mounts(&self) -> Vec<Mount> {
        if !self.overlay {
            return vec![Mount::bind(&self.upper(), false)];
        }
        let place = |name: &str| self.dir.path().join(name).display().to_string();
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", place("lower")),
                format!("upperdir={}", place("upper")),
                format!("workdir={}", place("work")),
                "index=off".into(),
            ],
        }]
    }

    fn unpack(&self, tar: &[u8]) -> Result<Unpacked, LayerError> {
        unpack(tar, &self.mounts(), &Limits::default())
    }

    /// Shows what a container would see.
    fn see<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let mounted =
            cooper_snapshot::MountedDir::mount(&self.mounts(), &self.dir.path().join("mnt"))
                .unwrap();
        let result = look(mounted.path());
        mounted.close().unwrap();
        result
    }
}

fn names(dir: &Path) -> Vec<String> {
    let list = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = list
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_entry_becomes_what_it_says() {
    let place = Place::plain();
    let mut special = Tar::header(b'0', "bin/su");
    special.set_mode(0o4755);
    special.set_uid(7);
    special.set_gid(8);
    let mut device = Tar::header(b'3', "dev/null");
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let mut hard = Tar::header(b'1', "bin/hard");
    hard.as_mut_bytes()[157..163].copy_from_slice(b"bin/su");
    hard.set_mode(0o4755);
    hard.set_uid(7);
    hard.set_gid(8);
    let tar = Tar::new()
        .dir("bin/")
        .xattrs(&[("user.k", b"v\0w"), ("trusted.overlay.opaque", b"y")])
        .add(special, b"binary")
        .link(b'2', "bin/sh", "/bin/su")
        .add(hard, b"")
        .add(device, b"")
        .add(Tar::header(b'6', "fifo"), b"")
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!(unpacked.diff_id, digest_of(&tar));
    assert_eq!((unpacked.entries, unpacked.bytes), (6, 6));
    let at = |path: &str| place.upper().join(path);
    let su = at("bin/su").metadata().unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o4755, 7, 8));
    assert_eq!((su.mtime(), su.nlink()), (1_000_000, 2));
    assert_eq!(std::fs::read(at("bin/su")).unwrap(), b"binary");
    assert_eq!(at("bin/sh").read_link().unwrap(), Path::new("/bin/su"));
    assert_eq!(at("bin/sh").symlink_metadata().unwrap().mtime(), 1_000_000);
    // Writing into it did not change its time.
    assert_eq!(at("bin").metadata().unwrap().mtime(), 1_000_000);
    let null = at("dev/null").metadata().unwrap();
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    // A folder that nothing says anything of.
    assert_eq!(at("dev").metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!(
        FileType::from_raw_mode(at("fifo").symlink_metadata().unwrap().mode()),
        FileType::Fifo
    );
    assert_eq!(
        cooper_sys::copy::xattrs(&at("bin/su")).unwrap(),
        [(b"user.k".to_vec(), b"v\0w".to_vec())]
    );
    let mut value = [0; 8];
    assert!(
        rustix::fs::lgetxattr(at("bin/su"), "trusted.overlay.opaque", value.as_mut_slice())
            .is_err()
    );
}

#[test]
fn compressed_layers_are_unpacked_and_their_diff_id_is_the_tars() {
    let tar = Tar::new().file("f", &"content".repeat(100_000)).end();
    for kind in [crate::Compression::Gzip, crate::Compression::Zstd] {
        let place = Place::plain();
        let blob = crate::compress::block(kind, None, &tar);
        let unpacked = place.unpack(&blob).unwrap();
        assert_eq!(unpacked.diff_id, digest_of(&tar));
        assert!(place.unpack(&blob[..blob.len() / 2]).is_err());
    }
}

#[test]
fn deletions_take_what_was_there_and_not_what_the_layer_brings() {
    for overlay in [false, true] {
        let place = Place::new(overlay);
        let before = place.before();
        for path in [
            "gone",
            "opaque/a",
            "opaque/b",
            "replaced/old",
            "late/old",
            "kept/old",
        ] {
            let path = before.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "old").unwrap();
        }
        let tar = Tar::new()
            .file(".wh.gone", "")
            .file("opaque/b", "new")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/c", "new")
            // Deleted and made again, in this order and in the other one.
            .file(".wh.replaced", "")
            .dir("replaced/")
            .file("replaced/new", "new")
            .dir("late/")
            .file("late/new", "new")
            .file(".wh.late", "")
            .file("kept/new", "new")
            .file("kept/.wh.missing", "")
            .file(".wh..wh.plnk/x", "")
            .file(".wh..wh.aufs", "")
            .end();
        place.unpack(&tar).unwrap();
        place.see(|dir| {
            let mut found = names(dir);
            found.retain(|name| name != ".wh..wh.plnk");
            assert_eq!(
                found,
                ["kept", "late", "opaque", "replaced"],
                "overlay: {overlay}"
            );
            assert_eq!(names(&dir.join("opaque")), ["b", "c"], "overlay: {overlay}");
            assert_eq!(names(&dir.join("replaced")), ["new"], "overlay: {overlay}");
            assert_eq!(names(&dir.join("late")), ["new"], "overlay: {overlay}");
            assert_eq!(
                names(&dir.join("kept")),
                ["new", "old"],
                "overlay: {overlay}"
            );
        });
    }
}

#[test]
fn folders_of_lower_layers_are_what_they_were() {
    for overlay in [false, true] {
        let place = Place::new(overlay);
        let before = place.before();
        std::fs::create_dir_all(before.join("usr/lib")).unwrap();
        std::fs::write(before.join("usr/lib/old"), "").unwrap();
        symlink("usr/lib", before.join("lib")).unwrap();
        symlink("/lib", before.join("usr/absolute")).unwrap();
        std::os::unix::fs::chown(before.join("usr"), Some(5), Some(6)).unwrap();
        rustix::fs::chmod(before.join("usr"), Mode::from_raw_mode(0o1751)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(77);
        let usr = File::open(before.join("usr")).unwrap();
        usr.set_modified(time).unwrap();
        // Without entries of the folders, and through links that only lower layers have.
        let tar = Tar::new()
            .file("usr/lib/new", "1")
            .file("lib/through", "2")
            .file("usr/absolute/twice", "3")
            .link(b'1', "hard", "lib/through")
            .end();
        place.unpack(&tar).unwrap();
        place.see(|dir| {
            assert_eq!(
                names(&dir.join("usr/lib")),
                ["new", "old", "through", "twice"]
            );
            assert_eq!(dir.join("lib").read_link().unwrap(), Path::new("usr/lib"));
            let usr = dir.join("usr").metadata().unwrap();
            assert_eq!((usr.uid(), usr.gid(), usr.mode() & 0o7777), (5, 6, 0o1751));
            assert_eq!(std::fs::read(dir.join("hard")).unwrap(), b"2");
            if overlay {
                assert_eq!(usr.mtime(), 77);
            }
        });
    }
}

#[test]
fn types_are_replaced() {
    for overlay in [false, true] {
        let place = Place::new(overlay);
        let before = place.before();
        std::fs::create_dir_all(before.join("dir/sub")).unwrap();
        std::fs::write(before.join("file"), "old").unwrap();
        symlink("dir", before.join("link")).unwrap();
        let tar = Tar::new()
            .file("dir", "now a file")
            .dir("file/")
            .file("file/inside", "")
            .dir("link/")
            .file("link/inside", "")
            // And once more within the layer.
            .link(b'2', "dir", "/etc")
            .file("file/inside", "again")
            .end();
        place.unpack(&tar).unwrap();
        place.see(|dir| {
            assert_eq!(dir.join("dir").read_link().unwrap(), Path::new("/etc"));
            assert_eq!(std::fs::read(dir.join("file/inside")).unwrap(), b"again");
            assert_eq!(names(&dir.join("link")), ["inside"]);
        });
    }
}

#[test]
fn nothing_leaves_the_root() {
    for overlay in [false, true] {
        let place = Place::new(overlay);
        let outside = place.dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        let escape = outside.display().to_string();
        let tar = Tar::new()
            .file("../../up", "up")
            .file("/absolute", "absolute")
            .file("a/../../b", "b")
            .link(b'2', "out", &escape)
            .link(b'2', "far", "../../../../../../..")
            .link(b'2', "chain", "far/tmp")
            .file("out/planted", "planted")
            .file("far/etc/passwd", "mine")
            .file("chain/x", "x")
            .dir("out/")
            .file("out/.wh.secret", "")
            .file("far/.wh..wh..opq", "")
            .end();
        place.unpack(&tar).unwrap();
        assert_eq!(names(&outside), ["secret"]);
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
        let root = place.upper();
        assert!(root.join("up").exists() && root.join("b").exists());
        assert!(root.join("absolute").exists());
        assert_eq!(
            names(place.dir.path()).len(),
            4 + usize::from(place.dir.path().join("mnt").exists())
        );
    }
}

#[test]
fn links_to_what_is_outside_are_refused() {
    let place = Place::plain();
    let outside = place.dir.path().join("secret");
    std::fs::write(&outside, "secret").unwrap();
    let escape = outside.display().to_string();
    let hard = Tar::new().link(b'1', "leak", "../secret").end();
    assert!(place.unpack(&hard).is_err());
    let hard = Tar::new().link(b'1', "leak", &escape).end();
    assert!(place.unpack(&hard).is_err());
    // To a link itself, which is not followed.
    let hard = Tar::new()
        .link(b'2', "soft", &escape)
        .link(b'1', "leak", "soft")
        .end();
    place.unpack(&hard).unwrap();
    let leak = place.upper().join("leak");
    assert!(leak.symlink_metadata().unwrap().is_symlink());
    assert_eq!(outside.metadata().unwrap().nlink(), 1);
    assert_eq!(outside.metadata().unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "dir/.wh..", "dir/.wh..."] {
        let place = Place::plain();
        std::fs::create_dir_all(place.upper().join("dir")).unwrap();
        let error = place.unpack(&Tar::new().file(name, "").end()).unwrap_err();
        assert!(
            error.to_string().contains("invalid whiteout name"),
            "{name}: {error}"
        );
        assert!(place.upper().join("dir").exists());
    }
}

#[test]
fn a_way_of_too_many_links_ends() {
    for overlay in [false, true] {
        let place = Place::new(overlay);
        let tar = Tar::new()
            .link(b'2', "a", "b")
            .link(b'2', "b", "a")
            .file("a/x", "")
            .end();
        assert!(place.unpack(&tar).is_err());
        let tar = Tar::new().file("f", "").file("f/x", "").end();
        let error = place.unpack(&tar).unwrap_err();
        assert!(
            error.to_string().contains("failed to extract f/x"),
            "{error}"
        );
    }
}

#[test]
fn more_than_the_limits_is_refused() {
    let tar = Tar::new().file("a", "12345").file("b", "12345").end();
    let place = Place::plain();
    let few = Limits {
        entries: 1,
        ..Limits::default()
    };
    let error = unpack(&tar[..], &place.mounts(), &few).unwrap_err();
    assert_eq!(error.to_string(), "layer has more than 1 entries");
    let small = Limits {
        bytes: 9,
        ..Limits::default()
    };
    let error = unpack(&tar[..], &place.mounts(), &small).unwrap_err();
    assert_eq!(error.to_string(), "layer has more than 9 bytes");
}

#[test]
fn mounts_that_are_not_written_are_refused() {
    let place = Place::plain();
    let read_only = [Mount::bind(&place.upper(), true)];
    let tar = Tar::new().end();
    for mounts in [&read_only[..], &[]] {
        let error = unpack(&tar[..], mounts, &Limits::default()).unwrap_err();
        assert!(matches!(error, LayerError::Target { .. }), "{error}");
    }
}

#[test]
fn holes_stay_holes() {
    let source = tempfile::tempdir().unwrap();
    let file = File::create(source.path().join("sparse")).unwrap();
    file.write_all_at(b"middle", 8 << 20).unwrap();
    file.set_len(16 << 20).unwrap();
    let output = std::process::Command::new("tar")
        .args(["-C", source.path().to_str().unwrap(), "-cS", "sparse"])
        .output()
        .unwrap();
    let place = Place::plain();
    place.unpack(&output.stdout).unwrap();
    let sparse = place.upper().join("sparse");
    let meta = sparse.metadata().unwrap();
    assert_eq!(meta.len(), 16 << 20);
    assert!(meta.blocks() * 512 < 1 << 20);
    let content = std::fs::read(sparse).unwrap();
    assert_eq!(&content[8 << 20..][..6], b"middle");
}
