//! An authority, and certificates of it.

use std::path::Path;
use std::process::Command;

use crate::run::run;

/// A folder with an authority (`ca.pem`), a certificate for `127.0.0.1` and `localhost`
/// (`server.pem`, `server-key.pem`) and one for a client (`client.pem`, `client-key.pem`);
/// removed when dropped.
#[derive(Debug)]
pub struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    /// Makes all of them.
    #[track_caller]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-certificates-")
            .tempdir()
            .unwrap();
        let own = Self { dir };
        own.make("ca", &["basicConstraints=critical,CA:TRUE"], None);
        let leaf = "basicConstraints=critical,CA:FALSE";
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost";
        own.make(
            "server",
            &[leaf, names, "extendedKeyUsage=serverAuth"],
            Some("ca"),
        );
        own.make("client", &[leaf, "extendedKeyUsage=clientAuth"], Some("ca"));
        own
    }

    /// The path of one of the files.
    pub fn path(&self, file: &str) -> String {
        self.dir.path().join(file).display().to_string()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[track_caller]
    fn make(&self, name: &str, extensions: &[&str], authority: Option<&str>) {
        // Authorities are told apart by name: two of one name are one with two keys.
        let folder = self.dir.path().file_name().unwrap_or_default();
        let subject = format!("/CN={name} of {}", folder.display());
        let mut command = Command::new("openssl");
        command
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "2", "-subj", &subject])
            .args(["-keyout", &self.path(&format!("{name}-key.pem"))])
            .args(["-out", &self.path(&format!("{name}.pem"))]);
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        if let Some(authority) = authority {
            command
                .args(["-CA", &self.path(&format!("{authority}.pem"))])
                .args(["-CAkey", &self.path(&format!("{authority}-key.pem"))]);
        }
        run(&mut command).success();
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}
