//! What a build shows of itself while it runs.

mod live;
mod plain;
mod trace;

use std::io::{IsTerminal, Write};
use std::time::Duration;

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
    /// Nothing.
    Quiet,
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
    let mut display: Box<dyn Display + Send> = match mode {
        Mode::Quiet => Box::new(Nothing),
        Mode::Plain => Box::new(plain::Plain::new(std::io::stderr())),
        Mode::Tty => Box::new(live::Live::new()),
        Mode::Auto if std::io::stderr().is_terminal() => Box::new(live::Live::new()),
        Mode::Auto => Box::new(plain::Plain::new(std::io::stderr())),
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
            for line in &item.tail {
                out.write_all(line)?;
                writeln!(out)?;
            }
            writeln!(out, "------")?;
        }
    }
    Ok(())
}
