//! Cache mounts: mutable refs that outlive the step and are found again by their id.
//!
//! Who shares what is BuildKit's rule (`solver/llbsolver/mounts/mount.go`): a *shared* cache is
//! one directory for all who want it shared at the same time, a *private* one is a directory
//! that nobody else has, and who wants it *locked* waits until a directory is free. Here the
//! waiting is a queue: first come, first served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cooper_cache::{
    CacheError, CacheManager, LocalRef, MountedDir, MutableRef, RecordOptions, RecordType,
};
use cooper_progress::{StatusGuard, VertexProgress};
use cooper_proto::pb::CacheSharingOpt;
use cooper_snapshot::Mount;
use tokio::sync::{Notify, OnceCell};

/// What the index of a cache directory begins with; its key follows.
const INDEX: &str = "cache-dir:";

/// The cache mounts that are in use, by key.
#[derive(Debug, Default)]
pub(crate) struct CacheDirs {
    gates: Mutex<HashMap<String, Weak<Gate>>>,
}

/// What all users of one key pass.
#[derive(Debug, Default)]
struct Gate {
    /// Who waits for a free directory: one looks, the others stand behind.
    queue: tokio::sync::Mutex<()>,
    /// Held while directories are looked through, so that two do not both make one.
    search: tokio::sync::Mutex<()>,
    /// A directory was given back.
    freed: Notify,
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    /// Who has a handle of this key, shared ones counted singly.
    holders: Vec<Arc<str>>,
    /// The directory that is shared now, and by how many.
    shared: Option<(Arc<Held>, usize)>,
}

/// The use of a cache directory. Dropping it gives the directory back, at once.
#[derive(Debug)]
pub(crate) struct CacheDir {
    // There until it is dropped.
    dir: Option<Arc<Held>>,
    shared: bool,
    holder: Arc<str>,
    gate: Arc<Gate>,
}

/// Who wants a cache directory.
#[derive(Clone, Copy)]
pub(crate) struct User<'a> {
    /// How others that wait for it call it.
    pub(crate) name: &'a str,
    /// Where the directory is to be mounted.
    pub(crate) dest: &'a str,
    /// Where it is said that there is something to wait for.
    pub(crate) progress: Option<&'a VertexProgress>,
}

impl CacheDirs {
    /// Gets the directory of `key`, made on top of `base` when there is none.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue.
    pub(crate) async fn get(
        &self,
        cache: &CacheManager,
        key: &str,
        base: Option<&LocalRef>,
        sharing: CacheSharingOpt,
        description: String,
        user: User<'_>,
    ) -> Result<CacheDir, CacheError> {
        let gate = self.gate(key);
        let wanted = Wanted {
            cache,
            index: format!("{INDEX}{key}"),
            base,
            description,
            user,
        };
        match sharing {
            CacheSharingOpt::Shared => gate.shared(&wanted).await,
            CacheSharingOpt::Private => gate.private(&wanted).await,
            CacheSharingOpt::Locked => gate.locked(&wanted).await,
        }
    }

    /// From now on everybody gets a new directory for these ids; who has one keeps it.
    pub(crate) async fn forget(
        &self,
        cache: &CacheManager,
        ids: &[&str],
    ) -> Result<(), CacheError> {
        let of = |key: &str| {
            ids.iter().any(|id| {
                let rest = key.strip_prefix(id);
                // With a base its id stands behind.
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            })
        };
        lock(&self.gates).retain(|key, _| !of(key));
        let index = |index: &str| index.strip_prefix(INDEX).is_some_and(of);
        cache.forget(index).await
    }

    fn gate(&self, key: &str) -> Arc<Gate> {
        let mut gates = lock(&self.gates);
        if let Some(gate) = gates.get(key).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::default());
        gates.insert(key.to_owned(), Arc::downgrade(&gate));
        gate
    }
}

/// A cache directory that somebody has.
#[derive(Debug)]
struct Held {
    // Unmounted before the directory is given back.
    mounted: OnceCell<MountedDir>,
    dir: MutableRef,
}

impl Held {
    fn new(dir: MutableRef) -> Arc<Self> {
        let mounted = OnceCell::new();
        Arc::new(Self { mounted, dir })
    }
}

/// A cache directory to be found or made.
struct Wanted<'a> {
    cache: &'a CacheManager,
    index: String,
    base: Option<&'a LocalRef>,
    description: String,
    user: User<'a>,
}

impl Wanted<'_> {
    /// A directory that nobody has; `None` when somebody has each that there is, or there is
    /// none. The flag says which: whether one was taken.
    async fn find(&self) -> Result<(Option<MutableRef>, bool), CacheError> {
        let mut taken = false;
        for id in self.cache.search(&self.index)? {
            match self.cache.get_mutable(&id).await {
                Ok(dir) => return Ok((Some(dir), taken)),
                Err(CacheError::Locked { .. }) => taken = true,
                Err(error) => {
                    tracing::warn!(%id, %error, "a cache mount cannot be used again");
                }
            }
        }
        Ok((None, taken))
    }

    async fn make(&self) -> Result<MutableRef, CacheError> {
        let options = RecordOptions {
            description: self.description.clone(),
            record_type: RecordType::CacheMount,
            retain: true,
            indexes: vec![self.index.clone()],
            ..RecordOptions::default()
        };
        self.cache.new_mutable(self.base, options).await
    }

    async fn find_or_make(&self) -> Result<MutableRef, CacheError> {
        match self.find().await? {
            (Some(dir), _) => Ok(dir),
            (None, _) => self.make().await,
        }
    }
}

