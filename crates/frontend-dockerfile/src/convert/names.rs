//! What a user reads of a step: `[build 2/5] RUN make`.

use cooper_dockerfile::{Env, Lex};
use cooper_llb::build::EnvList;
use cooper_llb::platform;
use cooper_proto::pb;

use super::Converter;
use super::args::Vars;
use super::stage::StageState;

impl StageState {
    /// The next step's name.
    pub(super) fn prefixed(
        &mut self,
        text: &str,
        show_platform: bool,
        platform: Option<&pb::Platform>,
        env: &EnvList,
    ) -> String {
        if self.steps == 0 {
            return text.to_owned();
        }
        self.step += 1;
        let mut out = "[".to_owned();
        if let Some(platform) = platform.filter(|_| show_platform) {
            out.push_str(&platform::format_all(platform));
            out.push_str(&cross(platform, env));
            out.push(' ');
        }
        if !self.name.is_empty() {
            out.push_str(&self.name);
            out.push(' ');
        }
        let width = self.steps.to_string().len();
        out.push_str(&format!("{:>width$}/{}] ", self.step, self.steps));
        if self.in_onbuild {
            out.push_str("ONBUILD ");
        }
        out + text
    }
}

/// `->arm64`, for a step that builds for another platform than it runs on.
fn cross(on: &pb::Platform, env: &EnvList) -> String {
    let Some(mut target) = target(env) else {
        return String::new();
    };
    for (field, default) in [
        (&mut target.os, &on.os),
        (&mut target.architecture, &on.architecture),
    ] {
        if field.is_empty() {
            field.clone_from(default);
        }
    }
    let target = platform::normalize(&target);
    if target.os != on.os {
        return format!("->{}", platform::format_all(&target));
    }
    if target.architecture == on.architecture {
        return String::new();
    }
    match target.variant.as_str() {
        "" => format!("->{}", target.architecture),
        variant => format!("->{}/{variant}", target.architecture),
    }
}

/// The platform that the variables of a step name.
fn target(env: &EnvList) -> Option<pb::Platform> {
    let mut target = pb::Platform::default();
    let mut found = false;
    for (name, value) in env.iter() {
        match name {
            "TARGETPLATFORM" => {
                if let Ok(platform) = platform::parse(value) {
                    return Some(platform);
                }
                continue;
            }
            "TARGETOS" => target.os = value.to_owned(),
            "TARGETARCH" => target.architecture = value.to_owned(),
            "TARGETVARIANT" => target.variant = value.to_owned(),
            _ => continue,
        }
        found = true;
    }
    found.then_some(target)
}

/// The text with its variables expanded and its first word in capitals; as it is if that fails.
pub(super) fn shown<E: Env + ?Sized>(lex: &Lex, text: &str, env: &E) -> String {
    let text = match lex.expand(text, env) {
        Ok(expanded) => expanded.text,
        Err(_) => text.to_owned(),
    };
    match text.split_once(' ') {
        Some((name, rest)) => format!("{} {rest}", name.to_uppercase()),
        None => text.to_uppercase(),
    }
}

impl Converter<'_> {
    /// The name of the next step of a stage, for an instruction's text.
    pub(super) fn step_name(&mut self, place: usize, code: &str) -> String {
        let env = self.stages[place].state.env().clone();
        let text = shown(&self.lex, code, &Vars(&env));
        self.prefixed(place, &text)
    }

    /// The name of the next step of a stage.
    pub(super) fn prefixed(&mut self, place: usize, text: &str) -> String {
        let multi = self.request.options.multi_platform;
        let stage = &mut self.stages[place];
        let env = stage.state.env().clone();
        let platform = stage.platform(&self.platforms.target).clone();
        stage.prefixed(text, multi, Some(&platform), &env)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn steps_are_counted() {
        let mut stage = StageState {
            name: "build".into(),
            steps: 12,
            ..StageState::default()
        };
        let amd64 = platform::parse("linux/amd64").unwrap();
        let mut env = EnvList::default();
        assert_eq!(
            stage.prefixed("RUN a", false, Some(&amd64), &env),
            "[build  1/12] RUN a"
        );
        stage.in_onbuild = true;
        env.set("TARGETPLATFORM", "linux/arm/v6");
        assert_eq!(
            stage.prefixed("RUN a", true, Some(&amd64), &env),
            "[linux/amd64->arm/v6 build  2/12] ONBUILD RUN a"
        );
        stage.name.clear();
        let mut env = EnvList::default();
        env.set("TARGETARCH", "amd64");
        assert_eq!(
            stage.prefixed("RUN a", true, Some(&amd64), &env),
            "[linux/amd64  3/12] ONBUILD RUN a"
        );
        stage.steps = 0;
        assert_eq!(stage.prefixed("RUN a", false, None, &env), "RUN a");
    }
}
