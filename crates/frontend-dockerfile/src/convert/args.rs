//! Variables before the first stage.

use std::collections::BTreeMap;

use cooper_dockerfile::{Command, Env, Instruction};
use cooper_llb::build::EnvList;
use cooper_llb::platform;
use cooper_proto::pb;

use super::outline::ArgInfo;
use super::{Converter, Platforms, Result};

/// The variables of a state, to expand words with.
pub(super) struct Vars<'a>(pub(super) &'a EnvList);

impl Env for Vars<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

/// The arguments that every Dockerfile has. The client may set them otherwise.
pub(super) fn predefined(
    platforms: &Platforms,
    build_args: &BTreeMap<String, String>,
    target: &str,
) -> EnvList {
    let (build, to) = (&platforms.build, &platforms.target);
    let target = if target.is_empty() { "default" } else { target };
    let mut env = EnvList::default();
    for (name, value) in [
        ("BUILDPLATFORM", platform::format_all(build)),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", build.os_version.clone()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", build.variant.clone()),
        ("TARGETPLATFORM", platform::format_all(to)),
        ("TARGETOS", to.os.clone()),
        ("TARGETOSVERSION", to.os_version.clone()),
        ("TARGETARCH", to.architecture.clone()),
        ("TARGETVARIANT", to.variant.clone()),
        ("TARGETSTAGE", target.to_owned()),
    ] {
        env.set(name, build_args.get(name).cloned().unwrap_or(value));
    }
    env
}

/// The proxies that the client gave as arguments. Every `RUN` has them.
pub(super) fn proxy(build_args: &BTreeMap<String, String>) -> Option<pb::ProxyEnv> {
    let mut proxy = pb::ProxyEnv::default();
    let mut found = false;
    for (name, value) in build_args {
        let field = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        field.clone_from(value);
        found = true;
    }
    found.then_some(proxy)
}

impl Converter<'_> {
    /// `ARG`s before the first `FROM`.
    pub(super) fn global_arguments(&mut self, commands: &[Command]) -> Result<()> {
        let build_args = self.build_args.clone();
        self.arguments(commands, &build_args, true)
    }

    /// Sets the arguments of `commands`, by the client's values or by their defaults.
    pub(super) fn arguments(
        &mut self,
        commands: &[Command],
        build_args: &BTreeMap<String, String>,
        capture: bool,
    ) -> Result<()> {
        for command in commands {
            let Instruction::Arg(args) = &command.instruction else {
                continue;
            };
            for arg in args {
                let mut info = ArgInfo::new(arg, command.span);
                let value = match (build_args.get(&arg.key), &arg.value) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(default)) => {
                        let expanded = self
                            .lex
                            .expand(default, &Vars(&self.global_args))
                            .map_err(|error| self.invalid(command.span, error.to_string()))?;
                        info.deps = expanded.matched;
                        if info.deps.remove(&arg.key)
                            && let Some(old) = self.capture.args.get(&arg.key)
                        {
                            info.deps.extend(old.deps.iter().cloned());
                        }
                        Some(expanded.text)
                    }
                    (None, None) => None,
                };
                if let Some(value) = value {
                    self.global_args.set(&arg.key, value.as_str());
                    info.value = value;
                }
                if capture {
                    self.capture.args.insert(arg.key.clone(), info);
                }
            }
        }
        Ok(())
    }
}
