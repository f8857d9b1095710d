//! What holds for whatever a client may send.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cooper_proto::fsutil::Packet;
use futures::stream;
use prost::Message;
use tokio::sync::mpsc;

use crate::pattern::{Matcher, clean, read_ignore_file, wildcard_match};
use crate::transfer;
use crate::writer::Options;

/// An ignore file, and after a line with nothing but `--` paths, one in each line.
pub fn ignore(data: &[u8]) {
    let mark = b"\n--\n";
    let end = data.windows(mark.len()).position(|part| part == mark);
    let (file, paths) = match end {
        Some(end) => (&data[..end], &data[end + mark.len()..]),
        None => (data, &[][..]),
    };
    let patterns = read_ignore_file(file);
    let paths = String::from_utf8_lossy(paths);
    let matcher = Matcher::new(patterns.iter().map(String::as_str));
    for path in paths.lines().take(16) {
        let path = clean(path);
        assert_eq!(clean(&path), path);
        for pattern in patterns.iter().take(16) {
            let _ = wildcard_match(pattern, &path);
        }
        let Ok(matcher) = &matcher else { continue };
        if path.starts_with(['/', '.']) {
            continue;
        }
        // A walk, which goes from folder to folder, comes to the same as a look at the path. Not so
        // with exceptions, in moby's matcher neither: a walk does not know of one that matched a
        // folder when nothing was there to take back.
        let mut above = None;
        let mut walked = false;
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let (hit, matched) = matcher.step(&path[..end], above.as_ref());
            (above, walked) = (Some(matched), hit);
        }
        let looked = matcher.is_match(&path);
        assert!(
            walked == looked || matcher.has_exceptions(),
            "{path:?} by {patterns:?}: {walked} and {looked}"
        );
    }
}

/// Packets of a sender, each after two bytes of its length, written into the folder `target`
/// of `dir`, in which there is also the file `outside`.
///
/// # Panics
/// When there is anything else in `dir` afterwards.
pub fn packets(data: &[u8], dir: &Path) {
    let target = dir.join("target");
    std::fs::create_dir_all(&target).expect("make a folder");
    std::fs::write(dir.join("outside"), "outside").expect("write a file");
    let mut rest = Bytes::copy_from_slice(data);
    let mut packets = Vec::new();
    while rest.len() >= 2 && packets.len() < 256 {
        let length = usize::from(rest[0]) << 8 | usize::from(rest[1]);
        let length = length.min(rest.len() - 2);
        let mut packet = rest.split_to(2 + length);
        if let Ok(packet) = Packet::decode(packet.split_off(2)) {
            packets.push(Ok(packet));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let _ = runtime.block_on(async {
        let (outgoing, asked) = mpsc::channel(1024);
        let received = transfer::receive(
            stream::iter(packets),
            outgoing,
            &target,
            Options::default(),
            Arc::new(()),
            "fuzz",
        );
        let received = received.await;
        drop(asked);
        received
    });
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
        cooper_testkit::seeds("ignore", super::ignore);
        let dir = tempfile::tempdir().unwrap();
        cooper_testkit::seeds("packets", |data| super::packets(data, dir.path()));
    }
}
