//! The filters of the history, as BuildKit's daemon reads them (`solver/llbsolver/history`): each is
//! a line of CSV whose fields all have to hold, and of several filters one has to.
//!
//! `startedAt`, `completedAt` and `duration` are compared by `>`, `>=`, `<` and `<=`, the first two
//! with a time (RFC 3339) or an age (`24h`), in whole seconds. `ref`, `repository` and `status`
//! (`running`, `completed`, `error`, `canceled`) are fields of containerd's filters.

use std::time::SystemTime;

use cooper_dockerfile::{csv, duration};
use cooper_history::Record;
use cooper_worker::Filter;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Status;

/// Filters of which one has to match; none at all match everything.
pub(super) struct Filters {
    any: Vec<All>,
}

/// Conditions that all have to hold.
struct All {
    times: Vec<Comparison>,
    fields: Filter,
}

struct Comparison {
    what: What,
    order: Order,
    /// Seconds since 1970, or nanoseconds of a duration.
    value: i128,
}

#[derive(Clone, Copy)]
enum What {
    Started,
    Completed,
    Duration,
}

#[derive(Clone, Copy)]
enum Order {
    AtLeast,
    AtMost,
    Above,
    Below,
}

impl Filters {
    pub(super) fn parse(texts: &[String]) -> Result<Self, Status> {
        let now = SystemTime::now();
        let any = texts.iter().map(|text| All::parse(text, now));
        let any = any.collect::<Result<_, _>>();
        Ok(Self {
            any: any.map_err(Status::invalid_argument)?,
        })
    }

    pub(super) fn matches(&self, record: &Record) -> bool {
        self.any.is_empty() || self.any.iter().any(|all| all.matches(record))
    }
}

impl All {
    fn parse(text: &str, now: SystemTime) -> Result<Self, String> {
        let mut times = Vec::new();
        let mut fields = Vec::new();
        let given = match text {
            "" => Vec::new(),
            text => csv::fields(text).map_err(|error| format!("filter {text:?}: {error}"))?,
        };
        for field in given {
            match Comparison::parse(&field, now)? {
                Some(comparison) => times.push(comparison),
                None => fields.push(field),
            }
        }
        let fields = Filter::parse(&fields.join(","));
        let fields =
            fields.map_err(|error| format!("failed to parse history filters {text:?}: {error}"))?;
        Ok(Self { times, fields })
    }

    fn matches(&self, record: &Record) -> bool {
        let repository = repository(record);
        let field = |path: &[String]| match path {
            [field] if field == "ref" => {
                Some(record.r#ref.as_str()).filter(|name| !name.is_empty())
            }
            [field] if field == "status" => Some(status(record)),
            [field] if field == "repository" => repository.as_deref(),
            _ => None,
        };
        self.times.iter().all(|time| time.holds(record)) && self.fields.matches(field)
    }
}

impl Comparison {
    /// `None` for what is no comparison of times.
    fn parse(text: &str, now: SystemTime) -> Result<Option<Self>, String> {
        let orders = [
            (">=", Order::AtLeast),
            ("<=", Order::AtMost),
            (">", Order::Above),
            ("<", Order::Below),
        ];
        let mut orders = orders.into_iter();
        let cut = orders.find_map(|(sign, order)| Some((text.split_once(sign)?, order)));
        let Some(((name, value), order)) = cut else {
            return Ok(None);
        };
        let what = match name {
            "startedAt" => What::Started,
            "completedAt" => What::Completed,
            "duration" => What::Duration,
            _ => return Ok(None),
        };
        let value = match (what, duration::parse(value)) {
            (What::Duration, Ok(nanos)) => i128::from(nanos),
            (What::Duration, Err(_)) => return Err(format!("invalid duration {value}")),
            (_, Ok(age)) => {
                let now = now.duration_since(SystemTime::UNIX_EPOCH);
                let now = now.unwrap_or_default().as_nanos();
                let now = i128::try_from(now).unwrap_or(i128::MAX);
                // Go's division of the time, which rounds down.
                (now - i128::from(age)).div_euclid(1_000_000_000)
            }
            (_, Err(_)) => {
                let time = OffsetDateTime::parse(value, &Rfc3339);
                let time = time.map_err(|_| format!("invalid time {value}"))?;
                i128::from(time.unix_timestamp())
            }
        };
        Ok(Some(Self { what, order, value }))
    }

    fn holds(&self, record: &Record) -> bool {
        let nanos = |time: &prost_types::Timestamp| {
            i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
        };
        let created = record.created_at.as_ref();
        let completed = record.completed_at.as_ref();
        // What is not there yet is zero.
        let value = match self.what {
            What::Started => created.map(|time| i128::from(time.seconds)),
            What::Completed => completed.map(|time| i128::from(time.seconds)),
            What::Duration => created
                .zip(completed)
                .map(|(created, completed)| nanos(completed) - nanos(created)),
        };
        let value = value.unwrap_or(0);
        match self.order {
            Order::AtLeast => value >= self.value,
            Order::AtMost => value <= self.value,
            Order::Above => value > self.value,
            Order::Below => value < self.value,
        }
    }
}

fn status(record: &Record) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (Some(_), None) => "completed",
        (Some(_), Some(error)) if error.message.contains("context canceled") => "canceled",
        (Some(_), Some(_)) => "error",
    }
}

