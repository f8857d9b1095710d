#![allow(clippy::unwrap_used)]
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use cooper_content::{Plaintext, PlaintextKind, Plaintexts, digest_noted, digest_of};
use cooper_solver::{Digest, KeyGraph, KeyId, Link};
use cooper_worker::StoredPlaintexts;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::answer::Shown;
use super::keys::{self, Graph, Way};
use super::record::{Find, Record};
use super::{CacheDebug, config, handlers, serve};
use crate::listen::listen_debug;

struct Known(HashMap<String, Plaintext>);

impl Known {
    fn of(all: &[(&str, Plaintext)]) -> Self {
        let all = all.iter().cloned();
        Self(all.map(|(name, text)| (name.to_owned(), text)).collect())
    }
}

impl Find for Known {
    fn find(&self, digest: &str) -> Result<Option<Plaintext>, String> {
        Ok(self.0.get(digest).cloned())
    }
}

fn name(letter: &str) -> String {
    format!("sha256:{}", letter.repeat(64))
}

fn shown(shown: &impl Shown) -> String {
    let mut out = Vec::new();
    shown.text(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_record_is_shown_with_the_records_in_it() {
    let (a, b, c, d) = (name("a"), name("b"), name("c"), name("d"));
    let mut file = Plaintext::of(PlaintextKind::File, b"name");
    file.skip(258);
    let known = Known::of(&[
        (&a, file.clone()),
        (&b, Plaintext::of(PlaintextKind::String, c.as_bytes())),
    ]);
    // Names may have digests in them, and the last is not known.
    let mut list = Plaintext::of(PlaintextKind::FileList, format!("\0{a}").as_bytes());
    list.data(format!("\0x{c}{b}").as_bytes());
    list.data(format!("\0y{d}\0z{a}").as_bytes());
    let record = Record::of(&name("e"), list, &known).unwrap();
    let e = name("e");
    assert_eq!(
        shown(&record),
        format!(
            "{e} (file-list):\n  {a} (file):\n  {b} (string):\n  data: \0{a}\n  data: \0x{c}{b}\n  \
             data: \0y{d}\0z{a}\n\n{a} (file):\n  data: name\n  skipping 258 bytes\n\n\
             {b} (string):\n  data: {c}\n"
        )
    );
    let json = record.json();
    assert_eq!(json["digest"], e.as_str());
    assert_eq!(json["type"], "file-list");
    assert_eq!(json["data"].as_array().unwrap().len(), 3);
    assert_eq!(
        json["subRecords"][0],
        json!({ "digest": a, "type": "file", "data": [
            { "type": 2, "data": "bmFtZQ==" },
            { "type": 3, "data": "AAABAg==" },
        ] })
    );
    // That of a record in it is not looked up.
    assert_eq!(json["subRecords"][1].get("subRecords"), None);
}

#[test]
fn digests_are_found_where_the_kind_has_them() {
    let (a, b) = (name("a"), name("b"));
    let known = Known::of(&[
        (&a, Plaintext::of(PlaintextKind::Json, b"{}")),
        (&b, Plaintext::of(PlaintextKind::Json, b"[]")),
    ]);
    let count = |kind, text: &str| {
        let text = Plaintext::of(kind, text.as_bytes());
        let record = Record::of("x", text, &known).unwrap();
        let parts = record.json()["subRecords"].as_array().map(Vec::len);
        parts.unwrap_or_default()
    };
    let both = format!("{a}\0{b}");
    for (kind, text, expected) in [
        (PlaintextKind::String, format!("from:{a}@0 {b} {a}"), 2),
        (PlaintextKind::String, format!("{a}0 x{b}"), 0),
        (PlaintextKind::DigestList, both.clone(), 2),
        (PlaintextKind::DigestList, format!("{a}\0{b}0"), 1),
        (PlaintextKind::FileList, format!("\0{a}\0dir\0name{b}"), 2),
        (PlaintextKind::FileList, "sha256:\0\0é".to_owned(), 0),
        (PlaintextKind::StringList, both.clone(), 0),
        (PlaintextKind::Json, both.clone(), 0),
        (PlaintextKind::File, both, 0),
    ] {
        assert_eq!(count(kind, &text), expected, "{kind:?} {text}");
    }
}

fn digest(letter: &str) -> Digest {
    name(letter).parse().unwrap()
}

/// A source of a session that leads to a copy onto an image, which leads to a step; and a step
/// that changes nothing and leads to itself.
fn graph() -> Graph {
    let random: Digest = format!("random:{}", "c".repeat(64)).parse().unwrap();
    let (image, local) = (KeyId::root(&digest("1"), 0), KeyId::root(&random, 0));
    let (copy, step) = (KeyId::new("copy"), KeyId::new("step"));
    let lost = KeyId::new("lost");
    let mut all = KeyGraph {
        keys: vec![
            image.clone(),
            local.clone(),
            copy.clone(),
            step.clone(),
            lost.clone(),
        ],
        links: vec![
            (image, Link::new(0, 0, &digest("2"), None), copy.clone()),
            (
                local,
                Link::new(1, 0, &digest("2"), Some(&digest("3"))),
                copy.clone(),
            ),
            (copy, Link::new(0, 1, &digest("4"), None), step.clone()),
            (step.clone(), Link::new(0, 1, &digest("4"), None), step),
            (lost.clone(), Link::new(0, 0, &digest("4"), None), lost),
        ],
    };
    all.sort();
    let mut graph = Graph::default();
    graph.add(&all);
    graph.add(&all);
    graph
}

#[test]
fn keys_are_numbered_from_those_without_inputs_on() {
    let records = keys::records(&graph());
    let root = KeyId::root(&digest("1"), 0);
    let (two, three, four, c) = (name("2"), name("3"), name("4"), name("c"));
    let all: Vec<String> = records.iter().map(shown).collect();
    // `random:` comes before `sha256:`.
    assert_eq!(
        all,
        [
            format!("ID: 1 (random)\nDigest: {c}\nChildren:\n  Input 0:\t 2\n"),
            format!(
                "ID: 2\nParents:\n  Input 0:\t4\t{two}\n  Input 1:\t1\t{two}\n    Selector: {three}\n\
                 Children:\n  Input 1:\t 3\n"
            ),
            format!(
                "ID: 3\nParents:\n  Input 0:\t2\t{four}\n  Input 0:\t3\t{four}\n\
                 Children:\n  Input 1:\t 3\n"
            ),
            format!(
                "ID: 4\nDigest: {}\nChildren:\n  Input 0:\t 2\n",
                root.as_str()
            ),
        ]
    );
    assert_eq!(
        records[0].json(),
        json!({ "id": 1, "digest": c, "random": true, "children": { "0": { "2": {} } } })
    );
    assert_eq!(
        records[1].json(),
        json!({ "id": 2, "parents": [
            { "input": 0, "output": 0, "digest": two, "target": 4 },
            { "input": 1, "output": 0, "digest": two, "selector": three, "target": 1 },
        ], "children": { "1": { "3": {} } } })
    );
    assert_eq!(records[1].digests(), [two, three]);
    let plaintext = Plaintext::of(PlaintextKind::String, b"text");
    let record = Record::of(&c, plaintext, &Known::of(&[])).unwrap();
    let explained = records[0].clone().explained(vec![record.clone()]);
    assert!(
        shown(&explained).ends_with(&format!("Plaintexts:\n{c} (string):\n  data: text\n\n")),
        "{}",
        shown(&explained)
    );
    assert_eq!(explained.json()["debug"], json!([record.json()]));
}

fn exported() -> Value {
    json!({
        "layers": [{ "blob": name("f"), "parent": -1 }, { "blob": name("e"), "parent": 0 }],
        "records": [
            { "digest": name("2"), "layers": [{ "layer": 1, "createdAt": "2024-01-01T00:00:00Z" }],
              "inputs": [[{ "link": 1 }, { "selector": name("3"), "link": 2 }], [{ "link": 2 }]] },
            { "digest": name("1"), "layers": [{ "layer": 0 }], "chains": [{ "layers": [0, 1] }] },
            { "digest": name("4") },
        ],
    })
}

fn read(config: &Value) -> Result<Graph, String> {
    config::graph(config.to_string().as_bytes())
}

#[test]
fn an_exported_cache_has_the_same_form() {
    let graph = read(&exported()).unwrap();
    let way = |from: &str, input, selector: &str| Way {
        from: from.to_owned(),
        input,
        output: 0,
        digest: name("2"),
        selector: selector.to_owned(),
        to: "0".to_owned(),
    };
    let ways = [
        way(&name("1"), 0, ""),
        way(&name("4"), 0, &name("3")),
        way(&name("4"), 1, ""),
    ];
    assert_eq!(graph.ways.into_iter().collect::<Vec<_>>(), ways);
    let records = keys::records(&read(&exported()).unwrap());
    assert_eq!(records.len(), 3);
    for nothing in ["{}", "{\"layers\":null,\"records\":null}"] {
        let graph = config::graph(nothing.as_bytes()).unwrap();
        assert_eq!(keys::records(&graph), []);
    }
}

#[test]
fn what_is_no_exported_cache_is_refused() {
    let with = |place: &str, value: Value| {
        let mut config = exported();
        *config.pointer_mut(place).unwrap() = value;
        read(&config).unwrap_err()
    };
    let link = "/records/0/inputs/0/0/link";
    for (place, value, expected) in [
        (link, json!(3), "invalid record ID: 3"),
        (link, json!(-1), "invalid record ID: -1"),
        (link, json!(0), "invalid looping record"),
        (
            "/records/0/inputs/1",
            json!([]),
            "invalid empty input for record 0",
        ),
        (
            "/records/0/inputs/1",
            json!(null),
            "invalid empty input for record 0",
        ),
        (
            "/records/0/layers/0/layer",
            json!(2),
            "invalid layer index 2",
        ),
        ("/layers/0/parent", json!(1), "invalid looping layer"),
        ("/layers/0/parent", json!(-2), "invalid layer index -2"),
        (
            "/records/1/chains/0/layers/1",
            json!(7),
            "invalid layer index 7",
        ),
        ("/records", json!(1), "invalid type"),
    ] {
        let error = with(place, value);
        assert!(error.contains(expected), "{place}: {error}");
    }
    assert!(config::graph(b"").is_err());
    // A long way round is found as well.
    let mut config = exported();
    config["records"][1]["inputs"] = json!([[{ "link": 2 }]]);
    config["records"][2]["inputs"] = json!([[{ "link": 0 }]]);
    assert_eq!(read(&config).unwrap_err(), "invalid looping record");
}

struct Told {
    status: StatusCode,
    kind: String,
    body: String,
}

async fn ask(debug: &CacheDebug, method: Method, path: &str, accept: &str, body: &str) -> Told {
    let body = Full::new(Bytes::from(body.to_owned()));
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    let headers = request.headers_mut();
    headers.insert("accept", accept.parse().unwrap());
    let answer = handlers::handle(debug, request).await;
    let kind = answer.headers()["content-type"].to_str().unwrap();
    let (status, kind) = (answer.status(), kind.to_owned());
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    Told {
        status,
        kind,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

async fn get(debug: &CacheDebug, path: &str) -> Told {
    ask(debug, Method::GET, path, "*/*", "").await
}

async fn get_json(debug: &CacheDebug, path: &str) -> Value {
    let told = ask(
        debug,
        Method::GET,
        path,
        "text/html, application/json;q=1",
        "",
    )
    .await;
    assert_eq!(
        (told.status, &*told.kind),
        (StatusCode::OK, "application/json")
    );
    assert!(told.body.ends_with('\n'), "{}", told.body);
    serde_json::from_str(&told.body).unwrap()
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_in_the_words_of_buildkitd() {
    let nothing = CacheDebug::default();
    let unknown = name("a");
    for (method, path, status, text) in [
        (Method::GET, "/", 404, "404 page not found\n"),
        (Method::GET, "/debug/cache", 404, "404 page not found\n"),
        (Method::GET, "/debug/pprof/", 404, "404 page not found\n"),
        (
            Method::GET,
            "/debug/cache/lookup",
            400,
            "digest query parameter is required\n",
        ),
        (
            Method::GET,
            "/debug/cache/lookup?digest=",
            400,
            "digest query parameter is required\n",
        ),
        (
            Method::GET,
            "/debug/cache/lookup?digest=x",
            400,
            "invalid digest: invalid checksum digest format\n",
        ),
        (
            Method::GET,
            "/debug/cache/lookup?digest=random:aa",
            400,
            "invalid digest: unsupported digest algorithm\n",
        ),
        (
            Method::GET,
            "/debug/cache/lookup?digest=sha256%3Aaa",
            400,
            "invalid digest: invalid checksum digest length\n",
        ),
        (
            Method::GET,
            &format!("/debug/cache/lookup?digest={unknown}"),
            500,
            &format!("failed to get digest {unknown} from cache: not found\n"),
        ),
        (
            Method::POST,
            "/debug/cache/store",
            405,
            "Method not allowed\n",
        ),
        (
            Method::GET,
            "/debug/cache/load",
            405,
            "Method Not Allowed\n",
        ),
        (
            Method::POST,
            "/debug/cache/load",
            500,
            "failed to load cache: EOF while parsing a value at line 1 column 0\n",
        ),
    ] {
        let told = ask(&nothing, method.clone(), path, "*/*", "").await;
        assert_eq!(
            (told.status.as_u16(), told.body.as_str()),
            (status, text),
            "{path}"
        );
        assert_eq!(told.kind, "text/plain; charset=utf-8");
    }
    let upper = format!("/debug/cache/lookup?digest=sha256:{}", "A".repeat(64));
    assert!(get(&nothing, &upper).await.body.contains("digest format"));
}

#[tokio::test]
async fn nothing_is_kept_without_the_flag() {
    let nothing = CacheDebug::default();
    assert_eq!(get_json(&nothing, "/debug/cache/all").await, Value::Null);
    assert_eq!(get_json(&nothing, "/debug/cache/store").await, json!([]));
    for path in ["/debug/cache/all", "/debug/cache/store"] {
        let told = get(&nothing, path).await;
        assert_eq!((told.status, &*told.body), (StatusCode::OK, ""));
    }
    // What everything is selected by is known all the same.
    let root = digest_of(b"/");
    let path = format!("/debug/cache/lookup?digest={root}");
    let told = get(&nothing, &path).await;
    assert_eq!(told.body, format!("{root} (string):\n  data: /\n"));
    let config = exported().to_string();
    let path = "/debug/cache/load";
    let told = ask(&nothing, Method::POST, path, "application/json", &config).await;
    let loaded: Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!(loaded.as_array().unwrap().len(), 3);
    assert_eq!(loaded[0]["digest"], name("1"));
}

async fn kept(dir: &std::path::Path) -> (CacheDebug, Arc<StoredPlaintexts>) {
    let kept = StoredPlaintexts::open(&dir.join("cache-debug.db")).await;
    let kept = Arc::new(kept.unwrap());
    let debug = CacheDebug {
        plaintexts: Some(kept.clone()),
        keys: Vec::new(),
    };
    (debug, kept)
}

#[tokio::test]
async fn what_is_kept_is_shown_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (debug, kept) = kept(dir.path()).await;
    let step = digest_noted(Some(&*kept), PlaintextKind::Json, b"{\"Type\":\"x\"}");
    let text = format!("{step}@0");
    let key = digest_noted(Some(&*kept), PlaintextKind::String, text.as_bytes());
    let path = format!("/debug/cache/lookup?digest={key}");
    let told = get(&debug, &path).await;
    let expected = format!(
        "{key} (string):\n  {step} (json):\n  data: {step}@0\n\n{step} (json):\n  data: \
         {{\"Type\":\"x\"}}\n"
    );
    assert_eq!((told.status, told.body), (StatusCode::OK, expected));
    let json = get_json(&debug, &path).await;
    assert_eq!(json["subRecords"][0]["digest"], step.as_ref());
    let all = get_json(&debug, "/debug/cache/all").await;
    let of = |digest: &Digest| {
        let mut all = all.as_array().unwrap().iter();
        all.find(|one| one["digest"] == digest.as_ref()).cloned()
    };
    assert_eq!(of(&key), Some(json));
    assert!(of(&step).is_some());
    let told = get(&debug, "/debug/cache/all").await;
    assert!(told.body.contains("{\"Type\":\"x\"}\n\n"), "{}", told.body);

    // A cache that was exported is explained by what is known here.
    let config = json!({ "records": [{ "digest": key.as_ref() }] }).to_string();
    let told = ask(&debug, Method::POST, "/debug/cache/load", "*/*", &config).await;
    assert!(
        told.body.starts_with(&format!(
            "ID: 1\nDigest: {key}\nPlaintexts:\n{key} (string):"
        )),
        "{}",
        told.body
    );
}

#[tokio::test]
async fn a_long_list_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (debug, kept) = kept(dir.path()).await;
    let long = vec![b'x'; 100_000];
    for number in 0..40_u32 {
        let text = [&number.to_be_bytes()[..], &long].concat();
        kept.note(
            &digest_of(&text),
            Plaintext::of(PlaintextKind::String, &text),
        );
    }
    let all = get_json(&debug, "/debug/cache/all").await;
    assert_eq!(all.as_array().unwrap().len(), 40);
}

#[tokio::test]
async fn it_is_served_on_a_port_and_on_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("debug.sock");
    let port = listen_debug("127.0.0.1:0").await.unwrap();
    let address = port.tcp_address().unwrap();
    let socket = listen_debug(&format!("unix://{}", path.display()))
        .await
        .unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(serve(port, CacheDebug::default()));
    serving.spawn(serve(socket, CacheDebug::default()));
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut unix = tokio::net::UnixStream::connect(&path).await.unwrap();
    // One after the other on one connection.
    for last in [false, true] {
        let close = if last { "Connection: close\r\n" } else { "" };
        let request = format!("GET /debug/cache/store HTTP/1.1\r\nHost: x\r\n{close}\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        unix.write_all(request.as_bytes()).await.unwrap();
    }
    let (mut one, mut other) = (String::new(), String::new());
    tcp.read_to_string(&mut one).await.unwrap();
    unix.read_to_string(&mut other).await.unwrap();
    for said in [one, other] {
        assert_eq!(said.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{said}");
    }
    serving.shutdown().await;
    assert!(!path.exists());
    for (address, reason) in [
        ("fd://x", "fd is not supported"),
        ("unix://", "unix is not supported"),
        ("tcp://127.0.0.1", "failed to listen on tcp://127.0.0.1"),
        ("nowhere", "failed to listen on nowhere"),
    ] {
        let error = listen_debug(address).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
