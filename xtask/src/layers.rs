//! Who may depend on whom: the level rule, forbidden pairs, and the owners of dependencies.
//!
//! A crate depends only on crates of a strictly lower level. The table is the
//! architecture; changing it is a change of architecture (see ARCHITECTURE.md).

use anyhow::{Result, bail};

use crate::workspace::{self, Member};

/// Level of every crate that may exist, by folder name.
const LEVELS: &[(&str, u8)] = &[
    ("proto", 0),
    ("store", 0),
    ("progress", 0),
    ("sys", 0),
    ("dockerfile", 0),
    ("llb", 1),
    ("content", 1),
    ("snapshot", 1),
    ("solver", 1),
    ("oci-runtime", 1),
    ("session", 1),
    ("cache", 2),
    ("executor", 2),
    ("client", 2),
    ("registry", 2),
    ("history", 2),
    ("layer", 3),
    ("mount", 3),
    ("executor-runc", 3),
    ("executor-containerd", 3),
    ("source", 3),
    ("ops", 4),
    ("frontend", 4),
    ("exporter", 4),
    ("remote-cache", 4),
    ("frontend-dockerfile", 5),
    ("worker", 5),
    ("engine", 6),
    ("control", 7),
    ("daemon", 8),
    ("cli", 9),
];

/// Pairs that the levels would allow and the architecture does not.
const FORBIDDEN: &[(&str, &str)] = &[("cache", "solver")];

/// Dependencies that only these crates may name.
const OWNERS: &[(&str, &[&str])] = &[
    (
        "tonic",
        &[
            "proto",
            "session",
            "client",
            "control",
            "frontend",
            "executor-containerd",
        ],
    ),
    ("tokio-rustls", &["daemon"]),
    ("tonic-health", &["proto", "session", "client", "control"]),
    ("rusqlite", &["store"]),
    ("inventory", &["worker", "daemon"]),
    ("tracing-subscriber", &["daemon", "cli"]),
    ("anyhow", &["cli", "daemon"]),
    ("libc", &["sys"]),
];

/// Development only: may be named under `[dev-dependencies]`, and names what it likes.
const DEVELOPMENT: &[&str] = &["testkit"];

pub(crate) fn run() -> Result<()> {
    let members = workspace::members()?;
    let found = violations(&members);
    if !found.is_empty() {
        bail!("{} violation(s):\n  {}", found.len(), found.join("\n  "));
    }
    println!("layers: {} crates, every arrow points down", members.len());
    Ok(())
}

fn level(name: &str) -> Option<u8> {
    LEVELS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, level)| *level)
}

fn violations(members: &[Member]) -> Vec<String> {
    let mut found = Vec::new();
    for member in members {
        let name = member.name.as_str();
        if DEVELOPMENT.contains(&name) {
            continue;
        }
        let Some(own) = level(name) else {
            found.push(format!("{name}: not in the table of levels"));
            continue;
        };
        let dev = member
            .dev_dependencies
            .iter()
            .map(|dependency| (dependency, true));
        let normal = member
            .dependencies
            .iter()
            .map(|dependency| (dependency, false));
        for (dependency, dev) in normal.chain(dev) {
            if let Some(house) = dependency.strip_prefix("cooper-") {
                if dev && (DEVELOPMENT.contains(&house) || house == name) {
                    continue;
                }
                match level(house) {
                    Some(other) if other < own => {}
                    Some(other) => found.push(format!(
                        "{name} (level {own}) depends on {house} (level {other})"
                    )),
                    None => found.push(format!("{name} depends on {house}, which has no level")),
                }
                if FORBIDDEN
                    .iter()
                    .any(|(a, b)| (*a == name && *b == house) || (*b == name && *a == house))
                {
                    found.push(format!("{name} and {house} must not know each other"));
                }
            } else if !dev
                && let Some((_, owners)) = OWNERS.iter().find(|(owned, _)| owned == dependency)
                && !owners.contains(&name)
            {
                found.push(format!(
                    "{name} names {dependency}, which belongs to {owners:?}"
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn member(name: &str, dependencies: &[&str]) -> Member {
        Member {
            name: name.into(),
            dir: "/".into(),
            manifest: toml::Table::new(),
            dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
            dev_dependencies: BTreeSet::new(),
        }
    }

    #[test]
    fn every_arrow_of_the_workspace_points_down() {
        let members = workspace::members().unwrap();
        assert!(!members.is_empty());
        assert_eq!(violations(&members), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_upward_or_sideways_is_found() {
        let found = violations(&[member(
            "llb",
            &["cooper-cache", "cooper-solver", "cooper-proto"],
        )]);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn cache_and_solver_do_not_know_each_other() {
        let found = violations(&[member("cache", &["cooper-solver"])]);
        assert_eq!(found, ["cache and solver must not know each other"]);
    }

    #[test]
    fn a_dependency_has_owners() {
        assert_eq!(violations(&[member("cache", &["tonic"])]).len(), 1);
        assert_eq!(
            violations(&[member("control", &["tonic"])]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn an_unknown_crate_is_found() {
        assert_eq!(
            violations(&[member("util", &[])]),
            ["util: not in the table of levels"]
        );
    }
}
