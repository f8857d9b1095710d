//! From a blob's bytes to the tar, told by its first bytes as containerd does: what a media type
//! says is not always true.

use std::io::{self, BufRead, BufReader, Read};

use crate::Compression;

const BUFFER: usize = 256 << 10;
/// The largest window that is allocated for zstd: 2 to the power of this many bytes.
const ZSTD_WINDOW: u32 = 27;

/// The compression of what begins with these bytes.
pub(crate) fn detect(begin: &[u8]) -> Compression {
    // A skippable frame may stand before the first one of data (RFC 8878, 3.1.2).
    let skippable =
        begin.len() >= 4 && begin[0] & 0xf0 == 0x50 && begin[1..4] == [0x2a, 0x4d, 0x18];
    if begin.starts_with(&[0x1f, 0x8b, 0x08]) {
        Compression::Gzip
    } else if begin.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
        Compression::Zstd
    } else {
        Compression::Uncompressed
    }
}

/// A reader of what `input` holds compressed, in however many members or frames.
pub(crate) fn reader<'a>(input: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut input = BufReader::with_capacity(BUFFER, Whole(input));
    Ok(match detect(input.fill_buf()?) {
        Compression::Uncompressed => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
    })
}

/// Fills buffers as far as it can: the first bytes tell the compression, and must be together.
struct Whole<R>(R);

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        // Enough for the marks; more is not waited for.
        let wanted = buffer.len().min(8);
        while filled < wanted {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(buffer.len()).min(1);
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    #[test]
    fn the_first_bytes_tell_however_they_arrive() {
        let text = b"some text that is compressed".repeat(100);
        let mut gzip = crate::compress::block(Compression::Gzip, None, &text);
        // Several members and frames are one stream.
        gzip.extend(crate::compress::block(Compression::Gzip, None, &text));
        let mut zstd = vec![0x53, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9];
        zstd.extend(crate::compress::block(Compression::Zstd, None, &text));
        zstd.extend(crate::compress::block(Compression::Zstd, None, &text));
        let twice = [&text[..], &text[..]].concat();
        for input in [&gzip, &zstd, &twice] {
            let mut output = Vec::new();
            reader(Drip(input))
                .unwrap()
                .read_to_end(&mut output)
                .unwrap();
            assert!(output == twice);
        }
        let mut none = Vec::new();
        reader(&b""[..]).unwrap().read_to_end(&mut none).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for kind in [Compression::Gzip, Compression::Zstd] {
            let whole = crate::compress::block(kind, None, &b"text".repeat(1000));
            let cut = &whole[..whole.len() - 5];
            let mut output = Vec::new();
            assert!(
                reader(cut).unwrap().read_to_end(&mut output).is_err(),
                "{kind:?}"
            );
        }
    }
}
