//! Registries that refuse, fail, lie and break off.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use cooper_content::{ContentStore, Fetch, MemoryContentStore, digest_of};
use cooper_registry::{
    Descriptor, HostConfig, MediaType, PushOptions, Pushed, Registry, RegistryError,
};
use cooper_session::Group;
use support::{Reply, Server, client, with_hosts};
use tokio::io::AsyncReadExt;

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

fn manifest() -> Descriptor {
    Descriptor::new(
        MediaType::ImageManifest,
        MANIFEST.len() as u64,
        digest_of(MANIFEST),
    )
}

fn good() -> Reply {
    Reply::new(200)
        .header("content-type", OCI)
        .header("docker-content-digest", digest_of(MANIFEST).as_ref())
        .body(MANIFEST)
}

async fn resolve(server: &Server) -> Result<Descriptor, RegistryError> {
    client().resolve(&server.image("x"), &Group::none()).await
}

/// The message as a client shows it.
async fn refusal(server: &Server) -> String {
    resolve(server).await.unwrap_err().chain()
}

#[tokio::test]
async fn a_name_is_resolved_by_headers_or_by_the_bytes() {
    let whole = Server::start(|_, _| good()).await;
    assert_eq!(resolve(&whole).await.unwrap(), manifest());
    assert_eq!(whole.lines(), ["HEAD /v2/x/manifests/latest"]);
    assert!(
        whole.requests()[0]
            .header("accept")
            .contains("manifest.list.v2+json")
    );
    let bare = Server::start(|_, _| {
        Reply::new(200)
            .header(
                "content-type",
                "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
            )
            .body(MANIFEST)
    })
    .await;
    assert_eq!(resolve(&bare).await.unwrap(), manifest());
    assert_eq!(bare.lines()[1], "GET /v2/x/manifests/latest");
    let no_head = Server::start(|_, request| match request.method.as_str() {
        "HEAD" => Reply::new(405),
        _ => good(),
    })
    .await;
    assert_eq!(resolve(&no_head).await.unwrap(), manifest());
}

