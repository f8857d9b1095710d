//! Reading tar: POSIX ustar and pax, GNU long names and sparse files, old V7; with a bound on
//! everything that is kept in memory.

use std::io::{self, Read};

use crate::LayerError;

const BLOCK: usize = 512;
/// Bytes of one extended header, long name or map of a sparse file.
const MAX_EXTENSION: u64 = 1 << 20;
/// The longest path or link (PATH_MAX of Linux).
const MAX_PATH: usize = 4096;

/// What an entry is, as far as layers have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// One entry, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) link: Vec<u8>,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Length of the file, its holes included.
    pub(crate) size: u64,
    pub(crate) modified: Time,
    pub(crate) accessed: Option<Time>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the bytes of a sparse file are: offset and length, ordered. `None`: everywhere.
    pub(crate) pieces: Option<Vec<(u64, u64)>>,
}

/// What extended headers say of the entry that follows.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Time>,
    accessed: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// The three ways in which pax headers describe holes (GNU tar, "PAX Formats for sparse files").
#[derive(Default)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Version 0.0: numbers one by one; 0.1: in one record.
    numbers: Vec<u64>,
}

/// Reads the entries of a tar one after the other.
pub(crate) struct Archive<R> {
    input: R,
    /// Bytes of the current entry's data that were not read.
    rest: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            rest: 0,
            padding: 0,
        }
    }

    /// The input, after the last entry.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; what was not read of the last one's data is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let flag = header[156];
            let size = number(&header[124..136])?;
            let size = u64::try_from(size).map_err(|_| LayerError::archive("negative size"))?;
            match flag {
                b'x' => extended.records(&self.extension(size)?)?,
                b'L' => extended.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extended.link = Some(until_nul(&self.extension(size)?).to_vec()),
                // Global headers are about the archive, not about files: not applied, as in
                // containerd.
                b'g' => self.data(size),
                _ => return self.entry(&header, flag, size, extended).map(Some),
            }
        }
    }

    /// Reads content of the current entry; nothing is its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let most = usize::try_from(self.rest)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self
            .input
            .read(&mut buffer[..most])
            .map_err(LayerError::from_io)?;
        if read == 0 {
            return Err(truncated());
        }
        self.rest -= read as u64;
        Ok(read)
    }

    fn data(&mut self, size: u64) {
        self.rest = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip(&mut self) -> Result<(), LayerError> {
        let mut left = self.rest.saturating_add(self.padding);
        (self.rest, self.padding) = (0, 0);
        let mut buffer = [0; 16 << 10];
        while left > 0 {
            let most = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let read = self
                .input
                .read(&mut buffer[..most])
                .map_err(LayerError::from_io)?;
            if read == 0 {
                return Err(truncated());
            }
            left -= read as u64;
        }
        Ok(())
    }

    /// One block; `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::from_io(error)),
            }
        }
        Ok(Some(block))
    }

    /// The next header; `None` at the end of the archive, which two empty blocks mark and some
    /// writers forget.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().any(|byte| *byte != 0) {
            check(&block)?;
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if second.iter().any(|byte| *byte != 0) => {
                Err(LayerError::archive("an empty block between entries"))
            }
            _ => Ok(None),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > MAX_EXTENSION {
            return Err(LayerError::archive(format!(
                "extended header of {size} bytes"
            )));
        }
        self.data(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), LayerError> {
        while !buffer.is_empty() {
            let read = self.read(buffer)?;
            if read == 0 {
                return Err(truncated());
            }
            buffer = &mut buffer[read..];
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        flag: u8,
        stored: u64,
        extended: Extended,
    ) -> Result<Entry, LayerError> {
        let gnu = &header[257..265] == b"ustar  \0";
        let posix = &header[257..262] == b"ustar" && !gnu;
        let mut path = until_nul(&header[..100]).to_vec();
        let prefix = until_nul(&header[345..500]);
        if posix && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        path = extended.path.unwrap_or(path);
        let link = extended
            .link
            .unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        let mut kind = match flag {
            b'0' | b'\0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(LayerError::archive(format!(
                    "unhandled tar header type {other}"
                )));
            }
        };
        if flag == b'\0' && path.ends_with(b"/") {
            // Tars of the old kind know no type for folders.
            kind = Kind::Directory;
        }
        let mut size = extended.size.unwrap_or(stored);
        // Only files have data, whatever a header says of its size.
        self.data(if kind == Kind::File { size } else { 0 });
        let mut pieces = None;
        if flag == b'S' {
            (size, pieces) = self.old_sparse(header)?;
        } else if kind == Kind::File && extended.sparse.is_used() {
            let numbers = match extended.sparse.major {
                Some(1) => self.sparse_map()?,
                _ => extended.sparse.numbers,
            };
            size = extended.sparse.size.unwrap_or(size);
            pieces = Some(
                numbers
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect(),
            );
            path = extended.sparse.name.unwrap_or(path);
        }
        if let Some(pieces) = &pieces {
            self.check_pieces(pieces, size)?;
        }
        if path.is_empty() || path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(LayerError::archive("a path that is empty or too long"));
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(LayerError::archive("a path with a NUL byte"));
        }
        let id = |field: &[u8]| -> Result<u32, LayerError> {
            u32::try_from(number(field)?).map_err(|_| LayerError::archive("an owner out of range"))
        };
        let device = |field: &[u8]| number(field).map(|number| u32::try_from(number).unwrap_or(0));
        Ok(Entry {
            path,
            kind,
            link,
            mode: u32::try_from(number(&header[100..108])? & 0o7777).unwrap_or_default(),
            uid: extended.uid.map_or_else(|| id(&header[108..116]), Ok)?,
            gid: extended.gid.map_or_else(|| id(&header[116..124]), Ok)?,
            size: if kind == Kind::File { size } else { 0 },
            modified: match extended.modified {
                Some(time) => time,
                None => Time {
                    seconds: number(&header[136..148])?,
                    nanoseconds: 0,
                },
            },
            accessed: extended.accessed,
            device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
                (device(&header[329..337])?, device(&header[337..345])?)
            } else {
                (0, 0)
            },
            xattrs: extended.xattrs,
            pieces,
        })
    }

    /// GNU's own format: the map is in the header and in blocks after it.
    #[allow(clippy::type_complexity)]
    fn old_sparse(
        &mut self,
        header: &[u8; BLOCK],
    ) -> Result<(u64, Option<Vec<(u64, u64)>>), LayerError> {
        let unsigned = |field: &[u8]| {
            u64::try_from(number(field)?).map_err(|_| LayerError::archive("a negative offset"))
        };
        let size = unsigned(&header[483..495])?;
        let mut pieces = Vec::new();
        let mut take = |fields: &[u8]| -> Result<(), LayerError> {
            for field in fields.chunks_exact(24) {
                if field[0] == 0 {
                    break;
                }
                pieces.push((unsigned(&field[..12])?, unsigned(&field[12..])?));
            }
            Ok(())
        };
        take(&header[386..482])?;
        let mut more = header[482] != 0;
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks * BLOCK as u64 > MAX_EXTENSION {
                return Err(LayerError::archive("too long a map of a sparse file"));
            }
            let block = self.block()?.ok_or_else(truncated)?;
            take(&block[..504])?;
            more = block[504] != 0;
        }
        Ok((size, Some(pieces)))
    }

    /// Version 1.0: decimal lines at the begin of the data, filled up to a block.
    fn sparse_map(&mut self) -> Result<Vec<u64>, LayerError> {
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut digits = Vec::new();
        let mut block = [0; BLOCK];
        let mut taken = 0;
        loop {
            taken += BLOCK as u64;
            if taken > MAX_EXTENSION {
                return Err(LayerError::archive("too long a map of a sparse file"));
            }
            self.read_exact(&mut block)?;
            for byte in block {
                if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let value = decimal(&digits)?;
                digits.clear();
                match wanted {
                    None => {
                        let count = usize::try_from(value).unwrap_or(usize::MAX);
                        wanted = Some(count.saturating_mul(2));
                    }
                    Some(_) => numbers.push(value),
                }
            }
            if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                return Ok(numbers);
            }
        }
    }

    /// Pieces are in order, inside the file, and as long as the data that is left.
    fn check_pieces(&self, pieces: &[(u64, u64)], size: u64) -> Result<(), LayerError> {
        let (mut end, mut sum) = (0u64, 0u64);
        for (offset, length) in pieces {
            let next = offset.checked_add(*length);
            if *offset < end || next.is_none_or(|next| next > size) {
                return Err(LayerError::archive(
                    "the map of a sparse file is out of order",
                ));
            }
            end = offset + length;
            sum += length;
        }
        if sum != self.rest {
            return Err(LayerError::archive(
                "the map of a sparse file does not fit its data",
            ));
        }
        Ok(())
    }
}

