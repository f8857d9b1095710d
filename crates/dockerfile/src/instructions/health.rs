//! `HEALTHCHECK`.

use super::Healthcheck;
use super::flags::{Flags, Kind};
use super::parse::shell_args;
use crate::parser::Node;
use crate::{ParseError, duration};

/// The shortest interval in nanoseconds.
const MIN_INTERVAL: i64 = 1_000_000;

pub(super) fn healthcheck(node: &Node) -> Result<Healthcheck, ParseError> {
    let Some((kind, args)) = node.args.split_first() else {
        return Err(ParseError::new(
            "HEALTHCHECK requires at least one argument",
        ));
    };
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        if !args.is_empty() {
            return Err(ParseError::new("HEALTHCHECK NONE takes no arguments"));
        }
        return Ok(Healthcheck {
            test: vec![kind],
            ..Healthcheck::default()
        });
    }
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("interval", Kind::Text),
            ("timeout", Kind::Text),
            ("start-period", Kind::Text),
            ("start-interval", Kind::Text),
            ("retries", Kind::Text),
        ],
    )?;
    if kind != "CMD" {
        return Err(ParseError::new(format!(
            "Unknown type {kind:?} in HEALTHCHECK (try CMD)"
        )));
    }
    let command = shell_args(args, node.json);
    if command.is_empty() {
        return Err(ParseError::new("Missing command after HEALTHCHECK CMD"));
    }
    let mut test = vec![if node.json { "CMD" } else { "CMD-SHELL" }.to_owned()];
    test.extend(command);
    Ok(Healthcheck {
        test,
        interval: interval(&mut flags, "interval")?,
        timeout: interval(&mut flags, "timeout")?,
        start_period: interval(&mut flags, "start-period")?,
        start_interval: interval(&mut flags, "start-interval")?,
        retries: retries(&flags.text("retries"))?,
    })
}

fn interval(flags: &mut Flags, name: &str) -> Result<i64, ParseError> {
    let text = flags.text(name);
    if text.is_empty() {
        return Ok(0);
    }
    let nanoseconds = duration::parse(&text).map_err(ParseError::new)?;
    if nanoseconds != 0 && nanoseconds < MIN_INTERVAL {
        return Err(ParseError::new(format!(
            "Interval {name:?} cannot be less than {}",
            duration::format(MIN_INTERVAL)
        )));
    }
    Ok(nanoseconds)
}

fn retries(text: &str) -> Result<i64, ParseError> {
    if text.is_empty() {
        return Ok(0);
    }
    let retries: i32 = text.parse().map_err(|_| {
        ParseError::new(format!(
            "strconv.ParseInt: parsing {text:?}: invalid syntax"
        ))
    })?;
    if retries < 0 {
        return Err(ParseError::new(format!(
            "--retries cannot be negative ({retries})"
        )));
    }
    Ok(i64::from(retries))
}
