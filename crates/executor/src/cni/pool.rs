//! Namespaces that are ready, so that no container waits for plug-ins.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::config::Network;
use super::plugin::Caller;
use super::{CniConfig, CniError};

/// The names of interfaces inside.
const LOOPBACK: &str = "lo";
const INTERFACE: &str = "eth0";

/// The network namespaces of an executor's containers. Cheap to clone.
///
/// Nothing is made before the first [`get`](Self::get); what is there at the end is removed by
/// [`close`](Self::close), and what an earlier process left by [`open`](Self::open).
#[derive(Clone, Debug)]
pub struct NetworkPool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    plugins: PathBuf,
    size: usize,
    network: Network,
    /// A bridge that goes with the pool.
    bridge: Option<String>,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    ready: Vec<Namespace>,
    closed: bool,
}

/// A network namespace with its interfaces. Nobody else has it until it is
/// [given back](NetworkPool::put).
#[derive(Debug)]
pub struct Namespace {
    id: String,
    path: PathBuf,
    result: Value,
}

impl Namespace {
    /// The file that a process joins it by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What plug-ins said of its interfaces.
    pub fn result(&self) -> &Value {
        &self.result
    }
}

impl NetworkPool {
    /// A pool of the network that `config` lists, with its files in `dir`. Removes what an
    /// earlier process left there. Blocks.
    ///
    /// # Errors
    /// [`CniError::Config`].
    pub fn open(config: &CniConfig, dir: PathBuf) -> Result<Self, CniError> {
        Self::of(config, config.listed()?, dir, None)
    }

    /// As [`open`](Self::open), with a bridge. One that is not there yet goes with the pool.
    pub fn bridge(config: &CniConfig, dir: PathBuf) -> Result<Self, CniError> {
        let network = config.bridge();
        let name = network.plugins[0]["bridge"].as_str().map(str::to_owned);
        let own = name.filter(|name| {
            // Made by an earlier process, if not by this one.
            mark(&dir, name).exists() || !Path::new("/sys/class/net").join(name).exists()
        });
        Self::of(config, network, dir, own)
    }

    fn of(
        config: &CniConfig,
        network: Network,
        dir: PathBuf,
        bridge: Option<String>,
    ) -> Result<Self, CniError> {
        std::fs::create_dir_all(&dir).map_err(CniError::io("make", &dir))?;
        if let Some(bridge) = &bridge {
            let mark = mark(&dir, bridge);
            std::fs::write(&mark, "").map_err(CniError::io("make", &mark))?;
        }
        let pool = Self(Arc::new(Shared {
            dir,
            plugins: config.dir(),
            size: config.pool_size,
            network,
            bridge,
            free: Mutex::default(),
        }));
        pool.sweep();
        Ok(pool)
    }

    /// A namespace that is ready, or a new one.
    ///
    /// # Cancel safety
    /// A namespace that is just being made is kept for others or, if nobody comes, removed when
    /// the pool is closed.
    pub async fn get(&self) -> Result<Namespace, CniError> {
        let ready = self.free().ready.pop();
        if let Some(ready) = ready {
            return Ok(ready);
        }
        let pool = self.clone();
        // Kept in a slot that outlives this future, should nobody wait for it any more.
        let made = blocking(move || {
            let namespace = pool.make()?;
            let mut free = pool.free();
            if !free.closed {
                free.ready.push(namespace);
                return Ok(());
            }
            drop(free);
            pool.remove(&namespace)?;
            Err(CniError::Closed)
        });
        made.await?;
        let ready = self.free().ready.pop();
        match ready {
            Some(ready) => Ok(ready),
            // Somebody else was faster: theirs is on its way.
            None => {
                let pool = self.clone();
                blocking(move || pool.make()).await
            }
        }
    }

    /// Makes namespaces until as many are ready as are to be.
    pub async fn refill(&self) -> Result<(), CniError> {
        while self.wants() {
            let pool = self.clone();
            let made = blocking(move || {
                let namespace = pool.make()?;
                pool.keep(namespace)
            });
            made.await?;
        }
        Ok(())
    }

    /// Gives a namespace back in which no process is any more. It is removed unless there is
    /// room for it.
    pub async fn put(&self, namespace: Namespace) -> Result<(), CniError> {
        let pool = self.clone();
        blocking(move || pool.keep(namespace)).await
    }

    /// Removes what is ready, and from now on what is given back.
    pub async fn close(&self) -> Result<(), CniError> {
        let ready = {
            let mut free = self.free();
            free.closed = true;
            std::mem::take(&mut free.ready)
        };
        let pool = self.clone();
        blocking(move || {
            let mut failed = Ok(());
            for namespace in ready {
                failed = failed.and(pool.remove(&namespace));
            }
            failed.and(pool.remove_bridge())
        })
        .await
    }

    fn wants(&self) -> bool {
        let free = self.free();
        !free.closed && free.ready.len() < self.0.size
    }

    fn keep(&self, namespace: Namespace) -> Result<(), CniError> {
        let mut free = self.free();
        if !free.closed && free.ready.len() < self.0.size {
            free.ready.push(namespace);
            return Ok(());
        }
        drop(free);
        self.remove(&namespace)
    }