impl Sparse {
    fn is_used(&self) -> bool {
        self.major.is_some() || self.size.is_some() || !self.numbers.is_empty()
    }
}

impl Extended {
    /// Takes the records `length key=value\n`; a later one wins.
    fn records(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        let invalid = || LayerError::archive("malformed extended header");
        while !bytes.is_empty() {
            // Some writers fill up with NUL.
            if bytes.iter().all(|byte| *byte == 0) {
                break;
            }
            let space = bytes
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(invalid)?;
            let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| invalid())?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(invalid());
            }
            let record = &bytes[space + 1..length - 1];
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(invalid)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
        // An empty value takes an earlier one back.
        let some = (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = some,
            b"linkpath" => self.link = some,
            b"size" => self.size = some.map(|value| decimal(&value)).transpose()?,
            b"uid" => self.uid = some.map(|value| id(&value)).transpose()?,
            b"gid" => self.gid = some.map(|value| id(&value)).transpose()?,
            b"mtime" => self.modified = some.map(|value| time(&value)).transpose()?,
            b"atime" => self.accessed = some.map(|value| time(&value)).transpose()?,
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = some,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.numbers.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(decimal);
                self.sparse.numbers = numbers.collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn truncated() -> LayerError {
    LayerError::Read {
        source: io::ErrorKind::UnexpectedEof.into(),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// The sum of the header's bytes, its own field as blanks; old writers summed signed ones.
fn check(header: &[u8; BLOCK]) -> Result<(), LayerError> {
    let expected = number(&header[148..156])?;
    let bytes = || {
        let own = 148..156;
        let bytes = header.iter().enumerate();
        bytes.map(move |(at, byte)| if own.contains(&at) { b' ' } else { *byte })
    };
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    if expected == unsigned || expected == signed {
        Ok(())
    } else {
        Err(LayerError::archive("invalid tar header"))
    }
}

/// A number of a header: octal, or GNU's binary form, marked by the highest bit.
fn number(field: &[u8]) -> Result<i64, LayerError> {
    let invalid = || LayerError::archive("a number in a tar header is malformed");
    let first = *field.first().ok_or_else(invalid)?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            // The mark itself is no digit.
            let byte = match (at, negative) {
                (0, false) => byte & 0x7f,
                _ => *byte,
            };
            value = (value << 8) | i128::from(byte);
            if i64::try_from(value).is_err() {
                return Err(invalid());
            }
        }
        return i64::try_from(value).map_err(|_| invalid());
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0));
    let digits = &digits[..end.unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(invalid),
        _ => Err(invalid()),
    })
}

fn decimal(digits: &[u8]) -> Result<u64, LayerError> {
    let text = std::str::from_utf8(digits).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| LayerError::archive("a number in an extended header is malformed"))
}

fn id(digits: &[u8]) -> Result<u32, LayerError> {
    u32::try_from(decimal(digits)?).map_err(|_| LayerError::archive("an owner out of range"))
}

/// `-12.5`: seconds with a fraction of any length.
fn time(text: &[u8]) -> Result<Time, LayerError> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot])?)
        .map_err(|_| LayerError::archive("a time out of range"))?;
    let mut nanoseconds = 0;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    for at in 0..9 {
        let digit = match fraction.get(at) {
            Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
            Some(_) => return Err(LayerError::archive("a time is malformed")),
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests;
