use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use cooper_content::{Frame, digest_of};

use super::*;
use crate::testing::{Answer, Place, Server, nobody, place, read};

const TIME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn open(place: &Place, server: &Server, attrs: &[(&str, &str)]) -> Arc<dyn Instance> {
    let source = HttpSource::new(place.cache.clone()).unwrap();
    let attrs: BTreeMap<_, _> = attrs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let id = Identifier::parse(
        &format!("http://{}/dir/file.txt", server.host),
        attrs,
        Default::default(),
    );
    source.open(id.unwrap()).unwrap()
}

fn answer(body: &str, tag: &str) -> Answer {
    Answer::ok(body)
        .with("ETag", tag)
        .with("Last-Modified", TIME)
}

#[tokio::test]
async fn a_download_is_kept_until_the_server_has_another() {
    let (place, server) = (place().await, Server::start().await);
    server.put("/dir/file.txt", answer("one", "\"1\""));
    let first = open(&place, &server, &[]);
    let key = first.cache_key(&nobody(), 0).await.unwrap();
    assert!(key.last);
    assert_eq!(key.pin, digest_of(b"one").to_string());
    let output = first.snapshot(&nobody()).await.unwrap().unwrap();
    let local = output.local().unwrap();
    assert_eq!(read(&local, "file.txt").await, "one");
    let stat = {
        let mounted = local.mount().await.unwrap();
        mounted.path().join("file.txt").metadata().unwrap()
    };
    assert_eq!((stat.mode() & 0o777, stat.mtime()), (0o600, 784_111_777));
    assert_eq!(server.requests(), ["GET /dir/file.txt"]);

    let again = open(&place, &server, &[]);
    assert_eq!(again.cache_key(&nobody(), 0).await.unwrap(), key);
    let same = again.snapshot(&nobody()).await.unwrap().unwrap();
    assert_eq!(same, output);
    assert_eq!(server.requests(), ["HEAD /dir/file.txt"]);

    server.put("/dir/file.txt", answer("two", "\"2\""));
    let changed = open(&place, &server, &[]);
    let other = changed.cache_key(&nobody(), 0).await.unwrap();
    assert_ne!(other.key, key.key);
    assert_eq!(
        server.requests(),
        ["HEAD /dir/file.txt", "GET /dir/file.txt"]
    );
    place.cache.close().await;
}

#[tokio::test]
async fn a_known_checksum_needs_no_server_and_is_held_against_what_comes() {
    let (place, server) = (place().await, Server::start().await);
    server.put("/dir/file.txt", Answer::ok("one"));
    let right = digest_of(b"one").to_string();
    let pinned = open(
        &place,
        &server,
        &[
            (CHECKSUM, &right),
            (FILENAME, "name"),
            (PERM, "0755"),
            (UID, "3"),
        ],
    );
    pinned.cache_key(&nobody(), 0).await.unwrap();
    assert!(server.requests().is_empty());
    let local = pinned.snapshot(&nobody()).await.unwrap().unwrap();
    let mounted = local.local().unwrap().mount().await.unwrap();
    let stat = mounted.path().join("name").metadata().unwrap();
    assert_eq!(
        (stat.mode() & 0o777, stat.uid(), stat.mtime()),
        (0o755, 3, 0)
    );
    let wrong = digest_of(b"two").to_string();
    let pinned = open(&place, &server, &[(CHECKSUM, &wrong)]);
    let error = pinned.snapshot(&nobody()).await.unwrap_err().to_string();
    assert!(error.starts_with("digest mismatch for http://"), "{error}");
    place.cache.close().await;
}

#[tokio::test]
async fn what_the_server_refuses_is_told() {
    let (place, server) = (place().await, Server::start().await);
    let missing = open(&place, &server, &[]);
    let error = missing.cache_key(&nobody(), 0).await.unwrap_err();
    assert_eq!(error.to_string(), "invalid response status 404");
    let secret = open(&place, &server, &[(AUTH_SECRET, "mine")]);
    let error = secret.cache_key(&nobody(), 0).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to retrieve HTTP auth secret mine: not found"
    );
    place.cache.close().await;
}

