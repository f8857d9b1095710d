//! What the cache takes: who prunes it and when, and what users are told.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cooper_proto::control::DiskUsageRequest;
use cooper_testkit::{
    Client, Context, Daemon, Registry, SmallDisk, Started, bin, leak, push_busybox, run, wait_until,
};

const MIB: u64 = 1 << 20;

/// A daemon that prunes by itself, by one policy.
fn collecting(policy: &str) -> Daemon {
    let config =
        format!("[worker.oci]\ngc = true\n[[worker.oci.gcpolicy]]\nall = true\n{policy}\n");
    Daemon::with_options(&config, &["--oci-worker-gc=true"])
}

/// What all takes that is in use, or not, in bytes.
fn usage(daemon: &Daemon) -> (u64, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = cooper_client::Client::connect(&daemon.address())
            .await
            .unwrap();
        let all = client
            .disk_usage(DiskUsageRequest::default())
            .await
            .unwrap();
        let sum = |held: bool| -> i64 {
            let some = all.iter().filter(|one| one.in_use == held);
            some.map(|one| one.size).sum()
        };
        (
            sum(true).try_into().unwrap(),
            sum(false).try_into().unwrap(),
        )
    })
}

fn cooper(daemon: &Daemon, args: &[&str]) -> cooper_testkit::Ran {
    let address = daemon.address();
    let mut command = Command::new(bin("cooper"));
    run(command.args(args).args(["--addr", &address]))
}

/// The folder of the one snapshotter.
fn snapshots(daemon: &Daemon) -> std::path::PathBuf {
    let folder = daemon.root().join("runc/snapshots");
    match folder.join("s").exists() {
        true => folder,
        false => std::fs::read_dir(folder)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path(),
    }
}

