use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cooper_cache::{ChecksumOptions, LocalRef};
use cooper_progress::{Collect, Event, VertexProgress};
use cooper_session::serve::{self, Services};
use cooper_session::{Group, Manager, SessionMeta, Tree};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::{Place, nobody, place, read};
use cooper_content::digest_of;

/// A client that offers a folder in one or several sessions.
struct Client {
    dir: tempfile::TempDir,
    manager: Manager,
    shutdown: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
    sink: Arc<Collect>,
}

impl Client {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            manager: Manager::new(),
            shutdown: CancellationToken::new(),
            tasks: tokio::task::JoinSet::new(),
            sink: Arc::default(),
        }
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Opens a session, which offers the folder as `context`, or nothing.
    fn connect(&mut self, id: &str, offers: bool) {
        let mut services = Services::default();
        if offers {
            let tree = Tree::new(self.dir.path()).owned_by_root();
            services.dirs.insert("context".into(), tree);
        }
        let meta = SessionMeta {
            id: id.into(),
            shared_key: "machine".into(),
            methods: services.methods(),
            ..SessionMeta::default()
        };
        let (near, far) = tokio::io::duplex(64 << 10);
        let (manager, shutdown) = (self.manager.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let client = serve::run(far, &services, shutdown);
            let _ = tokio::join!(client, manager.serve(near, meta));
        });
    }

    fn cx(&self, ids: &[&str]) -> SourceContext {
        let ids = ids.iter().map(|id| (*id).to_owned());
        SourceContext {
            sessions: Group::new(self.manager.clone(), ids),
            progress: VertexProgress::new(digest_of(b"vertex"), self.sink.clone()),
            memories: Vec::new(),
        }
    }

    async fn close(mut self, place: Place) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        place.cache.close().await;
    }
}

fn open(place: &Place, attrs: &[(&str, &str)]) -> Arc<dyn Instance> {
    let attrs: BTreeMap<_, _> = attrs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let id = Identifier::parse("local://context", attrs, Default::default()).unwrap();
    LocalSource::new(place.cache.clone()).open(id).unwrap()
}

async fn checksum(local: &LocalRef) -> String {
    let options = ChecksumOptions::default();
    let digest = local.checksum(Path::new("/"), &options).await.unwrap();
    digest.to_string()
}

#[tokio::test]
async fn a_folder_is_brought_once_and_then_only_what_changed() {
    let (place, mut client) = (place().await, Client::new());
    client.write("a", "1");
    client.write("dir/b", "2");
    client.connect("s1", true);
    let cx = client.cx(&["s1"]);
    let attrs = [(SHARED_KEY, "hint")];
    let first = open(&place, &attrs).snapshot(&cx).await.unwrap().unwrap();
    let local = first.local().unwrap();
    assert_eq!(read(&local, "dir/b").await, "2");
    let before = checksum(&local).await;
    let transferred = |sink: &Collect| {
        let statuses = sink.take().into_iter().filter_map(|event| match event {
            Event::Status(status) if status.completed.is_some() => Some(status),
            _ => None,
        });
        let last = statuses.last().unwrap();
        assert_eq!(last.id, "transferring context:");
        last.current
    };
    let all = transferred(&client.sink);
    drop((first, local));

    client.write("a", "other");
    std::fs::remove_file(client.dir.path().join("dir/b")).unwrap();
    let second = open(&place, &attrs).snapshot(&cx).await.unwrap().unwrap();
    let local = second.local().unwrap();
    assert_eq!(read(&local, "a").await, "other");
    let mounted = local.mount().await.unwrap();
    assert!(!mounted.path().join("dir/b").exists());
    drop(mounted);
    let changed = checksum(&local).await;
    assert_ne!(before, changed);
    assert!(all > 0);

    // The same files in a copy of their own have the same content.
    let other = open(&place, &[(SHARED_KEY, "other")]);
    let other = other.snapshot(&cx).await.unwrap().unwrap();
    assert_ne!(other.id(), second.id());
    assert_eq!(checksum(&other.local().unwrap()).await, changed);
    drop((second, local, other));
    client.close(place).await;
}

#[tokio::test]
async fn builds_at_the_same_time_do_not_disturb_each_other() {
    let (place, mut client) = (place().await, Client::new());
    client.write("a", "1");
    client.connect("s1", true);
    let cx = client.cx(&["s1"]);
    let (one, other) = (open(&place, &[]), open(&place, &[]));
    let (one, other) = tokio::join!(one.snapshot(&cx), other.snapshot(&cx));
    for output in [one, other] {
        let local = output.unwrap().unwrap().local().unwrap();
        assert_eq!(read(&local, "a").await, "1");
    }
    client.close(place).await;
}

#[tokio::test]
async fn patterns_choose_what_is_sent() {
    let (place, mut client) = (place().await, Client::new());
    for path in ["a/x.go", "a/y.txt", "b/z.go", "c"] {
        client.write(path, "");
    }
    client.connect("s1", true);
    let cx = client.cx(&["s1"]);
    let attrs = [(INCLUDE, r#"["a","b"]"#), (EXCLUDE, r#"["**/*.txt"]"#)];
    let output = open(&place, &attrs).snapshot(&cx).await.unwrap().unwrap();
    let mounted = output.local().unwrap().mount().await.unwrap();
    let there = |path: &str| mounted.path().join(path).exists();
    assert!(there("a/x.go") && there("b/z.go"));
    assert!(!there("a/y.txt") && !there("c"));
    drop((mounted, output));
    client.close(place).await;
}

#[tokio::test]
async fn the_named_session_is_asked_first_and_another_when_it_has_nothing() {
    let (place, mut client) = (place().await, Client::new());
    client.write("a", "1");
    client.connect("empty", false);
    let only = client.cx(&["empty"]);
    let named = open(&place, &[(SESSION, "empty")]);
    let error = named.snapshot(&only).await.unwrap_err();
    assert_eq!(error.to_string(), "no local sources enabled");
    client.connect("full", true);
    let both = client.cx(&["empty", "full"]);
    assert!(named.snapshot(&both).await.unwrap().is_some());
    let error = open(&place, &[]).snapshot(&nobody()).await.unwrap_err();
    assert_eq!(error.to_string(), "no active sessions");
    client.close(place).await;
}

#[tokio::test]
async fn keys_are_those_of_the_session_and_the_patterns() {
    let (place, client) = (place().await, Client::new());
    let cx = client.cx(&["s1"]);
    let key = open(&place, &[]).cache_key(&cx, 0).await.unwrap();
    let text = concat!(
        r#"{"SessionID":"s1","IncludePatterns":null,"ExcludePatterns":null,"#,
        r#""FollowPaths":null}"#
    );
    let digest = digest_of(text.as_bytes());
    assert_eq!(key.key, format!("session:context:{digest}"));
    assert!(key.last);
    let named = open(&place, &[(SESSION, "outer:s2"), (INCLUDE, "[]")]);
    let key = named.cache_key(&cx, 0).await.unwrap();
    let text = text.replace("s1", "s2").replacen("null", "[]", 1);
    let digest = digest_of(text.as_bytes());
    assert_eq!(key.key, format!("session:outer-context:{digest}"));
    let error = open(&place, &[]).cache_key(&nobody(), 0).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not access local files without session"
    );
    client.close(place).await;
}
