//! Where the workspace is and what its manifests say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout, whatever the current directory is.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
        .to_path_buf()
}

/// Where cargo puts what it builds; files of the tests' own live beside it.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// One member of the workspace under `crates/`.
#[derive(Debug)]
pub(crate) struct Member {
    /// The folder's name, which is the package's without `cooper-`.
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) manifest: toml::Table,
    /// Names of packages under `[dependencies]` and `[build-dependencies]`, targets' included.
    pub(crate) dependencies: BTreeSet<String>,
    /// Names of packages under `[dev-dependencies]`.
    pub(crate) dev_dependencies: BTreeSet<String>,
}

/// All members under `crates/`, ordered by name.
pub(crate) fn members() -> Result<Vec<Member>> {
    let crates = root().join("crates");
    let mut members = Vec::new();
    for entry in std::fs::read_dir(&crates).with_context(|| format!("list {}", crates.display()))? {
        let dir = entry?.path();
        let path = dir.join("Cargo.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let manifest: toml::Table =
            toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        let name = dir
            .file_name()
            .and_then(|name| name.to_str())
            .context("a crate's folder has a UTF-8 name")?
            .to_owned();
        let mut dependencies = names(&manifest, "dependencies");
        dependencies.extend(names(&manifest, "build-dependencies"));
        let dev_dependencies = names(&manifest, "dev-dependencies");
        members.push(Member {
            name,
            dir,
            manifest,
            dependencies,
            dev_dependencies,
        });
    }
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(members)
}

fn names(manifest: &toml::Table, section: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut take = |table: &toml::Table| {
        if let Some(toml::Value::Table(dependencies)) = table.get(section) {
            for (name, value) in dependencies {
                let package = value.get("package").and_then(toml::Value::as_str);
                found.insert(package.unwrap_or(name).to_owned());
            }
        }
    };
    take(manifest);
    if let Some(toml::Value::Table(targets)) = manifest.get("target") {
        targets
            .values()
            .filter_map(toml::Value::as_table)
            .for_each(take);
    }
    found
}

/// Every file below `dir` with this extension, build output and hidden folders left out.
pub(crate) fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            let hidden = name.to_str().is_some_and(|name| name.starts_with('.'));
            if entry.file_type()?.is_dir() {
                if !hidden && name != "target" {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
