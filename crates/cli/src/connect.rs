//! Which daemon builds, and how it is reached. The names are those of BuildKit's client.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use cooper_client::Tls;

#[derive(Debug, Default, Args)]
pub(crate) struct DaemonArgs {
    /// The daemon, unix://PATH or tcp://HOST:PORT; without it the build runs in this process.
    #[arg(long, value_name = "ADDRESS", env = "COOPER_ADDR")]
    pub(crate) addr: Option<String>,
    /// The name that the daemon's certificate is for. Default: the host of the address.
    #[arg(long, value_name = "NAME", requires = "addr")]
    tlsservername: Option<String>,
    /// Certificates of the authorities that vouch for the daemon. Default: the system's.
    #[arg(long, value_name = "FILE", requires = "addr")]
    tlscacert: Option<PathBuf>,
    /// The certificate that the daemon is shown.
    #[arg(long, value_name = "FILE", requires = "addr")]
    tlscert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "addr")]
    tlskey: Option<PathBuf>,
    /// A folder with ca.pem, cert.pem and key.pem, in place of the three.
    #[arg(
        long,
        value_name = "DIR",
        requires = "addr",
        conflicts_with_all = ["tlscacert", "tlscert", "tlskey"]
    )]
    tlsdir: Option<PathBuf>,
}

impl DaemonArgs {
    /// What makes the connection safe; nothing of it is set when nobody asked for that.
    ///
    /// # Errors
    /// The folder has none of the files: the connection would be open to everybody.
    pub(crate) fn tls(&self) -> Result<Tls> {
        let files = match &self.tlsdir {
            Some(dir) => {
                let files = Tls::in_dir(dir);
                if !files.is_used() {
                    bail!("{}: no ca.pem, cert.pem or key.pem in it", dir.display());
                }
                files
            }
            None => Tls {
                ca: self.tlscacert.clone(),
                cert: self.tlscert.clone(),
                key: self.tlskey.clone(),
                server_name: None,
            },
        };
        Ok(Tls {
            server_name: self.tlsservername.clone(),
            ..files
        })
    }
}
