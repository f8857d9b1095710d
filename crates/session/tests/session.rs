//! Both ends of a session against each other, over one stream of bytes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cooper_session::auth::Credentials;
use cooper_session::filesync::{self, SyncRequest};
use cooper_session::serve::{self, AuthProvider, Output, SecretProvider, Services, SshAgent};
use cooper_session::{
    Group, Manager, Session, SessionError, SessionMeta, Tree, auth, secrets, ssh, upload,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(5);

/// Runs `ask` with a session of a client that offers `services`.
async fn with<T, F>(services: Services, ask: impl FnOnce(Session) -> F) -> T
where
    F: Future<Output = T>,
{
    let manager = Manager::new();
    let (near, far) = tokio::io::duplex(64 << 10);
    let meta = SessionMeta {
        id: "the-id".into(),
        methods: services.methods(),
        ..SessionMeta::default()
    };
    let shutdown = CancellationToken::new();
    let client = serve::run(far, &services, shutdown.clone());
    let asking = async {
        let session = manager.get("the-id", WAIT).await.unwrap();
        let answer = ask(session).await;
        shutdown.cancel();
        answer
    };
    let (served, offered, answer) = tokio::join!(manager.serve(near, meta), client, asking);
    served.unwrap();
    offered.unwrap();
    assert!(manager.is_empty(), "a closed session is forgotten");
    answer
}

fn request(name: &str) -> SyncRequest {
    SyncRequest {
        name: name.into(),
        ..SyncRequest::default()
    }
}

#[tokio::test]
async fn directories_are_synced_by_name_with_patterns() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = from.path();
    std::fs::create_dir(dir.join("src")).unwrap();
    for file in ["Dockerfile", "src/main.go", "src/é.md", "notes.md"] {
        std::fs::write(dir.join(file), file).unwrap();
    }
    std::os::unix::fs::symlink("src/main.go", dir.join("entry")).unwrap();
    std::os::unix::fs::chown(dir.join("Dockerfile"), Some(7), Some(7)).unwrap();
    let mut services = Services::default();
    services
        .dirs
        .insert("context".into(), Tree::new(dir).owned_by_root());
    with(services, async |session| {
        let request = SyncRequest {
            follow: vec!["entry".into(), "Dockerfile".into()],
            ..request("context")
        };
        filesync::receive(&session, &request, to.path(), Arc::new(()))
            .await
            .unwrap();
        let list = || {
            let entries = walk(to.path());
            entries.join(" ")
        };
        assert_eq!(list(), "Dockerfile entry src src/main.go");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            std::fs::metadata(to.path().join("Dockerfile"))
                .unwrap()
                .uid(),
            0
        );
        let request = SyncRequest {
            exclude: vec!["**/*.md".into(), "!src/é.md".into()],
            ..request_for_context()
        };
        filesync::receive(&session, &request, to.path(), Arc::new(()))
            .await
            .unwrap();
        assert_eq!(list(), "Dockerfile entry src src/main.go src/é.md");
        let missing = request_named("other");
        let error = filesync::receive(&session, &missing, to.path(), Arc::new(())).await;
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), "no access allowed to dir \"other\"");
        assert!(error.is_not_found());
    })
    .await;
}

fn request_for_context() -> SyncRequest {
    request("context")
}

fn request_named(name: &str) -> SyncRequest {
    request(name)
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                open.push(path.clone());
            }
            found.push(path.strip_prefix(dir).unwrap().display().to_string());
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_client_that_offers_nothing_is_told_apart() {
    with(Services::default(), async |session| {
        let to = tempfile::tempdir().unwrap();
        let error = filesync::receive(&session, &request("x"), to.path(), Arc::new(())).await;
        assert!(matches!(error, Err(SessionError::NoLocalSources)));
        let error = filesync::send_dir(&session, 0, vec![], false, Arc::new(())).await;
        assert!(error.unwrap_err().is_unimplemented());
        assert_eq!(auth::credentials(&session, "x").await.unwrap(), None);
        assert_eq!(secrets::get(&session, "x").await.unwrap(), None);
        assert!(ssh::forward(&session, "x").is_err());
    })
    .await;
}

