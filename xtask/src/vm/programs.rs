//! The programs that run in the guest: Cooper, the tests of the workspace, and buildx.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::CASES;
use super::image;
use crate::run::{cargo, check};
use crate::test::peer;
use crate::workspace;

/// What scripts of the guest begin with; they are started in the root of the disk.
pub(super) const ENVIRONMENT: &str = "cd /data/programs\nexport COOPER_BIN_DIR=$PWD\n\
     if [ -e docker-buildx ]; then export COOPER_TEST_BUILDX=$PWD/docker-buildx; fi\n";

/// The crates with tests for the guest.
const CRATES: &[&str] = &["executor-runc", "oci-runtime", "snapshot", "sys", "testkit"];
/// The test program of the cases that are only for the guest.
pub(super) const OWN: &str = "testkit-vm";

/// Builds them and makes a disk image with them in `dir`.
pub(super) fn disk(dir: &Path) -> Result<PathBuf> {
    let folder = workspace::target_dir().join("debug");
    let bins = ["--package", "cooper-daemon", "--package", "cooper-cli"];
    check(cargo(&["build", "--bins"]).args(bins))?;
    let tree = dir.join("tree");
    let programs = tree.join("programs");
    std::fs::create_dir_all(programs.join("tests")).context("make a folder for the programs")?;
    let take = |from: &Path, to: &Path| {
        std::fs::copy(from, programs.join(to))
            .map(drop)
            .with_context(|| format!("copy {}", from.display()))
    };
    for name in ["cooper", "cooperd"] {
        take(&folder.join(name), Path::new(name))?;
    }
    for (name, path) in tests()? {
        if name == OWN || CASES.iter().any(|case| case.program == name) {
            take(&path, &Path::new("tests").join(name))?;
        }
    }
    if let Some(buildx) = peer("buildx", &folder)? {
        take(Path::new(&buildx), Path::new("docker-buildx"))?;
    }
    std::fs::create_dir_all(tree.join("units"))?;
    for unit in ["cooperd.service", "cooperd.socket"] {
        let path = workspace::root().join("dist").join(unit);
        std::fs::copy(&path, tree.join("units").join(unit))
            .with_context(|| format!("copy {}", path.display()))?;
    }
    let disk = dir.join("programs.img");
    image::disk(&disk, "16G", &tree)?;
    std::fs::remove_dir_all(&tree).context("remove the tree of the disk")?;
    Ok(disk)
}

/// Builds the test programs; their names and paths.
fn tests() -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo(&[
        "test",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    for name in CRATES {
        command.arg("--package").arg(format!("cooper-{name}"));
    }
    command.args(["--features", "cooper-testkit/e2e,cooper-testkit/vm"]);
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().context("start cargo")?;
    anyhow::ensure!(output.status.success(), "the tests do not compile");
    let text = String::from_utf8(output.stdout).context("cargo's messages are text")?;
    let messages = text.lines().map(serde_json::from_str::<Value>);
    let mut found = Vec::new();
    for message in messages {
        let message = message.context("read cargo's messages")?;
        let test = message["profile"]["test"] == true;
        if let (true, Some(path)) = (test, message["executable"].as_str())
            && let Some(name) = name(&message["target"])
        {
            found.push((name, PathBuf::from(path)));
        }
    }
    Ok(found)
}

/// `crate-target` for a test program, `crate` for the tests within a library.
fn name(target: &Value) -> Option<String> {
    let source = Path::new(target["src_path"].as_str()?);
    let source = source.strip_prefix(workspace::root().join("crates")).ok()?;
    let of = source.iter().next()?.to_str()?;
    match target["kind"][0].as_str()? {
        "lib" => Some(of.to_owned()),
        "test" => Some(format!("{of}-{}", target["name"].as_str()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_the_names_of_their_crates() {
        let source = workspace::root().join("crates/sys/src/lib.rs");
        let target =
            |kind: &str| serde_json::json!({ "name": "some", "kind": [kind], "src_path": source });
        assert_eq!(name(&target("lib")).unwrap(), "sys");
        assert_eq!(name(&target("test")).unwrap(), "sys-some");
        assert_eq!(name(&target("bin")), None);
    }
}