/// Where the build is from: what the client says, else the repository that is its context.
fn repository(record: &Record) -> Option<String> {
    let attrs = &record.frontend_attrs;
    if let Some(source) = attrs.get("vcs:source") {
        return Some(source.clone());
    }
    remote(attrs.get("context")?)
}

/// The address of a repository without the fragment that names a revision.
fn remote(context: &str) -> Option<String> {
    let (address, _) = context.split_once('#').unwrap_or((context, ""));
    if let Some((scheme, rest)) = address.split_once("://") {
        let known = ["http", "https", "ssh", "git"].contains(&scheme);
        return (known && !rest.is_empty()).then(|| address.to_owned());
    }
    // As scp writes it: user@host:path.
    let (user, rest) = address.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let is_word = |text: &str| !text.is_empty() && !text.contains(['/', ' ']);
    (is_word(user) && is_word(host) && !path.is_empty()).then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    /// The records of BuildKit's own test of its filters.
    fn records() -> Vec<Record> {
        let epoch = SystemTime::now() - Duration::from_secs(24 * 3600);
        let at = |minutes: u64| Some((epoch + Duration::from_secs(60 * minutes)).into());
        let attr = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        vec![
            Record {
                r#ref: "foo123".into(),
                created_at: at(0),
                completed_at: at(1),
                ..Record::default()
            },
            Record {
                r#ref: "bar456".into(),
                frontend_attrs: attr("context", "https://github.com/user/repo.git#abcdef123"),
                created_at: at(60),
                ..Record::default()
            },
            Record {
                r#ref: "foo789".into(),
                frontend_attrs: attr("vcs:source", "testrepo"),
                created_at: at(120),
                completed_at: at(130),
                error: Some(cooper_proto::rpc::Status {
                    message: "failed to solve: context canceled".into(),
                    ..cooper_proto::rpc::Status::default()
                }),
                ..Record::default()
            },
        ]
    }

    #[test]
    fn filters_choose_as_buildkits_do() {
        let records = records();
        for (filters, expected) in [
            (&[][..], &["foo123", "bar456", "foo789"][..]),
            (&["ref==foo"], &[]),
            (&["ref~=foo"], &["foo123", "foo789"]),
            (&["repository!=testrepo"], &["foo123", "bar456"]),
            (
                &["repository==https://github.com/user/repo.git"],
                &["bar456"],
            ),
            (&["ref!=notexist"], &["foo123", "bar456", "foo789"]),
            (&["repository!=testrepo,ref~=foo"], &["foo123"]),
            (&["completedAt>23h"], &["foo789"]),
            (&["startedAt<23h"], &["foo123"]),
            (&["startedAt<=23h"], &["foo123", "bar456"]),
            (&["duration>5m"], &["foo789"]),
            (&["duration<=1m0.5s"], &["foo123", "bar456"]),
            (&["startedAt>24h,completedAt>22h"], &["foo789"]),
            (
                &["startedAt>=23h", "completedAt>22h"],
                &["bar456", "foo789"],
            ),
            (&["startedAt>24h,ref~=foo"], &["foo789"]),
            (
                &["startedAt>2001-02-03T04:05:06+01:00"],
                &["foo123", "bar456", "foo789"],
            ),
            (&["status==running"], &["bar456"]),
            (&["status==completed"], &["foo123"]),
            (&["status==canceled"], &["foo789"]),
            (&["status==error"], &[]),
            (&["repository"], &["bar456", "foo789"]),
            (&["\"ref==foo123\",status==completed"], &["foo123"]),
            (&["unknown==x"], &[]),
        ] {
            let filters: Vec<_> = filters.iter().map(|text| (*text).to_owned()).collect();
            let parsed = Filters::parse(&filters).unwrap();
            let found = records.iter().filter(|record| parsed.matches(record));
            let found: Vec<_> = found.map(|record| record.r#ref.as_str()).collect();
            assert_eq!(found, expected, "{filters:?}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (filter, expected) in [
            ("ref+foo", "parse error"),
            ("startedAt>yesterday", "invalid time yesterday"),
            ("duration>5", "invalid duration 5"),
            ("duration>", "invalid duration "),
            ("\"ref==x", "missing \" in quoted-field"),
            ("ref==\"x\"", "bare \""),
        ] {
            let error = Filters::parse(&[filter.to_owned()]).err().unwrap();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(expected), "{error}");
        }
    }

    #[test]
    fn whatever_comes_is_read_or_refused() {
        let text = "\"ref~=^\"\"é\"\"$\",startedAt>=1h2.5m3µs,status!=x,duration<-0ns,,";
        let places: Vec<_> = text.char_indices().map(|(place, _)| place).collect();
        for from in &places {
            for to in places.iter().filter(|to| *to >= from) {
                let part = text[*from..*to].to_owned();
                let without = format!("{}{}", &text[..*from], &text[*to..]);
                for filter in [part, without] {
                    if let Ok(filters) = Filters::parse(&[filter]) {
                        let records = records();
                        assert!(
                            records
                                .iter()
                                .filter(|record| filters.matches(record))
                                .count()
                                <= 3
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn repositories_are_known_by_their_form() {
        for (context, expected) in [
            ("https://h/r.git#main:sub", Some("https://h/r.git")),
            ("git@host:path/r.git#v1", Some("git@host:path/r.git")),
            ("ssh://git@host/r", Some("ssh://git@host/r")),
            ("file:///x", None),
            ("./folder", None),
            ("a/b@c:d", None),
        ] {
            assert_eq!(remote(context).as_deref(), expected, "{context}");
        }
    }
}
