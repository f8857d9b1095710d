//! The disk: what `du` and `prune` are asked for, and Cooper's own service beside them.

use std::sync::Arc;
use std::time::Duration;

use cooper_cache::{PruneOptions, UsageFilter, UsageRecord, Verified};
use cooper_engine::Engine;
use cooper_proto::control;
use cooper_proto::disk::disk_server::Disk;
use cooper_proto::disk::{self as wire, PlanPruneResponse, VerifyRequest, VerifyResponse};
use tonic::{Request, Response, Status};

use crate::convert::timestamp;
use crate::status;

pub(crate) struct DiskService {
    engine: Arc<Engine>,
}

impl DiskService {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl Disk for DiskService {
    async fn plan_prune(
        &self,
        request: Request<control::PruneRequest>,
    ) -> Result<Response<PlanPruneResponse>, Status> {
        let options = prune_options(&request.into_inner())?;
        let mut answer = PlanPruneResponse::default();
        for worker in self.engine.workers().list(&[]) {
            let plan = worker.cache.plan_prune(&options).await;
            let plan = plan.map_err(|error| status::unknown(&error))?;
            answer.goes.extend(plan.goes.iter().map(usage_record));
            answer
                .stays
                .extend(plan.stays.iter().map(|one| wire::Stays {
                    record: Some(usage_record(&one.record)),
                    why: one.why.to_string(),
                }));
        }
        Ok(Response::new(answer))
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        let mut workers = Vec::new();
        for worker in self.engine.workers().list(&[]) {
            let found = worker.cache.verify().await;
            let found = found.map_err(|error| status::unknown(&error))?;
            workers.push(verified(&worker.id, &found));
        }
        Ok(Response::new(VerifyResponse { workers }))
    }
}

fn bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn verified(worker: &str, found: &Verified) -> wire::Verified {
    let differences = found.differences.iter().map(|one| wire::Difference {
        what: one.what.clone(),
        ledger: one.ledger.map(bytes),
        disk: one.disk.map(bytes),
        text: one.to_string(),
    });
    let folders = found.folders.iter().map(|(path, taken)| wire::Folder {
        path: path.display().to_string(),
        bytes: bytes(*taken),
    });
    wire::Verified {
        worker: worker.to_owned(),
        records: i64::try_from(found.records).unwrap_or(i64::MAX),
        ledger: bytes(found.ledger),
        disk: bytes(found.disk),
        differences: differences.collect(),
        folders: folders.collect(),
    }
}

/// What a request to prune asks for.
pub(crate) fn prune_options(request: &control::PruneRequest) -> Result<PruneOptions, Status> {
    let space = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
    Ok(PruneOptions {
        all: request.all,
        keep_duration: duration(request.keep_duration),
        reserved_space: space(request.reserved_space),
        max_used_space: space(request.max_used_space),
        min_free_space: space(request.min_free_space),
        filter: usage_filter(&request.filter)?,
    })
}

/// Nanoseconds on the wire; less than none is none.
pub(crate) fn duration(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}

/// One of the filters has to match; none at all match everything.
pub(crate) fn usage_filter(texts: &[String]) -> Result<Option<UsageFilter>, Status> {
    cooper_worker::usage_filter(texts).map_err(|error| Status::invalid_argument(error.to_string()))
}

pub(crate) fn usage_record(record: &UsageRecord) -> control::UsageRecord {
    control::UsageRecord {
        id: record.id.to_string(),
        mutable: record.mutable,
        in_use: record.in_use,
        size: bytes(record.size),
        parents: record.parents.iter().map(ToString::to_string).collect(),
        created_at: Some(timestamp(record.created_at)),
        last_used_at: record.last_used_at.map(timestamp),
        usage_count: i64::try_from(record.usage_count).unwrap_or(i64::MAX),
        description: record.description.clone(),
        record_type: record.record_type.as_str().to_owned(),
        shared: record.shared,
        ..control::UsageRecord::default()
    }
}