#[tokio::test]
async fn refusals_are_told_in_words_that_users_know() {
    let table = [
        (404, "{host}/x:latest: not found"),
        (
            500,
            "unexpected status from HEAD request to http://{host}/v2/x/manifests/latest: \
             500 Internal Server Error",
        ),
        (
            401,
            "unexpected status from HEAD request to http://{host}/v2/x/manifests/latest: \
             401 Unauthorized",
        ),
        (
            403,
            "unexpected status from HEAD request to http://{host}/v2/x/manifests/latest: \
             403 Forbidden",
        ),
    ];
    for (status, text) in table {
        let server = Server::start(move |_, _| Reply::new(status)).await;
        assert_eq!(refusal(&server).await, text.replace("{host}", &server.host));
        let tries = if status == 500 { 4 } else { 1 };
        assert_eq!(server.requests().len(), tries, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let reference = format!("{host}/x").parse().unwrap();
    let error = client()
        .resolve(&reference, &Group::none())
        .await
        .unwrap_err();
    let text = error.chain();
    let begin = format!("failed to do request: Head \"http://{host}/v2/x/manifests/latest\": ");
    assert!(text.starts_with(&begin), "{text}");
    assert!(text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let server = Server::start(|number, _| match number {
        0 => Reply::new(503),
        1 => Reply::new(429).header("retry-after", "0"),
        _ => good(),
    })
    .await;
    assert_eq!(resolve(&server).await.unwrap(), manifest());
}

#[tokio::test]
async fn mirrors_are_asked_first_with_their_path_and_what_they_mirror() {
    let broken = Server::start(|_, _| Reply::new(500)).await;
    let mirror = Server::start(|_, _| good()).await;
    let origin = Server::start(|_, _| good()).await;
    let hosts = BTreeMap::from([(
        "docker.io".to_owned(),
        HostConfig {
            mirrors: vec![broken.host.clone(), format!("http://{}/hub/", mirror.host)],
            ..HostConfig::default()
        },
    )]);
    let registry = with_hosts(hosts);
    let reference = "alpine".parse().unwrap();
    let found = registry.resolve(&reference, &Group::none()).await.unwrap();
    assert_eq!(found, manifest());
    assert_eq!(
        broken.lines(),
        ["HEAD /v2/library/alpine/manifests/latest?ns=docker.io"],
        "once: another one can be asked"
    );
    assert_eq!(
        mirror.lines(),
        ["HEAD /v2/hub/library/alpine/manifests/latest?ns=docker.io"]
    );
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test]
async fn the_error_of_the_one_that_came_furthest_is_told() {
    let failing = Server::start(|_, _| Reply::new(500)).await;
    let missing = Server::start(|_, _| Reply::new(404)).await;
    let config = |mirror: &Server| HostConfig {
        mirrors: vec![mirror.host.clone()],
        ..HostConfig::default()
    };
    for (mirror, origin) in [(&failing, &missing), (&missing, &failing)] {
        let registry = with_hosts(BTreeMap::from([(origin.host.clone(), config(mirror))]));
        let error = registry.resolve(&origin.image("x"), &Group::none()).await;
        let text = error.unwrap_err().chain();
        assert!(text.contains("500 Internal Server Error"), "{text}");
    }
}

#[tokio::test]
async fn a_manifest_is_what_its_digest_says_or_refused() {
    let server = Server::start(|_, request| match request.target.as_str() {
        target if target.contains("lying") => Reply::new(200).body("other"),
        target if target.contains("missing") => Reply::new(404),
        target if target.contains("blob/") && target.contains("manifests") => Reply::new(404),
        _ => Reply::new(200).body(MANIFEST),
    })
    .await;
    let none = Group::none();
    let registry = client();
    let bytes = registry
        .manifest(&server.image("good"), &manifest(), &none)
        .await
        .unwrap();
    assert_eq!(&bytes[..], MANIFEST);
    registry
        .manifest(&server.image("blob"), &manifest(), &none)
        .await
        .unwrap();
    let error = registry
        .manifest(&server.image("lying"), &manifest(), &none)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::WrongDigest { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    let (found, expected) = (digest_of(b"other"), digest_of(MANIFEST));
    assert!(
        text.contains(&format!(
            "unexpected commit digest {found}, expected {expected}"
        )),
        "{text}"
    );
    let error = registry
        .manifest(&server.image("missing"), &manifest(), &none)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("could not fetch content descriptor {expected} ({OCI}) from remote: not found")
    );
    let huge = Descriptor::new(MediaType::ImageManifest, 9 << 20, expected);
    let error = registry
        .manifest(&server.image("good"), &huge, &none)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}");
}

fn blob() -> (Vec<u8>, Descriptor) {
    let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let digest = digest_of(&bytes);
    let descriptor = Descriptor::new(MediaType::ImageLayerGzip, bytes.len() as u64, digest);
    (bytes, descriptor)
}

async fn download(registry: &Registry, server: &Server, offset: u64) -> Result<Vec<u8>, String> {
    let fetcher = registry.fetcher(&server.image("x"), &Group::none());
    let reader = fetcher.fetch(&blob().1, offset).await;
    let mut reader = reader.map_err(|error| format!("{error:?}"))?;
    let mut bytes = Vec::new();
    let read = reader.read_to_end(&mut bytes).await;
    read.map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn from(request: &support::Request) -> usize {
    let range = request.header("range");
    let begin = range
        .strip_prefix("bytes=")
        .and_then(|range| range.strip_suffix('-'));
    begin.map_or(0, |begin| begin.parse().unwrap())
}

#[tokio::test]
async fn a_download_goes_on_where_the_connection_broke() {
    let server = Server::start(|_, request| {
        let (bytes, begin) = (blob().0, from(request));
        let rest = bytes[begin..].to_vec();
        let reply = if begin == 0 {
            Reply::new(200)
        } else {
            Reply::new(206)
        };
        reply
            .header("content-range", &format!("bytes {begin}-99999/100000"))
            .body(rest)
            .cut(30_000)
    })
    .await;
    assert!(download(&client(), &server, 0).await.unwrap() == blob().0);
    let offsets: Vec<_> = server.requests().iter().map(from).collect();
    assert_eq!(offsets, [0, 30_000, 60_000, 90_000]);
    assert!(download(&client(), &server, 95_000).await.unwrap() == blob().0[95_000..]);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_begin() {
    let server = Server::start(|number, _| {
        let reply = Reply::new(200).body(blob().0);
        if number == 0 {
            reply.cut(40_000)
        } else {
            reply
        }
    })
    .await;
    assert!(download(&client(), &server, 0).await.unwrap() == blob().0);
    assert!(download(&client(), &server, 77_777).await.unwrap() == blob().0[77_777..]);
}

#[tokio::test]
async fn what_stays_short_or_long_is_an_error() {
    let short = Server::start(|_, request| match from(request) {
        0 => Reply::new(200).body(&blob().0[..50]),
        _ => Reply::new(206).header("content-range", "bytes 50-50/100000"),
    })
    .await;
    let error = download(&client(), &short, 0).await.unwrap_err();
    assert!(
        error.contains("got 50 bytes, expected 100000: unexpected EOF"),
        "{error}"
    );
    assert_eq!(short.requests().len(), 4, "bounded");
    let long = Server::start(|_, _| Reply::new(200).body([&blob().0[..], b"more"].concat())).await;
    let error = download(&client(), &long, 0).await.unwrap_err();
    assert!(error.contains("more than 100000 bytes"), "{error}");
    let odd = Server::start(|_, _| Reply::new(206).header("content-range", "bytes 0-9/10")).await;
    let error = download(&client(), &odd, 5).await.unwrap_err();
    assert!(error.contains("unhandled content range"), "{error}");
    let missing = Server::start(|_, _| Reply::new(404)).await;
    let error = download(&client(), &missing, 0).await.unwrap_err();
    assert!(error.contains("ContentNotFound"), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_a_bounded_number_of_times() {
    let storage = Server::start(|_, _| Reply::new(200).body(blob().0)).await;
    let target = format!("http://{}/data?signature=secret", storage.host);
    let server = Server::start(move |_, _| Reply::new(307).header("location", &target)).await;
    assert!(download(&client(), &server, 0).await.unwrap() == blob().0);
    assert_eq!(storage.lines(), ["GET /data?signature=secret"]);
    let circle = Server::start(|_, _| Reply::new(302).header("location", "/again")).await;
    let error = download(&client(), &circle, 0).await.unwrap_err();
    assert!(error.contains("stopped after 10 redirects"), "{error}");
    assert_eq!(circle.requests().len(), 11);
    let refusing = Server::start(|_, _| Reply::new(403)).await;
    let target = format!("http://user:pass@{}/data?signature=secret", refusing.host);
    let server = Server::start(move |_, _| Reply::new(307).header("location", &target)).await;
    let error = download(&client(), &server, 0).await.unwrap_err();
    assert!(
        error.contains("403") && !error.contains("secret") && !error.contains("pass"),
        "{error}"
    );
}

#[tokio::test]
async fn an_upload_that_fails_is_begun_anew() {
    let (bytes, descriptor) = blob();
    let server = Server::start(|number, request| match request.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => Reply::new(202).header("location", &format!("/upload/{number}?_state=secret")),
        _ if number < 4 => Reply::new(500),
        _ => Reply::new(201),
    })
    .await;
    let content = MemoryContentStore::default();
    content.write_all(&bytes).await.unwrap();
    let pushed = client()
        .push_blob(
            &server.image("x"),
            &descriptor,
            &content,
            &Group::none(),
            &PushOptions::default(),
        )
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Sent);
    let digest = descriptor.digest().to_string().replace(':', "%3A");
    assert_eq!(
        server.lines(),
        [
            format!("HEAD /v2/x/blobs/{}", descriptor.digest()),
            "POST /v2/x/blobs/uploads/".to_owned(),
            format!("PUT /upload/1?_state=secret&digest={digest}"),
            "POST /v2/x/blobs/uploads/".to_owned(),
            format!("PUT /upload/3?_state=secret&digest={digest}"),
        ]
    );
    assert!(server.requests()[4].body == bytes);
}

#[tokio::test]
async fn a_push_that_is_refused_says_why() {
    let (bytes, descriptor) = blob();
    let server = Server::start(|_, request| match request.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => Reply::new(202).header("location", "/upload?token=secret"),
        _ => Reply::new(400).body(
            r#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}"#,
        ),
    })
    .await;
    let content = MemoryContentStore::default();
    content.write_all(&bytes).await.unwrap();
    let (image, none) = (server.image("x"), Group::none());
    let options = PushOptions::default();
    let error = client()
        .push_blob(&image, &descriptor, &content, &none, &options)
        .await;
    assert_eq!(
        error.unwrap_err().chain(),
        format!(
            "unexpected status from PUT request to http://{}/upload: 400 Bad Request: \
             digest invalid: provided digest did not match",
            server.host
        )
    );
    let lying = Server::start(|_, request| match request.method.as_str() {
        "HEAD" => Reply::new(404),
        _ => Reply::new(201).header("docker-content-digest", digest_of(b"other").as_ref()),
    })
    .await;
    let bytes = Bytes::from_static(MANIFEST);
    let kind = MediaType::ImageManifest;
    let error = client()
        .push_manifest(&lying.image("x"), bytes, &kind, &none)
        .await;
    assert!(
        matches!(error, Err(RegistryError::WrongDigest { .. })),
        "{error:?}"
    );
}