fn blobs(daemon: &Daemon) -> usize {
    let folder = daemon.root().join("runc/content/blobs/sha256");
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn cm17_cm18_limits_hold_while_builds_go_on() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = collecting("maxUsedSpace = \"40MB\"");
    let client = Client::buildx(&daemon);
    // Each leaves 8 MB that nobody uses when it is done: together five times what is allowed.
    for number in 0..25 {
        let dockerfile = format!(
            "FROM {base}\nRUN echo {number} && dd if=/dev/zero of=/data bs=1M count=8 2>/dev/null\n"
        );
        let context = Context::new().file("Dockerfile", dockerfile);
        client
            .build(&context, &["--output=type=cacheonly"])
            .success();
        let (held, free) = usage(&daemon);
        // What has just been let go is pruned in a moment.
        assert!(free <= 40 * MIB + 9 * MIB, "{held} {free} after {number}");
    }
    wait_until(
        "the cache to be within its limit",
        Duration::from_secs(5),
        || {
            let (held, free) = usage(&daemon);
            held + free <= 40 * MIB
        },
    );
    let (_, free) = usage(&daemon);
    assert!(
        free >= 16 * MIB,
        "more was pruned than had to be: {free} is left"
    );
    // A step that writes pushes out what nobody uses, while it runs.
    let dockerfile = format!(
        "FROM {base}\nRUN dd if=/dev/zero of=/data bs=1M count=30 2>/dev/null; echo wrote-$((40+2)); sleep 15\n"
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    let mut running = client.start(&context, &["--output=type=cacheonly"]);
    running.wait_for("wrote-42");
    let deadline = std::time::Instant::now() + Duration::from_secs(14);
    loop {
        let (held, free) = usage(&daemon);
        if held >= 30 * MIB && held + free <= 40 * MIB {
            break;
        }
        let late = std::time::Instant::now() > deadline;
        assert!(!late, "{free} bytes are not pushed out by {held}");
    }
    running.finish().success();
    cooper(&daemon, &["du", "--verify"]).success();
    drop((client, daemon, registry, context));
    watch.check();
}

#[test]
fn cm18_clients_are_told_the_policies() {
    let watch = leak::Watch::begin();
    let daemon =
        collecting("maxUsedSpace = \"40MB\"\nfilters = [\"type==regular\"]\nkeepDuration = \"1h\"");
    let Client::Buildx(buildx) = Client::buildx(&daemon) else {
        unreachable!()
    };
    let inspected = run(buildx.command().args(["inspect", "cooper"])).success();
    for part in ["GC Policy rule#0", "type==regular", "1h0m0s"] {
        assert!(
            inspected.output.contains(part),
            "{part}: {}",
            inspected.output
        );
    }
    drop((buildx, daemon));
    let ordinary = Daemon::ordinary();
    let Client::Buildx(buildx) = Client::buildx(&ordinary) else {
        unreachable!()
    };
    let inspected = run(buildx.command().args(["inspect", "cooper"])).success();
    for part in ["GC Policy rule#3", "48h0m0s", "type==exec.cachemount"] {
        assert!(
            inspected.output.contains(part),
            "{part}: {}",
            inspected.output
        );
    }
    drop((buildx, ordinary));
    watch.check();
}

#[test]
fn cm17_what_would_be_pruned_is_told_and_stays() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::of_runc();
    let client = Client::cooper(&daemon);
    let dockerfile = format!("FROM {base}\nRUN echo one > /one\nRUN echo two > /two\n");
    let context = Context::new().file("Dockerfile", dockerfile);
    let archive = daemon.scratch().join("image.tar");
    let output = format!("--output=type=oci,dest={}", archive.display());
    client.build(&context, &[&output]).success();
    let shown = cooper(&daemon, &["du", "-v"]).success();
    for part in [
        "Description:",
        "echo two",
        "blob sha256:",
        "Reclaimable:\ttrue",
        "Total:",
    ] {
        assert!(shown.output.contains(part), "{part}: {}", shown.output);
    }
    let filtered = ["prune", "--dry-run", "--filter", "description~=two"];
    let told = cooper(&daemon, &filtered).success();
    let (goes, stays) = told.output.split_once("Would stay:").unwrap();
    assert_eq!(goes.matches(" ago").count(), 1, "{goes}");
    assert!(
        stays.contains("stands on it") && stays.contains("no filter matches"),
        "{stays}"
    );
    let told = cooper(&daemon, &["prune", "--dry-run", "--keep-duration", "1h"]).success();
    assert!(told.output.contains("seconds ago"), "{}", told.output);
    let told = cooper(&daemon, &["prune", "--dry-run", "--max-used-space", "1GB"]).success();
    assert!(
        told.output.contains("less than 1073741824 bytes"),
        "{}",
        told.output
    );
    assert!(blobs(&daemon) > 2);
    // Nothing is gone, and then all is, manifests and configurations too.
    cooper(&daemon, &["du", "--verify"]).success();
    client.build(&context, &[&output]).success();
    let pruned = cooper(&daemon, &["prune", "--all"]).success();
    assert!(pruned.output.contains("Total:"), "{}", pruned.output);
    assert_eq!(blobs(&daemon), 0);
    cooper(&daemon, &["du", "--verify"]).success();
    cooper(&daemon, &["prune", "--filter", "type~=("]).fails_with(&["failed to prune", "filter"]);
    drop((client, daemon, registry, context));
    watch.check();
}

#[test]
fn cm15_what_differs_is_named() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::of_runc();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let client = Client::cooper(&daemon);
    client
        .build(&context, &["--output=type=cacheonly"])
        .success();
    cooper(&daemon, &["du", "--verify"]).success();
    let stray = snapshots(&daemon).join("s/stray");
    std::fs::create_dir(&stray).unwrap();
    std::fs::write(stray.join("file"), vec![1; 9000]).unwrap();
    let told = cooper(&daemon, &["du", "--verify"]);
    let told = told.fails_with(&["DIFFERENT:", "s/stray", "belongs to no record", "1 places"]);
    assert!(told.output.contains("File system:"), "{}", told.output);
    std::fs::remove_dir_all(&stray).unwrap();
    cooper(&daemon, &["du", "--verify"]).success();
    drop((client, daemon, context));
    watch.check();
}

