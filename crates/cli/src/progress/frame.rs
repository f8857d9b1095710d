//! What a terminal of a given size shows of a build: BuildKit's lines, with bars.

use std::time::Duration;

use console::{measure_text_width, strip_ansi_codes, truncate_str};

use super::trace::{Item, Nanos, Status, Trace, bytes};

/// A narrower rest of a line shows nothing (BuildKit's value).
const LEAST: usize = 12;
/// A name gets so many columns before its amounts and its bar do.
const NAME: usize = 20;
/// Columns of a bar, its ends included.
const BAR: usize = 22;

/// Rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// What a line is about, for its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Done,
    Cancelled,
    Failed,
    Warning,
    /// What a step says.
    Output,
}

/// One line, no wider than the terminal, without anything that moves the cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) look: Look,
}

/// A step, a part of one, or a warning, with what is shown below it.
struct Row {
    line: Line,
    runs: bool,
    /// The step whose output may be shown here.
    item: Option<usize>,
}

/// The lines of a frame. The last one is of all steps (`all`), the others fit into the window.
///
/// `now` is the time by the daemon's clock, `output` how many lines of a running step's output
/// are shown.
pub(super) fn lines(
    trace: &Trace,
    elapsed: Duration,
    now: Nanos,
    size: Size,
    output: usize,
    all: bool,
) -> Vec<Line> {
    // The last column stays free: some terminals begin a new line behind it.
    let width = size.width.saturating_sub(1);
    let (done, total) = trace.counts();
    let end = match all && done > 0 && done == total {
        true => " FINISHED",
        false => "",
    };
    let time = elapsed.as_secs_f64();
    let head = format!("[+] Building {time:.1}s ({done}/{total}){end}");
    let mut shown = vec![Line {
        text: truncate_str(&head, width, "").into_owned(),
        look: Look::Plain,
    }];
    let rows = rows(trace, now, width);
    if all {
        shown.extend(rows.into_iter().map(|row| row.line));
        return shown;
    }
    // One line for the head, and the cursor's own.
    let mut room = size.height.saturating_sub(2);
    let running = rows.iter().filter(|row| row.runs).count();
    let mut free = room.saturating_sub(running);
    let mut windows = Vec::new();
    for row in rows.iter().rev().filter(|row| row.runs) {
        let Some(index) = row.item else { continue };
        let lines = window(trace.item(index), output.min(free), width);
        free -= lines.len();
        room -= lines.len();
        windows.push((index, lines));
    }
    for row in fit(rows, room) {
        shown.push(row.line);
        if let Some(index) = row.item.filter(|_| row.runs)
            && let Some(place) = windows.iter().position(|(item, _)| *item == index)
        {
            shown.extend(windows.swap_remove(place).1);
        }
    }
    shown
}

/// As many rows as there is room for: those that run first of all, then what ended last.
fn fit(rows: Vec<Row>, room: usize) -> Vec<Row> {
    let running = rows.iter().filter(|row| row.runs).count();
    let (skip_running, done) = (running.saturating_sub(room), room.saturating_sub(running));
    let skip_done = (rows.len() - running).saturating_sub(done);
    let (mut seen_running, mut seen_done) = (0, 0);
    let keep = |row: &Row| {
        let (seen, skip) = match row.runs {
            true => (&mut seen_running, skip_running),
            false => (&mut seen_done, skip_done),
        };
        *seen += 1;
        *seen > skip
    };
    let mut rows = rows;
    rows.retain(keep);
    rows
}

