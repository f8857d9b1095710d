//! `cooper du` and `cooper prune`, with the options of buildctl and of buildx.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use cooper_client::Client;
use cooper_daemon::config::{DiskSpace, Period};
use cooper_proto::control::{DiskUsageRequest, PruneRequest, UsageRecord};
use cooper_proto::disk::{PlanPruneResponse, Verified};
use futures::TryStreamExt as _;

use crate::build::Failure;
use crate::connect::DaemonArgs;
use crate::local;

/// Which cache.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Where builds in this process keep their cache.
    #[arg(long, value_name = "DIR", env = "COOPER_ROOT", conflicts_with = "addr")]
    root: Option<PathBuf>,
}

impl PlaceArgs {
    /// Whether no daemon is asked.
    pub(crate) fn is_local(&self) -> bool {
        self.daemon.addr.is_none()
    }

    pub(crate) async fn with<T>(&self, work: impl AsyncFnOnce(Client) -> Result<T>) -> Result<T> {
        match &self.daemon.addr {
            Some(address) => {
                let tls = self.daemon.tls()?;
                work(Client::connect_with(address, &tls).await?).await
            }
            None => Box::pin(local::with(self.root.as_deref(), work)).await?,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Only records that one of these matches, such as type==regular or description~=NAME.
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Shows all that is known of each record.
    #[arg(short, long)]
    verbose: bool,
    /// Compares what is known with the file system, and names each difference: then the exit
    /// code is 1.
    #[arg(long, conflicts_with_all = ["filters", "verbose"])]
    verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Also what frontends and the daemon need.
    #[arg(short, long)]
    all: bool,
    /// Only records that one of these matches, such as type==regular or description~=NAME.
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Spares what was used within this time, such as 48h.
    #[arg(long, value_name = "TIME", value_parser = period)]
    keep_duration: Option<Duration>,
    /// Space that the cache may have whatever else is said, such as 10GB.
    #[arg(long, visible_alias = "keep-storage", value_name = "SIZE", value_parser = space)]
    reserved_space: Option<u64>,
    /// Space that the cache may have at most.
    #[arg(long, value_name = "SIZE", value_parser = space)]
    max_used_space: Option<u64>,
    /// Space that is to be free on the disk.
    #[arg(long, visible_alias = "free-storage", value_name = "SIZE", value_parser = space)]
    min_free_space: Option<u64>,
    /// Shows what would go, and why the rest would stay; removes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Shows all that is known of each record.
    #[arg(short, long)]
    verbose: bool,
    /// Does nothing: nobody is asked for confirmation here.
    #[arg(short, long, hide = true)]
    force: bool,
}

fn period(text: &str) -> Result<Duration> {
    Period::parse(text)
        .map(|period| period.0)
        .ok_or_else(|| anyhow!("not a time such as 48h or 90m"))
}

fn space(text: &str) -> Result<u64> {
    let space = DiskSpace::parse(text).filter(|space| space.percentage == 0);
    space
        .map(|space| space.bytes)
        .ok_or_else(|| anyhow!("not a size such as 20GB"))
}

impl PruneArgs {
    fn request(&self) -> PruneRequest {
        let bytes = |space: Option<u64>| i64::try_from(space.unwrap_or(0)).unwrap_or(i64::MAX);
        let nanos = self.keep_duration.unwrap_or_default().as_nanos();
        PruneRequest {
            filter: self.filters.clone(),
            all: self.all,
            keep_duration: i64::try_from(nanos).unwrap_or(i64::MAX),
            reserved_space: bytes(self.reserved_space),
            max_used_space: bytes(self.max_used_space),
            min_free_space: bytes(self.min_free_space),
        }
    }
}

/// `cooper du`.
pub(crate) async fn du(args: DuArgs) -> Result<(), Failure> {
    let shown = args.place.with(async |client: Client| {
        if args.verify {
            let verified = client.verify().await?;
            return show_verified(&verified.workers);
        }
        let request = DiskUsageRequest {
            filter: args.filters.clone(),
            ..DiskUsageRequest::default()
        };
        let mut records = client.disk_usage(request).await?;
        records.sort_by_key(|record| std::cmp::Reverse(record.size));
        show(&records, args.verbose);
        let sum = |only: fn(&&UsageRecord) -> bool| -> i64 {
            records.iter().filter(only).map(|record| record.size).sum()
        };
        println!("Reclaimable:\t{}", size(sum(|record| !record.in_use)));
        println!("Total:\t\t{}", size(sum(|_| true)));
        Ok(())
    });
    shown
        .await
        .map_err(|error| failure("failed to show the disk usage", error))
}

/// `cooper prune`.
pub(crate) async fn prune(args: PruneArgs) -> Result<(), Failure> {
    let pruned = args.place.with(async |client: Client| {
        let request = args.request();
        if args.dry_run {
            let plan = client.plan_prune(request).await?;
            show_plan(&plan, args.verbose);
            return Ok(());
        }
        let records: Vec<UsageRecord> = client.prune(request).await?.try_collect().await?;
        show(&records, args.verbose);
        let freed: i64 = records.iter().map(|record| record.size).sum();
        println!("Total:\t{}", size(freed));
        Ok(())
    });
    pruned
        .await
        .map_err(|error| failure("failed to prune", error))
}

pub(crate) fn failure(what: &'static str, error: anyhow::Error) -> Failure {
    Failure {
        error: error.context(what),
        sources: Vec::new(),
        interrupted: false,
    }
}

fn show(records: &[UsageRecord], verbose: bool) {
    if verbose {
        for record in records {
            show_all(record);
        }
    } else if !records.is_empty() {
        println!("{:<64}\tRECLAIMABLE\tSIZE\tLAST ACCESSED", "ID");
        for record in records {
            println!("{}", line(record));
        }
    }
}

fn line(record: &UsageRecord) -> String {
    let mut id = record.id.clone();
    if record.mutable {
        id += "*";
    }
    let free = !record.in_use;
    format!(
        "{id:<64}\t{free:<11}\t{}\t{}",
        size(record.size),
        used(record)
    )
}

fn used(record: &UsageRecord) -> String {
    let used = record
        .last_used_at
        .and_then(|at| SystemTime::try_from(at).ok());
    used.and_then(|used| used.elapsed().ok())
        .map_or_else(String::new, ago)
}

pub(crate) fn ago(passed: Duration) -> String {
    let seconds = passed.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

fn show_all(record: &UsageRecord) {
    println!("ID:\t\t{}", record.id);
    if !record.parents.is_empty() {
        println!("Parents:\t{}", record.parents.join(", "));
    }
    println!("Mutable:\t{}", record.mutable);
    println!("Reclaimable:\t{}", !record.in_use);
    println!("Shared:\t\t{}", record.shared);
    println!("Size:\t\t{}", size(record.size));
    if !record.description.is_empty() {
        println!("Description:\t{}", record.description);
    }
    println!("Usage count:\t{}", record.usage_count);
    println!("Last used:\t{}", used(record));
    println!("Type:\t\t{}\n", record.record_type);
}

fn show_plan(plan: &PlanPruneResponse, verbose: bool) {
    println!("Would be removed:");
    show(&plan.goes, verbose);
    let freed: i64 = plan.goes.iter().map(|record| record.size).sum();
    println!("Total:\t{}\n\nWould stay:", size(freed));
    for stays in &plan.stays {
        let Some(record) = &stays.record else {
            continue;
        };
        println!("{}\t{}", line(record), stays.why);
    }
}

fn show_verified(workers: &[Verified]) -> Result<()> {
    let mut count = 0;
    for worker in workers {
        println!("Worker:\t\t{}", worker.worker);
        println!("Records:\t{}", worker.records);
        println!("Ledger:\t\t{} bytes", worker.ledger);
        println!("File system:\t{} bytes", worker.disk);
        for folder in &worker.folders {
            println!("  {:>15} {}", folder.bytes, folder.path);
        }
        for difference in &worker.differences {
            println!("DIFFERENT: {}", difference.text);
        }
        count += worker.differences.len();
    }
    if count > 0 {
        bail!("the ledger and the file system differ in {count} places");
    }
    Ok(())
}

/// Bytes as people read them, 1000-based as Docker shows them.
fn size(bytes: i64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            let rounded = if unit == "B" {
                format!("{value}")
            } else {
                format!("{value:.2}")
            };
            return format!("{rounded}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_and_shown() {
        assert_eq!(size(0), "0B");
        assert_eq!(size(4096), "4.10kB");
        assert_eq!(size(3_210_000_000_000), "3.21TB");
        assert_eq!(space("1GB").ok(), Some(1 << 30));
        assert!(space("10%").is_err());
        assert_eq!(period("48h").ok(), Some(Duration::from_secs(172_800)));
        assert_eq!(ago(Duration::from_secs(61)), "1 minute ago");
        assert_eq!(ago(Duration::from_secs(7_300)), "2 hours ago");
    }
}
