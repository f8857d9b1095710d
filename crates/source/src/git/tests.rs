#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use super::*;
use crate::testing::{Answer, Place, Server, nobody, place, read};

/// A repository that a server of files shows.
struct Served {
    dir: tempfile::TempDir,
    server: Server,
}

impl Served {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let served = Self {
            dir,
            server: Server::start().await,
        };
        served.git("init -q -b main");
        served
    }

    /// Runs git in it; the words are split at spaces.
    #[track_caller]
    fn git(&self, words: &str) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@example.org"])
            .args(words.split(' '))
            .current_dir(self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A commit in which the file has this content; its name.
    fn commit(&self, path: &str, content: &str) -> String {
        let file = self.dir.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        self.git("add .");
        self.git("commit -q -m x");
        self.git("rev-parse HEAD")
    }

    /// Puts it on the server as it is now.
    fn publish(&self) {
        self.git("update-server-info");
        put(&self.server, &self.dir.path().join(".git"), "/r.git");
    }

    fn open(&self, place: &Place, fragment: &str, attrs: &[(&str, &str)]) -> Arc<dyn Instance> {
        let url = format!("http://{}/r.git", self.server.host);
        let mut all: std::collections::BTreeMap<String, String> = attrs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        all.insert("git.fullurl".into(), url);
        let id = Identifier::parse(&format!("git://h/r.git{fragment}"), all, Default::default());
        let source = GitSource::new(place.cache.clone());
        source.open(id.unwrap()).unwrap()
    }
}

fn put(server: &Server, dir: &Path, at: &str) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let at = format!("{at}/{}", entry.file_name().display());
        if entry.file_type().unwrap().is_dir() {
            put(server, &entry.path(), &at);
        } else {
            server.put(&at, Answer::ok(std::fs::read(entry.path()).unwrap()));
            // What a client of the smart protocol asks first.
            let asked = format!("{at}?service=git-upload-pack");
            server.put(&asked, Answer::ok(std::fs::read(entry.path()).unwrap()));
        }
    }
}

async fn content(instance: &Arc<dyn Instance>, path: &str) -> String {
    let output = instance.snapshot(&nobody()).await.unwrap().unwrap();
    read(&output.local().unwrap(), path).await
}

#[tokio::test]
async fn a_name_is_looked_up_and_its_commit_checked_out() {
    let (place, served) = (place().await, Served::new().await);
    let first = served.commit("file", "one");
    served.git("tag v1");
    let second = served.commit("sub/deep", "two");
    served.git("tag -a v2 -m text");
    let tag = served.git("rev-parse v2");
    served.publish();

    let newest = served.open(&place, "", &[]);
    let key = newest.cache_key(&nobody(), 0).await.unwrap();
    assert_eq!((&key.key, &key.pin), (&second, &second));
    assert!(key.last);
    assert_eq!(content(&newest, "file").await, "one");
    let output = newest.snapshot(&nobody()).await.unwrap().unwrap();
    let mounted = output.local().unwrap().mount().await.unwrap();
    assert!(!mounted.path().join(".git").exists());
    drop(mounted);

    let old = served.open(&place, "#v1", &[]);
    let key = old.cache_key(&nobody(), 0).await.unwrap();
    assert_eq!(key.key, first);
    assert_eq!(content(&old, "file").await, "one");

    // A tag with a text of its own is as good as its commit, and pinned by itself.
    let tagged = served.open(&place, "#v2:sub", &[("git.checksum", &second[..9])]);
    let key = tagged.cache_key(&nobody(), 0).await.unwrap();
    assert_eq!((key.key, key.pin), (format!("{second}:sub"), tag));
    assert_eq!(content(&tagged, "deep").await, "two");

    let kept = served.open(&place, "#v1", &[("git.keepgitdir", "true")]);
    let key = kept.cache_key(&nobody(), 0).await.unwrap();
    assert_eq!(key.key, format!("{first}.git#refs/tags/v1"));
    let config = content(&kept, ".git/config").await;
    assert!(config.contains("/r.git"), "{config}");

    let by_commit = served.open(&place, &format!("#{first}"), &[]);
    let key = by_commit.cache_key(&nobody(), 0).await.unwrap();
    assert_eq!(key.key, first);
    let same = by_commit.snapshot(&nobody()).await.unwrap();
    assert_eq!(same, old.snapshot(&nobody()).await.unwrap());
}

