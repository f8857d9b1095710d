//! What is told of the digests that are computed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cooper_content::{Digest, Frame, Plaintext, PlaintextKind, Plaintexts, digest_of};

use super::*;

#[derive(Default)]
struct Told(Mutex<BTreeMap<String, Plaintext>>);

impl Plaintexts for Told {
    fn wants(&self, digest: &Digest) -> bool {
        !self.0.lock().unwrap().contains_key(digest.as_ref())
    }

    fn note(&self, digest: &Digest, plaintext: Plaintext) {
        let mut told = self.0.lock().unwrap();
        told.insert(digest.to_string(), plaintext);
    }
}

impl Told {
    fn get(&self, digest: &str) -> Plaintext {
        let told = self.0.lock().unwrap();
        let found = told.get(digest).cloned();
        found.unwrap_or_else(|| panic!("{digest} in {:?}", told.keys()))
    }

    /// All bytes of what nothing was left out of.
    fn whole(&self, digest: &str) -> Vec<u8> {
        let plaintext = self.get(digest);
        let bytes = plaintext.frames().iter().map(|frame| match frame {
            Frame::Data(data) => data.clone(),
            Frame::Skip(count) => panic!("{count} bytes of {digest} are not there"),
        });
        bytes.collect::<Vec<_>>().concat()
    }
}

impl Files {
    fn told(&mut self, told: &Arc<Told>, path: &str, options: &ChecksumOptions) -> String {
        let mounts = vec![Mount::bind(&self.dir.path().join("root"), true)];
        let told: Arc<dyn Plaintexts> = told.clone();
        let mut scan =
            Scan::on(mounts, self.dir.path().join("mounts"), Arc::default()).telling(Some(told));
        let digest = run(&mut self.tree, &mut scan, Path::new(path), options);
        digest.unwrap().to_string()
    }
}

#[test]
fn directories_and_files_are_told_and_no_content() {
    let mut files = Files::new(&["a dir", "a/one file secret", "a/to symlink one", "a/b dir"]);
    let told = Arc::new(Told::default());
    let top = files.told(&told, "/a", &ChecksumOptions::default());
    // The digests are those of the plaintexts.
    let list = told.whole(&top);
    assert_eq!(digest_of(&list).as_ref(), top);
    assert_eq!(told.get(&top).kind(), PlaintextKind::FileList);
    let list = String::from_utf8(list).unwrap();
    let parts: Vec<&str> = list.split('\0').collect();
    let [_, header, inner, file, link] = parts[..] else {
        panic!("{list:?}");
    };
    let inner = inner.strip_prefix('b').unwrap();
    assert_eq!(digest_of(&told.whole(inner)).as_ref(), inner);
    assert_eq!(digest_of(&told.whole(header)).as_ref(), header);
    assert_eq!(told.get(header).kind(), PlaintextKind::File);
    let link = told.whole(link.strip_prefix("to").unwrap());
    assert!(link.windows(11).any(|part| part == b"linknameone"));
    let file = told.get(file.strip_prefix("one").unwrap());
    let [Frame::Data(header), Frame::Data(rest), Frame::Skip(6)] = file.frames() else {
        panic!("{file:?}");
    };
    assert!(header.starts_with(b"namemode420uid0gid0size6typeflag0"));
    assert!(rest.starts_with(b"unamegname"));
}

#[test]
fn what_patterns_choose_is_told() {
    let mut files = Files::new(&[
        "a dir",
        "a/b dir",
        "a/b/x.txt file 1",
        "a/y.txt file 2",
        "a/z file",
    ]);
    let told = Arc::new(Told::default());
    let options = ChecksumOptions {
        include: vec!["**/*.txt".to_owned()],
        ..ChecksumOptions::default()
    };
    let digest = files.told(&told, "/a", &options);
    let list = told.whole(&digest);
    assert_eq!(digest_of(&list).as_ref(), digest);
    let list = String::from_utf8(list).unwrap();
    assert!(
        list.contains("x.txtsha256:") && list.contains("y.txtsha256:"),
        "{list:?}"
    );
    assert!(!list.contains("\0zsha256:"), "{list:?}");
}

#[test]
fn what_was_hashed_before_is_told_as_far_as_it_is_known() {
    let mut files = Files::new(&["a dir", "a/one file 1", "two file 2"]);
    // Nobody wants to know.
    let mounts = vec![Mount::bind(&files.dir.path().join("root"), true)];
    let mut scan = Scan::on(mounts, files.dir.path().join("mounts"), Arc::default());
    let plain = ChecksumOptions::default();
    let before = run(&mut files.tree, &mut scan, Path::new("/a"), &plain).unwrap();
    drop(scan);
    let told = Arc::new(Told::default());
    let top = files.told(&told, "/", &plain);
    let list = told.whole(&top);
    assert_eq!(digest_of(&list).as_ref(), top);
    // The tree knows its names and digests, and nobody the metadata any more.
    let inner = told.whole(before.as_ref());
    assert_eq!(digest_of(&inner), before);
    assert_eq!(told.0.lock().unwrap().len(), 4, "two lists, `/` and `two`");
}
