//! The folder of a container, with what is mounted in it.

use std::io;
use std::path::{Path, PathBuf};

use cooper_snapshot::{Mount, MountedDir};
use cooper_sys::{MountPoint, Root};
use oci_spec::runtime::Spec;

use crate::{Attached, ContainerMount, ExecError, Group, MountStubs};

/// A bundle (OCI runtime specification, bundle.md). Dropping it unmounts and removes everything; nothing may run in it any more.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    // Unmounted in this order.
    attached: Option<Attached>,
    root: Option<MountedDir>,
    stubs: Option<MountStubs>,
    group: Option<Group>,
}

impl Bundle {
    /// Makes the folder of `id` in `parent`.
    pub fn new(parent: &Path, id: &str) -> Result<Self, ExecError> {
        let dir = parent.join(id);
        match std::fs::create_dir(&dir) {
            Ok(()) => Ok(Self {
                dir,
                attached: None,
                root: None,
                stubs: None,
                group: None,
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(ExecError::Exists { id: id.to_owned() })
            }
            Err(error) => Err(ExecError::io("make", dir)(error)),
        }
    }

    /// The control group goes with it.
    pub fn own_group(&mut self, group: Group) {
        self.group = Some(group);
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Mounts the root file system and returns where.
    pub fn mount_root(&mut self, id: &str, root: &[Mount]) -> Result<PathBuf, ExecError> {
        let mounted = MountedDir::mount(root, &self.dir);
        let mounted = mounted.map_err(|source| ExecError::Root {
            id: id.to_owned(),
            source,
        })?;
        let path = mounted.path().to_owned();
        self.root = Some(mounted);
        Ok(path)
    }

    /// Notes which mount points are missing in the root file system.
    pub fn note_stubs(&mut self, root: &Root, mounts: &[ContainerMount], recursive: bool) {
        let dests = mounts.iter().map(|mount| mount.dest.as_str());
        self.stubs = Some(MountStubs::before(root, dests, recursive));
    }

    /// Prepares the other mounts.
    pub fn attach(
        &mut self,
        mounts: &[ContainerMount],
    ) -> Result<Vec<oci_spec::runtime::Mount>, ExecError> {
        let attached = Attached::new(mounts, &self.dir)?;
        let mounts = attached.mounts().to_vec();
        self.attached = Some(attached);
        Ok(mounts)
    }

    /// Writes a file that is mounted into the container or read by the runtime.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf, ExecError> {
        let path = self.dir.join(name);
        std::fs::write(&path, text).map_err(ExecError::io("write", &path))?;
        Ok(path)
    }

    /// Writes the configuration.
    pub fn configure(&self, spec: &Spec) -> Result<(), ExecError> {
        let text = serde_json::to_vec(spec).map_err(|error| {
            let path = self.dir.join("config.json");
            ExecError::io("encode", path)(error.into())
        })?;
        self.write("config.json", text).map(drop)
    }

    /// Unmounts everything and takes the runtime's mount points out of the root file system.
    pub fn unmount(&mut self) {
        self.attached.take();
        let Some(root) = self.root.take() else {
            return;
        };
        if let Some(stubs) = self.stubs.take() {
            match Root::open(root.path()) {
                Ok(root) => stubs.remove(&root),
                Err(error) => tracing::warn!(%error, "cannot remove mount points"),
            }
        }
        if let Err(error) = root.close() {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot unmount a container");
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.unmount();
        if let Some(Err(error)) = self.group.take().map(|group| group.remove()) {
            // It is found by the bundle at the next start.
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove a control group");
            return;
        }
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove a bundle");
        }
    }
}

/// Removes the bundle in `dir` that an earlier process left, which was killed: whoever is in its
/// control group is killed, what is mounted below the folder is unmounted. Blocks.
pub fn remove_left(dir: &Path, group: Option<Group>) -> io::Result<()> {
    if let Some(group) = group {
        group.empty_blocking();
        group.remove()?;
    }
    for mount in MountPoint::below(dir)? {
        cooper_sys::mount::unmount(&mount.target)?;
    }
    // Never into a file system that is still mounted.
    if !MountPoint::below(dir)?.is_empty() {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    remove(dir)
}

/// Removes the folder and the files in it, but never what might be mounted below: folders in
/// it are empty places, or they stay.
fn remove(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(dir)
}
