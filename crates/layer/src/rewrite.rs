//! A layer once more with no time in it that is later than a given one: what BuildKit's
//! exporters do for `rewrite-timestamp`. The tar is copied block by block, and nothing but times
//! is changed in it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use cooper_content::{BlobReader, ContentStore};

use crate::{CompressionOptions, Layer, LayerError, compress, decompress};

/// The annotation of such a layer.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";

const BLOCK: usize = 512;
/// Bytes of one extended header.
const MAX_EXTENSION: u64 = 1 << 20;
const BUFFER: usize = 256 << 10;

/// Packs a layer that is in the store anew: times after `latest`, in seconds since 1970, become
/// `latest`.
///
/// # Cancel safety
/// When the future is dropped nothing is stored.
pub async fn rewrite_times(
    content: &Arc<dyn ContentStore>,
    layer: &Layer,
    options: &CompressionOptions,
    latest: i64,
) -> Result<Layer, LayerError> {
    let digest = layer.descriptor.digest();
    let blob = content.open(digest).await?;
    let kind = options.kind.as_str();
    let name = format!("rewrite-{latest}-{kind}-from-{digest}");
    let made = compress::store(content, &name, options, move |output| {
        let reader = decompress::reader(BlobReader::new(&*blob)).map_err(LayerError::from_io)?;
        clamp(reader, output, latest).map_err(LayerError::from_io)
    });
    let mut made = made.await?;
    let media_type = options.kind.instead_of(layer.descriptor.media_type());
    made.descriptor.set_media_type(media_type);
    let mut annotations = made.descriptor.annotations().clone().unwrap_or_default();
    annotations.insert(REWRITTEN.to_owned(), latest.to_string());
    made.descriptor.set_annotations(Some(annotations));
    Ok(Layer {
        descriptor: made.descriptor,
        diff_id: made.diff_id,
        sources: Vec::new(),
    })
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("invalid tar: {what}"))
}

/// Copies a tar.
fn clamp(mut input: impl Read, output: &mut impl Write, latest: i64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    // What an extended header says of the entry behind it.
    let mut size_told = None;
    while let Some(mut header) = block(&mut input)? {
        if header.iter().all(|byte| *byte == 0) {
            output.write_all(&header)?;
            continue;
        }
        let size = number(&header[124..136])?;
        let size = u64::try_from(size).map_err(|_| invalid("a negative size"))?;
        let kind = header[156];
        if matches!(kind, b'x' | b'g') {
            let records = extension(&mut input, size)?;
            let (records, told) = clamp_records(&records, latest)?;
            if kind == b'x' {
                size_told = told;
            }
            let size = format!("{:011o}\0", records.len());
            header[124..136].copy_from_slice(size.as_bytes());
            clamp_header(&mut header, latest)?;
            output.write_all(&header)?;
            output.write_all(&records)?;
            let rest = records.len().next_multiple_of(BLOCK) - records.len();
            output.write_all(&[0; BLOCK][..rest])?;
            continue;
        }
        let is_old_sparse = kind == b'S';
        let mut continued = is_old_sparse && header[482] != 0;
        clamp_header(&mut header, latest)?;
        output.write_all(&header)?;
        while continued {
            let more = block(&mut input)?.ok_or_else(|| invalid("it ends in a header"))?;
            continued = more[504] != 0;
            output.write_all(&more)?;
        }
        // Long names of GNU's are about the next entry as well: what was told still holds.
        let size = match kind {
            b'L' | b'K' => size,
            _ => size_told.take().unwrap_or(size),
        };
        // Links, devices and folders have no content, whatever their size says.
        let has_content = !matches!(kind, b'1'..=b'6');
        if has_content {
            let padded = size
                .checked_next_multiple_of(BLOCK as u64)
                .ok_or_else(|| invalid("a size beyond all bounds"))?;
            copy(&mut input, output, padded, &mut buffer)?;
        }
    }
    Ok(())
}

/// The next block; `None` at the end of the input.
fn block(input: &mut impl Read) -> io::Result<Option<[u8; BLOCK]>> {
    let mut header = [0; BLOCK];
    let mut filled = 0;
    while filled < BLOCK {
        match input.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(invalid("it ends in a header")),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(header))
}

fn copy(
    input: &mut impl Read,
    output: &mut impl Write,
    mut length: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    while length > 0 {
        let part = usize::try_from(length).map_or(buffer.len(), |left| left.min(buffer.len()));
        let part = &mut buffer[..part];
        input.read_exact(part)?;
        output.write_all(part)?;
        length -= part.len() as u64;
    }
    Ok(())
}

fn extension(input: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > MAX_EXTENSION {
        return Err(invalid("an extended header that is too long"));
    }
    let size = usize::try_from(size).map_err(|_| invalid("a size beyond all bounds"))?;
    let mut records = vec![0; size.next_multiple_of(BLOCK)];
    input.read_exact(&mut records)?;
    records.truncate(size);
    Ok(records)
}