#[test]
fn a_step_that_writes_too_much_fails_by_the_limits_name() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::with_config("[worker.oci]\nmaxStepBytes = \"16MB\"\n");
    let client = Client::buildx(&daemon);
    let build = |step: &str| {
        let context = Context::new().file("Dockerfile", format!("FROM {base}\nRUN {step}\n"));
        client.build(&context, &["--output=type=cacheonly"])
    };
    let zeros = |count: u32| format!("dd if=/dev/zero of=/data bs=1M count={count} 2>/dev/null");
    build(&zeros(12)).success();
    // One that is done before anybody looked, and one that would never end.
    for step in [zeros(20), format!("{}; sleep 86463", zeros(20))] {
        build(&step).fails_with(&["maxStepBytes", "16777216 bytes"]);
    }
    assert_eq!(leak::running("sleep 86463"), 0);
    build(&format!("{} && rm /data", zeros(12))).success();
    drop((client, daemon, registry));
    watch.check();
}

/// Changes a bit in each record of the metadata, in the file and in its log: which of the two counts
/// depends on when the log was last folded.
fn damage(worker: &Path) {
    let wanted = b"\"description\":\"";
    let mut changed = 0;
    for name in ["metadata.db", "metadata.db-wal"] {
        let Ok(mut bytes) = std::fs::read(worker.join(name)) else {
            continue;
        };
        // All of them: some are left over from pages as they were.
        let windows = bytes.windows(wanted.len()).enumerate();
        let found = windows.filter(|(_, part)| *part == wanted);
        let places: Vec<usize> = found.map(|(at, _)| at + wanted.len() + 1).collect();
        for place in &places {
            bytes[*place] ^= 4;
        }
        std::fs::write(worker.join(name), bytes).unwrap();
        changed += places.len();
    }
    assert!(changed > 0);
}

#[test]
fn cm05_metadata_that_are_damaged_are_kept_aside_and_the_daemon_serves() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::start();
    let context = Context::new().file(
        "Dockerfile",
        format!("FROM {base}\nRUN cat /proc/sys/kernel/random/uuid > /one\nRUN echo two > /two\n"),
    );
    let client = Client::cooper(&daemon);
    client
        .build(&context, &["--output=type=cacheonly"])
        .success();
    let worker = daemon.worker_root();
    let path = worker.join("metadata.db");
    let aside = || {
        let entries = std::fs::read_dir(&worker).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".damaged-")).count()
    };
    // A bit, the end, everything.
    let no_log = || drop(std::fs::remove_file(path.with_extension("db-wal")));
    let ways: [&dyn Fn(&Path); 3] = [
        &damage,
        &|_| {
            no_log();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        },
        &|_| {
            no_log();
            std::fs::write(&path, "not at all what it was\n".repeat(1000)).unwrap();
        },
    ];
    for (number, way) in ways.iter().enumerate() {
        daemon.stop();
        way(&worker);
        daemon.spawn();
        let log = daemon.log();
        assert!(log.contains("the metadata was damaged"), "{log}");
        assert!(aside() > number, "{} are kept", aside());
        client
            .build(&context, &["--output=type=cacheonly"])
            .success();
        client
            .build(&context, &["--output=type=cacheonly"])
            .success();
        cooper(&daemon, &["du", "--verify"]).success();
    }
    drop((client, daemon, registry, context));
    watch.check();
}

#[test]
fn a_root_on_a_read_only_disk_is_said() {
    let watch = leak::Watch::begin();
    let disk = SmallDisk::new(64);
    let mut daemon = Daemon::on(&disk);
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let client = Client::cooper(&daemon);
    client
        .build(&context, &["--output=type=cacheonly"])
        .success();
    let remount = |mode: &str| {
        run(Command::new("mount")
            .args(["-o", &format!("remount,{mode}")])
            .arg(disk.path()))
        .success();
    };
    daemon.stop();
    remount("ro");
    let address = format!("unix://{}", daemon.scratch().join("other.sock").display());
    Started::new(&mut daemon.command(&address))
        .finish_within(Duration::from_secs(10))
        .fails_with(&["Read-only file system", "root"]);
    remount("rw");
    daemon.spawn();
    client
        .build(&context, &["--output=type=cacheonly"])
        .success();
    drop((client, daemon, context));
    drop(disk);
    watch.check();
}
