//! Answers: texts or JSON, errors as Go's `http.Error` writes them, and lists that are written
//! while they are read.

use std::io;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

pub(super) type Body = http_body_util::combinators::BoxBody<Bytes, io::Error>;
pub(super) type Answer = Response<Body>;

/// Bytes of a list that are sent at once.
const CHUNK: usize = 64 << 10;
/// Chunks that wait to be sent.
const CHUNKS: usize = 4;

/// Something that is shown.
pub(super) trait Shown {
    fn json(&self) -> Value;
    fn text(&self, out: &mut Vec<u8>);
}

fn answer(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // What is shown was written by others.
    let sniffing = HeaderName::from_static("x-content-type-options");
    headers.insert(sniffing, HeaderValue::from_static("nosniff"));
    answer
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

fn kind(json: bool) -> &'static str {
    match json {
        true => "application/json",
        // Texts have bytes of file names in them.
        false => "text/plain",
    }
}

/// A refusal or a failure.
pub(super) fn error(status: StatusCode, text: &str) -> Answer {
    let kind = "text/plain; charset=utf-8";
    answer(status, kind, whole(format!("{text}\n")))
}

/// Another method is meant.
pub(super) fn wrong_method(allowed: &'static str, text: &str) -> Answer {
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, text);
    let allowed = HeaderValue::from_static(allowed);
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}

/// One thing.
pub(super) fn one(shown: &impl Shown, json: bool) -> Answer {
    let mut bytes = Vec::new();
    match json {
        true => bytes.extend(format!("{}\n", shown.json()).into_bytes()),
        false => shown.text(&mut bytes),
    }
    answer(StatusCode::OK, kind(json), whole(bytes))
}

/// Where a list is written to, on a thread that may wait.
pub(super) struct List {
    json: bool,
    /// What JSON says of an empty list.
    empty: &'static str,
    count: usize,
    buffer: Vec<u8>,
    sender: mpsc::Sender<Result<Bytes, String>>,
}

impl List {
    /// Adds one.
    ///
    /// # Errors
    /// Nobody reads the list any more.
    pub(super) fn put(&mut self, shown: &impl Shown) -> Result<(), String> {
        if self.json {
            let before = if self.count == 0 { "[\n  " } else { ",\n  " };
            let text = serde_json::to_string_pretty(&shown.json());
            let text = text.map_err(|error| error.to_string())?;
            self.buffer.extend_from_slice(before.as_bytes());
            // Strings have no line ends of their own in JSON.
            let text = text.replace('\n', "\n  ");
            self.buffer.extend_from_slice(text.as_bytes());
        } else {
            shown.text(&mut self.buffer);
            self.buffer.push(b'\n');
        }
        self.count += 1;
        match self.buffer.len() {
            ..CHUNK => Ok(()),
            _ => self.send(),
        }
    }

    fn send(&mut self) -> Result<(), String> {
        let chunk = std::mem::take(&mut self.buffer).into();
        let sent = self.sender.blocking_send(Ok(chunk));
        sent.map_err(|_| "the client has gone".to_owned())
    }

    fn finish(mut self, written: Result<(), String>) {
        let written = written.and_then(|()| {
            match (self.json, self.count) {
                (false, _) => {}
                (true, 0) => self.buffer.extend(format!("{}\n", self.empty).bytes()),
                (true, _) => self.buffer.extend_from_slice(b"\n]\n"),
            }
            self.send()
        });
        if let Err(error) = written {
            // Who has gone does not hear it.
            let _ = self.sender.blocking_send(Err(error));
        }
    }
}

/// A list that `write` writes. When it fails before anything is sent that is told, else the
/// connection ends in the middle of the answer.
pub(super) async fn list(
    json: bool,
    empty: &'static str,
    write: impl FnOnce(&mut List) -> Result<(), String> + Send + 'static,
) -> Answer {
    let (sender, mut receiver) = mpsc::channel(CHUNKS);
    let mut list = List {
        json,
        empty,
        count: 0,
        buffer: Vec::new(),
        sender,
    };
    let writing = tokio::task::spawn_blocking(move || {
        let written = write(&mut list);
        list.finish(written);
    });
    let first = match receiver.recv().await {
        Some(Ok(first)) => first,
        Some(Err(text)) => return error(StatusCode::INTERNAL_SERVER_ERROR, &text),
        None => {
            let failed = writing.await.err().map(|error| error.to_string());
            let text = failed.unwrap_or_default();
            return error(StatusCode::INTERNAL_SERVER_ERROR, &text);
        }
    };
    let rest = ReceiverStream::new(receiver);
    let chunks = stream::once(async { Ok(first) }).chain(rest);
    let frames = chunks.map(|chunk| chunk.map(Frame::data).map_err(io::Error::other));
    answer(
        StatusCode::OK,
        kind(json),
        BodyExt::boxed(StreamBody::new(frames)),
    )
}
