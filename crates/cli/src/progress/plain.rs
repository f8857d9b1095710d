//! Lines that stay, in BuildKit's plain format: one step at a time, others wait or take turns.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cooper_proto::control::StatusResponse;

use super::trace::{Nanos, Trace, bytes};
use super::{Display, write_failures};

/// A step that is shown goes on being shown for so long while others say something, too.
const ANTI_FLICKER: Duration = Duration::from_secs(5);
/// A step that is not shown is shown after so long.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// A part of the work is shown again after so long, in nanoseconds ...
const MIN_TIME_DELTA: Nanos = 5_000_000_000;
/// ... or so much of it, as a share.
const MIN_PROGRESS_DELTA: f64 = 0.05;

/// Shows a trace on `out`.
pub(super) struct Plain<W> {
    trace: Trace,
    out: W,
    current: Option<usize>,
    /// How much of the current step's last line, which has no end yet, was shown.
    offset: usize,
    /// The numbers that steps got when they were first shown.
    numbers: HashMap<usize, usize>,
    /// What was last shown of a part of the work.
    last: HashMap<String, (Nanos, i64)>,
    warned: HashMap<usize, usize>,
}

impl<W: Write> Plain<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            trace: Trace::default(),
            out,
            current: None,
            offset: 0,
            numbers: HashMap::new(),
            last: HashMap::new(),
            warned: HashMap::new(),
        }
    }

    fn print(&mut self) -> io::Result<()> {
        let updates = std::mem::take(&mut self.trace.updates);
        let (mut completed, mut rest) = (Vec::new(), Vec::new());
        for index in updates {
            match self.trace.item(index).is_completed() {
                true => completed.push(index),
                false => rest.push(index),
            }
        }
        let current = self.current;
        // What is done comes first: the current one, then the others as they ended.
        completed.sort_by_key(|index| {
            let ended = self.trace.item(*index).completed_at();
            (Some(*index) != current, ended, *index)
        });
        for index in &completed {
            self.print_item(*index)?;
        }
        let current_ended = current.is_some_and(|index| completed.contains(&index));
        if rest.is_empty() {
            if self.current.is_some_and(|index| self.runs(index)) {
                return Ok(());
            }
            let open = self.trace.started_indexes().iter().copied();
            let open = open.into_iter().find(|index| self.runs(*index));
            return open.map_or(Ok(()), |index| self.print_item(index));
        }
        if let Some(index) = current
            && rest.contains(&index)
        {
            self.print_item(index)?;
        }
        // Steps that have not begun are not shown.
        rest.retain(|index| self.runs(*index));
        if let Some(index) = current
            && !current_ended
            && !rest.contains(&index)
        {
            rest.push(index);
        }
        self.take_turns(&rest, current.filter(|_| !current_ended))
    }

    fn runs(&self, index: usize) -> bool {
        let item = self.trace.item(index);
        item.is_started() && !item.is_completed()
    }

    /// Shows the one that says most, unless the current one has a right to go on.
    fn take_turns(&mut self, open: &[usize], current: Option<usize>) -> io::Result<()> {
        let now = Instant::now();
        let mut most: Option<(usize, f64)> = None;
        let (mut sum, mut own, mut waited) = (0.0, 0.0, Duration::ZERO);
        let mut late = None;
        for &index in open {
            let item = self.trace.item(index);
            let time = item.since.map_or(Duration::ZERO, |since| now - since);
            let speed = f64::from(item.count) / time.as_secs_f64().max(1e-9);
            sum += speed;
            if Some(index) == current {
                (own, waited) = (speed, time);
            } else if time > MAX_DELAY {
                late = Some(index);
            }
            if most.is_none_or(|(_, best)| best < speed) {
                most = Some((index, speed));
            }
        }
        let Some((most, _)) = most else {
            return Ok(());
        };
        let most = late.unwrap_or(most);
        if current.is_none() {
            return self.print_item(most);
        }
        if let Some(late) = late {
            return self.print_item(late);
        }
        let share = if sum > 0.0 { own / sum } else { 1.0 };
        if ANTI_FLICKER.as_secs_f64() / (1.0 - share) < waited.as_secs_f64() {
            return self.print_item(most);
        }
        // It stays hidden for now, and is looked at again.
        self.trace
            .updates
            .extend(open.iter().copied().filter(|index| Some(*index) != current));
        Ok(())
    }

    fn print_item(&mut self, index: usize) -> io::Result<()> {
        let next = self.numbers.len() + 1;
        let first = self.numbers.is_empty();
        let number = *self.numbers.entry(index).or_insert(next);
        let out = &mut self.out;
        if self.current != Some(index) {
            if let Some(old) = self.current {
                let old_number = self.numbers.get(&old).copied().unwrap_or(0);
                let item = self.trace.item_mut(old);
                if item.partial {
                    writeln!(out)?;
                }
                item.count = 0;
                writeln!(out, "#{old_number} ...")?;
            }
            self.offset = 0;
            if !first {
                writeln!(out)?;
            }
            writeln!(out, "#{number} {}", self.trace.item(index).name)?;
        }
        let item = self.trace.item_mut(index);
        for status in &mut item.statuses {
            if !std::mem::take(&mut status.updated) || status.started.is_none() {
                continue;
            }
            if let Some((at, current)) = self.last.get(&status.id)
                && status.completed.is_none()
            {
                let progress = match status.total {
                    1.. => (status.current - current) as f64 / status.total as f64,
                    _ => 0.0,
                };
                if progress < MIN_PROGRESS_DELTA && status.at - at < MIN_TIME_DELTA {
                    continue;
                }
            }
            self.last
                .insert(status.id.clone(), (status.at, status.current));
            let amount = match (status.current, status.total) {
                (0, 0) => String::new(),
                (current, 0) => format!(" {}", bytes(current)),
                (current, total) => format!(" {} / {}", bytes(current), bytes(total)),
            };
            let end = status.completed.unwrap_or(status.at);
            let took = status
                .started
                .map_or(0.0, |start| (end - start) as f64 / 1e9);
            let time = if took > 0.01 {
                format!(" {took:.1}s")
            } else {
                String::new()
            };
            let done = if status.completed.is_some() {
                " done"
            } else {
                ""
            };
            writeln!(out, "#{number} {}{amount}{time}{done}", status.id)?;
        }
        let warned = self.warned.entry(index).or_default();
        for warning in &item.warnings[*warned..] {
            writeln!(out, "#{number} WARN: {warning}")?;
        }
        *warned = item.warnings.len();
        let lines = std::mem::take(&mut item.logs);
        let count = lines.len();
        for (place, line) in lines.into_iter().enumerate() {
            if place == 0 && self.offset != 0 {
                out.write_all(&line[self.offset.min(line.len())..])?;
            } else {
                write!(out, "#{number} ")?;
                out.write_all(&line)?;
            }
            if place == count - 1 && item.partial {
                self.offset = line.len();
                item.logs.push(line);
            } else {
                self.offset = 0;
                writeln!(out)?;
                item.keep(line);
            }
        }
        self.current = Some(index);
        if item.is_completed() {
            self.current = None;
            item.count = 0;
            if item.partial && !item.logs.is_empty() {
                writeln!(out)?;
                for line in std::mem::take(&mut item.logs) {
                    item.keep(line);
                }
                self.offset = 0;
            }
            if item.is_cancelled() {
                writeln!(out, "#{number} CANCELED")?;
            } else if !item.error.is_empty() {
                writeln!(out, "#{number} ERROR: {}", item.error)?;
            } else if item.cached {
                writeln!(out, "#{number} CACHED")?;
            } else {
                let took = item.duration(now()).as_secs_f64();
                writeln!(out, "#{number} DONE {took:.1}s")?;
            }
        }
        out.flush()
    }
}

