//! The control group of a container: making it and setting its limits.

mod devices;
mod limits;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_sys::cgroup::Hierarchies;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use crate::RuntimeError;

/// The controllers that limits are set by, where version 2 has to be told so.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// A control group, in every hierarchy. Dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Group {
    hierarchies: Arc<Hierarchies>,
    directories: Vec<PathBuf>,
    /// The rules for devices that are in force.
    devices: Option<Vec<LinuxDeviceCgroup>>,
}

impl Group {
    /// Makes the group `path` (`/parent/id`), with those above it that are missing.
    ///
    /// # Errors
    /// When it is there already, or names a slice of systemd (`slice:prefix:name`).
    pub fn create(hierarchies: Arc<Hierarchies>, path: &str) -> Result<Self, RuntimeError> {
        if path.contains(':') {
            return Err(RuntimeError::unsupported(format!(
                "the control group {path} of systemd"
            )));
        }
        let relative = Path::new(path.trim_start_matches('/'));
        let mut group = Self {
            directories: Vec::new(),
            devices: None,
            hierarchies: hierarchies.clone(),
        };
        for root in hierarchies.roots() {
            let directory = root.join(relative);
            let made = if hierarchies.unified() {
                make_unified(root, &directory)
            } else {
                make(root, &directory)
            };
            if let Err(source) = made {
                // Those that were made are of no use without this one.
                for made in &group.directories {
                    let _ = std::fs::remove_dir(made);
                }
                return Err(RuntimeError::group("make control group", &directory)(
                    source,
                ));
            }
            group.directories.push(directory);
        }
        Ok(group)
    }

    /// Its directories, one for each hierarchy.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Whether a process can be born in it.
    pub fn unified(&self) -> bool {
        self.hierarchies.unified()
    }

    /// Sets limits and which devices can be used.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for what it does not know or this machine has no
    /// controller for, and what the kernel refuses.
    pub fn limit(&mut self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        let rules = resources.devices().as_deref().unwrap_or_default();
        self.allow(rules)?;
        limits::set(self, resources)
    }

    /// Sets which devices can be used: what the rules say, and what every container has. Where
    /// that cannot be said ([`Hierarchies::rule_devices`]) devices cannot be made either.
    pub fn allow(&mut self, rules: &[LinuxDeviceCgroup]) -> Result<(), RuntimeError> {
        if !self.hierarchies.rule_devices() && rules.is_empty() {
            return Ok(());
        }
        if self.devices.as_deref() != Some(rules) {
            devices::set(self, rules)?;
            self.devices = Some(rules.to_vec());
        }
        Ok(())
    }

    /// The file of a controller, if there is one.
    fn file(&self, name: &str) -> Option<PathBuf> {
        let files = self
            .directories
            .iter()
            .map(|directory| directory.join(name));
        files.into_iter().find(|file| file.exists())
    }

    fn write(&self, name: &str, value: impl AsRef<[u8]>) -> Result<(), RuntimeError> {
        let Some(file) = self.file(name) else {
            return Err(RuntimeError::unsupported(format!("{name} on this machine")));
        };
        std::fs::write(&file, value).map_err(RuntimeError::group("write", file))
    }
}

fn make(root: &Path, directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result.and_then(|()| inherit_cpuset(directory)),
    }
    let parent = directory.parent().filter(|parent| *parent != root);
    if let Some(parent) = parent {
        match make(root, parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    std::fs::create_dir(directory)?;
    inherit_cpuset(directory)
}

/// A new group of version 1 has no processors and no memory nodes, and nobody can be in it
/// (cpuset(7)). Nor has the one above for a moment, when another container has just made it.
fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        let Ok(own) = std::fs::read(&file) else {
            return Ok(());
        };
        if !own.trim_ascii().is_empty() {
            continue;
        }
        let Some(above) = directory.parent() else {
            return Ok(());
        };
        let mut given = std::fs::read(above.join(name))?;
        if given.trim_ascii().is_empty() {
            inherit_cpuset(above)?;
            given = std::fs::read(above.join(name))?;
        }
        std::fs::write(&file, given)?;
    }
    Ok(())
}

/// In version 2 a group without processors of its own has those of the one above.
fn make_unified(root: &Path, directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = directory.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::create_dir(directory)?;
        }
        result => result?,
    }
    let words = |file: PathBuf| std::fs::read_to_string(file).unwrap_or_default();
    let (all, own) = (
        words(root.join("cgroup.controllers")),
        words(directory.join("cgroup.controllers")),
    );
    let has = |text: &str, name| text.split_whitespace().any(|word| word == name);
    let missing = CONTROLLERS
        .iter()
        .filter(|name| has(&all, **name) && !has(&own, **name));
    for name in missing {
        let above = directory.ancestors().skip(1);
        let mut above: Vec<_> = above.take_while(|above| above.starts_with(root)).collect();
        above.reverse();
        for above in above {
            // One that cannot be had is missed when a limit needs it.
            let _ = std::fs::write(above.join("cgroup.subtree_control"), format!("+{name}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_come_from_as_far_above_as_is_needed() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("parent/child");
        std::fs::create_dir_all(&inner).unwrap();
        for (dir, cpus) in [
            (root.path(), "0-1\n"),
            (inner.parent().unwrap(), "\n"),
            (&inner, "\n"),
        ] {
            std::fs::write(dir.join("cpuset.cpus"), cpus).unwrap();
            std::fs::write(dir.join("cpuset.mems"), "0\n").unwrap();
        }
        inherit_cpuset(&inner).unwrap();
        for dir in [inner.parent().unwrap(), &inner] {
            assert_eq!(std::fs::read(dir.join("cpuset.cpus")).unwrap(), b"0-1\n");
        }
    }
}
