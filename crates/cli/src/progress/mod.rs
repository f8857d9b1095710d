//! What a build shows of itself while it runs.
//!
//! Modules in reading order: `trace` (what is known of the build), `plain` (lines that stay),
//! `frame` and `live` (a terminal: what it shows, and how it gets there), `palette` (colours),
//! `raw` (for programs).

mod frame;
mod live;
mod palette;
mod plain;
mod raw;
mod trace;

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use cooper_proto::control::StatusResponse;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often something is shown when nothing new has come (BuildKit's value).
const TICK: Duration = Duration::from_millis(150);
/// What comes within so long is shown at once (BuildKit's value).
const PAUSE: Duration = Duration::from_millis(100);

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Live lines on a terminal, else plain.
    #[default]
    Auto,
    /// Lines that stay, in BuildKit's plain format.
    Plain,
    /// Live lines; an error without a terminal.
    Tty,
    /// One JSON object for each piece of news, for programs.
    #[value(name = "rawjson")]
    RawJson,
    /// Nothing.
    Quiet,
}

impl Mode {
    /// What is shown where standard error is a terminal, or is none. One that cannot move its
    /// cursor (`TERM=dumb`) gets lines that stay.
    ///
    /// # Errors
    /// A terminal is wanted and there is none.
    pub(crate) fn fit(self, terminal: bool) -> Result<Self> {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Ok(match self {
            Self::Auto if terminal && !dumb => Self::Tty,
            Self::Auto => Self::Plain,
            Self::Tty if !terminal => {
                bail!("failed to get console: standard error is not a terminal")
            }
            other => other,
        })
    }
}

/// Something that shows progress.
trait Display {
    /// Takes more of it in.
    fn update(&mut self, response: StatusResponse);
    /// Shows what there is.
    fn refresh(&mut self);
    /// That was all.
    fn done(&mut self);
}

/// Shows what comes until the other end is dropped.
pub(crate) async fn show(mode: Mode, mut updates: mpsc::UnboundedReceiver<StatusResponse>) {
    let out = std::io::stderr();
    let mut display: Box<dyn Display + Send> = match mode {
        Mode::Quiet => Box::new(Nothing),
        Mode::RawJson => Box::new(raw::Raw::new(out)),
        Mode::Tty => Box::new(live::Live::new(out, live::size_of_stderr)),
        Mode::Plain | Mode::Auto => Box::new(plain::Plain::new(out)),
    };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown: Option<Instant> = None;
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => {
                    display.update(update);
                    ticks.reset();
                    if shown.is_some_and(|shown| shown.elapsed() < PAUSE) {
                        continue;
                    }
                }
                None => break,
            },
            _ = ticks.tick() => {}
        }
        shown = Some(Instant::now());
        display.refresh();
    }
    display.done();
}

struct Nothing;

impl Display for Nothing {
    fn update(&mut self, _: StatusResponse) {}
    fn refresh(&mut self) {}
    fn done(&mut self) {}
}

/// The last lines of the steps that failed.
fn write_failures(trace: &trace::Trace, out: &mut dyn Write) -> std::io::Result<()> {
    for item in trace.started() {
        if !item.error.is_empty() && !item.is_cancelled() {
            writeln!(out, "------\n > {}:", item.name)?;
            for line in item.tail.iter().chain(&item.logs) {
                out.write_all(line)?;
                writeln!(out)?;
            }
            writeln!(out, "------")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_used_when_there_is_one() {
        assert_eq!(Mode::Auto.fit(false).unwrap(), Mode::Plain);
        assert!(Mode::Tty.fit(false).is_err());
        assert_eq!(Mode::Tty.fit(true).unwrap(), Mode::Tty);
        assert_eq!(Mode::RawJson.fit(true).unwrap(), Mode::RawJson);
    }
}
