//! To the wire.

use std::time::SystemTime;

use cooper_proto::types;
use cooper_worker::{Filter, Worker};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Status;

pub(crate) fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

/// RFC 3339 with fractions of a second, in UTC.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

pub(crate) fn worker(worker: &Worker, version: &types::BuildkitVersion) -> types::WorkerRecord {
    types::WorkerRecord {
        id: worker.id.clone(),
        labels: worker.labels.clone(),
        platforms: worker.platforms.clone(),
        buildkit_version: Some(version.clone()),
        gc_policy: worker.gc.iter().map(gc_policy).collect(),
        ..types::WorkerRecord::default()
    }
}

fn gc_policy(policy: &cooper_worker::GcPolicy) -> types::GcPolicy {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    types::GcPolicy {
        all: policy.all,
        keep_duration: i64::try_from(policy.keep_duration.as_nanos()).unwrap_or(i64::MAX),
        filters: policy.filters.clone(),
        reserved_space: bytes(policy.reserved_space),
        max_used_space: bytes(policy.max_used_space),
        min_free_space: bytes(policy.min_free_space),
    }
}

/// The filters of a request: one of them has to match, and none at all match everything.
pub(crate) fn filters(texts: &[String]) -> Result<Vec<Filter>, Status> {
    let parse = |text: &String| {
        Filter::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
    };
    texts.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_utc_with_fractions() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1500);
        assert_eq!(rfc3339(time), "1970-01-01T00:00:01.5Z");
    }
}
