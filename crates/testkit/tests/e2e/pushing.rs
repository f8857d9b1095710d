//! What goes over the wire when an image is pushed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use cooper_testkit::{Client, Context, Daemon, Pulled, Registry, leak, push_busybox};

/// Stands in front of a registry and remembers what is asked of it.
struct Watcher {
    port: u16,
    asked: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn before(registry: &Registry) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, stop) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let (host, seen, stopped) = (registry.host(), asked.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let server = TcpStream::connect(&host).unwrap();
                let (back, forth) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let seen = seen.clone();
                std::thread::spawn(move || {
                    forward(client, forth, |bytes| {
                        seen.lock().unwrap().extend_from_slice(bytes);
                    })
                });
                std::thread::spawn(move || forward(server, back, |_| ()));
            }
        });
        Self {
            port,
            asked,
            stop,
            thread: Some(thread),
        }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The first lines of the requests that write, since this was asked last.
    fn writes(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.asked.lock().unwrap());
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.split("\r\n").filter_map(|line| {
            // A request follows the body of the one before without a new line.
            let line = &line[line.find("P")?..];
            let at = ["POST /v2/", "PUT /v2/", "PATCH /v2/"]
                .iter()
                .find_map(|verb| line.find(verb));
            let line = &line[at?..];
            line.ends_with(" HTTP/1.1")
                .then(|| line.trim_end_matches(" HTTP/1.1").to_owned())
        });
        lines.collect()
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut seen: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        seen(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn exp02_only_what_a_registry_lacks_is_sent() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    push_busybox(&registry);
    let watcher = Watcher::before(&registry);
    let host = watcher.host();
    let daemon = Daemon::start();
    let client = Client::buildx(&daemon);
    let text = |more: &str| {
        format!("FROM {host}/busybox:latest\nRUN head -c 100000 /dev/urandom > /x\n{more}")
    };
    let context = Context::new().file("Dockerfile", text(""));
    let push = |names: &[&str]| {
        let mut args = vec!["--provenance=false", "--push"];
        for name in names {
            args.extend(["--tag", *name]);
        }
        watcher.writes();
        client.build(&context, &args).success();
        watcher.writes()
    };
    let count = |all: &[String], part: &str| all.iter().filter(|line| line.contains(part)).count();

    // The base is of the same registry and is not sent: the other repository's is taken.
    let first = format!("{host}/one:1");
    let asked = push(&[&first]);
    assert_eq!(
        count(&asked, "POST /v2/one/blobs/uploads/?"),
        1,
        "{asked:#?}"
    );
    assert!(
        asked
            .iter()
            .any(|line| line.contains("mount=sha256") && line.contains("from=busybox")),
        "{asked:#?}"
    );
    assert_eq!(count(&asked, "PUT /v2/one/blobs/uploads/"), 2, "{asked:#?}");
    assert_eq!(count(&asked, "PUT /v2/one/manifests/1"), 1, "{asked:#?}");
    assert_eq!(Pulled::registry(&first).layers(), 2);

    // Once more: nothing but the name.
    let asked = push(&[&first]);
    assert_eq!(count(&asked, "/blobs/"), 0, "{asked:#?}");
    // Another name in the same repository, and a repository that has none of it.
    let (second, third) = (format!("{host}/one:2"), format!("{host}/deep/two:1"));
    let asked = push(&[&second, &third]);
    assert_eq!(count(&asked, "/v2/one/blobs/"), 0, "{asked:#?}");
    assert_eq!(count(&asked, "PUT /v2/one/manifests/2"), 1, "{asked:#?}");
    assert_eq!(
        count(&asked, "PUT /v2/deep/two/manifests/1"),
        1,
        "{asked:#?}"
    );
    assert_eq!(
        Pulled::registry(&second).manifest,
        Pulled::registry(&third).manifest
    );
    // Another configuration over the same layers is all that is sent.
    context.write("Dockerfile", text("ENV A=b\n"));
    let asked = push(&[&first]);
    assert_eq!(count(&asked, "PUT /v2/one/blobs/uploads/"), 1, "{asked:#?}");
    assert_eq!(Pulled::registry(&first).layers(), 2);
    drop((client, daemon, watcher, registry, context));
    watch.check();
}
