//! The Control service.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use cooper_engine::{CacheExport, Engine, ExporterRequest, SolveRequest};
use cooper_frontend::CacheImport;
use cooper_proto::control::control_server::Control;
use cooper_proto::{control, types};
use futures::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::disk::{duration, prune_options, usage_filter, usage_record};
use crate::{convert, history, session, status};

/// The header by which clients see how far their clock is from the daemon's.
const CURRENT_TIME: &str = "buildkit-current-timestamp";

pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the daemon says it is.
#[derive(Clone, Debug)]
pub struct Version {
    /// Where its source is from.
    pub package: String,
    /// Its version, `v1.2.3`.
    pub version: String,
    /// The commit that it was built from.
    pub revision: String,
}

impl Default for Version {
    fn default() -> Self {
        Self {
            package: "cooper".to_owned(),
            version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
            revision: "unknown".to_owned(),
        }
    }
}

impl Version {
    pub(crate) fn to_wire(&self) -> types::BuildkitVersion {
        types::BuildkitVersion {
            package: self.package.clone(),
            version: self.version.clone(),
            revision: self.revision.clone(),
        }
    }
}

pub(crate) struct ControlService {
    engine: Arc<Engine>,
    version: Version,
    /// Streams that would never end end with the daemon.
    stop: CancellationToken,
}

impl ControlService {
    pub(crate) fn new(engine: Arc<Engine>, version: Version, stop: CancellationToken) -> Self {
        Self {
            engine,
            version,
            stop,
        }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    type PruneStream = Answers<control::UsageRecord>;
    type StatusStream = Answers<control::StatusResponse>;
    type SessionStream = Answers<control::BytesMessage>;
    type ListenBuildHistoryStream = Answers<control::BuildHistoryEvent>;

    async fn disk_usage(
        &self,
        request: Request<control::DiskUsageRequest>,
    ) -> Result<Response<control::DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let filter = usage_filter(&request.filter)?;
        let age = duration(request.age_limit);
        let mut record = Vec::new();
        for worker in self.engine.workers().list(&[]) {
            let found = worker.cache.disk_usage().await;
            let found = found.map_err(|error| status::unknown(&error))?;
            record.extend(
                found
                    .iter()
                    .filter(|one| {
                        let used = one.last_used_at.unwrap_or(one.created_at);
                        let old = age.is_zero() || used.elapsed().is_ok_and(|since| since >= age);
                        old && filter.as_ref().is_none_or(|filter| filter(one))
                    })
                    .map(usage_record),
            );
        }
        Ok(Response::new(control::DiskUsageResponse { record }))
    }

    async fn prune(
        &self,
        request: Request<control::PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let options = prune_options(&request)?;
        let mut gone = Vec::new();
        for worker in self.engine.workers().list(&[]) {
            let pruned = worker.cache.prune(options.clone()).await;
            let pruned = pruned.map_err(|error| status::unknown(&error))?;
            gone.extend(pruned.iter().map(|record| Ok(usage_record(record))));
        }
        Ok(Response::new(stream::iter(gone).boxed()))
    }

    async fn solve(
        &self,
        request: Request<control::SolveRequest>,
    ) -> Result<Response<control::SolveResponse>, Status> {
        let request = solve_request(request.into_inner());
        let solved = Box::pin(self.engine.solve(request)).await;
        let response = solved.map_err(|error| status::of(&error))?;
        Ok(Response::new(control::SolveResponse {
            exporter_response: response.exporter_response,
        }))
    }

    async fn status(
        &self,
        request: Request<control::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let name = request.into_inner().r#ref;
        let events = match self.engine.watch(&name) {
            Some(events) => events,
            None => {
                if let Some(log) = history::log(self.engine.history(), &name).await? {
                    return Ok(timed(log));
                }
                let events = self.engine.status(&name).await;
                events.map_err(|error| status::of(&error))?
            }
        };
        let answers = stream::unfold(events, |mut events| async move {
            let new = events.next().await?;
            Some((cooper_history::responses(&new), events))
        });
        let answers = answers.flat_map(|answers| stream::iter(answers.into_iter().map(Ok)));
        Ok(timed(answers.boxed()))
    }

