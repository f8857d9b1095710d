//! The build as far as it has been told: BuildKit's `progressui` bookkeeping.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use cooper_proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus};
use cooper_proto::pb::ProgressGroup;
use prost_types::Timestamp;

/// Lines of a step that are kept for the case that it fails.
const TAIL: usize = 10;

/// Nanoseconds since 1970.
pub(crate) type Nanos = i128;

/// All steps.
#[derive(Default)]
pub(crate) struct Trace {
    items: Vec<Item>,
    by_digest: HashMap<String, usize>,
    groups: HashMap<String, Group>,
    started: Vec<usize>,
    /// What has something new.
    pub(crate) updates: BTreeSet<usize>,
}

/// One step, or several that are shown as one.
#[derive(Default)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) error: String,
    pub(crate) cached: bool,
    /// When it ran, by the start; `None` while it does.
    intervals: BTreeMap<Nanos, Option<Nanos>>,
    pub(crate) statuses: Vec<Status>,
    /// What was written: whole lines, and perhaps the begin of one.
    pub(crate) logs: Vec<Vec<u8>>,
    /// The last line has no end yet.
    pub(crate) partial: bool,
    pub(crate) tail: VecDeque<Vec<u8>>,
    pub(crate) warnings: Vec<String>,
    /// Shown only when more than one weak member of its group runs.
    hidden: bool,
    /// How much came since `since`.
    pub(crate) count: u32,
    pub(crate) since: Option<Instant>,
    last: Option<Vertex>,
}

/// Part of a step's work.
pub(crate) struct Status {
    pub(crate) id: String,
    pub(crate) current: i64,
    pub(crate) total: i64,
    pub(crate) at: Nanos,
    pub(crate) started: Option<Nanos>,
    pub(crate) completed: Option<Nanos>,
    pub(crate) updated: bool,
}

struct Group {
    item: usize,
    members: BTreeMap<String, Vertex>,
}

impl Item {
    pub(crate) fn is_started(&self) -> bool {
        !self.intervals.is_empty()
    }

