//! Files from git repositories: contexts, named contexts and `ADD`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cooper_testkit::{Buildx, Client, Context, Daemon, Registry, leak, push_busybox, run};

use crate::Out;

/// A server of the files of a folder, as plain as git needs it.
pub(crate) struct Files {
    pub(crate) host: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Files {
    pub(crate) fn serve(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let (root, stopped) = (root.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    let _ = answer(stream, &root);
                }
            }
        });
        Self {
            host,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It waits for a connection.
        let _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let found = std::fs::read(root.join(path.trim_start_matches('/')));
    let (status, body) = match found {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let length = body.len();
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&body)
}

/// A repository: `v1` and `v2` are tags, `feature` a branch with a folder, `main` the newest.
fn repository(dir: &Path) -> PathBuf {
    let repository = dir.join("r");
    std::fs::create_dir(&repository).unwrap();
    let git = |words: &str| {
        let mut command = Command::new("git");
        command
            .args(["-c", "user.name=x", "-c", "user.email=x@example.org"])
            .args(words.split(' '))
            .current_dir(&repository)
            .env("HOME", "/dev/null");
        run(&mut command).success()
    };
    let commit = |path: &str, content: &str| {
        let file = repository.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        git("add .");
        git("commit -q -m x");
    };
    git("init -q -b main .");
    std::fs::write(
        repository.join("Dockerfile"),
        "FROM scratch\nCOPY foo /out\n",
    )
    .unwrap();
    commit("foo", "one");
    git("tag v1");
    git("checkout -q -b feature");
    commit("sub/Dockerfile", "FROM scratch\nCOPY foo /out\n");
    commit("sub/foo", "feature");
    git("checkout -q main");
    commit("foo", "two");
    git("tag -a v2 -m text");
    commit("foo", "three");
    git("update-server-info");
    repository
}

fn commit_of(repository: &Path, name: &str) -> String {
    let mut command = Command::new("git");
    command
        .args(["rev-parse", &format!("{name}^{{commit}}")])
        .current_dir(repository);
    run(&mut command).success().output.trim().to_owned()
}

#[test]
fn df05_a_repository_is_a_context() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let buildx = Buildx::new(&daemon);
    let out = Out::new();
    let repository = repository(&out.path(""));
    let files = Files::serve(&out.path(""));
    let url = format!("http://{}/r/.git", files.host);
    let v2 = commit_of(&repository, "v2");
    let build = |suffix: &str| {
        let address = format!("{url}{suffix}");
        let args = [out.local("x")];
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        run(&mut buildx.build_command(Path::new(&address), &args))
    };
    let wanted = [
        ("", "three"),
        ("#v1", "one"),
        ("#v2", "two"),
        ("#feature:sub", "feature"),
        ("?branch=feature&subdir=sub", "feature"),
        ("?tag=v2", "two"),
        (&format!("#{v2}"), "two"),
        (&format!("?tag=v2&commit={}", &v2[..8]), "two"),
    ];
    for (suffix, content) in wanted {
        build(suffix).success();
        assert_eq!(out.read("x/out"), content, "{suffix}");
    }
    let refused = [
        ("#nope", "repository does not contain ref nope"),
        (
            "?branch=v2",
            "repository does not contain ref refs/heads/v2",
        ),
        (
            "?tag=v1&commit=00000000",
            "expected checksum to match 00000000",
        ),
        ("?tag=v1#main", "ref conflicts"),
        ("#main:no", "invalid subdir /no"),
    ];
    for (suffix, error) in refused {
        build(suffix).fails_with(&[error]);
    }
    drop((files, daemon, buildx, out));
    watch.check();
}

#[test]
fn df13_repositories_are_added_and_named() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let out = Out::new();
    let repository = repository(&out.path(""));
    let files = Files::serve(&out.path(""));
    let url = format!("http://{}/r/.git", files.host);
    let v1 = commit_of(&repository, "v1");
    let context = Context::new().file(
        "Dockerfile",
        format!(
            "FROM {base} AS work\n\
             ADD {url}#v1 /plain\n\
             ADD --keep-git-dir=true --chown=42:84 --checksum={v1} {url}#v1 /kept\n\
             RUN [ ! -e /plain/.git ] && [ -e /kept/.git/HEAD ] && \
             [ \"$(stat -c %u:%g /kept/foo)\" = 42:84 ]\n\
             FROM scratch\n\
             COPY --from=work /plain/foo /plain\n\
             COPY --from=named foo /named\n"
        ),
    );
    let named = format!("--build-context=named={url}#v2");
    for client in Client::of(&daemon) {
        client.build(&context, &[&out.local("x"), &named]).success();
        assert_eq!(out.read("x/plain"), "one");
        assert_eq!(out.read("x/named"), "two");
    }
    context.write(
        "Dockerfile",
        format!("FROM scratch\nADD --checksum=foobar {url}#v1 /\n"),
    );
    Client::buildx(&daemon)
        .build(&context, &[])
        .fails_with(&["invalid checksum foobar for Git URL, expected hex commit hash"]);
    drop((files, daemon, registry, out, context));
    watch.check();
}