    fn make(&self) -> Result<Namespace, CniError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let path = self.0.dir.join(&id);
        cooper_sys::netns::make(&path).map_err(CniError::io("make a network namespace", &path))?;
        let mut namespace = Namespace {
            id,
            path,
            result: Value::Null,
        };
        match self.set_up(&mut namespace) {
            Ok(()) => Ok(namespace),
            Err(error) => {
                // What was set up before it failed goes, too.
                let _ = self.remove(&namespace);
                Err(error)
            }
        }
    }

    fn set_up(&self, namespace: &mut Namespace) -> Result<(), CniError> {
        let note = note(&namespace.path);
        let write = |result: &Value| {
            let text = json!({ "result": result }).to_string();
            std::fs::write(&note, text).map_err(CniError::io("write", &note))
        };
        // By the note a later process finds it.
        write(&Value::Null)?;
        self.caller(namespace, LOOPBACK)
            .add(&CniConfig::loopback())?;
        namespace.result = self.caller(namespace, INTERFACE).add(&self.0.network)?;
        write(&namespace.result)
    }

    /// Takes a namespace down. It is gone even if plug-ins fail.
    fn remove(&self, namespace: &Namespace) -> Result<(), CniError> {
        let caller = self.caller(namespace, INTERFACE);
        let deleted = caller.delete(&self.0.network, &namespace.result);
        let removed = cooper_sys::netns::remove(&namespace.path)
            .map_err(CniError::io("remove a network namespace", &namespace.path));
        let _ = std::fs::remove_file(note(&namespace.path));
        deleted.and(removed)
    }

    fn remove_bridge(&self) -> Result<(), CniError> {
        let Some(name) = &self.0.bridge else {
            return Ok(());
        };
        let mark = mark(&self.0.dir, name);
        cooper_sys::netns::remove_bridge(name)
            .and_then(|()| std::fs::remove_file(&mark))
            .map_err(CniError::io("remove the bridge of", &mark))
    }

    fn caller<'a>(&'a self, namespace: &'a Namespace, interface: &'a str) -> Caller<'a> {
        Caller {
            dir: &self.0.plugins,
            id: &namespace.id,
            namespace: &namespace.path,
            interface,
        }
    }

    /// Takes down what an earlier process left.
    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.0.dir) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            if path.extension().is_some() {
                continue;
            }
            let text = std::fs::read(note(&path)).unwrap_or_default();
            let mut known: Value = serde_json::from_slice(&text).unwrap_or_default();
            let namespace = Namespace {
                id: entry.file_name().to_string_lossy().into_owned(),
                path,
                result: known["result"].take(),
            };
            if let Err(error) = self.remove(&namespace) {
                let path = namespace.path.display();
                tracing::warn!(%path, %error, "cannot take a network down that was left");
            }
        }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // Each change is one call on a list.
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file that says that a bridge is the pool's own.
fn mark(dir: &Path, bridge: &str) -> PathBuf {
    dir.join(format!("{bridge}.bridge"))
}

/// The file beside a namespace that says what plug-ins said.
fn note(path: &Path) -> PathBuf {
    path.with_extension("json")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CniError> + Send + 'static,
) -> Result<T, CniError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(CniError::Io {
            attempt: "wait for",
            path: "a network".into(),
            source: std::io::Error::other(error),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_sys::MountPoint;

    /// A network that needs nothing but namespaces: loopback once more.
    fn config(dir: &Path, pool_size: usize) -> CniConfig {
        let list = dir.join("list.json");
        let text = json!({"name": "test", "plugins": [{"type": "one"}]});
        std::fs::write(&list, text.to_string()).unwrap();
        for name in ["one", "loopback"] {
            let path = dir.join(name);
            let script = format!(
                "#!/bin/sh\ncat > /dev/null\necho $CNI_COMMAND $CNI_CONTAINERID >> {}/log-{name}\n\
                 echo '{{\"ips\": []}}'\n",
                dir.display()
            );
            std::fs::write(&path, script).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).unwrap();
        }
        CniConfig {
            config_path: list.display().to_string(),
            binary_path: dir.display().to_string(),
            pool_size,
            ..CniConfig::default()
        }
    }

    fn count(dir: &Path, command: &str) -> usize {
        let log = std::fs::read_to_string(dir.join("log-one")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(command)).count()
    }

    #[tokio::test]
    async fn namespaces_are_kept_ready_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let places = dir.path().join("places");
        let config = config(dir.path(), 2);
        let pool = NetworkPool::open(&config, places.clone()).unwrap();
        let one = pool.get().await.unwrap();
        assert_eq!(count(dir.path(), "ADD"), 1);
        pool.refill().await.unwrap();
        assert_eq!(count(dir.path(), "ADD"), 3);
        let (two, three) = (pool.get().await.unwrap(), pool.get().await.unwrap());
        assert_eq!(count(dir.path(), "ADD"), 3);
        assert!(one.path() != two.path() && two.path() != three.path());
        assert_eq!(MountPoint::below(&places).unwrap().len(), 3);
        for namespace in [one, two, three] {
            pool.put(namespace).await.unwrap();
        }
        // One too many.
        assert_eq!(count(dir.path(), "DEL"), 1);
        // A later process takes down what this one leaves.
        drop(pool);
        let pool = NetworkPool::open(&config, places.clone()).unwrap();
        assert_eq!(count(dir.path(), "DEL"), 3);
        let last = pool.get().await.unwrap();
        pool.close().await.unwrap();
        pool.put(last).await.unwrap();
        assert_eq!(count(dir.path(), "DEL"), 4);
        assert_eq!(MountPoint::below(&places).unwrap(), []);
        assert_eq!(std::fs::read_dir(&places).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_cannot_be_set_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let places = dir.path().join("places");
        let config = config(dir.path(), 0);
        std::fs::write(
            dir.path().join("one"),
            "#!/bin/sh\necho broken >&2\nexit 1\n",
        )
        .unwrap();
        let pool = NetworkPool::open(&config, places.clone()).unwrap();
        let error = pool.get().await.unwrap_err();
        let expected = "network plug-in one failed to ADD: broken";
        assert_eq!(error.to_string(), expected);
        assert_eq!(std::fs::read_dir(&places).unwrap().count(), 0);
    }
}
