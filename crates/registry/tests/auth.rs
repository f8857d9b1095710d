//! Challenges, tokens and credentials.

#![allow(clippy::unwrap_used)]

mod support;

use cooper_content::digest_of;
use cooper_registry::{Registry, RegistryError};
use cooper_session::Group;
use support::grpc::Client;
use support::{Reply, Request, Server, client};

const MANIFEST: &[u8] = b"{}";

fn good() -> Reply {
    Reply::new(200)
        .header("content-type", "application/vnd.oci.image.manifest.v1+json")
        .header("docker-content-digest", digest_of(MANIFEST).as_ref())
        .body(MANIFEST)
}

fn challenge(request: &Request, more: &str) -> Reply {
    let realm = format!("http://{}/token", request.header("host"));
    Reply::new(401).header(
        "www-authenticate",
        &format!(r#"Bearer realm="{realm}",service="svc",scope="repository:x:pull"{more}"#),
    )
}

/// A registry that takes one token, which it gives to those whom `give` likes.
async fn guarded(give: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |_, request| {
        if request.target.starts_with("/token") {
            return give(request);
        }
        match request.header("authorization") {
            "Bearer good-token" | "Bearer client-token" => good(),
            _ => challenge(request, ""),
        }
    })
    .await
}

fn token(token: &str, expires_in: u32) -> Reply {
    Reply::new(200).body(format!(
        r#"{{"token":"{token}","expires_in":{expires_in}}}"#
    ))
}

async fn resolve(
    registry: &Registry,
    server: &Server,
    sessions: &Group,
) -> Result<(), RegistryError> {
    registry
        .resolve(&server.image("x"), sessions)
        .await
        .map(|_| ())
}

#[tokio::test]
async fn with_no_session_a_token_is_fetched_for_nobody_and_kept() {
    let server = guarded(|_| token("good-token", 300)).await;
    let (registry, none) = (client(), Group::none());
    for _ in 0..2 {
        resolve(&registry, &server, &none).await.unwrap();
    }
    assert_eq!(
        server.lines(),
        [
            "HEAD /v2/x/manifests/latest",
            "GET /token?scope=repository%3Ax%3Apull&service=svc",
            "HEAD /v2/x/manifests/latest",
            "HEAD /v2/x/manifests/latest",
        ]
    );
    assert_eq!(server.requests()[1].header("authorization"), "");
}

#[tokio::test]
async fn many_at_once_fetch_one_token() {
    let server = guarded(|_| token("good-token", 300)).await;
    let (registry, none) = (client(), Group::none());
    resolve(&registry, &server, &none).await.unwrap();
    let image = server.image("other");
    let all = (0..8).map(|_| registry.resolve(&image, &none));
    for found in futures::future::join_all(all).await {
        found.unwrap();
    }
    let asked = |line: &String| line.contains("/token") && line.contains("other");
    assert_eq!(server.lines().iter().filter(|line| asked(line)).count(), 1);
}

