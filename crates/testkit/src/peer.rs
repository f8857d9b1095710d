//! Other people's programs, from Debian's packages: unpacked beside the build output and not
//! installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::bin;

/// Debian's release that has the newest of everything.
pub const NEWEST: &str = "unstable";
/// The file in a tree that says which packages are in it, by the names of their files.
const LIST: &str = "packages";

/// The folder `name` with `packages` unpacked in it, fetched when it is not there yet.
///
/// `release` is one of Debian's, on the mirror that this machine itself uses; without it the
/// machine's own releases are taken.
///
/// # Errors
///
/// What could not be had, in words: a machine may have no `apt-get`, or no way to a mirror.
pub fn unpacked(name: &str, release: Option<&str>, packages: &[&str]) -> Result<PathBuf, String> {
    let ready = bin("testkit").join(name);
    if ready.exists() {
        return Ok(ready);
    }
    let work = bin("testkit").join(format!("{name}.tmp-{}", std::process::id()));
    let made = fetch(&work, release, packages).and_then(|tree| {
        std::fs::rename(tree, &ready).map_err(|error| format!("rename to {ready:?}: {error}"))
    });
    let _ = std::fs::remove_dir_all(&work);
    made.map(|()| ready)
        .map_err(|error| format!("{}: {error}", packages.join(", ")))
}

fn fetch(work: &Path, release: Option<&str>, packages: &[&str]) -> Result<PathBuf, String> {
    let folder = |name: &str| {
        let path = work.join(name);
        std::fs::create_dir_all(&path).map_err(|error| format!("make {path:?}: {error}"))?;
        Ok::<_, String>(path)
    };
    let archives = folder("archives")?;
    let mut options = vec!["APT::Sandbox::User=root".to_owned()];
    if let Some(release) = release {
        folder("lists/partial")?;
        folder("cache/archives/partial")?;
        let list = work.join("sources.list");
        std::fs::write(&list, source(release)?).map_err(|error| format!("{list:?}: {error}"))?;
        for (option, path) in [
            ("Dir::Etc::sourcelist", &*list),
            ("Dir::Etc::sourceparts", Path::new("-")),
            ("Dir::State::lists", &work.join("lists")),
            ("Dir::Cache", &work.join("cache")),
        ] {
            options.push(format!("{option}={}", path.display()));
        }
    }
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(&archives).arg("--quiet=2");
        for option in &options {
            command.args(["-o", option]);
        }
        output(command.args(words))
    };
    if release.is_some() {
        apt(&["update"])?;
    }
    apt(&[&["download"], packages].concat())?;
    let tree = folder("tree")?;
    let found = std::fs::read_dir(&archives).map_err(|error| format!("{archives:?}: {error}"))?;
    let mut list = String::new();
    for entry in found {
        let entry = entry.map_err(|error| error.to_string())?;
        output(Command::new("dpkg").arg("-x").arg(entry.path()).arg(&tree))?;
        list.push_str(&format!("{}\n", entry.file_name().display()));
    }
    let path = tree.join(LIST);
    std::fs::write(&path, list).map_err(|error| format!("{path:?}: {error}"))?;
    Ok(tree)
}

/// The line of a source list for `release` on this machine's mirror.
fn source(release: &str) -> Result<String, String> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(COMPONENT) $(SITE)",
        "Created-By: Packages",
    ]))?;
    let site = targets
        .lines()
        .filter_map(|line| line.strip_prefix("Debian main "))
        .find(|site| !site.ends_with("-security"))
        .ok_or("apt knows no Debian mirror; `apt-get update` may help")?;
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    Ok(format!("deb [signed-by={key}] {site} {release} main\n"))
}

/// What `command` printed.
fn output(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let ran = command
        .output()
        .map_err(|error| format!("start {shown}: {error}"))?;
    if !ran.status.success() {
        let text = String::from_utf8_lossy(&ran.stderr);
        return Err(format!("{shown}: {}: {}", ran.status, text.trim()));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// The version of a package that [`unpacked`] put into `tree`.
pub fn version(tree: &Path, package: &str) -> Option<String> {
    let list = std::fs::read_to_string(tree.join(LIST)).ok()?;
    let mut lines = list.lines();
    let line = lines.find_map(|line| line.strip_prefix(package)?.strip_prefix('_'))?;
    line.split('_').next().map(ToOwned::to_owned)
}
