//! What parameters a build takes (`frontend.outline`).

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cooper_dockerfile::{Arg, Span};
use serde::Serialize;

use super::stage::StageState;
use crate::subrequest::Location;

/// Parameters that were met.
#[derive(Clone, Debug, Default)]
pub(super) struct Capture {
    pub(super) args: BTreeMap<String, ArgInfo>,
    pub(super) used: BTreeSet<String>,
    pub(super) secrets: BTreeMap<String, Wanted>,
    pub(super) ssh: BTreeMap<String, Wanted>,
}

/// An argument.
#[derive(Clone, Debug)]
pub(super) struct ArgInfo {
    description: String,
    pub(super) value: String,
    /// Arguments that its default is made of.
    pub(super) deps: BTreeSet<String>,
    span: Span,
}

impl ArgInfo {
    pub(super) fn new(arg: &Arg, span: Span) -> Self {
        Self {
            description: arg.description.clone(),
            value: String::new(),
            deps: BTreeSet::new(),
            span,
        }
    }
}

/// A secret or an ssh agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) required: bool,
    pub(super) span: Span,
}

/// The answer to the request.
#[derive(Debug, Serialize)]
pub(crate) struct Outline {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) args: Vec<OutlineArg>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<OutlineMount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ssh: Vec<OutlineMount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct OutlineArg {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) value: String,
    location: Location,
}

#[derive(Debug, Serialize)]
pub(crate) struct OutlineMount {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) required: bool,
    location: Location,
}

/// The parameters of the target and of what it needs.
pub(super) fn of(stages: &[StageState], target: usize, text: &[u8]) -> Outline {
    let mut args: BTreeMap<String, ArgInfo> = BTreeMap::new();
    let mut secrets = BTreeMap::new();
    let mut ssh = BTreeMap::new();
    // What the target says of a parameter counts before what others say of it.
    let others = super::plan::reachable(stages, target);
    let others = others.into_iter().rev().filter(|stage| *stage != target);
    for stage in std::iter::once(target).chain(others) {
        let capture = &stages[stage].capture;
        let mut left: Vec<_> = capture.used.iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = left.pop() {
            let Some(info) = capture.args.get(name).filter(|_| seen.insert(name)) else {
                continue;
            };
            left.extend(info.deps.iter());
            args.entry(name.clone()).or_insert_with(|| info.clone());
        }
        for (all, some) in [(&mut secrets, &capture.secrets), (&mut ssh, &capture.ssh)] {
            for (name, wanted) in some {
                all.entry(name.clone()).or_insert(*wanted);
            }
        }
    }
    let mut args: Vec<_> = args.into_iter().collect();
    args.sort_by_key(|(_, info)| info.span.start);
    let mounts = |wanted: BTreeMap<String, Wanted>| {
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_by_key(|(_, wanted)| wanted.span.start);
        let mounts = wanted.into_iter().map(|(name, wanted)| OutlineMount {
            name,
            required: wanted.required,
            location: Location::of(wanted.span),
        });
        mounts.collect()
    };
    let stage = &stages[target].stage;
    Outline {
        name: stage.name.clone(),
        description: stage.description.clone(),
        args: args
            .into_iter()
            .map(|(name, info)| OutlineArg {
                name,
                description: info.description,
                value: info.value,
                location: Location::of(info.span),
            })
            .collect(),
        secrets: mounts(secrets),
        ssh: mounts(ssh),
        sources: vec![STANDARD.encode(text)],
    }
}