#[tokio::test]
async fn a_token_that_is_not_taken_any_more_is_replaced() {
    let server = Server::start(|number, request| {
        if request.target.starts_with("/token") {
            return token(&format!("token-{number}"), 300);
        }
        match request.header("authorization") {
            // Only the second one, as if the first had been withdrawn.
            "Bearer token-3" => good(),
            "" => challenge(request, ""),
            _ => challenge(request, r#",error="invalid_token""#),
        }
    })
    .await;
    resolve(&client(), &server, &Group::none()).await.unwrap();
    assert_eq!(server.requests().len(), 5, "{:?}", server.lines());
}

#[tokio::test]
async fn a_refusal_is_told_in_words_that_users_know() {
    let server = Server::start(|_, request| match request.header("authorization") {
        _ if request.target.starts_with("/token") => token("weak", 300),
        "" => challenge(request, ""),
        _ => challenge(request, r#",error="insufficient_scope""#),
    })
    .await;
    let error = resolve(&client(), &server, &Group::none())
        .await
        .unwrap_err();
    assert_eq!(
        error.chain(),
        "pull access denied, repository does not exist or may require authorization: \
         server message: insufficient_scope: authorization failed"
    );
    assert!(error.is_denied());

    let server = guarded(|_| Reply::new(401)).await;
    let error = resolve(&client(), &server, &Group::none())
        .await
        .unwrap_err();
    let url = format!(
        "http://{}/token?scope=repository%3Ax%3Apull&service=svc",
        server.host
    );
    assert_eq!(
        error.chain(),
        format!(
            "failed to authorize: failed to fetch anonymous token: \
             unexpected status from GET request to {url}: 401 Unauthorized"
        )
    );
}

#[tokio::test]
async fn a_client_that_fetches_tokens_keeps_its_password() {
    let server = guarded(|_| Reply::new(500)).await;
    let client_ = Client {
        fetches: true,
        username: "user".into(),
        secret: "hunter2".into(),
        ..Client::default()
    };
    let sessions = client_.connect().await;
    let registry = client();
    for _ in 0..2 {
        resolve(&registry, &server, &sessions).await.unwrap();
    }
    assert_eq!(
        *client_.asked.lock().unwrap(),
        ["GetTokenAuthority", "FetchToken"]
    );
    let tokens = client_.tokens.lock().unwrap().clone();
    assert_eq!(tokens[0].host, server.host);
    assert_eq!(tokens[0].realm, format!("http://{}/token", server.host));
    assert_eq!(
        (&tokens[0].service[..], &tokens[0].scopes[..]),
        ("svc", &["repository:x:pull".to_owned()][..])
    );
    // What one client's session got is not for others.
    let error = resolve(&registry, &server, &Group::none())
        .await
        .unwrap_err();
    assert!(
        error.chain().contains("failed to fetch anonymous token"),
        "{error}"
    );
}

#[tokio::test]
async fn a_password_is_changed_for_a_token_by_get_or_by_post() {
    let basic = "Basic dXNlcjpodW50ZXIy";
    let by_get = guarded(
        move |request| match request.header("authorization") == basic {
            true => token("good-token", 300),
            false => Reply::new(401),
        },
    )
    .await;
    let by_post = guarded(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        match request.method.as_str() {
            "POST" if body.contains("password=hunter2&") || body.ends_with("password=hunter2") => {
                assert!(body.contains("grant_type=password"), "{body}");
                assert!(body.contains("scope=repository%3Ax%3Apull"), "{body}");
                Reply::new(200).body(r#"{"access_token":"good-token"}"#)
            }
            _ => Reply::new(404),
        }
    })
    .await;
    for server in [&by_get, &by_post] {
        let user = Client {
            username: "user".into(),
            secret: "hunter2".into(),
            ..Client::default()
        };
        let sessions = user.connect().await;
        resolve(&client(), server, &sessions).await.unwrap();
    }
    let wrong = Client {
        username: "user".into(),
        secret: "hunter3".into(),
        ..Client::default()
    };
    let sessions = wrong.connect().await;
    let error = resolve(&client(), &by_get, &sessions).await.unwrap_err();
    let text = format!("{} {error:?}", error.chain());
    assert!(text.contains("failed to fetch oauth token"), "{text}");
    assert!(!text.contains("hunter3"), "{text}");
}

#[tokio::test]
async fn basic_credentials_are_sent_to_who_asks_for_them_and_to_no_other() {
    let storage = Server::start(|_, _| good()).await;
    let target = format!("http://{}/elsewhere", storage.host);
    let server = Server::start(move |_, request| match request.header("authorization") {
        "Basic dXNlcjpodW50ZXIy" => Reply::new(307).header("location", &target),
        _ => Reply::new(401).header("www-authenticate", r#"Basic realm="registry""#),
    })
    .await;
    let user = Client {
        username: "user".into(),
        secret: "hunter2".into(),
        ..Client::default()
    };
    let sessions = user.connect().await;
    resolve(&client(), &server, &sessions).await.unwrap();
    assert_eq!(storage.requests()[0].header("authorization"), "");
    // Without any, and with wrong ones, there is no second try.
    for user in [
        Client::default(),
        Client {
            username: "user".into(),
            secret: "no".into(),
            ..Client::default()
        },
    ] {
        let before = server.requests().len();
        let sessions = user.connect().await;
        let error = resolve(&client(), &server, &sessions).await.unwrap_err();
        assert!(
            error.chain().ends_with("401 Unauthorized"),
            "{}",
            error.chain()
        );
        assert!(server.requests().len() <= before + 2);
    }
}

#[tokio::test]
async fn a_push_asks_for_the_right_to_it() {
    let server = Server::start(|_, request| {
        if request.target.starts_with("/token") {
            return token("good-token", 300);
        }
        match (request.header("authorization"), request.method.as_str()) {
            ("", _) => challenge(request, ""),
            (_, "HEAD") => Reply::new(404),
            (_, "PUT") => Reply::new(201),
            // The other repository is not this user's: no loan, but an upload.
            _ if request.target.contains("mount=") => Reply::new(403),
            _ => Reply::new(202).header("location", "/upload"),
        }
    })
    .await;
    let content = cooper_content::MemoryContentStore::default();
    let digest = cooper_content::ContentStore::write_all(&content, b"blob")
        .await
        .unwrap();
    let kind = cooper_registry::MediaType::ImageLayerGzip;
    let blob = cooper_registry::Descriptor::new(kind, 4, digest);
    let options = cooper_registry::PushOptions {
        mount_from: vec![server.image("other")],
        ..cooper_registry::PushOptions::default()
    };
    let image = server.image("x");
    let pushed = client()
        .push_blob(&image, &blob, &content, &Group::none(), &options)
        .await;
    assert_eq!(pushed.unwrap(), cooper_registry::Pushed::Sent);
    let asked: Vec<_> = server
        .lines()
        .into_iter()
        .filter(|line| line.contains("/token"))
        .collect();
    assert_eq!(
        asked,
        [
            "GET /token?scope=repository%3Ax%3Apull%2Cpush&service=svc",
            "GET /token?scope=repository%3Aother%3Apull&scope=repository%3Ax%3Apull%2Cpush&service=svc",
        ]
    );
}