    async fn session(
        &self,
        request: Request<Streaming<control::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        session::serve(self.engine.sessions(), request)
    }

    async fn list_workers(
        &self,
        request: Request<control::ListWorkersRequest>,
    ) -> Result<Response<control::ListWorkersResponse>, Status> {
        let filters = convert::filters(&request.into_inner().filter)?;
        let found = self.engine.workers().list(&filters);
        let version = self.version.to_wire();
        let record = found
            .into_iter()
            .map(|worker| convert::worker(worker, &version))
            .collect();
        Ok(Response::new(control::ListWorkersResponse { record }))
    }

    async fn info(
        &self,
        _: Request<control::InfoRequest>,
    ) -> Result<Response<control::InfoResponse>, Status> {
        Ok(Response::new(control::InfoResponse {
            buildkit_version: Some(self.version.to_wire()),
        }))
    }

    async fn listen_build_history(
        &self,
        request: Request<control::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let (history, stop) = (self.engine.history(), self.stop.clone());
        let events = Box::pin(history::listen(history, request.into_inner(), stop)).await?;
        Ok(timed(events))
    }

    async fn update_build_history(
        &self,
        request: Request<control::UpdateBuildHistoryRequest>,
    ) -> Result<Response<control::UpdateBuildHistoryResponse>, Status> {
        history::update(self.engine.history(), request.into_inner()).await
    }
}

/// Answers with the daemon's clock in front.
fn timed<T>(answers: Answers<T>) -> Response<Answers<T>> {
    let mut response = Response::new(answers);
    if let Ok(now) = convert::rfc3339(SystemTime::now()).parse() {
        response.metadata_mut().insert(CURRENT_TIME, now);
    }
    response
}

/// What older clients say in fields of their own is put where newer ones say it.
fn solve_request(request: control::SolveRequest) -> SolveRequest {
    let exporter = |kind, attrs| ExporterRequest { kind, attrs };
    let mut exporters: Vec<_> = request
        .exporters
        .into_iter()
        .map(|one| exporter(one.r#type, one.attrs))
        .collect();
    if exporters.is_empty() && !request.exporter_deprecated.is_empty() {
        exporters.push(exporter(
            request.exporter_deprecated,
            request.exporter_attrs_deprecated,
        ));
    }
    let cache = request.cache.unwrap_or_default();
    let mut cache_exports: Vec<_> = cache
        .exports
        .into_iter()
        .map(|export| CacheExport {
            kind: export.r#type,
            attrs: export.attrs,
        })
        .collect();
    if !cache.export_ref_deprecated.is_empty() {
        let mut attrs = cache.export_attrs_deprecated;
        attrs.insert("ref".to_owned(), cache.export_ref_deprecated);
        cache_exports.push(CacheExport {
            kind: "registry".to_owned(),
            attrs,
        });
    }
    let old_imports = cache.import_refs_deprecated.into_iter();
    let old_imports = old_imports.map(|reference| CacheImport {
        kind: "registry".to_owned(),
        attrs: BTreeMap::from([("ref".to_owned(), reference)]),
    });
    let imports = cache.imports.into_iter().map(|import| CacheImport {
        kind: import.r#type,
        attrs: import.attrs,
    });
    SolveRequest {
        id: request.r#ref,
        session: request.session,
        definition: request.definition,
        frontend: request.frontend,
        frontend_attrs: request.frontend_attrs,
        frontend_inputs: request.frontend_inputs,
        exporters,
        cache_exports,
        cache_imports: imports.chain(old_imports).collect(),
        entitlements: request.entitlements,
        session_exporters: request.enable_session_exporter,
        internal: request.internal,
        source_policy: request.source_policy,
    }
}
