//! What holds for whatever a registry may send.

use std::path::Path;

use cooper_snapshot::Mount;

use crate::unpack::{Limits, unpack};

/// A layer, applied to the folder `target` of `dir`, in which there is also the file `outside`.
///
/// # Panics
/// When there is anything else in `dir` afterwards, or more was taken than the limits say.
pub fn layer(data: &[u8], dir: &Path) {
    let target = dir.join("target");
    std::fs::create_dir_all(&target).expect("make a folder");
    std::fs::write(dir.join("outside"), "outside").expect("write a file");
    let limits = Limits {
        entries: 64,
        bytes: 1 << 20,
    };
    if let Ok(unpacked) = unpack(data, &[Mount::bind(&target, false)], &limits) {
        assert!(unpacked.entries <= limits.entries);
        assert!(unpacked.bytes <= limits.bytes);
    }
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .expect("read the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["outside", "target"]);
    let outside = std::fs::read(dir.join("outside")).expect("read the file");
    assert_eq!(outside, b"outside");
    assert!(!target.is_symlink());
    std::fs::remove_dir_all(&target).expect("remove what was written");
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        let dir = tempfile::tempdir().unwrap();
        cooper_testkit::seeds("layer", |data| super::layer(data, dir.path()));
    }
}