impl<W: Write> Display for Plain<W> {
    fn update(&mut self, response: StatusResponse) {
        self.trace.update(response);
    }

    fn refresh(&mut self) {
        // A terminal that is gone is no reason to stop the build.
        let _ = self.print();
    }

    fn done(&mut self) {
        self.refresh();
        let _ = write_failures(&self.trace, &mut self.out);
    }
}

fn now() -> Nanos {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as Nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_proto::control::{Vertex, VertexLog, VertexStatus};
    use prost_types::Timestamp;

    fn at(milliseconds: i64) -> Option<Timestamp> {
        Some(Timestamp {
            seconds: milliseconds / 1000,
            nanos: (milliseconds % 1000) as i32 * 1_000_000,
        })
    }

    fn vertex(digest: &str, name: &str, started: Option<i64>, completed: Option<i64>) -> Vertex {
        Vertex {
            digest: digest.into(),
            name: name.into(),
            started: started.and_then(at),
            completed: completed.and_then(at),
            ..Vertex::default()
        }
    }

    fn vertices(vertexes: Vec<Vertex>) -> StatusResponse {
        StatusResponse {
            vertexes,
            ..StatusResponse::default()
        }
    }

    fn log(vertex: &str, time: i64, text: &str) -> StatusResponse {
        StatusResponse {
            logs: vec![VertexLog {
                vertex: vertex.into(),
                timestamp: at(time),
                stream: 1,
                msg: text.to_owned().into(),
            }],
            ..StatusResponse::default()
        }
    }

    fn show(updates: Vec<StatusResponse>) -> String {
        let mut out = Vec::new();
        let mut plain = Plain::new(&mut out);
        for update in updates {
            plain.update(update);
            plain.refresh();
        }
        plain.done();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_build_reads_as_in_buildkit() {
        let load = "[internal] load build definition from Dockerfile";
        let transfer = StatusResponse {
            statuses: vec![VertexStatus {
                id: "transferring dockerfile:".into(),
                vertex: "a".into(),
                current: 120,
                timestamp: at(1004),
                started: at(1000),
                completed: at(1005),
                ..VertexStatus::default()
            }],
            ..vertices(vec![vertex("a", load, Some(1000), None)])
        };
        let cached = Vertex {
            cached: true,
            ..vertex("b", "[1/2] FROM busybox", Some(1100), Some(1100))
        };
        let run = "[2/2] RUN echo";
        let output = show(vec![
            vertices(vec![
                vertex("a", load, None, None),
                vertex("c", run, None, None),
            ]),
            transfer,
            vertices(vec![vertex("a", load, Some(1000), Some(1010))]),
            vertices(vec![cached]),
            vertices(vec![vertex("c", run, Some(1200), None)]),
            log("c", 1323, "one\ntw"),
            log("c", 1400, "o\n"),
            log("c", 1500, "no end"),
            vertices(vec![vertex("c", run, Some(1200), Some(2700))]),
        ]);
        let expected = "\
#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 120B done
#1 DONE 0.0s

#2 [1/2] FROM busybox
#2 CACHED

#3 [2/2] RUN echo
#3 0.123 one
#3 0.123 two
#3 0.300 no end
#3 DONE 1.5s
";
        assert_eq!(output, expected);
    }

    #[test]
    fn a_failure_shows_its_last_lines_again() {
        let error = "process \"/bin/sh -c false\" did not complete successfully: exit code: 1";
        let failed = Vertex {
            error: error.into(),
            ..vertex("a", "[2/2] RUN false", Some(0), Some(100))
        };
        let cancelled = Vertex {
            error: "context canceled".into(),
            ..vertex("b", "[other 1/1] RUN sleep", Some(0), Some(200))
        };
        let output = show(vec![
            vertices(vec![vertex("a", "[2/2] RUN false", Some(0), None)]),
            log("a", 50, "some text\n"),
            vertices(vec![failed, cancelled]),
        ]);
        let expected = format!(
            "\
#1 [2/2] RUN false
#1 0.050 some text
#1 ERROR: {error}

#2 [other 1/1] RUN sleep
#2 CANCELED
------
 > [2/2] RUN false:
0.050 some text
------
"
        );
        assert_eq!(output, expected);
    }

    #[test]
    fn steps_take_turns_and_say_so() {
        let output = show(vec![
            vertices(vec![vertex("a", "first", Some(0), None)]),
            vertices(vec![vertex("b", "second", Some(0), None)]),
            log("b", 10, "hidden for now\n"),
            vertices(vec![vertex("b", "second", Some(0), Some(20))]),
            log("a", 30, "again\n"),
            vertices(vec![vertex("a", "first", Some(0), Some(40))]),
        ]);
        let expected = "\
#1 first
#1 ...

#2 second
#2 0.010 hidden for now
#2 DONE 0.0s

#1 first
#1 0.030 again
#1 DONE 0.0s
";
        assert_eq!(output, expected);
    }

    #[test]
    fn members_of_a_group_are_one_step() {
        let member = |digest: &str, started: i64, completed: Option<i64>| Vertex {
            progress_group: Some(cooper_proto::pb::ProgressGroup {
                id: "g".into(),
                name: "[1/1] COPY . .".into(),
                weak: false,
            }),
            ..vertex(digest, "part", Some(started), completed)
        };
        let output = show(vec![vertices(vec![
            member("a", 0, Some(1000)),
            member("b", 500, Some(1500)),
        ])]);
        assert_eq!(output, "#1 [1/1] COPY . .\n#1 DONE 1.5s\n");
    }
}
