//! What holds for whatever a file that is added may be.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use cooper_proto::pb;
use cooper_sys::Root;

use super::act::Scene;
use super::copy::copy;

/// A file that is added, and unpacked if it is an archive, to the folder `target` of `dir`, in
/// which there is also the file `outside`.
///
/// # Panics
/// When there is anything else in `dir` afterwards.
pub fn add(data: &[u8], dir: &Path) {
    // Those that another program decompresses take too long to be tried often.
    if data.starts_with(b"BZh") || data.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        return;
    }
    let (from, target) = (dir.join("from"), dir.join("target"));
    for folder in [&from, &target] {
        std::fs::create_dir_all(folder).expect("make a folder");
    }
    std::fs::write(dir.join("outside"), "outside").expect("write a file");
    std::fs::write(from.join("file"), data).expect("write a file");
    let action = pb::FileActionCopy {
        src: "file".into(),
        dest: "/to/".into(),
        mode: -1,
        timestamp: -1,
        create_dest_path: true,
        attempt_unpack_docker_compatibility: true,
        ..pb::FileActionCopy::default()
    };
    let (source, root) = (
        Root::open(&from).expect("open the folder"),
        Root::open(&target).expect("open the folder"),
    );
    let scene = Scene {
        target: &root,
        source: Some(&source),
        owner: None,
        stop: &AtomicBool::new(false),
    };
    let _ = copy(&scene, &action);
    let names = |dir: &Path| {
        let list = std::fs::read_dir(dir).expect("read the folder");
        let mut names: Vec<_> = list
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(dir), ["from", "outside", "target"]);
    assert_eq!(names(&from), ["file"]);
    assert!(names(&target).iter().all(|name| name == "to"));
    let outside = std::fs::read(dir.join("outside")).expect("read the file");
    assert_eq!(outside, b"outside");
    assert_eq!(
        std::fs::read(from.join("file")).expect("read the file"),
        data
    );
    assert!(!target.is_symlink());
    std::fs::remove_dir_all(&target).expect("remove what was written");
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        let dir = tempfile::tempdir().unwrap();
        cooper_testkit::seeds("add", |data| super::add(data, dir.path()));
    }
}
