//! The mounts of a container, put together on the host as far as its runtime cannot.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cooper_snapshot::{Mount, MountedDir};
use cooper_sys::{MountGuard, Root};
use oci_spec::runtime::{Mount as OciMount, MountBuilder};
use rustix::fs::{FileType, Mode, OFlags};

use crate::{ContainerMount, ExecError};

/// What [`ContainerMount`]s are on the host: binds, and file systems that the runtime makes.
/// Overlays are mounted here, because a runtime that uses mount(2) cannot mount deep ones, and
/// so is what a selector picks from.
///
/// Dropping it unmounts what was mounted here and removes the places.
#[derive(Debug, Default)]
pub struct Attached {
    mounts: Vec<OciMount>,
    // What was picked goes before what it was picked from.
    picked: Vec<Picked>,
    whole: Vec<MountedDir>,
}

#[derive(Debug)]
struct Picked {
    guard: Option<MountGuard>,
    target: PathBuf,
    dir: bool,
}

impl Attached {
    /// Prepares the mounts; places to mount are made below `dir`.
    pub fn new(mounts: &[ContainerMount], dir: &Path) -> Result<Self, ExecError> {
        let mut attached = Self::default();
        for (number, mount) in mounts.iter().enumerate() {
            attached
                .add(mount, &dir.join(format!("pick-{number}")), dir)
                .map_err(|source| ExecError::Mount {
                    dest: mount.dest.clone(),
                    source,
                })?;
        }
        Ok(attached)
    }

    /// In the words of the OCI runtime specification, in order.
    pub fn mounts(&self) -> &[OciMount] {
        &self.mounts
    }

    fn add(&mut self, mount: &ContainerMount, place: &Path, dir: &Path) -> io::Result<()> {
        let layers: Vec<Mount> = mount
            .mounts
            .iter()
            .map(|layer| match mount.read_only {
                true => layer.clone().read_only(),
                false => layer.clone(),
            })
            .collect();
        let whole = mount
            .selector
            .split('/')
            .all(|name| matches!(name, "" | "."));
        let source = match layers.as_slice() {
            [] => {
                let message = format!("mount {} has no source", mount.dest);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            [only] if whole && only.kind != "overlay" => {
                self.mounts.push(entry(&mount.dest, only)?);
                return Ok(());
            }
            [only] if only.kind == "bind" => only.source.clone(),
            several => {
                let mounted = MountedDir::mount(several, dir).map_err(io::Error::other)?;
                let path = mounted.path().to_owned();
                self.whole.push(mounted);
                path
            }
        };
        let read_only = mount.read_only || layers.iter().any(is_read_only);
        let source = if whole {
            source
        } else {
            self.pick(&source, &mount.selector, place)?
        };
        self.mounts
            .push(entry(&mount.dest, &Mount::bind(&source, read_only))?);
        Ok(())
    }

    /// Binds what `selector` names in `source` to `place`. It is bound by descriptor: what is
    /// found cannot be exchanged for a link before it is mounted.
    fn pick(&mut self, source: &Path, selector: &str, place: &Path) -> io::Result<PathBuf> {
        let root = Root::open(source)?;
        let found = root.open_with(selector, OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&found)?;
        let dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if dir {
            std::fs::create_dir(place)?;
        } else {
            std::fs::File::create(place)?;
        }
        let mut picked = Picked {
            guard: None,
            target: place.to_owned(),
            dir,
        };
        let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        let options = ["rbind".to_owned()];
        picked.guard = Some(MountGuard::mount("bind", &source, &options, place)?);
        self.picked.push(picked);
        Ok(place.to_owned())
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.guard.take();
        // Only the empty place: were it still mounted, this fails and harms nothing.
        let _ = match self.dir {
            true => std::fs::remove_dir(&self.target),
            false => std::fs::remove_file(&self.target),
        };
    }
}

fn is_read_only(mount: &Mount) -> bool {
    mount.options.iter().any(|option| option == "ro")
}

fn entry(dest: &str, mount: &Mount) -> io::Result<OciMount> {
    MountBuilder::default()
        .destination(dest)
        .typ(mount.kind.clone())
        .source(mount.source.clone())
        .options(mount.options.clone())
        .build()
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_sys::MountPoint;
    use std::os::unix::fs::symlink;

    fn mount(dest: &str, mounts: Vec<Mount>, selector: &str) -> ContainerMount {
        ContainerMount {
            dest: dest.into(),
            mounts,
            selector: selector.into(),
            read_only: false,
        }
    }

    #[test]
    fn selectors_stay_inside_and_nothing_remains() {
        let outer = tempfile::tempdir().unwrap();
        let source = outer.path().join("source");
        let places = outer.path().join("places");
        for dir in [&source.join("a/b"), &places] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::write(outer.path().join("secret"), "outside").unwrap();
        std::fs::write(source.join("a/file"), "inside").unwrap();
        symlink("../../secret", source.join("a/out")).unwrap();
        symlink("/a/file", source.join("link")).unwrap();
        let bind = || vec![Mount::bind(&source, true)];
        let attached = Attached::new(
            &[
                mount("/whole", bind(), "/"),
                mount("/dir", bind(), "/a"),
                mount("/file", bind(), "link"),
            ],
            &places,
        )
        .unwrap();
        let sources: Vec<_> = attached
            .mounts()
            .iter()
            .map(|mount| mount.source().clone().unwrap())
            .collect();
        assert_eq!(sources[0], source);
        assert!(sources[1].join("b").is_dir());
        assert_eq!(std::fs::read_to_string(&sources[2]).unwrap(), "inside");
        for mount in attached.mounts() {
            let options = mount.options().clone().unwrap();
            assert!(options.contains(&"ro".to_owned()), "{options:?}");
        }
        for bad in ["a/out", "nothing"] {
            let error = Attached::new(&[mount("/x", bind(), bad)], &places).unwrap_err();
            assert_eq!(error.to_string(), "failed to mount /x");
        }
        drop(attached);
        assert_eq!(MountPoint::below(outer.path()).unwrap(), []);
        assert_eq!(std::fs::read_dir(&places).unwrap().count(), 0);
    }
}
