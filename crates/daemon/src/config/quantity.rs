//! Sizes and periods as the configuration file writes them.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// Space on a disk: bytes, or a part of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes; 0 when it is a part.
    pub bytes: u64,
    /// Hundredths of the disk; 0 when it is bytes.
    pub percentage: u64,
}

/// A period of time: `"48h"`, or a number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period(pub Duration);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for DiskSpace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(bytes) => Ok(Self {
                bytes,
                percentage: 0,
            }),
            NumberOrText::Text(text) => Self::parse(&text).ok_or_else(|| {
                D::Error::custom(format!("{text:?} is not a size such as 20GB or 10%"))
            }),
        }
    }
}

impl DiskSpace {
    /// Reads `20GB` or `20GiB` (both 1024-based, as docker/go-units reads sizes in memory, which
    /// BuildKit goes by), `10%` or bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(number) = text.strip_suffix('%') {
            let percentage = number.trim().parse().ok().filter(|part| *part <= 100)?;
            return Some(Self {
                bytes: 0,
                percentage,
            });
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            "p" | "pb" | "pib" => 1 << 50,
            _ => return None,
        };
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(factor)?,
            // A fraction of a unit: the loss below a byte is no loss.
            Err(_) => (number.parse::<f64>().ok()? * factor as f64) as u64,
        };
        Some(Self {
            bytes,
            percentage: 0,
        })
    }

    /// Whether it says anything.
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(seconds) => Ok(Self(Duration::from_secs(seconds))),
            NumberOrText::Text(text) => Self::parse(&text).ok_or_else(|| {
                D::Error::custom(format!("{text:?} is not a period such as 48h or 90m"))
            }),
        }
    }
}

impl Period {
    /// Reads a Go duration (`1h30m`, `90s`, `250ms`) or a number of seconds.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(seconds) = text.parse() {
            return Some(Self(Duration::from_secs(seconds)));
        }
        let (mut rest, mut total) = (text, Duration::ZERO);
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..end].parse().ok()?;
            let unit = &rest[end..];
            let next = unit.find(|c: char| c.is_ascii_digit() || c == '.');
            let (unit, after) = unit.split_at(next.unwrap_or(unit.len()));
            let seconds = match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
            total += Duration::try_from_secs_f64(number * seconds).ok()?;
            rest = after;
        }
        (!text.is_empty()).then_some(Self(total))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes, percentage) in [
            ("512MB", 512 << 20, 0),
            ("1.5GB", 3 << 29, 0),
            ("2GiB", 2 << 30, 0),
            ("77", 77, 0),
            ("20%", 0, 20),
        ] {
            assert_eq!(
                DiskSpace::parse(text),
                Some(DiskSpace { bytes, percentage }),
                "{text}"
            );
        }
        for text in ["", "x", "10 parsec", "120%", "-1"] {
            assert_eq!(DiskSpace::parse(text), None, "{text}");
        }
    }

    #[test]
    fn periods_are_read() {
        for (text, seconds) in [
            ("48h", 172_800.0),
            ("1h30m", 5400.0),
            ("90", 90.0),
            ("250ms", 0.25),
        ] {
            assert_eq!(
                Period::parse(text).unwrap().0.as_secs_f64(),
                seconds,
                "{text}"
            );
        }
        for text in ["", "h", "3 days", "1x"] {
            assert_eq!(Period::parse(text), None, "{text}");
        }
    }
}
