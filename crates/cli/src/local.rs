//! A daemon in this process, for a build without one.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cooper_client::Client;
use cooper_daemon::{Config, Daemon, Places};
use cooper_sys::userns;
use futures::StreamExt;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// Gives `work` a client of a daemon on `root` that nobody else can reach. What the daemon runs
/// is torn down before this returns.
///
/// # Cancel safety
/// Dropping the future kills what runs; what the daemon keeps is as after its death.
pub(crate) async fn with<T>(root: Option<&Path>, work: impl AsyncFnOnce(Client) -> T) -> Result<T> {
    let mut config = Config {
        root: root.map_or_else(|| default_root(userns::of_ordinary_user()), Path::to_owned),
        ..Config::default()
    };
    // Only the first worker is used.
    config.worker.containerd.enabled = Some(false);
    let daemon = Box::pin(Daemon::assemble(&config))
        .await
        .with_context(|| format!("failed to open {}", config.root.display()))?;
    let (near, far) = UnixStream::pair()?;
    let stop = CancellationToken::new();
    // One connection, and then none: the end of the stream would be the end of the daemon.
    let connections =
        futures::stream::iter([Ok::<_, io::Error>(far)]).chain(futures::stream::pending());
    let serving = daemon.serve(connections, stop.clone());
    let working = async {
        // Whatever way this ends, the daemon ends with it.
        let _stop = stop.clone().drop_guard();
        let client = Client::over(near).await?;
        anyhow::Ok(work(client).await)
    };
    let (served, result) = tokio::join!(Box::pin(serving), Box::pin(working));
    Box::pin(daemon.close()).await;
    served?;
    result
}

/// Where the cache is kept unless `--root` says it: in the user's own data, root's beside those
/// of other services.
fn default_root(ordinary: bool) -> PathBuf {
    if ordinary {
        return Places::of_this_user().root;
    }
    let folder = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty());
    if let Some(data) = folder("XDG_DATA_HOME") {
        return Path::new(&data).join("cooper");
    }
    // The superuser builds for the machine.
    match folder("HOME").filter(|home| home != "/root" && home != "/") {
        Some(home) => Path::new(&home).join(".local/share/cooper"),
        None => "/var/lib/cooper".into(),
    }
}