/// The records of an extended header with no time after `latest`, and the size that they tell.
fn clamp_records(mut records: &[u8], latest: i64) -> io::Result<(Vec<u8>, Option<u64>)> {
    let mut clamped = Vec::with_capacity(records.len());
    let mut told = None;
    let broken = || invalid("a record of an extended header");
    while !records.is_empty() {
        // `LENGTH KEY=VALUE\n`, all of it counted.
        let space = records.iter().position(|byte| *byte == b' ');
        let space = space.ok_or_else(broken)?;
        let digits = std::str::from_utf8(&records[..space]).map_err(|_| broken())?;
        let length: usize = digits.parse().map_err(|_| broken())?;
        let record = records.get(..length).ok_or_else(broken)?;
        let text = record.get(space + 1..).ok_or_else(broken)?;
        let text = text.strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = text.iter().position(|byte| *byte == b'=');
        let (key, value) = text.split_at(equals.ok_or_else(broken)?);
        let value = std::str::from_utf8(&value[1..]);
        records = &records[length..];
        match (key, value) {
            (b"size", Ok(value)) => {
                told = Some(value.parse().map_err(|_| broken())?);
                clamped.extend_from_slice(record);
            }
            (b"mtime" | b"atime" | b"ctime", Ok(value)) if is_after(value, latest) => {
                let key = String::from_utf8_lossy(key);
                clamped.extend_from_slice(pax_record(&key, latest).as_bytes());
            }
            _ => clamped.extend_from_slice(record),
        }
    }
    Ok((clamped, told))
}

/// Whether a time, seconds with or without a fraction, is after `latest`.
fn is_after(text: &str, latest: i64) -> bool {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let Ok(seconds) = seconds.parse::<i64>() else {
        return false;
    };
    let fraction = fraction.bytes().any(|digit| digit != b'0');
    let negative = text.starts_with('-');
    seconds > latest || seconds == latest && fraction && !negative
}

fn pax_record(key: &str, value: i64) -> String {
    let rest = format!(" {key}={value}\n");
    // The length counts its own digits.
    let mut length = rest.len();
    loop {
        let record = format!("{length}{rest}");
        if record.len() == length {
            return record;
        }
        length = record.len();
    }
}

fn clamp_header(header: &mut [u8; BLOCK], latest: i64) -> io::Result<()> {
    clamp_field(&mut header[136..148], latest)?;
    if &header[257..265] == b"ustar  \0" {
        // GNU's own header has two more, which may be empty.
        clamp_field(&mut header[345..357], latest)?;
        clamp_field(&mut header[357..369], latest)?;
    }
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(())
}

fn clamp_field(field: &mut [u8], latest: i64) -> io::Result<()> {
    if number(field)? > latest {
        match u64::try_from(latest) {
            Ok(latest) => field.copy_from_slice(format!("{latest:011o}\0").as_bytes()),
            // Before 1970: base 256, with all upper bits set.
            Err(_) => {
                field.fill(0xff);
                let low = field.len() - 8;
                field[low..].copy_from_slice(&latest.to_be_bytes());
            }
        }
    }
    Ok(())
}

