//! A containerd of one's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::run::wait_until;

/// A containerd with its socket, root and state in a folder of its caller's. It ends with this
/// value; what runs by it goes on, so daemons are stopped before.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    child: Option<Child>,
}

impl Containerd {
    /// Starts one in the folder `dir`, which is made, and waits until it serves.
    #[track_caller]
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir(dir).unwrap();
        let dir = dir.to_owned();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            dir.join("root"),
            dir.join("state"),
            dir.join("containerd.sock"),
        );
        std::fs::write(dir.join("config.toml"), config).unwrap();
        let mut containerd = Self { dir, child: None };
        containerd.spawn();
        containerd
    }

    /// Starts it again, after [`Containerd::kill`].
    #[track_caller]
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "containerd is still running");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"));
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn();
        self.child = Some(child.expect("start containerd"));
        let socket = self.socket();
        wait_until("containerd serves", Duration::from_secs(20), || {
            // The socket of one that was killed is still there and refuses.
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("containerd runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}
