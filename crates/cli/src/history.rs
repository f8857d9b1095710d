//! `cooper history` and `cooper prune-histories`, by the names of buildx and of buildctl.

use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use cooper_client::Client;
use cooper_proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
    UpdateBuildHistoryRequest,
};
use futures::TryStreamExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::build::Failure;
use crate::disk::{PlaceArgs, ago, failure};
use crate::progress::{self, Mode};

/// The kind of blob that tells why steps were not cached.
const EXPLAINED: &str = "application/vnd.cooper.explain.v0+json";
/// No explanation is larger, in bytes.
const MOST_EXPLAINED: usize = 64 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// Lists builds, those that run first, then the newest.
    Ls(LsArgs),
    /// Shows what a build was asked for, how it ended, and why its steps were not cached.
    Inspect(OneArgs),
    /// Shows what was seen of a build.
    Logs(LogsArgs),
    /// Removes the records of builds.
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Only builds for which all of this holds: ref, repository or status with ==, != or ~=;
    /// startedAt, completedAt or duration with <, <=, > or >= and a time such as 24h. Builds for
    /// which one of several holds.
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// The build; without it the last one.
    #[arg(value_name = "REF")]
    reference: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t = Mode::Plain)]
    progress: Mode,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// The builds.
    #[arg(value_name = "REF", required_unless_present = "all")]
    references: Vec<String>,
    /// All builds that have ended.
    #[arg(long, conflicts_with = "references")]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneHistoriesArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}

impl HistoryCommand {
    /// Whether no daemon is asked.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Ls(args) => args.place.is_local(),
            Self::Inspect(args) => args.place.is_local(),
            Self::Logs(args) => args.one.place.is_local(),
            Self::Rm(args) => args.place.is_local(),
        }
    }
}

/// `cooper history`.
pub(crate) async fn run(command: HistoryCommand) -> Result<(), Failure> {
    let done = match command {
        HistoryCommand::Ls(args) => {
            args.place
                .with(async |client| ls(&client, &args).await)
                .await
        }
        HistoryCommand::Inspect(args) => {
            args.place
                .with(async |client| inspect(&client, &args).await)
                .await
        }
        HistoryCommand::Logs(args) => {
            args.one
                .place
                .with(async |client| logs(&client, &args).await)
                .await
        }
        HistoryCommand::Rm(args) => {
            args.place
                .with(async |client| rm(&client, &args).await)
                .await
        }
    };
    done.map_err(|error| failure("failed to read the history of builds", error))
}

