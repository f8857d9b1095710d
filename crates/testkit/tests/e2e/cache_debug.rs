//! What the daemon shows to people who look into its cache.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cooper_testkit::{Client, Context, Daemon, Registry, leak, push_busybox};
use serde_json::{Value, json};

const SECRET: &str = "sesame-open-up";
const CONTENT: &str = "what-a-file-says";

/// Asks as a program without a library does. The answer's status and body.
fn ask(
    mut io: impl Read + Write,
    method: &str,
    path: &str,
    json: bool,
    body: &str,
) -> (u16, Vec<u8>) {
    let accept = if json { "application/json" } else { "*/*" };
    let length = body.len();
    write!(
        io,
        "{method} {path} HTTP/1.0\r\nAccept: {accept}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut said = Vec::new();
    io.read_to_end(&mut said).unwrap();
    let end = said.windows(4).position(|part| part == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&said)));
    let head = String::from_utf8_lossy(&said[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{head}"));
    (status, said.split_off(end + 4))
}

/// The debug handlers of a daemon.
struct Debug(String);

impl Debug {
    /// Where the daemon says that they are.
    fn of(daemon: &Daemon) -> Self {
        let log = daemon.log();
        let (_, rest) = log.split_once("debug handlers listening at ").expect(&log);
        let end = rest.find(['\n', '"', '\x1b']).unwrap_or(rest.len());
        Self(rest[..end].trim().to_owned())
    }

    fn ask(&self, method: &str, path: &str, json: bool, body: &str) -> (u16, Vec<u8>) {
        match self.0.starts_with('/') {
            true => ask(
                UnixStream::connect(&self.0).unwrap(),
                method,
                path,
                json,
                body,
            ),
            false => ask(
                TcpStream::connect(&self.0).unwrap(),
                method,
                path,
                json,
                body,
            ),
        }
    }

    fn text(&self, path: &str) -> String {
        let (status, body) = self.ask("GET", path, false, "");
        let body = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, true, "");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    fn lookup(&self, digest: &Value) -> Value {
        let digest = digest.as_str().unwrap();
        self.json(&format!("/debug/cache/lookup?digest={digest}"))
    }
}

/// The bytes of a record that are kept.
fn plaintext(record: &Value) -> String {
    let frames = record["data"].as_array().into_iter().flatten();
    let data = frames.filter(|frame| frame["type"] == 2);
    let data = data.map(|frame| STANDARD.decode(frame["data"].as_str().unwrap()).unwrap());
    String::from_utf8_lossy(&data.collect::<Vec<_>>().concat()).into_owned()
}

fn list(all: &Value) -> &[Value] {
    all.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The records of one kind whose text has `part` in it.
fn with<'a>(all: &'a [Value], kind: &str, part: &str) -> Vec<&'a Value> {
    let all = all.iter().filter(|record| record["type"] == kind);
    all.filter(|record| plaintext(record).contains(part))
        .collect()
}

/// Whether the files of the database have `text` in them, or its base64 in some place.
fn is_in(root: &Path, text: &str) -> bool {
    let mut found = false;
    for name in ["cache-debug.db", "cache-debug.db-wal"] {
        let bytes = std::fs::read(root.join(name)).unwrap_or_default();
        let has = |part: &str| {
            bytes
                .windows(part.len())
                .any(|bytes| bytes == part.as_bytes())
        };
        found |= has(text);
        // What stands at any of three places of base64.
        found |= (0..3).any(|shift| {
            let encoded = STANDARD.encode(format!("{}{text}", "x".repeat(shift)));
            let inner = encoded.trim_end_matches('=');
            has(&inner[4..inner.len() - 4])
        });
    }
    found
}

