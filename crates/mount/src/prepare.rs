//! From the mounts of a build step to mounts for an executor.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use cooper_cache::{LocalRef, MutableRef, RecordOptions};
use cooper_executor::ContainerMount;
use cooper_progress::VertexProgress;
use cooper_proto::pb;
use cooper_session::Group;
use cooper_snapshot::Mount;

use crate::cachedir::{CacheDir, User};
use crate::error::cache;
use crate::prepared::{Kept, Output};
use crate::secret::{self, SecretFile};
use crate::ssh::{self, SshSocket};
use crate::{MountError, MountManager, Prepared};

/// Where the root file system is mounted.
const ROOT: &str = "/";

/// The mounts of one process, as a build step has them.
#[derive(Clone, Copy)]
pub struct Prepare<'a> {
    /// The mounts, in the order of the step.
    pub mounts: &'a [pb::Mount],
    /// The inputs of the step; `None` for an empty file system.
    pub inputs: &'a [Option<LocalRef>],
    /// The working directory that relative destinations count from.
    pub cwd: &'a str,
    /// What the mounts are for, as records name it: `exec` and the arguments, or `container`
    /// and the id.
    pub description: &'a str,
    /// Whom to ask for secrets and ssh agents.
    pub sessions: &'a Group,
    /// Where it is said that a mount has to be waited for, and for whom.
    pub progress: Option<&'a VertexProgress>,
}

impl<'a> Prepare<'a> {
    pub(crate) async fn run(self, manager: &MountManager) -> Result<Prepared, MountError> {
        let mut prepared = Prepared::default();
        let mut caches = HashMap::new();
        let mut root = None;
        for mount in self.mounts {
            let resolved = self
                .resolve(manager, mount, &mut prepared, &mut caches)
                .await?;
            prepared.sources.push(resolved.clone());
            // An optional secret or agent that is missing.
            let Some(resolved) = resolved else {
                continue;
            };
            if mount.dest == ROOT {
                prepared.root_read_only = mount.readonly;
                root = Some(resolved);
                continue;
            }
            prepared.mounts.push(ContainerMount {
                dest: destination(self.cwd, &mount.dest),
                mounts: resolved,
                selector: mount.selector.clone(),
                read_only: mount.readonly,
                shared: mount
                    .cache_opt
                    .as_ref()
                    .is_some_and(|cache| cache.sharing == pb::CacheSharingOpt::Shared as i32),
            });
        }
        prepared.root = root.ok_or(MountError::NoRoot)?;
        // A folder comes before what is mounted in it.
        prepared.mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        prepared.outputs.sort_by_key(|output| output.index);
        Ok(prepared)
    }

    /// What to mount; `None` for an optional secret or agent that is missing.
    async fn resolve(
        &self,
        manager: &MountManager,
        mount: &pb::Mount,
        prepared: &mut Prepared,
        caches: &mut HashMap<String, Arc<CacheDir>>,
    ) -> Result<Option<Vec<Mount>>, MountError> {
        let unknown = |_| MountError::UnknownType {
            kind: mount.mount_type,
        };
        let kind = pb::MountType::try_from(mount.mount_type).map_err(unknown)?;
        if mount.dest == ROOT && kind != pb::MountType::Bind {
            return Err(MountError::RootType {
                kind: kind.as_str_name(),
                dest: mount.dest.clone(),
            });
        }
        let input = self.input(mount)?;
        let mounts = match kind {
            pb::MountType::Bind => self.bind(manager, mount, input, prepared).await?,
            pb::MountType::Cache => self.cache(manager, mount, input, prepared, caches).await?,
            pb::MountType::Tmpfs => vec![tmpfs(mount)],
            pb::MountType::Secret => match self.secret(manager, mount).await? {
                Some(file) => {
                    let own = vec![file.mount()];
                    prepared.kept.push(Kept::Secret(file));
                    own
                }
                None => return Ok(None),
            },
            pb::MountType::Ssh => match self.ssh(manager, mount).await? {
                Some(socket) => {
                    let own = vec![socket.mount()];
                    prepared.kept.push(Kept::Ssh(socket));
                    own
                }
                None => return Ok(None),
            },
        };
        Ok(Some(mounts))
    }