#[test]
fn keys_are_written_as_go_does() {
    let header = [Header("Accept", "a/b".into())];
    let text = Object::write(|object| object.field("Header", &header[..]));
    assert_eq!(text, r#"{"Header":[{"Name":"Accept","Value":"a/b"}]}"#);
    for (text, expected) in [
        ("0644", Some(0o644)),
        ("420", Some(420)),
        ("0x1f", Some(31)),
        ("0", Some(0)),
        ("x", None),
    ] {
        assert_eq!(parse_number(text), expected, "{text}");
    }
}

#[tokio::test]
async fn what_is_known_of_a_download() {
    let (place, server) = (place().await, Server::start().await);
    server.put("/dir/file.txt", answer("one", "\"1\""));
    let known = async |algorithm: Option<ChecksumAlgorithm>| {
        let request = MetadataRequest {
            checksum: algorithm.map(|algorithm| ChecksumRequest {
                algorithm,
                suffix: b"+more".to_vec(),
            }),
            ..MetadataRequest::default()
        };
        let instance = open(&place, &server, &[]);
        match instance.metadata(&nobody(), &request).await.unwrap() {
            Some(Metadata::Http(found)) => found,
            other => panic!("{other:?}"),
        }
    };
    let found = known(None).await;
    assert_eq!(found.checksum, digest_of(b"one"));
    assert_eq!(found.filename, "file.txt");
    let since = found.last_modified.unwrap();
    let since = since.duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(since.as_secs(), 784_111_777);
    assert_eq!(found.requested, None);
    let own = |text: &str| Some(text.to_owned());
    let sha256 = known(Some(ChecksumAlgorithm::Sha256)).await;
    assert_eq!(sha256.requested, own(digest_of(b"one+more").as_ref()));
    let sha512 = format!("sha512:{}", hex::encode(sha2::Sha512::digest(b"one+more")));
    let found = known(Some(ChecksumAlgorithm::Sha512)).await;
    assert_eq!(found.requested, own(&sha512));
}

#[tokio::test]
async fn one_build_sees_one_download() {
    let (place, server) = (place().await, Server::start().await);
    server.put("/dir/file.txt", answer("one", "\"1\""));
    let build = SourceContext {
        memories: vec![crate::Memory::default()],
        ..nobody()
    };
    let asked = open(&place, &server, &[]);
    let request = MetadataRequest::default();
    asked.metadata(&build, &request).await.unwrap();
    drop(asked);
    server.put("/dir/file.txt", answer("two", "\"2\""));
    let one = open(&place, &server, &[]).snapshot(&build).await;
    let one = one.unwrap().unwrap().local().unwrap();
    assert_eq!(read(&one, "file.txt").await, "one");
    let wanted = digest_of(b"two").to_string();
    let two = open(&place, &server, &[(CHECKSUM, &wanted)]);
    let two = two.snapshot(&build).await.unwrap().unwrap();
    assert_eq!(read(&two.local().unwrap(), "file.txt").await, "two");
    let other = open(&place, &server, &[]).cache_key(&nobody(), 0).await;
    assert_eq!(other.unwrap().pin, wanted);
    place.cache.close().await;
}

#[tokio::test]
async fn what_its_key_is_made_of_is_told_without_headers() {
    #[derive(Default)]
    struct Told(std::sync::Mutex<Vec<(Digest, Plaintext)>>);
    impl cooper_content::Plaintexts for Told {
        fn note(&self, digest: &Digest, plaintext: Plaintext) {
            self.0.lock().unwrap().push((digest.clone(), plaintext));
        }
    }
    let (place, server) = (place().await, Server::start().await);
    let told = Arc::new(Told::default());
    place.cache.tell_plaintexts(told.clone());
    server.put("/dir/file.txt", answer("one", "\"1\""));
    let mut keys = Vec::new();
    for attrs in [&[][..], &[("http.header.user-agent", "sesame")]] {
        let download = open(&place, &server, attrs);
        keys.push(download.cache_key(&nobody(), 0).await.unwrap().key);
    }
    let told = told.0.lock().unwrap();
    let [(plain, without), (guarded, with)] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!([plain.to_string(), guarded.to_string()], keys[..]);
    let [Frame::Data(text)] = without.frames() else {
        panic!("{without:?}");
    };
    assert_eq!(digest_of(text), *plain);
    let [Frame::Data(begin), Frame::Skip(rest)] = with.frames() else {
        panic!("{with:?}");
    };
    let header = r#","Header":[{"Name":"User-Agent","Value":"sesame"}]}"#;
    assert_eq!(*begin, text[..text.len() - 1]);
    assert_eq!(*rest, header.len() as u64);
}
