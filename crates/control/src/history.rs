//! The history of builds: those that run now, and news of those to come. No record is kept of a
//! build that ended.

use cooper_engine::{BuildEvent, BuildInfo, Engine};
use cooper_proto::{control, rpc};
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use crate::convert::timestamp;
use crate::service::Answers;

/// The builds that run, and then, unless the client wants only what is there, what comes.
pub(crate) fn listen(
    engine: &Engine,
    request: control::BuildHistoryRequest,
    stop: CancellationToken,
) -> Answers<control::BuildHistoryEvent> {
    let (running, news) = engine.builds();
    let wanted = move |info: &BuildInfo| request.r#ref.is_empty() || request.r#ref == info.id;
    let running: Vec<_> = running
        .into_iter()
        .filter(&wanted)
        .map(|info| Ok(event(BuildEvent::Started(info))))
        .collect();
    let running = stream::iter(running);
    if request.early_exit {
        return running.boxed();
    }
    let news = stream::unfold(news, |mut news| async move {
        let event = news.next().await?;
        Some((event, news))
    });
    let news = news.filter(move |event| {
        let wanted = wanted(info(event));
        async move { wanted }
    });
    let all = running.chain(news.map(|news| Ok(event(news))));
    all.take_until(stop.cancelled_owned()).boxed()
}

fn info(event: &BuildEvent) -> &BuildInfo {
    match event {
        BuildEvent::Started(info) | BuildEvent::Completed(info) => info,
    }
}

fn event(event: BuildEvent) -> control::BuildHistoryEvent {
    let (kind, info) = match event {
        BuildEvent::Started(info) => (control::BuildHistoryEventType::Started, info),
        BuildEvent::Completed(info) => (control::BuildHistoryEventType::Complete, info),
    };
    let failed = !info.error.is_empty();
    let exporters = info.exporters.into_iter();
    control::BuildHistoryEvent {
        r#type: kind as i32,
        record: Some(control::BuildHistoryRecord {
            r#ref: info.id,
            frontend: info.frontend,
            frontend_attrs: info.frontend_attrs,
            exporters: exporters
                .map(|exporter| control::Exporter {
                    r#type: exporter.kind,
                    attrs: exporter.attrs,
                })
                .collect(),
            error: failed.then(|| rpc::Status {
                code: tonic::Code::Unknown as i32,
                message: info.error,
                details: Vec::new(),
            }),
            created_at: Some(timestamp(info.created_at)),
            completed_at: info.completed_at.map(timestamp),
            exporter_response: info.exporter_response,
            ..control::BuildHistoryRecord::default()
        }),
    }
}

/// No record is there to be changed.
pub(crate) fn update(
    request: &control::UpdateBuildHistoryRequest,
) -> Result<Response<control::UpdateBuildHistoryResponse>, Status> {
    Err(Status::unimplemented(format!(
        "failed to update record {}: this daemon keeps no history",
        request.r#ref
    )))
}