#[test]
fn sol22_what_cache_keys_are_made_of_is_kept_and_shown() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::with_options("", &["--save-cache-debug", "--debugaddr=127.0.0.1:0"]);
    let debug = Debug::of(&daemon);
    let dockerfile = format!(
        "FROM {base}\n\
         COPY dir /dir\n\
         RUN --mount=type=secret,id=word,target=/word test -s /word && echo cooper-was-here > /id\n"
    );
    let context = Context::new()
        .file("Dockerfile", dockerfile)
        .file("dir/greeting", CONTENT)
        .file("word", SECRET);
    let secret = format!(
        "--secret=id=word,src={}",
        context.path().join("word").display()
    );
    let client = Client::buildx(&daemon);
    let options = ["--output=type=cacheonly", &secret];
    client.build(&context, &options).success();

    // What every digest was computed from.
    let all = debug.json("/debug/cache/all");
    let all = list(&all);
    let steps = with(all, "json", "cooper-was-here");
    let [step] = steps[..] else {
        panic!("{steps:?}")
    };
    let copies = with(all, "json", "buildkit.file.v0");
    let [copy] = copies[..] else {
        panic!("{copies:?}")
    };
    let files = with(all, "file", "size16typeflag0");
    let file = files.first().expect("the file that is copied");
    // Its content is only counted.
    let skipped = json!({ "type": 3, "data": STANDARD.encode(16_u32.to_be_bytes()) });
    assert_eq!(list(&file["data"]).last(), Some(&skipped));
    let lists = with(all, "file-list", "greetingsha256:");
    let folder = lists.first().expect("the folder that is copied");
    assert!(
        list(&folder["subRecords"])
            .iter()
            .any(|part| part["digest"] == file["digest"]),
        "{folder}"
    );
    // From the key of content down to the folder.
    let keys = with(all, "string", "@-1");
    let content = keys.iter().flat_map(|key| list(&key["subRecords"]));
    let content = content.filter(|record| record["type"] == "digest-list");
    let folders: Vec<String> = content.map(plaintext).collect();
    assert!(
        folders.contains(&folder["digest"].as_str().unwrap().to_owned()),
        "{folders:?}"
    );

    // One of them, in both forms.
    assert_eq!(&debug.lookup(&step["digest"]), step);
    let digest = step["digest"].as_str().unwrap();
    let text = debug.text(&format!("/debug/cache/lookup?digest={digest}"));
    assert!(
        text.starts_with(&format!("{digest} (json):\n  data: {{")),
        "{text}"
    );
    assert!(debug.text("/debug/cache/all").contains(digest));

    // The keys lead from the image and from the context to the step.
    let store = debug.json("/debug/cache/store");
    let store = list(&store);
    let by_id = |id: &Value| store.iter().find(|key| key["id"] == *id).unwrap();
    let led = |digest: &Value| -> Vec<&Value> {
        let is_led = |key: &&Value| {
            let parents = list(&key["parents"]).iter();
            parents.clone().any(|parent| parent["digest"] == *digest)
        };
        store.iter().filter(is_led).collect()
    };
    let copied = led(&copy["digest"]);
    let key = copied.first().expect("the key of the copy");
    let selected = list(&key["parents"]).iter();
    let mut selected = selected.filter_map(|parent| parent.get("selector"));
    let selector = selected
        .next()
        .expect("a copy looks at a part of the context");
    assert_eq!(plaintext(&debug.lookup(selector)), "/dir");
    assert!(
        list(&key["debug"])
            .iter()
            .any(|record| record["digest"] == copy["digest"])
    );
    let stepped = led(&step["digest"]);
    let parent = by_id(&list(&stepped[0]["parents"])[0]["target"]);
    assert!(
        copied.iter().any(|key| key["id"] == parent["id"]),
        "{parent}"
    );
    let child = stepped[0]["id"].to_string();
    assert!(
        parent["children"]["0"]
            .get(child.trim_matches('"'))
            .is_some(),
        "{parent}"
    );
    let random = store.iter().filter(|key| key["random"] == true);
    let sources: Vec<String> = random
        .flat_map(|key| list(&key["debug"]))
        .map(plaintext)
        .collect();
    assert!(
        sources
            .iter()
            .any(|text| text.contains("buildkit.source.v0:session:")),
        "{sources:?}"
    );
    let text = debug.text("/debug/cache/store");
    assert!(
        text.starts_with("ID: 1") && text.contains("\nPlaintexts:\n"),
        "{text}"
    );

    // An exported cache is explained by the same.
    let root = step["digest"].as_str().unwrap();
    let roots = with(all, "string", &format!("{root}@0"));
    let config = json!({ "records": [
        { "digest": roots[0]["digest"], "inputs": [[{ "link": 1 }]] },
        { "digest": copy["digest"] },
    ] });
    let (status, body) = debug.ask("POST", "/debug/cache/load", true, &config.to_string());
    let loaded: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, list(&loaded).len()), (200, 2));
    let explained = list(&loaded[1]["debug"]);
    assert_eq!(
        list(&explained[0]["subRecords"])[0]["digest"],
        step["digest"]
    );

    // Neither secrets nor what files say are in it.
    let root = daemon.root();
    assert!(is_in(&root, "cooper-was-here"));
    for text in [SECRET, CONTENT] {
        assert!(!is_in(&root, text), "{text}");
    }
    drop((client, daemon, registry, context));
    watch.check();
}

#[test]
fn sol22_it_outlives_the_daemon_and_is_asked_for() {
    let watch = leak::Watch::begin();
    let sockets = crate::Out::new();
    let socket = format!(
        "--debugaddr=unix://{}",
        sockets.path("debug.sock").display()
    );
    let mut daemon = Daemon::with_options("", &["--save-cache-debug=true", &socket]);
    let debug = Debug::of(&daemon);
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY file /\n")
        .file("file", CONTENT);
    let options = ["--output=type=cacheonly"];
    Client::cooper(&daemon).build(&context, &options).success();
    let all = debug.json("/debug/cache/all");
    assert!(!with(list(&all), "json", "buildkit.file.v0").is_empty());
    for (method, path, status) in [
        ("GET", "/debug/cache/lookup", 400),
        ("GET", "/debug/cache/lookup?digest=sha256:0", 400),
        ("GET", "/debug/cache/load", 405),
        ("POST", "/debug/cache/load", 500),
        ("DELETE", "/debug/cache/store", 405),
        ("GET", "/debug/pprof/", 404),
    ] {
        assert_eq!(
            debug.ask(method, path, false, "").0,
            status,
            "{method} {path}"
        );
    }
    daemon.stop();
    daemon.spawn();
    assert_eq!(debug.json("/debug/cache/all"), all);
    drop(daemon);

    // Without the flags nothing is kept, and nobody listens.
    let daemon = Daemon::start();
    Client::cooper(&daemon).build(&context, &options).success();
    assert!(!daemon.root().join("cache-debug.db").exists());
    assert!(!daemon.log().contains("debug handlers"), "{}", daemon.log());
    drop((daemon, sockets, context));
    watch.check();
}
