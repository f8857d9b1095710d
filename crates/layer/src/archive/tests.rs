use super::*;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, LayerError> {
    let mut archive = Archive::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            let read = archive.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            content.extend_from_slice(&buffer[..read]);
        }
        found.push((entry, content));
    }
    Ok(found)
}

fn problem(bytes: &[u8]) -> String {
    match all(bytes) {
        Err(LayerError::Archive { problem }) => problem,
        Err(other) => other.to_string(),
        Ok(found) => panic!("taken: {found:?}"),
    }
}

/// What GNU tar makes of a folder.
fn tar(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["-C", dir.to_str().unwrap(), "-c"])
        .args(arguments)
        .arg(".")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn what_gnu_tar_writes_is_read_in_each_of_its_formats() {
    let dir = tempfile::tempdir().unwrap();
    let long = "d".repeat(60) + "/" + &"e".repeat(60) + "/" + &"f".repeat(60);
    let file = dir.path().join(&long);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "content").unwrap();
    std::os::unix::fs::symlink("x".repeat(150), dir.path().join("link")).unwrap();
    std::fs::hard_link(&file, dir.path().join("hard")).unwrap();
    for format in ["gnu", "posix", "oldgnu", "pax"] {
        let found = all(&tar(
            dir.path(),
            &[&format!("--format={format}"), "--sort=name"],
        ))
        .unwrap();
        let get = |path: &str| {
            let path = format!("./{path}").into_bytes();
            let entry = found.iter().find(|(entry, _)| entry.path == path);
            entry.unwrap_or_else(|| panic!("{format}: {path:?}"))
        };
        let (link, _) = get("link");
        assert_eq!((link.kind, link.link.len()), (Kind::Symlink, 150));
        let kinds = [get("hard").0.kind, get(&long).0.kind];
        assert!(
            kinds.contains(&Kind::HardLink) && kinds.contains(&Kind::File),
            "{kinds:?}"
        );
        let content = [&get("hard").1[..], &get(&long).1[..]].concat();
        assert_eq!(content, b"content");
        if format == "posix" {
            assert_ne!(get("link").0.modified.nanoseconds, 0);
        }
    }
}

#[test]
fn holes_are_read_in_each_way_to_write_them() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
    for number in 0..40u64 {
        sparse.write_all_at(&[b'x'; 4096], number << 20).unwrap();
    }
    sparse.set_len(64 << 20).unwrap();
    let formats: [&[&str]; 4] = [
        &["--format=gnu", "-S"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
    ];
    for format in formats {
        let bytes = tar(dir.path(), format);
        assert!(
            bytes.len() < 1 << 20,
            "{format:?}: no holes on this file system"
        );
        let found = all(&bytes).unwrap();
        let (entry, content) = &found[1];
        assert_eq!(entry.path, b"./sparse", "{format:?}");
        assert_eq!(
            (entry.size, content.len()),
            (64 << 20, 40 * 4096),
            "{format:?}"
        );
        let pieces = entry.pieces.clone().unwrap();
        let pieces: Vec<_> = pieces
            .into_iter()
            .filter(|(_, length)| *length > 0)
            .collect();
        let expected: Vec<_> = (0..40u64).map(|number| (number << 20, 4096)).collect();
        assert_eq!(pieces, expected, "{format:?}");
    }
}

#[test]
fn numbers_are_octal_or_binary() {
    let table: [(&[u8], i64); 7] = [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"77777777", 0o77777777),
        (&[0x80, 0, 0, 0, 0, 0, 1, 0], 256),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], -2),
        (&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], 7),
    ];
    for (field, value) in table {
        assert_eq!(number(field).unwrap(), value, "{field:?}");
    }
    assert!(number(b"12x4567\0").is_err());
    assert!(
        number(&[
            0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
        ])
        .is_err()
    );
}

#[test]
fn times_have_fractions_and_signs() {
    let table = [
        ("12", (12, 0)),
        ("12.5", (12, 500_000_000)),
        ("12.0000000019", (12, 1)),
        ("-1", (-1, 0)),
        ("-1.25", (-2, 750_000_000)),
    ];
    for (text, (seconds, nanoseconds)) in table {
        let expected = Time {
            seconds,
            nanoseconds,
        };
        assert_eq!(time(text.as_bytes()).unwrap(), expected, "{text}");
    }
    for text in ["", "x", "1.x", "99999999999999999999"] {
        assert!(time(text.as_bytes()).is_err(), "{text}");
    }
}

