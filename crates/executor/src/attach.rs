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
/// so is what a selector picks from. What lies in a mount that others change meanwhile
/// ([`ContainerMount::shared`]) is mounted in it here, too, and the runtime gets both as one.
///
/// Dropping it unmounts what was mounted here and removes the places.
#[derive(Debug, Default)]
pub struct Attached {
    mounts: Vec<OciMount>,
    // What is shared goes before what is mounted in it, and what was picked before what it was
    // picked from.
    nests: Vec<Nest>,
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
            let later = &mounts[number + 1..];
            let places = Places { dir, number };
            attached
                .add(mount, later, places)
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

    fn add(
        &mut self,
        mount: &ContainerMount,
        later: &[ContainerMount],
        places: Places<'_>,
    ) -> io::Result<()> {
        let mut layer = self.layer(mount, places)?;
        let dest = Path::new(&mount.dest);
        if let Some(nest) = self.nests.iter().find(|nest| below(dest, &nest.dest)) {
            let inner = Picked::mount(&layer, &places.path("inner"))?;
            nest.attach(&inner, dest)?;
            self.picked.push(inner);
            return Ok(());
        }
        if mount.shared
            && later
                .iter()
                .any(|inner| below(Path::new(&inner.dest), dest))
        {
            let outer = Picked::mount(&layer, &places.path("nest"))?;
            layer = Mount {
                options: vec!["rbind".into()],
                ..Mount::bind(&outer.target, is_read_only(&layer))
            };
            self.nests.push(Nest {
                outer,
                dest: dest.to_owned(),
            });
        }
        self.mounts.push(entry(&mount.dest, &layer)?);
        Ok(())
    }

    /// What is to be mounted at the destination.
    fn layer(&mut self, mount: &ContainerMount, places: Places<'_>) -> io::Result<Mount> {
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
            [only] if whole && only.kind != "overlay" => return Ok(only.clone()),
            [only] if only.kind == "bind" => only.source.clone(),
            several => {
                let mounted = MountedDir::mount(several, places.dir).map_err(io::Error::other)?;
                let path = mounted.path().to_owned();
                self.whole.push(mounted);
                path
            }
        };
        let read_only = mount.read_only || layers.iter().any(is_read_only);
        let source = if whole {
            source
        } else {
            self.pick(&source, &mount.selector, &places.path("pick"))?
        };
        Ok(Mount::bind(&source, read_only))
    }

    /// Binds what `selector` names in `source` to `place`. It is bound by descriptor: what is
    /// found cannot be exchanged for a link before it is mounted.
    fn pick(&mut self, source: &Path, selector: &str, place: &Path) -> io::Result<PathBuf> {
        let root = Root::open(source)?;
        let found = root.open_with(selector, OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&found)?;
        let dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let source = Mount {
            options: vec!["rbind".into()],
            ..Mount::bind(
                Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())),
                false,
            )
        };
        self.picked.push(Picked::at(&source, dir, place)?);
        Ok(place.to_owned())
    }
}

/// Where the mount of a number may be prepared.
#[derive(Clone, Copy)]
struct Places<'a> {
    dir: &'a Path,
    number: usize,
}

impl Places<'_> {
    fn path(&self, kind: &str) -> PathBuf {
        self.dir.join(format!("{kind}-{}", self.number))
    }
}

/// A mount that others may change, at a place on the host, where more is mounted into it.
#[derive(Debug)]
struct Nest {
    outer: Picked,
    /// Where it is seen from inside.
    dest: PathBuf,
}

