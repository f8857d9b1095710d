//! Asks the client whether it is still there.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::Session;

/// BuildKit's: a check each five seconds, fifteen for an answer, and two failures in a row are
/// the end.
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(15);
const FAILURES: u32 = 2;

/// Ends when the client does not answer any more. A client without a health service answers
/// too, by saying so.
pub(crate) async fn watch(session: &Session) {
    let custom = session.meta().health_timeout;
    let failures = if custom.is_some() { 1 } else { FAILURES };
    let mut client = HealthClient::new(session.channel());
    let mut ticks = interval(custom.unwrap_or(INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut failed, mut last) = (0, Duration::ZERO);
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        // A connection that is busy with files answers late: it gets more time the next time.
        let most = custom.unwrap_or(TIMEOUT).max(last.mul_f64(1.5));
        let alive = match timeout(most, client.check(HealthCheckRequest::default())).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => status.code() == Code::Unimplemented,
            Err(_) => false,
        };
        last = begun.elapsed();
        failed = if alive { 0 } else { failed + 1 };
        if failed >= failures {
            return;
        }
    }
}
