//! The house rules that a compiler does not know.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::{self, Member};

/// Lines of a file without its tests. The aim is 500; beyond this it is an error.
const MAX_LINES: usize = 600;
/// Lines of a `lib.rs`, which tells what a crate is and holds little else.
const MAX_LIB_LINES: usize = 150;
/// The one home of `unsafe`.
const UNSAFE: &str = "sys";

pub(crate) fn run() -> Result<()> {
    let found = violations()?;
    if !found.is_empty() {
        bail!("{} violation(s):\n  {}", found.len(), found.join("\n  "));
    }
    println!("tidy: clean");
    Ok(())
}

fn violations() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for member in workspace::members()? {
        manifest(&member, &mut found);
        crate_root(&member, &mut found)?;
        let source = member.dir.join("src");
        for path in workspace::files(&source, "rs")? {
            let text = read(&path)?;
            let name = format!("{}/src/{}", member.name, show(&path, &source));
            file(&name, &text, &mut found);
        }
    }
    invariants(&mut found)?;
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn show(path: &Path, base: &Path) -> String {
    path.strip_prefix(base)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Versions, lints and metadata are stated once, in the workspace's manifest.
fn manifest(member: &Member, found: &mut Vec<String>) {
    let name = &member.name;
    let inherits = |value: Option<&toml::Value>| {
        value
            .and_then(|value| value.get("workspace"))
            .and_then(toml::Value::as_bool)
            == Some(true)
    };
    if !inherits(member.manifest.get("lints")) {
        found.push(format!(
            "{name}: Cargo.toml lacks `[lints] workspace = true`"
        ));
    }
    let package = member.manifest.get("package");
    for key in ["version", "edition", "license", "rust-version"] {
        if !inherits(package.and_then(|package| package.get(key))) {
            found.push(format!("{name}: Cargo.toml lacks `{key}.workspace = true`"));
        }
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = member.manifest.get(section).and_then(toml::Value::as_table) else {
            continue;
        };
        for (dependency, value) in table {
            let itself = dependency.strip_prefix("cooper-") == Some(name.as_str());
            if !inherits(Some(value)) && !itself {
                found.push(format!(
                    "{name}: {dependency} does not come from the workspace"
                ));
            }
        }
    }
}

fn crate_root(member: &Member, found: &mut Vec<String>) -> Result<()> {
    let name = &member.name;
    let path = member.dir.join("src/lib.rs");
    if !path.exists() {
        // A crate of one program: its main file is the root.
        if !member.dir.join("src/main.rs").exists() {
            found.push(format!("{name}: neither src/lib.rs nor src/main.rs"));
        }
        return Ok(());
    }
    let text = read(&path)?;
    if !text.starts_with("//!") {
        found.push(format!(
            "{name}: lib.rs does not begin with what the crate is (`//!`)"
        ));
    }
    if name != UNSAFE && !text.contains("#![forbid(unsafe_code)]") {
        found.push(format!("{name}: lib.rs lacks #![forbid(unsafe_code)]"));
    }
    let lines = without_tests(&text).lines().count();
    if lines > MAX_LIB_LINES {
        found.push(format!(
            "{name}: lib.rs has {lines} lines, at most {MAX_LIB_LINES}"
        ));
    }
    Ok(())
}

/// Marks of work that is promised and not done, built so that this file does not match itself.
fn promises() -> Vec<String> {
    let marks = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X:"),
        ("to", "do!("),
        ("unimple", "mented!("),
    ];
    let ignore = ("#[", "ignore");
    marks
        .iter()
        .chain([&ignore])
        .map(|(a, b)| format!("{a}{b}"))
        .collect()
}

fn file(name: &str, text: &str, found: &mut Vec<String>) {
    let lines = without_tests(text).lines().count();
    if lines > MAX_LINES {
        found.push(format!(
            "{name}: {lines} lines without tests, at most {MAX_LINES}"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        for mark in promises() {
            if line.contains(&mark) {
                found.push(format!("{name}:{}: {mark}", number + 1));
            }
        }
    }
}

/// The text up to the module of tests, which by custom stands last.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ")
        .map_or(text, |end| &text[..end])
}

/// Every test that ARCHITECTURE.md names as the holder of an invariant exists.
fn invariants(found: &mut Vec<String>) -> Result<()> {
    let root = workspace::root();
    let text = read(&root.join("ARCHITECTURE.md"))?;
    let mut code = String::new();
    for folder in ["crates", "xtask"] {
        for path in workspace::files(&root.join(folder), "rs")? {
            code.push_str(&read(&path)?);
        }
    }
    for name in text
        .split("(test: `")
        .skip(1)
        .filter_map(|rest| rest.split('`').next())
    {
        let function = name.rsplit("::").next().unwrap_or(name);
        if !code.contains(&format!("fn {function}(")) {
            found.push(format!(
                "ARCHITECTURE.md names the test `{name}`, which does not exist"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        assert_eq!(violations().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_promise_of_later_work_is_found() {
        for mark in promises() {
            let mut found = Vec::new();
            file("x.rs", &format!("fn f() {{}} // {mark}"), &mut found);
            assert!(!found.is_empty(), "{mark}");
        }
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let mut found = Vec::new();
        let short = "\n".repeat(MAX_LINES - 1);
        let tests = format!("{short}\n#[cfg(test)]\nmod tests {{\n{short}}}\n");
        file("x.rs", &tests, &mut found);
        assert_eq!(found, Vec::<String>::new());
        file("x.rs", &"\n".repeat(MAX_LINES + 1), &mut found);
        assert_eq!(found.len(), 1);
    }
}
