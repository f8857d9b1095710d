//! What the daemon costs when nobody uses it.

use std::time::Duration;

use cooper_testkit::{Daemon, bin, leak};

#[test]
fn the_daemon_is_small_and_there_at_once() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    daemon.stop();
    // Now with everything on disk, as on any day but the first.
    daemon.spawn();
    let (memory, ready) = (daemon.memory_kib("VmRSS"), daemon.ready_after);
    eprintln!("idle: {memory} KiB; ready after {ready:?}");
    // Without optimisation neither figure says much.
    if bin("cooperd").to_string_lossy().contains("/release/") {
        assert!(memory <= 20 << 10, "{memory} KiB");
        assert!(ready <= Duration::from_millis(100), "{ready:?}");
    }
    drop(daemon);
    watch.check();
}
