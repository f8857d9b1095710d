//! What is asked for. Statuses and words are buildkitd's.

use std::time::Duration;

use bytes::Bytes;
use cooper_content::{Plaintext, PlaintextKind, digest_of};
use cooper_solver::error_chain;
use cooper_worker::StoredPlaintexts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body as RequestBody;
use hyper::header::ACCEPT;
use hyper::{HeaderMap, Method, Request, StatusCode};

use super::answer::{self, Answer, List, error, wrong_method};
use super::keys::{self, Graph};
use super::record::{Find, Record};
use super::{CacheDebug, config};

/// Bytes of a cache's configuration.
const MOST_BYTES: usize = 64 << 20;
/// So long a client may take to send one.
const PATIENCE: Duration = Duration::from_secs(60);

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// Answers `request`.
pub(super) async fn handle<B>(debug: &CacheDebug, request: Request<B>) -> Answer
where
    B: RequestBody<Data = Bytes, Error: Into<Boxed>> + Send,
{
    let json = wants_json(request.headers());
    let method = request.method().clone();
    match request.uri().path() {
        "/debug/cache/all" => all(debug, json).await,
        "/debug/cache/lookup" => {
            let query = request.uri().query().unwrap_or_default();
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            let digest = pairs.find(|(name, _)| name == "digest");
            let digest = digest.map(|(_, digest)| digest.into_owned());
            lookup(debug, digest.unwrap_or_default(), json).await
        }
        "/debug/cache/store" if method != Method::GET && method != Method::HEAD => {
            wrong_method("GET, HEAD", "Method not allowed")
        }
        "/debug/cache/store" => store(debug, json).await,
        "/debug/cache/load" if method != Method::POST => wrong_method("POST", "Method Not Allowed"),
        "/debug/cache/load" => load(debug, request.into_body(), json).await,
        _ => error(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter();
    let mut accepted = accepted.filter_map(|value| value.to_str().ok());
    accepted.any(|value| {
        let mut kinds = value.split(',').filter_map(|kind| kind.split(';').next());
        kinds.any(|kind| kind.trim() == "application/json")
    })
}

/// What is kept, if anything is.
struct Kept<'a>(Option<&'a StoredPlaintexts>);

impl Find for Kept<'_> {
    fn find(&self, digest: &str) -> Result<Option<Plaintext>, String> {
        // The selector of everything: it is told apart also when nothing is kept.
        let root = PlaintextKind::String;
        if digest == digest_of(b"/").as_ref() {
            return Ok(Some(Plaintext::of(root, b"/")));
        }
        let kept = self.0.map(|kept| kept.get(digest));
        kept.transpose()
            .map(Option::flatten)
            .map_err(|error| error_chain(&error))
    }
}

/// Waits for what builds told already.
async fn settle(debug: &CacheDebug) -> Result<(), String> {
    match &debug.plaintexts {
        Some(kept) => kept.written().await.map_err(|error| error_chain(&error)),
        None => Ok(()),
    }
}

fn failed(text: &str) -> Answer {
    error(StatusCode::INTERNAL_SERVER_ERROR, text)
}

async fn all(debug: &CacheDebug, json: bool) -> Answer {
    if let Err(error) = settle(debug).await {
        return failed(&error);
    }
    let kept = debug.plaintexts.clone();
    let write = move |list: &mut List| {
        let Some(kept) = kept else { return Ok(()) };
        for part in 0..=u8::MAX {
            let part = kept.part(part).map_err(|error| error_chain(&error))?;
            for (digest, plaintext) in part {
                list.put(&Record::of(&digest, plaintext, &Kept(Some(&kept)))?)?;
            }
        }
        Ok(())
    };
    answer::list(json, "null", write).await
}

async fn lookup(debug: &CacheDebug, digest: String, json: bool) -> Answer {
    if digest.is_empty() {
        let text = "digest query parameter is required";
        return error(StatusCode::BAD_REQUEST, text);
    }
    if let Err(reason) = check_digest(&digest) {
        let text = format!("invalid digest: {reason}");
        return error(StatusCode::BAD_REQUEST, &text);
    }
    let settled = settle(debug).await;
    let kept = debug.plaintexts.clone();
    let looking = tokio::task::spawn_blocking(move || {
        settled?;
        let kept = Kept(kept.as_deref());
        let found = kept.find(&digest).and_then(|found| {
            let plaintext = found.ok_or_else(|| "not found".to_owned())?;
            Record::of(&digest, plaintext, &kept)
        });
        found.map_err(|error| format!("failed to get digest {digest} from cache: {error}"))
    });
    match looking.await {
        Ok(Ok(record)) => answer::one(&record, json),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error.to_string()),
    }
}

/// As Go's `digest.Parse` (opencontainers/go-digest).
fn check_digest(digest: &str) -> Result<(), &'static str> {
    const FORM: &str = "invalid checksum digest format";
    let (algorithm, hex) = digest.split_once(':').ok_or(FORM)?;
    let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut parts = algorithm.split(['.', '+', '_', '-']);
    let named = parts.all(|part| !part.is_empty() && part.bytes().all(name));
    let value = |byte: u8| byte.is_ascii_alphanumeric() || b"=_-".contains(&byte);
    if !named || hex.is_empty() || !hex.bytes().all(value) {
        return Err(FORM);
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("unsupported digest algorithm"),
    };
    if hex.len() != length {
        return Err("invalid checksum digest length");
    }
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match hex.bytes().all(digit) {
        true => Ok(()),
        false => Err(FORM),
    }
}

async fn store(debug: &CacheDebug, json: bool) -> Answer {
    let workers = debug.keys.clone();
    let graph = move || {
        let mut graph = Graph::default();
        for keys in workers {
            graph.add(&keys.graph());
        }
        Ok(graph)
    };
    records(debug, json, graph).await
}

async fn load<B>(debug: &CacheDebug, body: B, json: bool) -> Answer
where
    B: RequestBody<Data = Bytes, Error: Into<Boxed>> + Send,
{
    let body = std::pin::pin!(Limited::new(body, MOST_BYTES));
    let body = match tokio::time::timeout(PATIENCE, body.collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(reason)) if reason.is::<LengthLimitError>() => {
            let text = format!("failed to load cache: more than {MOST_BYTES} bytes");
            return error(StatusCode::PAYLOAD_TOO_LARGE, &text);
        }
        Ok(Err(reason)) => {
            let text = format!("failed to load cache: failed to read body: {reason}");
            return error(StatusCode::BAD_REQUEST, &text);
        }
        Err(_) => {
            let text = "failed to load cache: failed to read body: it does not end";
            return error(StatusCode::REQUEST_TIMEOUT, text);
        }
    };
    let graph = move || {
        let graph = config::graph(&body);
        graph.map_err(|error| format!("failed to load cache: {error}"))
    };
    records(debug, json, graph).await
}

/// The keys of `graph`, with what is known of their digests.
async fn records(
    debug: &CacheDebug,
    json: bool,
    graph: impl FnOnce() -> Result<Graph, String> + Send + 'static,
) -> Answer {
    if let Err(error) = settle(debug).await {
        return failed(&error);
    }
    let kept = debug.plaintexts.clone();
    let write = move |list: &mut List| {
        let kept = Kept(kept.as_deref());
        for record in keys::records(&graph()?) {
            let mut explained = Vec::new();
            for digest in record.digests() {
                if let Some(plaintext) = kept.find(&digest)? {
                    explained.push(Record::of(&digest, plaintext, &kept)?);
                }
            }
            list.put(&record.explained(explained))?;
        }
        Ok(())
    };
    answer::list(json, "[]", write).await
}