impl Nest {
    /// Binds `inner` to `dest`, which lies below this mount's. Every link on the way is
    /// resolved inside what is mounted here; a mount point that is missing is made. It is mounted on by
    /// descriptor, so what is found cannot be exchanged any more; when the outer mount goes, it
    /// goes with it.
    fn attach(&self, inner: &Picked, dest: &Path) -> io::Result<()> {
        let path = dest
            .strip_prefix(&self.dest)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let root = Root::open(&self.outer.target)?;
        let found = match root.open_with(path, OFlags::PATH, Mode::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if inner.dir {
                    root.mkdir_all(path, 0o755)?;
                } else {
                    root.mkdir_all(path.parent().unwrap_or(Path::new("")), 0o755)?;
                    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK;
                    root.open_with(path, flags, Mode::from_raw_mode(0o644))?;
                }
                root.open_with(path, OFlags::PATH, Mode::empty())?
            }
            found => found?,
        };
        let target = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        // A bind has the flags of what it is made of, read-only among them.
        cooper_sys::mount::mount("bind", &inner.target, &["rbind".to_owned()], &target)
    }
}

impl Picked {
    /// Mounts `layer` at a new `place`.
    fn mount(layer: &Mount, place: &Path) -> io::Result<Self> {
        let dir = layer.kind != "bind" || std::fs::metadata(&layer.source)?.is_dir();
        Self::at(layer, dir, place)
    }

    fn at(layer: &Mount, dir: bool, target: &Path) -> io::Result<Self> {
        if dir {
            std::fs::create_dir(target)?;
        } else {
            std::fs::File::create(target)?;
        }
        let mut picked = Self {
            guard: None,
            target: target.to_owned(),
            dir,
        };
        picked.guard = Some(MountGuard::mount(
            &layer.kind,
            &layer.source,
            &layer.options,
            target,
        )?);
        Ok(picked)
    }
}

/// Whether `dest` lies in `outer` and is not the same.
fn below(dest: &Path, outer: &Path) -> bool {
    dest != outer && dest.starts_with(outer)
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
            ..ContainerMount::default()
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

    #[test]
    fn what_lies_in_a_shared_mount_is_mounted_in_it_on_the_host() {
        let outer = tempfile::tempdir().unwrap();
        let path = |name: &str| outer.path().join(name);
        for dir in ["shared/real", "data", "places", "outside"] {
            std::fs::create_dir_all(path(dir)).unwrap();
        }
        std::fs::write(path("data/file"), "data").unwrap();
        // Seen from inside, this leads nowhere, and the other one not out.
        symlink(path("outside"), path("shared/link")).unwrap();
        symlink("../../real", path("shared/up")).unwrap();
        let shared = ContainerMount {
            shared: true,
            ..mount("/s", vec![Mount::bind(&path("shared"), false)], "")
        };
        let inner = |dest: &str, source: &str, read_only: bool| {
            mount(dest, vec![Mount::bind(&path(source), read_only)], "")
        };
        let out = [shared.clone(), inner("/s/link/deep", "data", false)];
        let error = Attached::new(&out, &path("places")).unwrap_err();
        assert_eq!(error.to_string(), "failed to mount /s/link/deep");
        let attached = Attached::new(
            &[
                shared,
                inner("/s/new/file", "data/file", true),
                inner("/s/up", "data", true),
                inner("/t", "data", false),
            ],
            &path("places"),
        )
        .unwrap();
        let dests: Vec<_> = attached
            .mounts()
            .iter()
            .map(OciMount::destination)
            .collect();
        assert_eq!(dests, [Path::new("/s"), Path::new("/t")]);
        let seen = attached.mounts()[0].source().clone().unwrap();
        let options = attached.mounts()[0].options().clone().unwrap();
        assert_eq!(options, ["rbind"]);
        assert_eq!(
            std::fs::read_to_string(seen.join("new/file")).unwrap(),
            "data"
        );
        assert!(seen.join("real/file").exists());
        assert!(std::fs::write(seen.join("real/file"), "").is_err());
        assert!(!path("shared/real/file").exists());
        assert_eq!(std::fs::read_dir(path("outside")).unwrap().count(), 0);
        drop(attached);
        assert_eq!(MountPoint::below(outer.path()).unwrap(), []);
        assert_eq!(std::fs::read_dir(path("places")).unwrap().count(), 0);
        assert_eq!(std::fs::read_to_string(path("data/file")).unwrap(), "data");
    }
}