    /// The ref that the mount starts from.
    fn input(&self, mount: &pb::Mount) -> Result<Option<&'a LocalRef>, MountError> {
        let Ok(index) = usize::try_from(mount.input) else {
            return Ok(None);
        };
        match self.inputs.get(index) {
            Some(input) => Ok(input.as_ref()),
            None => Err(MountError::MissingInput { input: mount.input }),
        }
    }

    async fn bind(
        &self,
        manager: &MountManager,
        mount: &pb::Mount,
        input: Option<&LocalRef>,
        prepared: &mut Prepared,
    ) -> Result<Vec<Mount>, MountError> {
        let output = usize::try_from(mount.output).ok();
        let place = prepared.sources.len();
        // What is read only stays what it is. The root is written by the executor, which makes
        // mount points in it, even where the process may not write.
        if let Some(input) = input
            && mount.readonly
            && mount.dest != ROOT
        {
            let mounts = input.mounts().await;
            let mounts = mounts.map_err(cache("mount the input of", &mount.dest))?;
            if let Some(index) = output {
                prepared.outputs.push(Output::same(index, place, input));
            }
            prepared.kept.push(Kept::Input(input.clone()));
            return Ok(mounts);
        }
        if mount.dest == ROOT && input.is_none() && output.is_none() {
            let dest = mount.dest.clone();
            return Err(MountError::NoInput { dest });
        }
        let made = self.mutable(manager, mount, input).await?;
        let mounts = made.mounts().await;
        let mounts = mounts.map_err(cache("mount the files of", &mount.dest))?;
        prepared.outputs.push(Output::written(output, place, made));
        Ok(mounts)
    }

    async fn mutable(
        &self,
        manager: &MountManager,
        mount: &pb::Mount,
        parent: Option<&LocalRef>,
    ) -> Result<MutableRef, MountError> {
        let options = RecordOptions {
            description: format!("mount {} from {}", mount.dest, self.description),
            ..RecordOptions::default()
        };
        let made = manager.cache.new_mutable(parent, options).await;
        made.map_err(cache("make the files of", &mount.dest))
    }

    async fn cache(
        &self,
        manager: &MountManager,
        mount: &pb::Mount,
        base: Option<&LocalRef>,
        prepared: &mut Prepared,
        caches: &mut HashMap<String, Arc<CacheDir>>,
    ) -> Result<Vec<Mount>, MountError> {
        let options = mount.cache_opt.as_ref();
        let options = options.ok_or(MountError::NoCacheOptions)?;
        let sharing = options.sharing;
        let sharing =
            pb::CacheSharingOpt::try_from(sharing).map_err(|_| MountError::Sharing { sharing })?;
        let key = match base {
            Some(base) => format!("{}:{}", options.id, base.id()),
            None => options.id.clone(),
        };
        // Two mounts of one process see the same directory, however it is shared with others.
        let dir = match caches.get(&key) {
            Some(dir) => dir.clone(),
            None => {
                let mut name = format!("cached mount {} from {}", mount.dest, self.description);
                if options.id != mount.dest {
                    name.push_str(&format!(" with id {:?}", options.id));
                }
                let user = User {
                    name: self.description,
                    dest: &mount.dest,
                    progress: self.progress,
                };
                let dir = manager
                    .dirs
                    .get(&manager.cache, &key, base, sharing, name, user)
                    .await
                    .map_err(cache("get the cache of", &mount.dest))?;
                let dir = Arc::new(dir);
                caches.insert(key, dir.clone());
                dir
            }
        };
        let mounts = dir.mounts().await;
        let mounts = mounts.map_err(cache("mount the cache of", &mount.dest))?;
        if let (Ok(index), Some(base)) = (usize::try_from(mount.output), base) {
            let place = prepared.sources.len();
            prepared.outputs.push(Output::same(index, place, base));
        }
        prepared.kept.push(Kept::Cache(dir));
        Ok(mounts)
    }

    async fn secret(
        &self,
        manager: &MountManager,
        mount: &pb::Mount,
    ) -> Result<Option<SecretFile>, MountError> {
        let options = mount.secret_opt.clone();
        let options = options.ok_or(MountError::NoSecretOptions)?;
        let Some(data) = secret::fetch(&options, self.sessions).await? else {
            return Ok(None);
        };
        // Some small writes to memory: not worth a thread of their own.
        SecretFile::write(manager.place()?, &data, &options).map(Some)
    }

    async fn ssh(
        &self,
        manager: &MountManager,
        mount: &pb::Mount,
    ) -> Result<Option<SshSocket>, MountError> {
        let options = mount.ssh_opt.clone();
        let options = options.ok_or(MountError::NoSshOptions)?;
        let Some(session) = ssh::find(&options, self.sessions).await? else {
            return Ok(None);
        };
        SshSocket::listen(manager.place()?, &options, session).map(Some)
    }
}

fn tmpfs(mount: &pb::Mount) -> Mount {
    let mut options = vec!["nosuid".to_owned()];
    match mount.tmpfs_opt.as_ref().map(|options| options.size) {
        Some(size) if size > 0 => options.push(format!("size={size}")),
        _ => {}
    }
    Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options,
    }
}

/// A destination as seen from the root; relative ones count from the working directory.
fn destination(cwd: &str, dest: &str) -> String {
    let mut path = PathBuf::from("/");
    for component in Path::new("/").join(cwd).join(dest).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_absolute_and_clean() {
        let cases = [
            ("/work", "/a", "/a"),
            ("/work", "a/b", "/work/a/b"),
            ("work", "./a/", "/work/a"),
            ("", "a", "/a"),
            ("/work", "../../a", "/a"),
        ];
        for (cwd, dest, expected) in cases {
            assert_eq!(destination(cwd, dest), expected, "{cwd} {dest}");
        }
    }
}
