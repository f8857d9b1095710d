//! What is pruned by itself, and the filters by which users choose records.

use std::sync::Arc;
use std::time::Duration;

use cooper_cache::{PruneOptions, UsageFilter, UsageRecord};

use crate::filter::FilterError;
use crate::{Filter, WorkerError};

/// One policy of the garbage collection, as `[[worker.….gcpolicy]]` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcPolicy {
    /// Also what frontends and the daemon need.
    pub all: bool,
    /// Only what one of them matches; none at all match everything.
    pub filters: Vec<String>,
    /// Spares what was used within this time; zero spares nothing.
    pub keep_duration: Duration,
    /// Bytes that the cache may have whatever else is said; 0 for none.
    pub reserved_space: u64,
    /// Bytes that the cache may have at most; 0 for no limit.
    pub max_used_space: u64,
    /// Bytes that are to be free on the disk; 0 for none.
    pub min_free_space: u64,
}

impl GcPolicy {
    /// What the cache is asked for.
    ///
    /// # Errors
    /// A filter cannot be understood.
    pub fn options(&self) -> Result<PruneOptions, FilterError> {
        Ok(PruneOptions {
            all: self.all,
            keep_duration: self.keep_duration,
            reserved_space: self.reserved_space,
            max_used_space: self.max_used_space,
            min_free_space: self.min_free_space,
            filter: usage_filter(&self.filters)?,
        })
    }
}

/// What the cache is asked for by all policies.
pub(crate) fn options(policies: &[GcPolicy]) -> Result<Vec<PruneOptions>, WorkerError> {
    let options = |policy: &GcPolicy| {
        policy.options().map_err(|error| WorkerError::Setting {
            name: "gcpolicy.filters",
            value: policy.filters.join(", "),
            source: error.into(),
        })
    };
    policies.iter().map(options).collect()
}

/// Chooses records by filters: one of them has to match, and none at all match everything. The
/// fields are those of BuildKit (`cache/manager.go`).
///
/// # Errors
/// A filter cannot be understood.
pub fn usage_filter(texts: &[String]) -> Result<Option<UsageFilter>, FilterError> {
    if texts.is_empty() {
        return Ok(None);
    }
    let filters = texts.iter().map(|text| Filter::parse(text));
    let filters = filters.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Arc::new(move |record: &UsageRecord| {
        let parents: Vec<_> = record.parents.iter().map(ToString::to_string).collect();
        let parents = parents.join(";");
        filters.iter().any(|filter| {
            filter.matches(|path| match path {
                [field] => match field.as_str() {
                    "id" => Some(record.id.as_str()),
                    "parents" => Some(parents.as_str()).filter(|text| !text.is_empty()),
                    "description" => {
                        Some(record.description.as_str()).filter(|text| !text.is_empty())
                    }
                    "type" => Some(record.record_type.as_str()),
                    "inuse" => record.in_use.then_some(""),
                    "mutable" => record.mutable.then_some(""),
                    "immutable" => (!record.mutable).then_some(""),
                    "shared" => record.shared.then_some(""),
                    "private" => (!record.shared).then_some(""),
                    _ => None,
                },
                _ => None,
            })
        })
    })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::SystemTime;

    use cooper_cache::RecordType;

    use super::*;

    /// The fields of BuildKit's `adaptUsageInfo`, and which of them are there at all.
    #[test]
    fn records_have_the_fields_that_users_filter_by() {
        let bare = UsageRecord {
            id: "1".repeat(25).parse().unwrap(),
            mutable: false,
            in_use: false,
            size: 0,
            parents: Vec::new(),
            created_at: SystemTime::UNIX_EPOCH,
            last_used_at: None,
            usage_count: 0,
            description: String::new(),
            record_type: RecordType::Regular,
            shared: false,
        };
        let other = UsageRecord {
            mutable: true,
            in_use: true,
            parents: vec![
                "2".repeat(25).parse().unwrap(),
                "3".repeat(25).parse().unwrap(),
            ],
            description: "RUN make".to_owned(),
            record_type: RecordType::CacheMount,
            ..bare.clone()
        };
        let ones = "1".repeat(25);
        let both = format!("{};{}", "2".repeat(25), "3".repeat(25));
        let cases = [
            (format!("id=={ones}"), true, true),
            ("id~=^11".to_owned(), true, true),
            ("parents".to_owned(), false, true),
            (format!("parents==\"{both}\""), false, true),
            ("parents~=222".to_owned(), false, true),
            ("description".to_owned(), false, true),
            ("description~=make".to_owned(), false, true),
            ("description!=x".to_owned(), true, true),
            ("inuse".to_owned(), false, true),
            ("mutable".to_owned(), false, true),
            ("immutable".to_owned(), true, false),
            ("shared".to_owned(), false, false),
            ("private".to_owned(), true, true),
            ("type==regular".to_owned(), true, false),
            ("type==exec.cachemount".to_owned(), false, true),
            ("type==exec.cachemount,inuse".to_owned(), false, true),
            ("type==regular,inuse".to_owned(), false, false),
            ("size==0".to_owned(), false, false),
        ];
        for (text, of_bare, of_other) in cases {
            let filter = usage_filter(std::slice::from_ref(&text)).unwrap().unwrap();
            assert_eq!(filter(&bare), of_bare, "{text}");
            assert_eq!(filter(&other), of_other, "{text}");
        }
        // One of several is enough, and none at all is no filter.
        let any = usage_filter(&["mutable".to_owned(), "type==regular".to_owned()]);
        let any = any.unwrap().unwrap();
        assert!(any(&bare) && any(&other));
        assert!(usage_filter(&[]).unwrap().is_none());
        assert!(usage_filter(&["id=x".to_owned()]).is_err());
    }
}
