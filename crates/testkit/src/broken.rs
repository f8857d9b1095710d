//! A registry that is broken in one way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::image::{compress, digest};

/// How a [`BrokenRegistry`] is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is: the image can be used.
    Nothing,
    /// It has no such image.
    NotFound,
    /// It wants credentials that nobody has.
    Unauthorized,
    /// It fails at everything.
    ServerError,
    /// The connection ends in the middle of a layer.
    TruncatedLayer,
    /// The connection ends after each piece of a layer ([`PIECE`] bytes), and the rest can be
    /// asked for.
    BreaksOff,
    /// A layer comes in pieces ([`PIECE`] bytes) with a pause before each ([`PAUSE`]).
    Slow,
    /// Half a layer comes, and then nothing, with the connection open.
    Stalls,
    /// It takes no more than a piece of what is sent to it, and the connection ends.
    BreaksUploads,
    /// It takes what is sent to it, and does not answer.
    StallsUploads,
    /// A layer has other bytes than its digest says.
    WrongLayer,
    /// The manifest has other bytes than its digest says.
    WrongManifest,
}

/// Bytes of a layer that come at once where they come in pieces.
pub const PIECE: usize = 20_000;
/// How long a slow registry waits before each of them.
pub const PAUSE: Duration = Duration::from_millis(200);

/// A registry with one image, `HOST/image:latest`, that holds one file, `/file`.
#[derive(Debug)]
pub struct BrokenRegistry {
    port: u16,
    layer: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Blob {
    digest: String,
    media_type: String,
    bytes: Vec<u8>,
}

struct Content {
    fault: Fault,
    stop: Arc<AtomicBool>,
    manifest: Blob,
    config: Blob,
    layer: Blob,
}

impl BrokenRegistry {
    /// Starts one on a free port of the loopback interface.
    #[track_caller]
    pub fn start(fault: Fault) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let content = Arc::new(Content::new(fault, stop.clone()));
        let layer = content.layer.digest.clone();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let content = content.clone();
                let _ = stream.map(|stream| std::thread::spawn(move || content.serve(stream)));
            }
        });
        Self {
            port,
            layer,
            stop,
            thread: Some(thread),
        }
    }

    /// The image's reference.
    pub fn image(&self) -> String {
        format!("127.0.0.1:{}/image:latest", self.port)
    }

    /// The digest of its layer, as the manifest names it.
    pub fn layer(&self) -> &str {
        &self.layer
    }
}

impl Drop for BrokenRegistry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Content {
    fn new(fault: Fault, stop: Arc<AtomicBool>) -> Self {
        let mut archive = tar::Builder::new(Vec::new());
        // Large and not compressible, so that half of it is a lot.
        let mut state = 1_u32;
        let text: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(200_000)
        .collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "file", &*text).unwrap();
        let archive = archive.into_inner().unwrap();
        let layer = Blob::new("layer.v1.tar+gzip", compress(&archive));
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&archive)] },
        });
        let config = Blob::new("config.v1+json", config.to_string().into_bytes());
        let described = |blob: &Blob| {
            serde_json::json!({
                "mediaType": blob.media_type,
                "digest": blob.digest,
                "size": blob.bytes.len(),
            })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described(&config),
            "layers": [described(&layer)],
        });
        let manifest = Blob::new("manifest.v1+json", manifest.to_string().into_bytes());
        Self {
            fault,
            stop,
            manifest,
            config,
            layer,
        }
    }

    /// One request for one connection.
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut offset = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(range) = line.strip_prefix("range: bytes=") {
                offset = range.trim_end_matches('-').parse().unwrap_or(0);
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let fail = |status: &str, header: &str| {
            let body = format!("{{\"errors\":[{{\"code\":\"X\",\"message\":\"{status}\"}}]}}");
            format!(
                "HTTP/1.1 {status}\r\n{header}Content-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{}",
                body.len(),
                if method == "HEAD" { "" } else { &body }
            )
        };
        let early = match self.fault {
            Fault::NotFound => Some(fail("404 Not Found", "")),
            Fault::ServerError => Some(fail("500 Internal Server Error", "")),
            Fault::Unauthorized => Some(fail(
                "401 Unauthorized",
                "WWW-Authenticate: Basic realm=\"nobody\"\r\n",
            )),
            _ => None,
        };
        if let Some(answer) = early {
            return stream.write_all(answer.as_bytes());
        }
        if ["POST", "PUT", "PATCH"].contains(&method) {
            return self.upload(method, path, &mut reader, stream);
        }
        let name = path.rsplit('/').next().unwrap_or("");
        let blob = if path.contains("/manifests/") {
            (name == "latest" || name == self.manifest.digest).then_some(&self.manifest)
        } else {
            [&self.config, &self.layer]
                .into_iter()
                .find(|blob| blob.digest == name)
        };
        let Some(blob) = blob else {
            let status = match path {
                "/v2/" => "200 OK",
                _ => "404 Not Found",
            };
            return stream.write_all(fail(status, "").as_bytes());
        };
        let mut bytes = blob.bytes.clone();
        let is_layer = blob.digest == self.layer.digest;
        let wrong = match self.fault {
            Fault::WrongLayer => is_layer,
            Fault::WrongManifest => path.contains("/manifests/"),
            _ => false,
        };
        if wrong {
            // Still JSON and still gzip (the byte is part of a time), and of the same length:
            // only the digest can tell.
            match path.contains("/manifests/") {
                true => bytes[1..3].copy_from_slice(b"\n\""),
                false => bytes[4] ^= 1,
            }
        }
        let whole = bytes.len();
        let mut status = "200 OK".to_owned();
        if offset > 0 && self.fault == Fault::BreaksOff {
            bytes = bytes.split_off(offset.min(whole));
            let last = whole - 1;
            status = format!("206 Partial Content\r\nContent-Range: bytes {offset}-{last}/{whole}");
        }
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {}\r\nDocker-Content-Digest: {}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            blob.media_type,
            blob.digest,
            bytes.len()
        )?;
        if method == "HEAD" {
            return Ok(());
        }
        match self.fault {
            Fault::TruncatedLayer if is_layer => bytes.truncate(whole / 2),
            Fault::BreaksOff if is_layer => bytes.truncate(PIECE),
            Fault::Stalls if is_layer => {
                stream.write_all(&bytes[..whole / 2])?;
                self.wait();
                return Ok(());
            }
            Fault::Slow if is_layer => {
                for piece in bytes.chunks(PIECE) {
                    std::thread::sleep(PAUSE);
                    stream.write_all(piece)?;
                }
                return Ok(());
            }
            _ => {}
        }
        stream.write_all(&bytes)
    }

    /// Begins uploads and lets none of them end.
    fn upload(
        &self,
        method: &str,
        path: &str,
        body: &mut impl Read,
        mut stream: TcpStream,
    ) -> std::io::Result<()> {
        if method == "POST" {
            let place = path.split('?').next().unwrap_or(path).trim_end_matches('/');
            return write!(
                stream,
                "HTTP/1.1 202 Accepted\r\nLocation: {place}/one\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            );
        }
        match self.fault {
            Fault::StallsUploads => {
                stream.set_read_timeout(Some(PAUSE))?;
                let _ = std::io::copy(body, &mut std::io::sink());
                self.wait();
                Ok(())
            }
            _ => body.read_exact(&mut [0; PIECE]),
        }
    }

    /// Waits until the registry is stopped.
    fn wait(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Blob {
    fn new(kind: &str, bytes: Vec<u8>) -> Self {
        Self {
            digest: digest(&bytes),
            media_type: format!("application/vnd.oci.image.{kind}"),
            bytes,
        }
    }
}