#[tokio::test]
async fn results_go_where_the_exporter_s_number_says() {
    let out = tempfile::tempdir().unwrap();
    let from = tempfile::tempdir().unwrap();
    std::fs::create_dir(from.path().join("bin")).unwrap();
    std::fs::write(from.path().join("bin/app"), "app").unwrap();
    let (writer, mut reader) = tokio::io::duplex(1 << 20);
    let services = Services {
        outputs: BTreeMap::from([
            (0, Output::Dir(out.path().join("dir"))),
            (1, Output::File(out.path().join("new/image.tar"))),
            (2, Output::stream(writer)),
        ]),
        ..Services::default()
    };
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 3) as u8).collect();
    with(services, async |session| {
        let trees = vec![Tree::new(from.path())];
        filesync::send_dir(&session, 0, trees, false, Arc::new(()))
            .await
            .unwrap();
        let app = std::fs::read_to_string(out.path().join("dir/bin/app"));
        assert_eq!(app.unwrap(), "app");

        let md = BTreeMap::from([("containerimage.digest".to_owned(), "sha256:x".to_owned())]);
        filesync::send_stream(&session, 1, &md, &bytes[..])
            .await
            .unwrap();
        let file = std::fs::read(out.path().join("new/image.tar")).unwrap();
        assert!(file == bytes);
        assert_eq!(walk(&out.path().join("new")), ["image.tar"]);

        filesync::send_stream(&session, 2, &md, &b"some bytes"[..])
            .await
            .unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "some bytes");
        let again = filesync::send_stream(&session, 2, &md, &b"more"[..]).await;
        assert_eq!(again.unwrap_err().to_string(), "target already exists");
        let none = filesync::send_stream(&session, 9, &md, &b"more"[..]).await;
        assert_eq!(none.unwrap_err().to_string(), "exporter 9 not found");

        // A stream that breaks off leaves no file.
        let broken = broken_reader();
        let error = filesync::send_stream(&session, 1, &md, broken).await;
        assert!(error.is_err());
    })
    .await;
    assert_eq!(walk(&out.path().join("new")), ["image.tar"]);
    assert!(std::fs::read(out.path().join("new/image.tar")).unwrap() == bytes);
}

/// Gives some bytes and then an error.
fn broken_reader() -> impl tokio::io::AsyncRead + Send {
    let pieces = [
        Ok(bytes::Bytes::from_static(b"some")),
        Err(io::Error::other("broken")),
    ];
    tokio_util::io::StreamReader::new(futures::stream::iter(pieces))
}

struct Given;

#[async_trait]
impl AuthProvider for Given {
    async fn credentials(&self, host: &str) -> io::Result<Credentials> {
        match host {
            "broken" => Err(io::Error::other("the helper failed")),
            "known" => Ok(Credentials {
                username: "me".into(),
                secret: "pass".into(),
            }),
            _ => Ok(Credentials::default()),
        }
    }
}

#[async_trait]
impl SecretProvider for Given {
    async fn secret(&self, id: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(match id {
            "big" => Some(vec![0; secrets::MAX_SECRET_SIZE + 1]),
            "known" => Some(b"hidden".to_vec()),
            _ => None,
        })
    }
}

#[tokio::test]
async fn credentials_and_secrets_are_given() {
    let services = Services {
        auth: Some(Arc::new(Given)),
        secrets: Some(Arc::new(Given)),
        ..Services::default()
    };
    with(services, async |session| {
        let found = auth::credentials(&session, "known").await.unwrap().unwrap();
        assert_eq!((&*found.username, &*found.secret), ("me", "pass"));
        assert!(!format!("{found:?}").contains("pass"));
        assert_eq!(auth::credentials(&session, "other").await.unwrap(), None);
        let error = auth::credentials(&session, "broken").await.unwrap_err();
        assert_eq!(error.to_string(), "the helper failed");
        assert_eq!(
            auth::token_authority(&session, "known", b"").await.unwrap(),
            None
        );

        let secret = secrets::get(&session, "known").await.unwrap();
        assert_eq!(secret.as_deref(), Some(&b"hidden"[..]));
        assert_eq!(secrets::get(&session, "other").await.unwrap(), None);
        let error = secrets::get(&session, "big").await.unwrap_err();
        assert_eq!(error.to_string(), "invalid secret size 512001");
    })
    .await;
}

#[tokio::test]
async fn a_file_is_uploaded_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("context.tar");
    let bytes: Vec<u8> = (0..500_000u32).map(|n| (n / 5) as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let services = Services {
        uploads: BTreeMap::from([("the-name".to_owned(), file)]),
        ..Services::default()
    };
    with(services, async |session| {
        let mut read = Vec::new();
        let mut file = upload::pull(&session, "/the-name").unwrap();
        file.read_to_end(&mut read).await.unwrap();
        assert!(read == bytes);
        for name in ["/the-name", "/other"] {
            let mut file = upload::pull(&session, name).unwrap();
            let error = file.read_to_end(&mut read).await.unwrap_err().to_string();
            assert!(error.contains("no http response from session"), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_agent_is_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let agent = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 5];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(request, [0, 0, 0, 1, 11]);
        stream.write_all(&[0, 0, 0, 1, 12]).await.unwrap();
        let _ = stream.read(&mut request).await;
    };
    let services = Services {
        ssh: BTreeMap::from([(
            "default".to_owned(),
            SshAgent {
                socket: socket.clone(),
                raw: false,
            },
        )]),
        ..Services::default()
    };
    let ask = with(services, async |session| {
        ssh::check(&session, "").await.unwrap();
        let error = ssh::check(&session, "other").await.unwrap_err();
        assert_eq!(error.to_string(), "unset ssh forward key other");
        let mut tunnel = ssh::forward(&session, "default").unwrap();
        let mut answer = [0; 5];
        tunnel.write_all(&[0, 0, 0, 1, 17]).await.unwrap();
        tunnel.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [0, 0, 0, 1, 5]);
        tunnel.write_all(&[0, 0, 0, 1, 11]).await.unwrap();
        tunnel.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [0, 0, 0, 1, 12]);
        drop(tunnel);
    });
    tokio::join!(agent, ask);
}

