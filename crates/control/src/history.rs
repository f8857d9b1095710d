//! The history of builds: those that run now, those that are kept, and news of those to come.

mod filter;

use std::collections::HashMap;
use std::sync::Arc;

use cooper_history::{History, HistoryError, LogStream, News, NewsStream, Record};
use cooper_proto::control;
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use crate::service::Answers;
use crate::status;

use filter::Filters;

/// What is there, and then, unless the client wants only that, what comes. The filters hold for
/// both; BuildKit's hold for what is kept alone. The limit is for what is kept, the newest first.
pub(crate) async fn listen(
    history: &History,
    request: control::BuildHistoryRequest,
    stop: CancellationToken,
) -> Result<Answers<control::BuildHistoryEvent>, Status> {
    let wanted = Wanted {
        filters: Filters::parse(&request.filter)?,
        reference: request.r#ref,
    };
    let limit = usize::try_from(request.limit)
        .map_err(|_| Status::invalid_argument(format!("invalid limit {}", request.limit)))?;
    // Before it is looked what is there: nothing gets lost in between.
    let listening = history.listen();
    let running = listening.running.into_iter();
    let mut events: Vec<_> = running
        .filter(|record| wanted.is(record))
        .map(|record| Ok(event(News::Started(record))))
        .collect();
    let mut told = HashMap::new();
    if !request.active_only {
        // Builds that have ended a moment ago are being written.
        history.settled(&wanted.reference).await;
        let records = history.records(&wanted.reference).await;
        let mut records = records.map_err(|error| failed(&error))?;
        records.retain(|record| wanted.is(record));
        if limit > 0 {
            let created =
                |record: &Record| record.created_at.map(|time| (time.seconds, time.nanos));
            records.sort_by_key(|record| std::cmp::Reverse(created(record)));
            records.truncate(limit);
        }
        for record in records {
            told.insert(record.r#ref.clone(), version(&record));
            events.push(Ok(event(News::Complete(Arc::new(record)))));
        }
    }
    let events = stream::iter(events);
    if request.early_exit {
        return Ok(events.boxed());
    }
    let news = news(listening.news).filter_map(move |news| {
        let is_wanted = match &news {
            News::Started(record) => wanted.is(record),
            // It may have been written while it was looked what is there.
            News::Complete(record) => {
                wanted.is(record) && told.remove(&record.r#ref) != Some(version(record))
            }
            News::Deleted(name) => wanted.reference.is_empty() || *name == wanted.reference,
        };
        async move { is_wanted.then(|| Ok(event(news))) }
    });
    Ok(events
        .chain(news.take_until(stop.cancelled_owned()))
        .boxed())
}

/// Tells one state of a record from another.
fn version(record: &Record) -> (i32, Option<(i64, i32)>) {
    let completed = record.completed_at;
    let completed = completed.map(|time| (time.seconds, time.nanos));
    (record.generation, completed)
}

fn news(news: NewsStream) -> impl futures::Stream<Item = News> + Send {
    stream::unfold(news, |mut news| async move {
        let next = news.next().await?;
        Some((next, news))
    })
}

/// What a client asks for.
struct Wanted {
    reference: String,
    filters: Filters,
}

impl Wanted {
    fn is(&self, record: &Record) -> bool {
        (self.reference.is_empty() || self.reference == record.r#ref)
            && self.filters.matches(record)
    }
}

fn event(news: News) -> control::BuildHistoryEvent {
    use control::BuildHistoryEventType as Kind;
    let (kind, record) = match news {
        News::Started(record) => (Kind::Started, Arc::unwrap_or_clone(record)),
        News::Complete(record) => (Kind::Complete, Arc::unwrap_or_clone(record)),
        News::Deleted(name) => (
            Kind::Deleted,
            Record {
                r#ref: name,
                ..Record::default()
            },
        ),
    };
    control::BuildHistoryEvent {
        r#type: kind as i32,
        record: Some(record),
    }
}

fn failed(error: &HistoryError) -> Status {
    match error {
        HistoryError::NotFound { .. } => Status::not_found(error.to_string()),
        other => status::unknown(other),
    }
}

/// Pins a record or no longer does, removes it, or waits until nothing more comes to it.
pub(crate) async fn update(
    history: &History,
    request: control::UpdateBuildHistoryRequest,
) -> Result<Response<control::UpdateBuildHistoryResponse>, Status> {
    let name = &request.r#ref;
    let updated = match (request.delete, request.finalize) {
        (true, _) => history.delete(name).await,
        // Of a build that is not known nothing is waited for, as in BuildKit.
        (false, true) => {
            history.settled(name).await;
            Ok(())
        }
        (false, false) => history.pin(name, request.pinned).await,
    };
    updated.map_err(|error| failed(&error))?;
    Ok(Response::new(control::UpdateBuildHistoryResponse {}))
}

/// What was seen of a build that is kept, if it is.
pub(crate) async fn log(
    history: &History,
    name: &str,
) -> Result<Option<Answers<control::StatusResponse>>, Status> {
    let log = history.log(name).await.map_err(|error| failed(&error))?;
    let messages = |log: LogStream| {
        let messages = stream::unfold(log, |mut log| async move {
            let next = log.next().await?;
            Some((next.map_err(|error| failed(&error)), log))
        });
        messages.boxed()
    };
    Ok(log.map(messages))
}