    pub(crate) fn is_completed(&self) -> bool {
        self.intervals
            .last_key_value()
            .is_some_and(|(_, stop)| stop.is_some())
            && self.intervals.values().all(Option::is_some)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    /// When it ended last.
    pub(crate) fn completed_at(&self) -> Option<Nanos> {
        self.intervals.values().copied().max().flatten()
    }

    /// How long it ran, times that overlap counted once.
    pub(crate) fn duration(&self, now: Nanos) -> Duration {
        let (mut sum, mut end) = (0, Nanos::MIN);
        for (start, stop) in &self.intervals {
            let stop = stop.unwrap_or(now);
            sum += (stop - (*start).max(end)).max(0);
            end = end.max(stop);
        }
        Duration::from_nanos(u64::try_from(sum).unwrap_or(0))
    }

    fn touch(&mut self) {
        if self.count == 0 {
            self.since = Some(Instant::now());
        }
        self.count += 1;
    }

    fn write(&mut self, log: &VertexLog) {
        let start = self.intervals.last_key_value().map(|(start, _)| *start);
        let at = log.timestamp.as_ref().map(nanos);
        let seconds = match (at, start) {
            (Some(at), Some(start)) => (at - start) as f64 / 1e9,
            _ => 0.0,
        };
        let precision = match seconds {
            ..10.0 => 3,
            ..100.0 => 2,
            _ => 1,
        };
        let mut rest: &[u8] = &log.msg;
        let mut first = true;
        let mut complete = false;
        while !rest.is_empty() {
            let (line, after) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            complete = rest.len() > line.len();
            match self.logs.last_mut() {
                Some(last) if first && self.partial => last.extend_from_slice(line),
                _ => {
                    let mut begun = format!("{seconds:.precision$} ").into_bytes();
                    begun.extend_from_slice(line);
                    self.logs.push(begun);
                }
            }
            first = false;
            rest = after;
        }
        self.partial = !complete;
        self.touch();
    }

    /// Keeps a line that was shown.
    pub(crate) fn keep(&mut self, line: Vec<u8>) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

impl Trace {
    pub(crate) fn item(&self, index: usize) -> &Item {
        &self.items[index]
    }

    pub(crate) fn item_mut(&mut self, index: usize) -> &mut Item {
        &mut self.items[index]
    }

    /// The steps that began, in that order.
    pub(crate) fn started(&self) -> impl Iterator<Item = &Item> {
        self.started.iter().map(|index| &self.items[*index])
    }

    /// The same, as numbers.
    pub(crate) fn started_indexes(&self) -> &[usize] {
        &self.started
    }

    /// How many steps are done, and how many there are.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let shown = self.items.iter().filter(|item| !item.hidden);
        let done = shown.clone().filter(|item| item.is_completed());
        (done.count(), shown.count())
    }

    pub(crate) fn update(&mut self, response: StatusResponse) {
        let mut groups = BTreeSet::new();
        for vertex in response.vertexes {
            match vertex.progress_group.clone() {
                Some(group) => {
                    groups.insert(group.id.clone());
                    self.member(&group, vertex);
                }
                None => self.vertex(vertex),
            }
        }
        for id in groups {
            self.refresh(&id);
        }
        for status in response.statuses {
            self.status(status);
        }
        for warning in response.warnings {
            if let Some(&index) = self.by_digest.get(&warning.vertex) {
                let text = String::from_utf8_lossy(&warning.short).into_owned();
                let item = &mut self.items[index];
                item.warnings.push(text);
                item.touch();
                if item.is_started() {
                    self.updates.insert(index);
                }
            }
        }
        for log in response.logs {
            if let Some(&index) = self.by_digest.get(&log.vertex) {
                self.items[index].write(&log);
                self.updates.insert(index);
            }
        }
    }

    fn vertex(&mut self, vertex: Vertex) {
        let index = match self.by_digest.get(&vertex.digest) {
            Some(index) => *index,
            None => {
                self.items.push(Item::default());
                let index = self.items.len() - 1;
                self.by_digest.insert(vertex.digest.clone(), index);
                index
            }
        };
        let item = &mut self.items[index];
        let was_started = item.is_started();
        if let Some(started) = &vertex.started {
            if item.last.as_ref() != Some(&vertex) {
                item.touch();
                self.updates.insert(index);
            }
            let stop = vertex.completed.as_ref().map(nanos);
            item.intervals.insert(nanos(started), stop);
            if !was_started {
                self.started.push(index);
            }
        }
        // A vertex that is told again without a start must not undo what is known.
        if !was_started || vertex.started.is_some() {
            item.name.clone_from(&vertex.name);
            item.error.clone_from(&vertex.error);
            item.cached = vertex.cached;
        }
        item.last = Some(vertex);
    }

    fn member(&mut self, group: &ProgressGroup, vertex: Vertex) {
        let items = &mut self.items;
        let entry = self.groups.entry(group.id.clone()).or_insert_with(|| {
            items.push(Item {
                name: group.name.clone(),
                hidden: true,
                ..Item::default()
            });
            Group {
                item: items.len() - 1,
                members: BTreeMap::new(),
            }
        });
        self.by_digest.insert(vertex.digest.clone(), entry.item);
        entry.members.insert(vertex.digest.clone(), vertex);
    }

    fn refresh(&mut self, id: &str) {
        let Some(group) = self.groups.get(id) else {
            return;
        };
        let item = &mut self.items[group.item];
        let was_hidden = item.hidden;
        let (mut changed, mut cached, mut error) = (false, true, String::new());
        for vertex in group.members.values() {
            if let Some(started) = &vertex.started {
                let stop = vertex.completed.as_ref().map(nanos);
                changed |= item.intervals.insert(nanos(started), stop) != Some(stop);
                let weak = vertex
                    .progress_group
                    .as_ref()
                    .is_some_and(|group| group.weak);
                item.hidden &= weak;
            }
            cached &= vertex.cached;
            if error.is_empty() {
                error.clone_from(&vertex.error);
            } else {
                item.hidden = false;
            }
        }
        changed |= item.cached != cached || item.error != error || was_hidden != item.hidden;
        (item.cached, item.error) = (cached, error);
        if item.hidden {
            return;
        }
        if was_hidden {
            self.started.push(group.item);
        }
        if changed {
            item.touch();
            self.updates.insert(group.item);
        }
    }

    fn status(&mut self, status: VertexStatus) {
        let Some(&index) = self.by_digest.get(&status.vertex) else {
            return;
        };
        let item = &mut self.items[index];
        let fresh = Status {
            current: status.current,
            total: status.total,
            at: status.timestamp.as_ref().map_or(0, nanos),
            started: status.started.as_ref().map(nanos),
            completed: status.completed.as_ref().map(nanos),
            updated: true,
            id: status.id,
        };
        match item.statuses.iter_mut().find(|known| known.id == fresh.id) {
            Some(known) => *known = fresh,
            None => item.statuses.push(fresh),
        }
        item.touch();
        self.updates.insert(index);
    }
}

pub(crate) fn nanos(time: &Timestamp) -> Nanos {
    Nanos::from(time.seconds) * 1_000_000_000 + Nanos::from(time.nanos)
}

/// An amount of bytes as BuildKit's clients write it: whole bytes, else two digits.
pub(crate) fn bytes(amount: i64) -> String {
    let mut value = amount as f64;
    if amount.abs() < 1000 {
        return format!("{amount}B");
    }
    for unit in ["kB", "MB", "GB", "TB", "PB"] {
        value /= 1000.0;
        if value.abs() < 1000.0 || unit == "PB" {
            return format!("{value:.2}{unit}");
        }
    }
    unreachable!("the last unit takes everything")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_buildkit_does() {
        let cases = [
            (0, "0B"),
            (120, "120B"),
            (1000, "1.00kB"),
            (3_622_094, "3.62MB"),
            (12_345_678_901, "12.35GB"),
        ];
        for (amount, expected) in cases {
            assert_eq!(bytes(amount), expected);
        }
    }

    #[test]
    fn overlapping_times_count_once() {
        let item = Item {
            intervals: BTreeMap::from([(0, Some(10)), (5, Some(12)), (20, None)]),
            ..Item::default()
        };
        assert_eq!(item.duration(25), Duration::from_nanos(17));
        assert!(!item.is_completed());
        assert_eq!(item.completed_at(), Some(12));
    }
}