#[tokio::test]
async fn what_moves_is_followed() {
    let (place, served) = (place().await, Served::new().await);
    served.commit("file", "one");
    served.git("tag v1");
    served.publish();
    for name in ["", "#main", "#v1"] {
        assert_eq!(
            content(&served.open(&place, name, &[]), "file").await,
            "one"
        );
    }
    served.commit("file", "two");
    served.git("tag -f v1");
    served.publish();
    for name in ["", "#main", "#v1"] {
        assert_eq!(
            content(&served.open(&place, name, &[]), "file").await,
            "two"
        );
    }
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (place, served) = (place().await, Served::new().await);
    let commit = served.commit("file", "one");
    served.git("tag v1");
    served.publish();
    let error = |fragment: &str, attrs: &[(&str, &str)]| {
        let instance = served.open(&place, fragment, attrs);
        async move {
            let error = instance.snapshot(&nobody()).await.unwrap_err();
            error.to_string()
        }
    };
    let none = error("#nope", &[]).await;
    assert_eq!(none, "repository does not contain ref nope, output: \"\"");
    // The beginning of a name is enough, so the wrong one must not be that of this commit.
    let other = if commit.starts_with('0') { "1" } else { "0" };
    assert_eq!(
        error("#v1", &[("git.checksum", other)]).await,
        format!("expected checksum to match {other}, got {commit}")
    );
    assert_eq!(
        error("#v1", &[("git.checksum", "foobar")]).await,
        "invalid checksum foobar for Git URL, expected hex commit hash"
    );
    assert_eq!(error("#v1:no/dir", &[]).await, "invalid subdir /no/dir");
    // A link in the repository does not lead out of it.
    std::os::unix::fs::symlink("/etc", served.dir.path().join("etc")).unwrap();
    served.commit("file", "two");
    served.publish();
    assert_eq!(error("#main:etc", &[]).await, "invalid subdir /etc");
}

#[tokio::test]
async fn what_is_known_of_a_commit_and_of_a_tag() {
    let (place, served) = (place().await, Served::new().await);
    let commit = served.commit("a", "1");
    served.git("tag -a -m text v1");
    served.git("tag light");
    let tag = served.git("rev-parse v1");
    served.publish();
    let known = async |fragment: &str, attrs: &[(&str, &str)], objects| {
        let instance = served.open(&place, fragment, attrs);
        let request = MetadataRequest {
            objects,
            ..MetadataRequest::default()
        };
        match instance.metadata(&nobody(), &request).await.unwrap() {
            Some(Metadata::Git(found)) => found,
            other => panic!("{other:?}"),
        }
    };
    let branch = known("#main", &[], false).await;
    assert_eq!(branch.checksum, commit);
    assert_eq!(branch.reference, "refs/heads/main");
    assert_eq!(
        (branch.commit_checksum.as_str(), branch.commit_object),
        ("", vec![])
    );
    let text = format!("object {commit}\ntype commit\ntag v1\n");
    for (keep, objects) in [(&[][..], false), (&[("git.keepgitdir", "true")], true)] {
        let found = known("#v1", keep, objects).await;
        assert_eq!((&found.checksum, &found.commit_checksum), (&tag, &commit));
        assert_eq!(found.reference, "refs/tags/v1");
        assert_eq!(found.tag_object.starts_with(text.as_bytes()), objects);
        assert_eq!(found.commit_object.starts_with(b"tree "), objects);
    }
    let light = known("#light", &[], true).await;
    assert_eq!(
        (light.checksum.as_str(), light.commit_checksum.as_str()),
        (&*commit, "")
    );
    assert!(light.tag_object.is_empty() && light.commit_object.ends_with(b"\nx\n"));
    // An object that is named by itself is found out when it is here.
    let pinned = known(&format!("#{tag}"), &[], true).await;
    assert_eq!(pinned.commit_checksum, commit);
    assert!(pinned.tag_object.starts_with(text.as_bytes()));
}

#[tokio::test]
async fn one_build_sees_one_commit_of_a_name() {
    let (place, served) = (place().await, Served::new().await);
    let first = served.commit("file", "one");
    served.publish();
    let build = SourceContext {
        memories: vec![crate::Memory::default()],
        ..nobody()
    };
    let asked = served.open(&place, "", &[]);
    asked.metadata(&build, &Default::default()).await.unwrap();
    let second = served.commit("file", "two");
    served.publish();
    let key = async |context: &SourceContext, attrs: &[(&str, &str)]| {
        let instance = served.open(&place, "", attrs);
        instance.cache_key(context, 0).await.unwrap().key
    };
    assert_eq!(key(&build, &[]).await, first);
    assert_eq!(key(&build, &[("git.checksum", &second)]).await, second);
    assert_eq!(key(&nobody(), &[]).await, second);
    let kept = key(&build, &[("git.keepgitdir", "true")]).await;
    assert!(kept.starts_with(&format!("{first}.git")), "{kept}");
    place.cache.close().await;
}