impl Gate {
    async fn shared(self: Arc<Self>, wanted: &Wanted<'_>) -> Result<CacheDir, CacheError> {
        let _search = self.search.lock().await;
        if let Some(dir) = self.join(wanted.user) {
            return Ok(dir);
        }
        let dir = Held::new(wanted.find_or_make().await?);
        let holder: Arc<str> = wanted.user.name.into();
        let mut users = lock(&self.users);
        users.holders.push(holder.clone());
        users.shared = Some((dir.clone(), 1));
        drop(users);
        Ok(CacheDir {
            dir: Some(dir),
            shared: true,
            holder,
            gate: self.clone(),
        })
    }

    /// A further handle of the directory that is shared now.
    fn join(self: &Arc<Self>, user: User<'_>) -> Option<CacheDir> {
        let mut users = lock(&self.users);
        let (dir, count) = users.shared.as_mut()?;
        *count += 1;
        let dir = dir.clone();
        let holder: Arc<str> = user.name.into();
        users.holders.push(holder.clone());
        drop(users);
        Some(CacheDir {
            dir: Some(dir),
            shared: true,
            holder,
            gate: self.clone(),
        })
    }

    async fn private(self: Arc<Self>, wanted: &Wanted<'_>) -> Result<CacheDir, CacheError> {
        let _search = self.search.lock().await;
        let dir = wanted.find_or_make().await?;
        Ok(self.alone(dir, wanted.user))
    }

    async fn locked(self: Arc<Self>, wanted: &Wanted<'_>) -> Result<CacheDir, CacheError> {
        let _turn = match self.queue.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                let _shown = self.waits(wanted.user);
                self.queue.lock().await
            }
        };
        let mut shown = None;
        loop {
            {
                let _search = self.search.lock().await;
                // Counted before looking: one that is given back meanwhile wakes us below.
                let in_use = !lock(&self.users).holders.is_empty();
                match wanted.find().await? {
                    (Some(dir), _) => return Ok(self.alone(dir, wanted.user)),
                    // Taken by somebody who did not come through here, such as pruning: such a
                    // one is on its way out and not worth waiting for.
                    (None, taken) if !taken || !in_use => {
                        let dir = wanted.make().await?;
                        return Ok(self.alone(dir, wanted.user));
                    }
                    (None, _) => {}
                }
            }
            shown = shown.or_else(|| self.waits(wanted.user));
            // A notification that comes before this is kept for it.
            self.freed.notified().await;
        }
    }

    /// Says, until the guard is dropped, whom `user` waits for.
    fn waits(&self, user: User<'_>) -> Option<StatusGuard> {
        let progress = user.progress?;
        let holders = lock(&self.users).holders.join(", ");
        let dest = user.dest;
        let name = format!("waiting for {holders} to release the cache of {dest}");
        Some(progress.status(&format!("cache of {dest}"), &name))
    }

    fn alone(self: &Arc<Self>, dir: MutableRef, user: User<'_>) -> CacheDir {
        let holder: Arc<str> = user.name.into();
        lock(&self.users).holders.push(holder.clone());
        CacheDir {
            dir: Some(Held::new(dir)),
            shared: false,
            holder,
            gate: self.clone(),
        }
    }
}

impl CacheDir {
    /// What to mount. An overlay is mounted once for all who have the directory: two overlays
    /// over one upper directory do not see each other's changes.
    pub(crate) async fn mounts(&self) -> Result<Vec<Mount>, CacheError> {
        let held = self.dir.as_deref().expect("there until it is dropped");
        let mounts = held.dir.mounts().await?;
        if mounts.iter().all(|mount| mount.kind != "overlay") {
            return Ok(mounts);
        }
        let mounted = held.mounted.get_or_try_init(|| held.dir.mount()).await?;
        Ok(vec![Mount::bind(mounted.path(), false)])
    }
}

impl Drop for CacheDir {
    fn drop(&mut self) {
        let mut users = lock(&self.gate.users);
        let own = |holder: &Arc<str>| Arc::ptr_eq(holder, &self.holder);
        users.holders.retain(|holder| !own(holder));
        if self.shared
            && let Some((_, count)) = users.shared.as_mut()
        {
            *count -= 1;
            if *count == 0 {
                users.shared = None;
            }
        }
        // Given back while the lock is held: who looks next finds it shared or free.
        self.dir.take();
        drop(users);
        self.gate.freed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds these locks leaves them half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