/// `cooper prune-histories`: all records that are not pinned, as buildctl does it.
pub(crate) async fn prune(args: PruneHistoriesArgs) -> Result<(), Failure> {
    let pruned = args.place.with(async |client| {
        for record in ended(&client).await?.iter().filter(|record| !record.pinned) {
            remove(&client, &record.r#ref).await?;
            println!("{}", record.r#ref);
        }
        Ok(())
    });
    pruned
        .await
        .map_err(|error| failure("failed to prune the history of builds", error))
}

async fn events(client: &Client, request: BuildHistoryRequest) -> Result<Vec<BuildHistoryEvent>> {
    let request = BuildHistoryRequest {
        early_exit: true,
        ..request
    };
    Ok(client.history(request).await?.try_collect().await?)
}

/// The records of builds that have ended.
async fn ended(client: &Client) -> Result<Vec<BuildHistoryRecord>> {
    let events = events(client, BuildHistoryRequest::default()).await?;
    let ended = events
        .into_iter()
        .filter(|event| event.r#type() == BuildHistoryEventType::Complete);
    Ok(ended.filter_map(|event| event.record).collect())
}

async fn remove(client: &Client, reference: &str) -> Result<()> {
    let request = UpdateBuildHistoryRequest {
        r#ref: reference.to_owned(),
        delete: true,
        ..UpdateBuildHistoryRequest::default()
    };
    Ok(client.update_history(request).await?)
}

async fn ls(client: &Client, args: &LsArgs) -> Result<()> {
    let request = BuildHistoryRequest {
        filter: args.filters.clone(),
        ..BuildHistoryRequest::default()
    };
    let events = events(client, request).await?;
    let mut records: Vec<_> = events
        .into_iter()
        .filter_map(|event| event.record)
        .collect();
    records.sort_by_key(|record| {
        let created = record.created_at.map(|time| (time.seconds, time.nanos));
        (record.completed_at.is_some(), std::cmp::Reverse(created))
    });
    let width = records.iter().map(|record| record.r#ref.len()).max();
    let width = width.unwrap_or(0).max("BUILD ID".len());
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<width$}\tSTATUS   \tCREATED AT\tDURATION\tNAME",
        "BUILD ID"
    )?;
    for record in &records {
        let created = created(record).and_then(|time| time.elapsed().ok());
        writeln!(
            out,
            "{:<width$}\t{:<9}\t{}\t{}\t{}",
            record.r#ref,
            status(record),
            created.map_or_else(String::new, ago),
            duration(record),
            name(record)
        )?;
    }
    Ok(())
}

/// The build that is asked for, or the last one.
async fn one(client: &Client, args: &OneArgs) -> Result<BuildHistoryRecord> {
    let request = BuildHistoryRequest {
        r#ref: args.reference.clone().unwrap_or_default(),
        ..BuildHistoryRequest::default()
    };
    let events = events(client, request).await?;
    let records = events.into_iter().filter_map(|event| event.record);
    let last =
        records.max_by_key(|record| record.created_at.map(|time| (time.seconds, time.nanos)));
    match (last, &args.reference) {
        (Some(record), _) => Ok(record),
        (None, Some(reference)) => bail!("no record found for ref {reference:?}"),
        (None, None) => bail!("no records found"),
    }
}

async fn inspect(client: &Client, args: &OneArgs) -> Result<()> {
    let record = one(client, args).await?;
    let attachments = record.result.iter().flat_map(|result| &result.attestations);
    let explained = attachments.clone().find(|one| one.media_type == EXPLAINED);
    let explained = match explained {
        Some(explained) => Some(explanation(client, &explained.digest).await?),
        None => None,
    };
    let mut out = std::io::stdout().lock();
    let mut line = |name: &str, value: &str| match value {
        "" => Ok(()),
        value => writeln!(out, "{:<14}{value}", format!("{name}:")),
    };
    line("Build", &record.r#ref)?;
    line("Name", &name(&record))?;
    line("Status", status(&record))?;
    line("Duration", &duration(&record))?;
    line("Frontend", &record.frontend)?;
    if let Some(error) = &record.error {
        line("Error", &error.message)?;
    }
    if record.completed_at.is_some() {
        let steps = format!(
            "{} of {} completed, {} cached",
            record.num_completed_steps, record.num_total_steps, record.num_cached_steps
        );
        line("Steps", &steps)?;
        let warnings = record.num_warnings;
        line("Warnings", &warnings.to_string())?;
    }
    if record.pinned {
        line("Pinned", "true")?;
    }
    for (name, value) in &record.frontend_attrs {
        // A list of what the client can do.
        if name != "frontend.caps" {
            line("Option", &format!("{name}={value}"))?;
        }
    }
    for exporter in &record.exporters {
        let attrs = exporter.attrs.iter();
        let attrs: Vec<_> = attrs
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        line(
            "Exporter",
            &format!("{} {}", exporter.r#type, attrs.join(",")),
        )?;
    }
    let results = record
        .result
        .iter()
        .flat_map(|result| result.results.values());
    for result in results.chain(attachments) {
        line("Has", &format!("{} {}", result.digest, result.media_type))?;
    }
    for step in explained.iter().flat_map(|explained| &explained.steps) {
        line("Not cached", &format!("{}: {}", step.name, step.cause))?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Explained {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    name: String,
    cause: String,
}

async fn explanation(client: &Client, digest: &str) -> Result<Explained> {
    let blob = client.blob(digest, MOST_EXPLAINED).await?;
    serde_json::from_slice(&blob).context("failed to read why steps were not cached")
}

async fn logs(client: &Client, args: &LogsArgs) -> Result<()> {
    let mode = args.progress.fit(std::io::stderr().is_terminal())?;
    let record = one(client, &args.one).await?;
    let (updates, shown) = mpsc::unbounded_channel();
    let reading = async move {
        // The display ends when the sender is dropped, after the last update.
        let mut stream = std::pin::pin!(client.status(&record.r#ref).await?);
        while let Some(update) = stream.try_next().await? {
            drop(updates.send(update));
        }
        anyhow::Ok(())
    };
    let (read, ()) = tokio::join!(reading, progress::show(mode, shown));
    read
}

async fn rm(client: &Client, args: &RmArgs) -> Result<()> {
    let mut references = args.references.clone();
    if args.all {
        let ended = ended(client).await?.into_iter();
        references.extend(ended.map(|record| record.r#ref));
    }
    for reference in &references {
        remove(client, reference).await?;
    }
    Ok(())
}

fn created(record: &BuildHistoryRecord) -> Option<SystemTime> {
    SystemTime::try_from(record.created_at?).ok()
}

/// As in the filter `status`.
fn status(record: &BuildHistoryRecord) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (Some(_), None) => "completed",
        (Some(_), Some(error)) if error.message.contains("context canceled") => "canceled",
        (Some(_), Some(_)) => "error",
    }
}

fn duration(record: &BuildHistoryRecord) -> String {
    let Some(created) = created(record) else {
        return String::new();
    };
    let completed = record.completed_at;
    let completed = completed.and_then(|time| SystemTime::try_from(time).ok());
    let end = completed.unwrap_or_else(SystemTime::now);
    let passed = end.duration_since(created).unwrap_or(Duration::ZERO);
    let more = if completed.is_none() { "+" } else { "" };
    match passed.as_secs() {
        0..60 => format!("{:.1}s{more}", passed.as_secs_f64()),
        seconds => format!("{}m {:2}s{more}", seconds / 60, seconds % 60),
    }
}

/// What a person knows the build by, in buildx's order.
fn name(record: &BuildHistoryRecord) -> String {
    let attr = |name: &str| {
        let value = record.frontend_attrs.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    };
    if let Some(name) = attr("build-arg:BUILDKIT_BUILD_NAME") {
        return name.to_owned();
    }
    let place = ["context", "vcs:localdir:context", "vcs:source", "filename"];
    let place = place.into_iter().find_map(attr);
    let image = record
        .exporters
        .iter()
        .find_map(|one| one.attrs.get("name"));
    let place = place.or(image.map(String::as_str));
    match (place, attr("target")) {
        (Some(place), Some(target)) => format!("{place} ({target})"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_named_and_timed() {
        let at = |seconds| Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into());
        let attr = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut record = BuildHistoryRecord {
            created_at: at(10),
            ..BuildHistoryRecord::default()
        };
        assert_eq!((status(&record), name(&record)), ("running", String::new()));
        assert!(duration(&record).ends_with('+'));
        record.completed_at = at(12);
        record.frontend_attrs = [attr("context", "c"), attr("target", "t")].into();
        assert_eq!(status(&record), "completed");
        assert_eq!(
            (name(&record), duration(&record)),
            ("c (t)".into(), "2.0s".into())
        );
        record.completed_at = at(75);
        record.frontend_attrs = [attr("build-arg:BUILDKIT_BUILD_NAME", "n")].into();
        assert_eq!(
            (name(&record), duration(&record)),
            ("n".into(), "1m  5s".into())
        );
        record.error = Some(cooper_proto::rpc::Status::default());
        assert_eq!(status(&record), "error");
    }
}
