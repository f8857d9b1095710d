//! Live lines on a terminal: what is done scrolls away, what runs stays at the bottom.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cooper_proto::control::StatusResponse;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::trace::{Nanos, Trace, bytes};
use super::{Display, write_failures};

/// Steps that run and are shown at once.
const MOST: usize = 8;

/// Shows a trace on the terminal.
pub(super) struct Live {
    trace: Trace,
    begun: Instant,
    lines: MultiProgress,
    head: ProgressBar,
    bars: BTreeMap<usize, ProgressBar>,
    ended: BTreeSet<usize>,
}

impl Live {
    pub(super) fn new() -> Self {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let head = lines.add(line());
        Self {
            trace: Trace::default(),
            begun: Instant::now(),
            lines,
            head,
            bars: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    fn draw(&mut self) {
        let (done, all) = self.trace.counts();
        let time = self.begun.elapsed().as_secs_f64();
        let head = format!("[+] Building {time:.1}s ({done}/{all})");
        self.head.set_message(head);
        let now = now();
        for &index in self.trace.started_indexes() {
            let item = self.trace.item(index);
            let took = item.duration(now).as_secs_f64();
            if item.is_completed() {
                if self.ended.insert(index) {
                    let mark = if item.is_cancelled() {
                        "CANCELED "
                    } else if !item.error.is_empty() {
                        "ERROR "
                    } else if item.cached {
                        "CACHED "
                    } else {
                        ""
                    };
                    let _ = self
                        .lines
                        .println(format!(" => {mark}{} {took:.1}s", item.name));
                }
                if let Some(bar) = self.bars.remove(&index) {
                    self.lines.remove(&bar);
                }
                continue;
            }
            // One that goes on after its end is shown again.
            self.ended.remove(&index);
            let mut text = format!(" => {} {took:.1}s", item.name);
            for status in item
                .statuses
                .iter()
                .filter(|status| status.completed.is_none())
            {
                let amount = match status.total {
                    0 => bytes(status.current),
                    total => format!("{} / {}", bytes(status.current), bytes(total)),
                };
                text.push_str(&format!("\n => => {} {amount}", status.id));
            }
            if let Some(last) = item.logs.last().or(item.tail.back()) {
                let last = String::from_utf8_lossy(last);
                let last: String = last.chars().filter(|char| !char.is_control()).collect();
                text.push_str(&format!("\n => => # {last}"));
            }
            if self.bars.len() < MOST || self.bars.contains_key(&index) {
                let lines = &self.lines;
                let bar = self.bars.entry(index).or_insert_with(|| lines.add(line()));
                bar.set_message(text);
            }
        }
    }
}

impl Display for Live {
    fn update(&mut self, response: StatusResponse) {
        self.trace.update(response);
        for index in std::mem::take(&mut self.trace.updates) {
            let item = self.trace.item_mut(index);
            // Only the last line is shown; the tail is kept for failures.
            let whole = item.logs.len() - usize::from(item.partial && !item.logs.is_empty());
            let rest = item.logs.split_off(whole);
            let lines = std::mem::replace(&mut item.logs, rest);
            lines.into_iter().for_each(|line| item.keep(line));
        }
    }

    fn refresh(&mut self) {
        self.draw();
    }

    fn done(&mut self) {
        self.draw();
        let (done, all) = self.trace.counts();
        if done == all && done > 0 {
            self.head.set_message(self.head.message() + " FINISHED");
        }
        for bar in std::mem::take(&mut self.bars).into_values() {
            bar.finish_and_clear();
        }
        self.head.finish();
        let mut failures = Vec::new();
        let _ = write_failures(&self.trace, &mut failures);
        eprint!("{}", String::from_utf8_lossy(&failures));
    }
}

fn line() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    // A template of one field is always right; the default would do, too.
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    bar
}

fn now() -> Nanos {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as Nanos)
}