#[tokio::test]
async fn a_group_asks_until_one_answers() {
    let services = Services {
        secrets: Some(Arc::new(Given)),
        ..Services::default()
    };
    with(services, async |session| {
        let manager = Manager::new();
        let group = Group::new(manager, ["gone"]);
        let error = group.first(Duration::from_millis(10)).await.unwrap_err();
        let text = "no active session for gone: context deadline exceeded";
        assert_eq!(error.to_string(), text);
        assert!(session.supports("/moby.buildkit.secrets.v1.Secrets/getsecret"));
    })
    .await;
}

#[tokio::test]
async fn layouts_are_read_and_added_to() {
    use cooper_session::content::Store;
    use cooper_session::serve::Layout;
    let dir = tempfile::tempdir().unwrap();
    let layout = |writable| Layout {
        dir: dir.path().to_owned(),
        writable,
    };
    let mut services = Services::default();
    services.layouts.insert("export".into(), layout(true));
    services.layouts.insert("oci:base".into(), layout(false));
    let bytes = vec![7_u8; 600_000];
    let digest = format!(
        "sha256:{}",
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes))
    );
    let size = bytes.len() as u64;
    with(services, async |session| {
        let export = Store::new(&session, "export").unwrap();
        let error = export.size(&digest).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        let wrong = export.write(&digest, size, &bytes[1..]).await.unwrap_err();
        assert!(
            wrong.to_string().contains("unexpected commit size"),
            "{wrong}"
        );
        let mut other = bytes.clone();
        other[0] = 8;
        let wrong = export.write(&digest, size, &other[..]).await.unwrap_err();
        let text = wrong.to_string();
        assert!(text.contains("unexpected commit digest"), "{text}");
        assert_eq!(walk(dir.path()), ["blobs", "blobs/sha256"]);
        export.write(&digest, size, &bytes[..]).await.unwrap();
        // What is there is not sent again.
        export.write(&digest, size, &b""[..]).await.unwrap();

        let base = Store::new(&session, "oci:base").unwrap();
        assert_eq!(base.size(&digest).await.unwrap(), size);
        for offset in [0, 1, size - 1, size] {
            let mut read = Vec::new();
            let mut reader = base.read(&digest, offset).await.unwrap();
            reader.read_to_end(&mut read).await.unwrap();
            assert_eq!(read.len() as u64, size - offset);
        }
        let past = base.read(&digest, size + 1).await.err().unwrap();
        assert_eq!(past.to_string(), "read past object length");
        let error = base.write(&digest, size, &bytes[..]).await.unwrap_err();
        assert!(
            error.to_string().contains("cannot be written to"),
            "{error}"
        );
        let nobody = Store::new(&session, "oci:other").unwrap();
        let error = nobody.size(&digest).await.unwrap_err();
        assert_eq!(error.to_string(), "unknown store oci:other: not found");
        assert!(error.is_not_found());
        for digest in ["../../etc/passwd", "sha256:../x", "sha256:abc"] {
            assert!(base.size(digest).await.is_err(), "{digest}");
        }
    })
    .await;
    with(Services::default(), async |session| {
        let error = Store::new(&session, "export").unwrap_err();
        assert!(error.is_unimplemented(), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_mirror_holds_what_was_sent_and_nothing_else() {
    let (one, two, to) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    for (dir, files) in [(&one, ["d/b", "z"]), (&two, ["d/a", "d.x"])] {
        std::fs::create_dir(dir.path().join("d")).unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), file).unwrap();
        }
    }
    std::fs::create_dir(to.path().join("old")).unwrap();
    std::fs::write(to.path().join("old/file"), "old").unwrap();
    std::fs::write(to.path().join("z"), "older").unwrap();
    let mut services = Services::default();
    let target = Output::Mirror(to.path().to_owned());
    services.outputs.insert(0, target);
    with(services, async |session| {
        let trees = || vec![Tree::new(one.path()), Tree::new(two.path())];
        let part = filesync::send_dir(&session, 0, trees(), false, Arc::new(())).await;
        let error = part.unwrap_err().to_string();
        assert!(error.contains("mode=delete requires"), "{error}");
        assert!(to.path().join("old/file").exists());
        filesync::send_dir(&session, 0, trees(), true, Arc::new(()))
            .await
            .unwrap();
    })
    .await;
    assert_eq!(walk(to.path()), ["d", "d.x", "d/a", "d/b", "z"]);
    assert_eq!(std::fs::read_to_string(to.path().join("z")).unwrap(), "z");
}
