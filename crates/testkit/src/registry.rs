//! A real registry on a free port of the loopback interface.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::run::wait_until;

/// The line of htpasswd(1) for `someone` and `sesame`.
const PASSWORDS: &str = "someone:$2b$04$NXcqwO2uEx7YssaaEviYhOju1EJa5KkjOZY8HzqTRo5flBedUJVo.\n";

/// `docker-registry` with a folder of its own, stopped and removed when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    // Removed after the process has ended.
    _dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one and waits until it listens.
    #[track_caller]
    pub fn start() -> Self {
        Self::with("")
    }

    /// The same for `someone` with the password `sesame` and nobody else.
    #[track_caller]
    pub fn with_login() -> Self {
        Self::with("auth: {htpasswd: {realm: kit, path: PASSWORDS}}\n")
    }

    /// With more of a configuration; `PASSWORDS` in it is a file of them.
    #[track_caller]
    fn with(more: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-registry-")
            .tempdir()
            .unwrap();
        let port = free_port();
        let storage = dir.path().join("storage");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
             delete: {{enabled: true}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            storage.display()
        );
        let passwords = dir.path().join("passwords");
        std::fs::write(&passwords, PASSWORDS).unwrap();
        let more = more.replace("PASSWORDS", &passwords.display().to_string());
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config + &more).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start docker-registry");
        let registry = Self {
            child,
            port,
            _dir: dir,
        };
        wait_until("docker-registry listens", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        registry
    }

    /// `127.0.0.1:PORT`, the first part of a reference.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago: the registry cannot say which one it took by itself.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