fn rows(trace: &Trace, now: Nanos, width: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for &index in trace.started_indexes() {
        let item = trace.item(index);
        let took = item.duration(now);
        let (mark, look) = if item.is_cancelled() {
            ("CANCELED ", Look::Cancelled)
        } else if !item.error.is_empty() {
            ("ERROR ", Look::Failed)
        } else if item.cached {
            ("CACHED ", Look::Done)
        } else {
            ("", Look::Done)
        };
        let runs = !item.is_completed();
        let look = if runs { Look::Plain } else { look };
        let name = format!("{mark}{}", clean(&item.name));
        rows.extend(row(&name, None, took, width).map(|text| Row {
            line: Line { text, look },
            runs,
            item: Some(index),
        }));
        for status in item
            .statuses
            .iter()
            .filter(|status| status.started.is_some())
        {
            rows.extend(part(status, now, width));
        }
        for warning in &item.warnings {
            let name = format!("WARN: {}", clean(warning));
            rows.extend(row(&name, None, took, width).map(|text| Row {
                line: Line {
                    text,
                    look: Look::Warning,
                },
                runs: false,
                item: None,
            }));
        }
    }
    rows
}

/// Part of a step's work, with how much of it is done.
fn part(status: &Status, now: Nanos, width: usize) -> Option<Row> {
    let end = status.completed.unwrap_or(now);
    let took = end - status.started.unwrap_or(end);
    let took = Duration::from_nanos(u64::try_from(took).unwrap_or(0));
    let runs = status.completed.is_none();
    let text = row(
        &format!("=> {}", clean(&status.id)),
        Some(status),
        took,
        width,
    )?;
    let look = if runs { Look::Plain } else { Look::Done };
    Some(Row {
        line: Line { text, look },
        runs,
        item: None,
    })
}

/// ` => NAME AMOUNT BAR            1.2s`; `None` where there is no room for it.
fn row(name: &str, status: Option<&Status>, took: Duration, width: usize) -> Option<String> {
    let mut seconds = took.as_secs_f64();
    if seconds < 0.05 {
        seconds = 0.0;
    }
    let timer = format!(" {seconds:.1}s");
    let mut left = width.checked_sub(" => ".len() + timer.len())?;
    if left < LEAST {
        return None;
    }
    let (amount, bar) = status.map(amounts).unwrap_or_default();
    let mut right = String::new();
    for part in [amount, bar] {
        let needed = measure_text_width(&part) + 1;
        if needed > 1 && left >= NAME + needed {
            left -= needed;
            right.push(' ');
            right.push_str(&part);
        }
    }
    let name = truncate_str(name, left, "");
    let used = measure_text_width(&name);
    let gap = " ".repeat(left - used);
    Some(format!(" => {name}{right}{gap}{timer}"))
}

/// How much there is, and a bar where it is known how much there will be.
fn amounts(status: &Status) -> (String, String) {
    let (current, total) = (status.current.max(0), status.total);
    if total <= 0 {
        let amount = match current {
            0 => String::new(),
            some => bytes(some),
        };
        return (amount, String::new());
    }
    let amount = format!("{} / {}", bytes(current), bytes(total));
    if status.completed.is_some() {
        return (amount, String::new());
    }
    let room = BAR - 2;
    let share = current.min(total) as f64 / total as f64;
    // Within `room`, since the share is at most one.
    let full = (share * room as f64) as usize;
    let point = if full < room { ">" } else { "" };
    let rest = " ".repeat(room - full - point.len());
    (amount, format!("[{}{point}{rest}]", "=".repeat(full)))
}

/// The last lines of what a step says.
fn window(item: &Item, most: usize, width: usize) -> Vec<Line> {
    let last = item.logs.iter().rev().take(most);
    let mut lines: Vec<_> = last
        .map(|line| {
            let text = String::from_utf8_lossy(line);
            // Each line begins with its time, which is for those that stay.
            let text = text.split_once(' ').map_or("", |(_, text)| text);
            // Of a line that was written over and over the last state is the one to show.
            let text = text
                .trim_end_matches('\r')
                .rsplit('\r')
                .next()
                .unwrap_or("");
            let text = format!(" => => # {}", clean(text));
            Line {
                text: truncate_str(&text, width, "").into_owned(),
                look: Look::Output,
            }
        })
        .collect();
    lines.reverse();
    lines
}

/// Without what a terminal would take for a command.
fn clean(text: &str) -> String {
    let text = strip_ansi_codes(text);
    let printable = |char: char| if char.is_control() { ' ' } else { char };
    text.trim_end().chars().map(printable).collect()
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
