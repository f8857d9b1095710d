//! A containerd of one's own, with socket, root and state in a temporary folder.
#![allow(clippy::missing_panics_doc, clippy::expect_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Containerd;
use crate::task::Task;

/// How long it may take to answer.
const START: Duration = Duration::from_secs(30);

/// A containerd that ends with this value, and with it all that it runs.
pub struct Server {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Server {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When there is no `containerd` in PATH, or it does not start.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let text = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n",
            root = text("root"),
            state = text("state"),
            socket = text("containerd.sock"),
        );
        std::fs::write(dir.path().join("config.toml"), config).expect("a configuration");
        let mut server = Self { dir, child: None };
        server.restart().await;
        server
    }

    /// Its socket.
    pub fn address(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    /// The folder that everything of it is in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A connection to it.
    pub fn connect(&self, namespace: &str) -> Containerd {
        Containerd::new(self.address(), namespace).expect("a good namespace")
    }

    /// Makes it forget the container `id`, but not what runs in it.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn forget(&self, namespace: &str, id: &str) {
        let containerd = self.connect(namespace);
        let forgotten = Task::new(&containerd, id).forget().await;
        forgotten.expect("containerd forgets");
    }

    /// Ends it. Containers go on, as with any containerd.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("containerd can be killed");
            child.wait().expect("containerd can be waited for");
        }
    }

    /// Starts it again and waits until it answers.
    pub async fn restart(&mut self) {
        self.stop();
        let log = self.dir.path().join("log");
        let log = File::options().create(true).append(true).open(log);
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("a containerd in PATH");
        self.child = Some(child);
        let asked = self.connect("default");
        let begun = Instant::now();
        while let Err(error) = asked.version().await {
            assert!(
                begun.elapsed() < START,
                "containerd does not answer: {error}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