/// A header with a valid sum.
fn header(flag: u8, path: &[u8], size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_size(size);
    header.set_mode(0o644);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path);
    header.set_cksum();
    *header.as_bytes()
}

fn extended(records: &[u8]) -> Vec<u8> {
    let mut bytes = header(b'x', b"PaxHeaders/x", records.len() as u64).to_vec();
    bytes.extend(records);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn what_is_not_well_formed_is_refused_without_using_memory() {
    let file = header(b'0', b"file", 3);
    let mut bad_sum = file;
    bad_sum[0] = b'F';
    assert_eq!(problem(&bad_sum), "invalid tar header");
    assert!(problem(&file[..100]).contains("failed to read"));
    assert!(
        problem(&file).contains("failed to read"),
        "its content is missing"
    );
    let huge = header(b'x', b"x", 1 << 40);
    assert_eq!(problem(&huge), "extended header of 1099511627776 bytes");
    let huge = header(b'L', b"x", 8 << 30);
    assert!(problem(&huge).contains("extended header"));
    assert!(problem(&header(b'Z', b"x", 0)).contains("unhandled tar header type"));
    assert!(problem(&header(b'0', b"", 0)).contains("empty"));
    let gap = [&[0; 512][..], &file].concat();
    assert!(problem(&gap).contains("empty block"));
    let records: [&[u8]; 7] = [
        b"9 path=a\0\n",
        b"999 path=a\n",
        b"5 x=\n6 y\n",
        b"x path=a\n",
        b"12 size=x12\n",
        b"13 path=a\0bc\n",
        b"20 uid=99999999999\n",
    ];
    for record in records {
        let bytes = [&extended(record)[..], &header(b'0', b"f", 0)].concat();
        assert!(
            all(&bytes).is_err(),
            "{:?}",
            String::from_utf8_lossy(record)
        );
    }
    let maps = [
        "0,10,5,10",
        "0,99999999999",
        "18446744073709551615,2",
        "0,1",
    ];
    for map in maps {
        let mut records = Vec::new();
        for (key, value) in [("GNU.sparse.size", "512"), ("GNU.sparse.map", map)] {
            let rest = key.len() + value.len() + 3;
            let length = rest + (rest + 2).to_string().len();
            records.extend(format!("{length} {key}={value}\n").bytes());
        }
        let bytes = [&extended(&records)[..], &header(b'0', b"f", 3), &[0; 512]].concat();
        assert!(problem(&bytes).contains("sparse"), "{map}");
    }
}

#[test]
fn an_end_that_is_missing_is_an_end() {
    let file = header(b'0', b"file", 0);
    assert_eq!(all(&file).unwrap().len(), 1);
    assert_eq!(all(&[&file[..], &[0; 512]].concat()).unwrap().len(), 1);
    assert_eq!(
        all(&[&file[..], &[0; 1024], &file].concat()).unwrap().len(),
        1
    );
    assert_eq!(all(b"").unwrap().len(), 0);
}

#[test]
fn later_records_win_and_attributes_are_kept() {
    let mut records = Vec::new();
    for (key, value) in [
        (&b"path"[..], &b"a"[..]),
        (b"path", b"b"),
        (b"SCHILY.xattr.user.a", b"\xff\0"),
        (b"SCHILY.xattr.user.b", b"1"),
        (b"comment", b"ignored"),
    ] {
        let rest = key.len() + value.len() + 3;
        let length = rest + if rest < 8 { 1 } else { 2 };
        records.extend(format!("{length} ").bytes());
        records.extend(key);
        records.push(b'=');
        records.extend(value);
        records.push(b'\n');
    }
    let bytes = [&extended(&records)[..], &header(b'0', b"plain", 0)].concat();
    let found = all(&bytes).unwrap();
    assert_eq!(found[0].0.path, b"b");
    assert_eq!(
        found[0].0.xattrs,
        [
            (b"user.a".to_vec(), b"\xff\0".to_vec()),
            (b"user.b".to_vec(), b"1".to_vec())
        ]
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096),
        flag in proptest::sample::select(b"0xLKgS15\0".to_vec()),
        size in 0u64..2048,
    ) {
        let _ = all(&bytes);
        // Behind a valid header it is looked at more closely.
        let mut whole = header(flag, b"file", size).to_vec();
        whole.append(&mut bytes);
        let _ = all(&whole);
    }
}
