//! Paths in a root file system that need not exist yet.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use cooper_sys::Root;
use rustix::fs::{AtFlags, FileType};

use crate::{ExecError, User};

/// As many links as the kernel follows on one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Where `path` leads in `root` when every link is followed, also if what it leads to is not
/// there: absolute, as seen from the root, and never outside of it.
pub fn real_path(root: &Root, path: &Path) -> io::Result<PathBuf> {
    let mut rest: VecDeque<OsString> = VecDeque::new();
    push(&mut rest, path);
    let mut found = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&name);
        let link = root.entry(&next).and_then(|entry| entry.read_link());
        let Ok(target) = link else {
            // No link, or nothing there: it stands for itself.
            found = next;
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        if target.is_absolute() {
            found = PathBuf::from("/");
        }
        push(&mut rest, &target);
    }
    Ok(found)
}

/// Folders in which every container has file systems of the kernel.
const SPECIAL: [&str; 3] = ["proc", "sys", "dev"];

/// Refuses a root file system in which a folder for the kernel's file systems is a symbolic
/// link: runtimes have made files behind such a link that leads out of the root (runc did it
/// with the links in `/dev`).
pub fn check_root(root: &Root) -> Result<(), ExecError> {
    for name in SPECIAL {
        let link = root
            .lstat(name)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
        if link {
            let path = Path::new("/").join(name);
            return Err(ExecError::SpecialLink { path });
        }
    }
    Ok(())
}

/// Puts the names of `path` before `rest`.
fn push(rest: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => rest.push_front(name.to_owned()),
            Component::ParentDir => rest.push_front("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}

/// Makes the working directory `cwd` in `root` when it is missing; what is made belongs to
/// `user`. Whatever is there already is left as it is.
pub fn make_cwd(root: &Root, cwd: &Path, user: &User) -> Result<(), ExecError> {
    let failed = |source| ExecError::Cwd {
        path: cwd.to_owned(),
        source,
    };
    if root.stat(cwd).is_ok() {
        return Ok(());
    }
    let path = real_path(root, cwd).map_err(failed)?;
    for made in root.mkdir_all(&path, 0o755).map_err(failed)? {
        let entry = root.entry(&made).map_err(failed)?;
        let (uid, gid) = user.raw();
        rustix::fs::chownat(
            &entry.dir,
            &entry.name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn links_are_followed_inside_even_into_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/deep")).unwrap();
        symlink("/etc", dir.path().join("abs")).unwrap();
        symlink(
            "../../../run/resolv.conf",
            dir.path().join("etc/resolv.conf"),
        )
        .unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let cases = [
            ("/abs/resolv.conf", "/run/resolv.conf"),
            ("/abs/deep/../x", "/etc/x"),
            ("../../abs", "/etc"),
            ("/nowhere/../y", "/y"),
            ("", "/"),
        ];
        for (path, expected) in cases {
            let found = real_path(&root, Path::new(path)).unwrap();
            assert_eq!(found, Path::new(expected), "{path}");
        }
        assert!(real_path(&root, Path::new("/loop/x")).is_err());
    }

    #[test]
    fn folders_of_the_kernel_are_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        check_root(&root).unwrap();
        symlink("/anywhere", dir.path().join("dev")).unwrap();
        let error = check_root(&root).unwrap_err();
        let expected = "/dev in the root file system is a symbolic link";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_missing_working_directory_belongs_to_the_user() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        symlink("/there/new", dir.path().join("dangling")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let user = User {
            uid: 7,
            gid: 8,
            groups: Vec::new(),
        };
        make_cwd(&root, Path::new("/dangling/a"), &user).unwrap();
        make_cwd(&root, Path::new("/there"), &user).unwrap();
        let owner = |path: &str| {
            let meta = dir.path().join(path).metadata().unwrap();
            (meta.uid(), meta.gid())
        };
        assert_eq!(owner("there/new"), (7, 8));
        assert_eq!(owner("there/new/a"), (7, 8));
        assert_eq!(owner("there"), (0, 0));
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = make_cwd(&root, Path::new("/file/a"), &user).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to create working directory /file/a"
        );
    }
}
