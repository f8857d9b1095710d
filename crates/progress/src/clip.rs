//! Bounds on what a step may log, in BuildKit's figures and words.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// How much of a step's output is passed on.
///
/// BuildKit's: 2 MiB in all and 200 KiB per second, or what the environment variables
/// `BUILDKIT_STEP_LOG_MAX_SIZE` and `BUILDKIT_STEP_LOG_MAX_SPEED` say; -1 is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in all; `None` is no bound.
    pub size: Option<u64>,
    /// Bytes in each second; `None` is no bound.
    pub speed: Option<u64>,
}

impl Limits {
    /// What BuildKit does with no variables set.
    pub const DEFAULT: Self = Self {
        size: Some(2 << 20),
        speed: Some(200 << 10),
    };

    /// Reads the two variables through `var`; a value that is no number counts as unset.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Self {
        let read = |name: &str, default| match var(name).map(|value| value.parse::<i64>()) {
            Some(Ok(value)) => u64::try_from(value).ok(),
            _ => default,
        };
        Self {
            size: read("BUILDKIT_STEP_LOG_MAX_SIZE", Self::DEFAULT.size),
            speed: read("BUILDKIT_STEP_LOG_MAX_SPEED", Self::DEFAULT.speed),
        }
    }
}

/// Applies [`Limits`] to one step, its streams together.
#[derive(Debug)]
pub struct Clip {
    limits: Limits,
    passed: u64,
    window: Option<(Instant, u64)>,
    clipping: Option<Reason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Size,
    Speed,
}

impl Clip {
    /// Nothing has passed yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            passed: 0,
            window: None,
            clipping: None,
        }
    }

    /// What is to be passed on of `data` that arrived at `now`: all of it, a part with a line
    /// that says why the rest is missing, or nothing.
    pub fn pass(&mut self, mut data: Bytes, now: Instant) -> Option<Bytes> {
        if data.is_empty() {
            return None;
        }
        let used = match &mut self.window {
            Some((begin, used)) if now.duration_since(*begin) < Duration::from_secs(1) => used,
            window => &mut window.insert((now, 0)).1,
        };
        let left = |limit: Option<u64>, used: u64| {
            limit.map_or(u64::MAX, |limit| limit.saturating_sub(used))
        };
        let by_size = left(self.limits.size, self.passed);
        let by_speed = left(self.limits.speed, *used);
        let length = data.len() as u64;
        let room = by_size.min(by_speed);
        if length <= room {
            self.passed += length;
            *used += length;
            self.clipping = None;
            return Some(data);
        }
        let reason = if by_size <= by_speed {
            Reason::Size
        } else {
            Reason::Speed
        };
        self.passed += room;
        *used += room;
        if self.clipping.replace(reason) == Some(reason) && room == 0 {
            return None;
        }
        data.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let mut text = data.to_vec();
        text.extend_from_slice(self.notice(reason).as_bytes());
        Some(text.into())
    }

    fn notice(&self, reason: Reason) -> String {
        let limit = match reason {
            Reason::Size => size(self.limits.size.unwrap_or_default()),
            Reason::Speed => format!("{}/s", size(self.limits.speed.unwrap_or_default())),
        };
        format!("\n[output clipped, log limit {limit} reached]\n")
    }
}

/// `2MiB`, `200KiB`: the largest unit below the number, as BuildKit prints it.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{}{name}", bytes / unit),
        #[allow(clippy::cast_precision_loss)]
        Some((name, unit)) => format!("{:.2}{name}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Option<Bytes>) -> Option<String> {
        bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn all_is_passed_below_the_limits_and_the_rest_is_named_once() {
        let mut clip = Clip::new(Limits {
            size: Some(5),
            speed: None,
        });
        let now = Instant::now();
        assert_eq!(text(clip.pass("abc".into(), now)).as_deref(), Some("abc"));
        let notice = "de\n[output clipped, log limit 5B reached]\n";
        assert_eq!(text(clip.pass("defg".into(), now)).as_deref(), Some(notice));
        assert_eq!(clip.pass("h".into(), now), None);
    }

    #[test]
    fn speed_recovers_with_the_next_second() {
        let mut clip = Clip::new(Limits {
            size: None,
            speed: Some(2048),
        });
        let now = Instant::now();
        let full = Bytes::from(vec![b'x'; 2048]);
        assert_eq!(clip.pass(full.clone(), now), Some(full.clone()));
        let notice = "\n[output clipped, log limit 2KiB/s reached]\n";
        assert_eq!(text(clip.pass("y".into(), now)).as_deref(), Some(notice));
        assert_eq!(clip.pass("z".into(), now), None);
        assert_eq!(
            clip.pass(full.clone(), now + Duration::from_secs(1)),
            Some(full)
        );
    }

    #[test]
    fn the_variables_are_buildkits() {
        let limits = Limits::from_env(|name| match name {
            "BUILDKIT_STEP_LOG_MAX_SIZE" => Some("-1".into()),
            "BUILDKIT_STEP_LOG_MAX_SPEED" => Some("10".into()),
            _ => None,
        });
        assert_eq!(
            limits,
            Limits {
                size: None,
                speed: Some(10)
            }
        );
        assert_eq!(Limits::from_env(|_| None), Limits::DEFAULT);
        assert_eq!(size(2 << 20), "2MiB");
        assert_eq!(size(200 << 10), "200KiB");
    }
}
