//! A file system that is cut off at any moment, as by a machine that loses its power: what was not
//! sent to the disk by then is lost, and the next daemon finds another boot.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cooper_sys::cgroup::Hierarchies;
use cooper_testkit::{SmallDisk, boots, leak};

use super::{Choices, rounds};
use crate::power::{Boot, Booted, GROUPS, Promised};

/// MiB of the disk.
const DISK: u64 = 512;
/// The time from when all is durable to the cut.
const MOST: Duration = Duration::from_secs(6);

#[test]
fn sol10_mnt05_what_was_durable_is_there_after_the_power_was_cut() {
    if cooper_testkit::by_containerd() {
        // It has a disk and a boot of its own.
        return;
    }
    let watch = leak::Watch::begin();
    let mut choices = Choices::new();
    let disk = SmallDisk::with_journal(DISK);
    let root = disk.path().join("root");
    let promised = Arc::new(Mutex::new(Promised::default()));
    let boot = |seed| {
        let kept = promised.clone();
        Booted::begin(Boot {
            root: &root,
            seed,
            promised: *promised.lock().unwrap(),
            say: Box::new(move |promised| *kept.lock().unwrap() = promised),
        })
    };
    let cuts = rounds(3, 50);
    let (mut steps, mut files) = (0, 0);
    for cut in 0..cuts {
        let booted = boot(choices.number());
        let after = choices.moment(MOST);
        booted.work(async {
            tokio::time::sleep(after).await;
            // While everything goes on.
            cooper_sys::cut_off(disk.path().as_ref()).unwrap();
        });
        let durable = *promised.lock().unwrap();
        eprintln!("{cut}: {}; cut after {after:?}: {durable:?}", booted.report);
        steps += usize::from(durable.steps > 0);
        files += usize::from(durable.files > 0);
        booted.kill();
        end_steps();
        disk.unmount_below();
        disk.remount();
        boots::another_boot(&root);
    }
    let booted = boot(choices.number());
    eprintln!(
        "{}; {steps} and {files} cuts with something durable",
        booted.report
    );
    booted.end();
    drop(disk);
    let _ = Hierarchies::detect().unwrap().remove(GROUPS);
    watch.check();
}

/// Ends what a daemon that is gone has started, as the end of the machine does.
fn end_steps() {
    let groups = Hierarchies::detect().unwrap();
    cooper_testkit::wait_until("the steps end", Duration::from_secs(20), || {
        groups.kill(GROUPS);
        groups.remove(GROUPS).is_ok()
    });
}