/// Octal digits, or base 256 when the first bit is set.
fn number(field: &[u8]) -> io::Result<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| invalid("a number beyond all bounds"));
    }
    let text = std::str::from_utf8(field).map_err(|_| invalid("a number"))?;
    let text = text.trim_matches(['\0', ' ']);
    if text.is_empty() {
        return Ok(0);
    }
    i64::from_str_radix(text, 8).map_err(|_| invalid("a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_content::MemoryContentStore;

    const LATEST: i64 = 1_500_000_000;

    fn header(kind: tar::EntryType, size: u64, time: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mtime(time);
        header.set_mode(0o644);
        header
    }

    fn archive() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let file = tar::EntryType::Regular;
        for (name, time) in [("old", 7), ("new", 1_700_000_000)] {
            let mut header = header(file, 700, time);
            tar.append_data(&mut header, name, &[b'x'; 700][..])
                .unwrap();
        }
        let records = [
            ("mtime", &b"1700000000.5"[..]),
            ("atime", b"1500000000.25"),
            ("ctime", b"1500000000"),
            ("SCHILY.xattr.user.a", b"\xff="),
            ("path", b"pax"),
        ];
        tar.append_pax_extensions(records).unwrap();
        let mut plain = header(file, 3, 1_700_000_000);
        tar.append_data(&mut plain, "short", &b"pax"[..]).unwrap();
        let mut link = header(tar::EntryType::Link, 0, 1_700_000_000);
        tar.append_link(&mut link, "link", "new").unwrap();
        let mut gnu = tar::Header::new_gnu();
        gnu.set_size(0);
        gnu.set_mtime(1_700_000_000);
        let fields = gnu.as_gnu_mut().unwrap();
        fields.set_atime(1_700_000_000);
        fields.set_ctime(7);
        tar.append_data(&mut gnu, "gnu", &b""[..]).unwrap();
        tar.into_inner().unwrap()
    }

    /// A link says the size of what it leads to in some archives, and has no content even so.
    #[test]
    fn links_have_no_content() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut link = header(tar::EntryType::Link, 700, 1_700_000_000);
        tar.append_link(&mut link, "link", "new").unwrap();
        let mut next = header(tar::EntryType::Regular, 3, 1_700_000_000);
        tar.append_data(&mut next, "next", &b"abc"[..]).unwrap();
        let given = tar.into_inner().unwrap();
        let mut clamped = Vec::new();
        clamp(&*given, &mut clamped, LATEST).unwrap();
        assert_eq!(clamped.len(), given.len());
        // Both headers were taken for headers.
        for at in [0, BLOCK] {
            assert_eq!(number(&clamped[at + 136..at + 148]).unwrap(), LATEST);
        }
    }

    #[test]
    fn nothing_but_late_times_is_changed() {
        let given = archive();
        let mut clamped = Vec::new();
        clamp(&*given, &mut clamped, LATEST).unwrap();
        let latest = u64::try_from(LATEST).unwrap();
        let mut archive = tar::Archive::new(&*clamped);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let time = entry.header().mtime().unwrap();
            assert_eq!(time, if name == "old" { 7 } else { latest }, "{name}");
            let records: Vec<_> = match entry.pax_extensions().unwrap() {
                Some(records) => records
                    .map(|record| {
                        let record = record.unwrap();
                        (
                            record.key().unwrap().to_owned(),
                            record.value_bytes().to_vec(),
                        )
                    })
                    .collect(),
                None => Vec::new(),
            };
            if name == "pax" {
                let own = |key: &str, value: &[u8]| (key.to_owned(), value.to_vec());
                let time = b"1500000000";
                assert_eq!(
                    records,
                    [
                        own("mtime", time),
                        own("atime", time),
                        own("ctime", time),
                        own("SCHILY.xattr.user.a", b"\xff="),
                        own("path", b"pax"),
                    ]
                );
            }
            if let Some(gnu) = entry.header().as_gnu() {
                assert_eq!((gnu.atime().unwrap(), gnu.ctime().unwrap()), (latest, 7));
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            seen.push((name, content.len()));
        }
        let names: Vec<_> = seen
            .iter()
            .map(|(name, size)| (name.as_str(), *size))
            .collect();
        assert_eq!(
            names,
            [
                ("old", 700),
                ("new", 700),
                ("pax", 3),
                ("link", 0),
                ("gnu", 0)
            ]
        );
        // Once is enough.
        let mut again = Vec::new();
        clamp(&*clamped, &mut again, LATEST).unwrap();
        assert_eq!(clamped, again);
        let mut before = Vec::new();
        clamp(&*given, &mut before, -5).unwrap();
        let mut archive = tar::Archive::new(&*before);
        let first = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(number(&first.header().as_bytes()[136..148]).unwrap(), -5);
    }

    #[test]
    fn what_is_no_tar_is_refused() {
        let given = archive();
        for length in [100, 513, 600] {
            assert!(clamp(&given[..length], &mut Vec::new(), LATEST).is_err());
        }
        let mut broken = header(tar::EntryType::XHeader, MAX_EXTENSION + 1, 0);
        broken.set_cksum();
        let error = clamp(&broken.as_bytes()[..], &mut Vec::new(), LATEST).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        for records in [
            &b"9 a=b\n"[..],
            b"x a=b\n",
            b"6 a=b ",
            b"6 abcd\n",
            b"\xff",
            b"5",
        ] {
            assert!(clamp_records(records, LATEST).is_err(), "{records:?}");
        }
        // A value may have lines of its own.
        let lines = b"14 a=b\n9 c=d\n\n12 size=700\n";
        let (same, told) = clamp_records(lines, LATEST).unwrap();
        assert_eq!((&same[..], told), (&lines[..], Some(700)));
        for (text, after) in [
            ("1500000000", false),
            ("1500000000.0", false),
            ("1500000000.001", true),
            ("1500000001", true),
            ("-7.5", false),
            ("soon", false),
        ] {
            assert_eq!(is_after(text, LATEST), after, "{text}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn equal_layers_come_of_equal_files_of_different_times() {
        let content: Arc<dyn ContentStore> = Arc::new(MemoryContentStore::default());
        let mut digests = Vec::new();
        for time in [1_600_000_000, 1_700_000_000] {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = header(tar::EntryType::Regular, 4, time);
            tar.append_data(&mut header, "file", &b"same"[..]).unwrap();
            let bytes = tar.into_inner().unwrap();
            let digest = content.write_all(&bytes).await.unwrap();
            let size = bytes.len() as u64;
            let media_type = crate::Compression::Uncompressed.media_type();
            let layer = Layer {
                descriptor: cooper_content::Descriptor::new(media_type, size, digest.clone()),
                diff_id: digest,
                sources: Vec::new(),
            };
            let options = CompressionOptions::default();
            let made = rewrite_times(&content, &layer, &options, LATEST)
                .await
                .unwrap();
            assert!(made.descriptor.media_type().to_string().ends_with("+gzip"));
            assert_ne!(made.diff_id, layer.diff_id);
            let annotations = made.descriptor.annotations().as_ref().unwrap();
            assert_eq!(annotations[REWRITTEN], LATEST.to_string());
            digests.push((made.descriptor.digest().clone(), made.diff_id));
        }
        assert_eq!(digests[0], digests[1]);
    }
}
