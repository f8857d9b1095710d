//! Parts that fail while a build goes on: registries that are slow or break off, disks that are
//! full, clients that are killed. What went wrong is said with the place that it happened at,
//! nothing half-made is used or left, and once the part is sound again the same build succeeds.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use cooper_testkit::{
    BrokenRegistry, Client, Context, Daemon, Fault, PAUSE, PIECE, Ran, Registry, SmallDisk, leak,
    push_busybox, run, wait_until,
};
use nix::sys::signal::Signal;

use crate::Out;

const NOTHING: &str = "--output=type=cacheonly";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn of_image(image: &str) -> Context {
    let dockerfile = format!("FROM {image}\nCOPY Dockerfile /copied\n");
    Context::new().file("Dockerfile", dockerfile)
}

/// Bytes that cannot be compressed, so that they take the space that they have.
fn noise(bytes: u64) -> Vec<u8> {
    let mut data = Vec::new();
    let random = std::fs::File::open("/dev/urandom").unwrap();
    random.take(bytes).read_to_end(&mut data).unwrap();
    data
}

#[test]
fn a_slow_registry_is_waited_for() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    for client in Client::of(&daemon) {
        let registry = BrokenRegistry::start(Fault::Slow);
        let out = Out::new();
        let begin = Instant::now();
        client
            .build(&of_image(&registry.image()), &[&out.local("x")])
            .success();
        assert_eq!(std::fs::read(out.path("x/file")).unwrap().len(), 200_000);
        // Else it was not slow: the layer has some more bytes than the file.
        let pieces = u32::try_from(200_000 / PIECE).unwrap();
        assert!(begin.elapsed() >= PAUSE * pieces, "{:?}", begin.elapsed());
        // The next one's layer is the same.
        client_prune(&daemon).unwrap();
    }
    drop(daemon);
    watch.check();
}

#[test]
fn a_registry_that_breaks_off_is_asked_for_the_rest() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    for client in Client::of(&daemon) {
        let registry = BrokenRegistry::start(Fault::BreaksOff);
        let out = Out::new();
        client
            .build(&of_image(&registry.image()), &[&out.local("x")])
            .success();
        assert_eq!(std::fs::read(out.path("x/file")).unwrap().len(), 200_000);
        client_prune(&daemon).unwrap();
        // The other direction cannot be resumed.
        let registry = BrokenRegistry::start(Fault::BreaksUploads);
        let context = Context::new()
            .file("Dockerfile", "FROM scratch\nCOPY noise /\n")
            .file("noise", noise(MIB));
        let image = registry.image();
        client
            .build(&context, &["--push", "--tag", &image])
            .fails_with(&["failed to push", &image]);
    }
    drop(daemon);
    watch.check();
}

/// Starts the build, waits for `phase` in its output, ends it with the signal, and checks that
/// it ends at once with nothing left of it.
#[track_caller]
fn ends(
    watch: &leak::Watch,
    client: &Client,
    (context, args): (&Context, &[&str]),
    phase: &str,
    signal: Signal,
) {
    let mut running = client.start(context, args);
    running.wait_for(phase);
    // Into the middle of it.
    std::thread::sleep(Duration::from_millis(100));
    running.signal(signal);
    let ran = running.finish_within(Duration::from_secs(10));
    assert_ne!(ran.code, 0, "{}: {}", client.name(), ran.output);
    watch.check_steps();
}

#[test]
fn a_client_that_is_killed_takes_along_what_waits_for_a_registry() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let fine = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let descriptors = || {
        let list = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let links = list.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    };
    let before = descriptors();
    for client in Client::of(&daemon) {
        for signal in [Signal::SIGINT, Signal::SIGKILL] {
            let registry = BrokenRegistry::start(Fault::Stalls);
            let context = of_image(&registry.image());
            // The pull has begun when half of the layer is there, which is all that comes.
            let mut running = client.start(&context, &[NOTHING]);
            running.wait_for(registry.layer());
            running.signal(signal);
            let ran = running.finish_within(Duration::from_secs(10));
            assert_ne!(ran.code, 0, "{}", ran.output);
            watch.check_steps();

            let registry = BrokenRegistry::start(Fault::StallsUploads);
            let image = registry.image();
            let args: [&str; 3] = ["--push", "--tag", &image];
            ends(&watch, &client, (&fine, &args), "pushing layers", signal);
            client.build(&fine, &[NOTHING]).success();
        }
        // Nobody waits for a registry any more.
        wait_until("the connections are closed", Duration::from_secs(5), || {
            descriptors() <= before + 2
        });
    }
    assert!(daemon.is_running(), "{}", daemon.log());
    drop((daemon, fine));
    watch.check();
}

#[test]
fn a_client_that_is_killed_while_it_sends_or_takes_files_leaves_nothing() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY . /\n")
        .file("noise", noise(4 * MIB));
    // So large that it is still on its way when the signal comes, and nothing on the disk.
    let large = std::fs::File::create(context.path().join("large")).unwrap();
    for client in Client::of(&daemon) {
        for signal in [Signal::SIGINT, Signal::SIGKILL] {
            large.set_len(4 << 30).unwrap();
            let args = [NOTHING];
            let phase = "transferring context";
            ends(&watch, &client, (&context, &args), phase, signal);
            // What came of it is not taken for the file.
            large.set_len(1).unwrap();
            let out = Out::new();
            client.build(&context, &[&out.local("x")]).success();
            assert_eq!(out.path("x/large").metadata().unwrap().len(), 1);
            assert_eq!(out.path("x/noise").metadata().unwrap().len(), 4 * MIB);
        }
    }
    // The other way round: the result is large.
    large.set_len(1 << 30).unwrap();
    for client in Client::of(&daemon) {
        client.build(&context, &[NOTHING]).success();
        for signal in [Signal::SIGINT, Signal::SIGKILL] {
            let out = Out::new();
            let to = out.local("x");
            let args: [&str; 1] = [&to];
            ends(&watch, &client, (&context, &args), "copying files", signal);
            let tar = format!("--output=type=oci,dest={}", out.path("x.tar").display());
            let args: [&str; 2] = [&tar, "--tag=killed"];
            ends(
                &watch,
                &client,
                (&context, &args),
                "exporting layers",
                signal,
            );
        }
    }
    drop((daemon, context));
    watch.check();
}

/// A daemon on a small disk, a registry, and the reference of busybox in it.
struct Full {
    watch: leak::Watch,
    disk: SmallDisk,
    daemon: Daemon,
    registry: Registry,
    base: String,
}

impl Full {
    fn start() -> Self {
        let mut watch = leak::Watch::begin();
        let disk = SmallDisk::new(96);
        watch.begin_steps();
        let registry = Registry::start();
        Self {
            base: push_busybox(&registry),
            daemon: Daemon::on(&disk),
            watch,
            disk,
            registry,
        }
    }

    /// Builds with both clients while no more than `free` bytes are free, which fails with
    /// `parts`, and once more with space, which succeeds.
    #[track_caller]
    fn fails(&mut self, context: &Context, args: &[&str], free: u64, parts: &[&str]) {
        for client in Client::of(&self.daemon) {
            self.disk.fill(free);
            let ran = client.build(context, args);
            eprintln!("{}: {}", client.name(), last_line(&ran));
            let mut all = vec!["no space left on device"];
            all.extend(parts);
            lower(ran).fails_with(&all);
            self.sound();
            // What is there can be looked at and removed: there is no other way out of this.
            let prune = client_prune(&self.daemon);
            self.disk.clear();
            prune.unwrap();
            client.build(context, args).success();
            self.sound();
            self.prune();
        }
    }

    #[track_caller]
    fn sound(&mut self) {
        assert!(self.daemon.is_running(), "{}", self.daemon.log());
        self.watch.check_steps();
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    fn prune(&self) {
        client_prune(&self.daemon).unwrap();
    }

    /// Ends all of it, what the test made included, and checks what is left on the machine.
    fn end<T>(self, of_test: T) {
        drop(of_test);
        let Self {
            watch,
            disk,
            daemon,
            registry,
            base: _,
        } = self;
        drop(daemon);
        drop(disk);
        drop(registry);
        watch.check();
    }
}

fn last_line(ran: &Ran) -> &str {
    let lines = ran.output.trim_end().lines();
    lines
        .rev()
        .find(|line| line.starts_with("ERROR"))
        .unwrap_or_default()
}

/// In small letters: the system's words are written in two ways.
fn lower(mut ran: Ran) -> Ran {
    ran.output = ran.output.replace("No space left", "no space left");
    ran
}

/// Removes all that no build uses, as a program does.
fn client_prune(daemon: &Daemon) -> Result<(), String> {
    use cooper_proto::control::{DiskUsageRequest, PruneRequest};
    use futures::TryStreamExt;
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let text = |error: cooper_client::ClientError| error.to_string();
    rt.block_on(async {
        let client = cooper_client::Client::connect(&daemon.address()).await;
        let client = client.map_err(text)?;
        let request = DiskUsageRequest::default();
        client.disk_usage(request).await.map_err(text)?;
        let all = PruneRequest {
            all: true,
            ..PruneRequest::default()
        };
        let pruned = client.prune(all).await.map_err(text)?;
        pruned
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(text)
    })
}

#[test]
fn a_full_disk_in_a_pull_is_said_with_the_layer() {
    let mut full = Full::start();
    let context = of_image(&full.base);
    // Not enough for the blob of 1 MB; and enough for that and not for what is in it.
    for free in [600 * KIB, 1400 * KIB] {
        let base = full.base.clone();
        full.fails(&context, &[NOTHING], free, &[&base, "sha256:"]);
    }
    full.end(context);
}

#[test]
fn a_full_disk_while_files_are_sent_is_said_with_the_file() {
    let mut full = Full::start();
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY . /\n")
        .file("some/noise", noise(4 * MIB));
    full.fails(&context, &[NOTHING], MIB, &["some/noise"]);
    // And a Dockerfile for which there is no space at all.
    let text = [&b"FROM scratch\nCOPY . /\n"[..], &vec![b'\n'; 400 << 10]].concat();
    let other = Context::new().file("Dockerfile", text);
    full.fails(&other, &[NOTHING], 100 * KIB, &["Dockerfile"]);
    full.end((context, other));
}

#[test]
fn a_full_disk_in_a_copy_is_said_with_the_step() {
    let mut full = Full::start();
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY . /a/\nCOPY . /b/\n")
        .file("noise", noise(8 * MIB));
    // Enough for the context and the first copy.
    full.fails(
        &context,
        &[NOTHING],
        20 * MIB,
        &[
            "Dockerfile:3",
            ">>> COPY . /b/",
            "failed to copy files: /noise: ",
        ],
    );
    full.end(context);
}

#[test]
fn a_full_disk_in_a_step_is_said_by_its_program() {
    let mut full = Full::start();
    let dockerfile = format!(
        "FROM {}\nRUN dd if=/dev/urandom of=/noise bs=1M count=12\n",
        full.base
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    full.fails(
        &context,
        &[NOTHING],
        8 * MIB,
        &[
            "Dockerfile:2",
            ">>> RUN dd",
            "did not complete successfully: exit code: 1",
        ],
    );
    full.end(context);
}

#[test]
fn a_disk_that_a_step_filled_to_the_last_byte_is_no_reason_to_lose_its_result_or_the_daemon() {
    let mut full = Full::start();
    let dockerfile = format!(
        "FROM {}\nRUN cat /proc/sys/kernel/random/uuid > /id\n\
         RUN cat /dev/zero > /zero || true\nRUN true\n",
        full.base
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    for client in Client::of(&full.daemon) {
        let ran = lower(client.build(&context, &[NOTHING]));
        eprintln!("{}: {} {}", client.name(), ran.code, last_line(&ran));
        // What it wrote may still be kept; what cannot be kept is said.
        eprintln!("{}", ran.output);
        if ran.code != 0 {
            ran.fails_with(&["no space left on device"]);
        }
        full.sound();
        full.prune();
        assert!(full.disk.free() > 60 * MIB, "{}", full.disk.free());
        let one = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
        client.build(&one, &[NOTHING]).success();
    }
    full.end(context);
}

#[test]
fn a_full_disk_in_an_export_is_said_with_what_was_to_be_written() {
    let mut full = Full::start();
    let dockerfile = format!(
        "FROM {}\nRUN dd if=/dev/urandom of=/noise bs=1M count=12\n",
        full.base
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    let image = format!("{}/full:latest", full.registry.host());
    let output = format!("--output=type=image,name={image},push=true");
    for client in Client::of(&full.daemon) {
        // All is built, so only the export needs space: for the layer.
        client.build(&context, &[NOTHING]).success();
        full.disk.fill(6 * MIB);
        let ran = lower(client.build(&context, &[&output]));
        eprintln!("{}: {}", client.name(), last_line(&ran));
        assert!(ran.cached("RUN dd"), "{}", ran.output);
        ran.fails_with(&["no space left on device", "layer"]);
        full.sound();
        full.disk.clear();
        let ran = client.build(&context, &[&output]).success();
        assert!(ran.cached("RUN dd"), "{}", ran.output);
        full.prune();
    }
    full.end(context);
}

#[test]
fn a_full_disk_of_the_client_is_said_with_what_it_could_not_write() {
    let watch = leak::Watch::begin();
    let disk = SmallDisk::new(16);
    let daemon = Daemon::start();
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY . /\n")
        .file("noise", noise(8 * MIB));
    let to = |name: &str| disk.path().join(name);
    for client in Client::of(&daemon) {
        for (output, name) in [("local", "files"), ("oci", "x.tar"), ("tar", "y.tar")] {
            disk.fill(4 * MIB);
            let dest = to(name);
            let output = format!("--output=type={output},dest={}", dest.display());
            let ran = lower(client.build(&context, &[&output]));
            eprintln!("{} {name}: {}", client.name(), last_line(&ran));
            ran.fails_with(&["no space left on device"]);
            remove(&dest);
            disk.clear();
            client.build(&context, &[&output]).success();
            remove(&dest);
        }
    }
    drop((daemon, disk, context));
    watch.check();
}

fn remove(path: &Path) {
    run(std::process::Command::new("rm").arg("-rf").arg(path)).success();
}

#[test]
fn a_daemon_starts_on_a_full_disk_or_says_why_not() {
    let mut full = Full::start();
    let context = of_image(&full.base);
    let client = Client::buildx(&full.daemon);
    client.build(&context, &[NOTHING]).success();
    full.daemon.stop();
    full.disk.fill(0);
    let mut command = full.daemon.command(&full.daemon.address());
    let mut started = cooper_testkit::Started::new(&mut command);
    // Whichever it is, it comes soon.
    let begin = Instant::now();
    let serves = || {
        let path = full.daemon.address();
        let path = path.trim_start_matches("unix://");
        std::os::unix::net::UnixStream::connect(path).is_ok()
    };
    while !serves() && begin.elapsed() < Duration::from_secs(10) && started.is_running() {
        std::thread::sleep(Duration::from_millis(10));
    }
    if serves() {
        client_prune(&full.daemon).unwrap();
        started.signal(Signal::SIGTERM);
        started.finish_within(Duration::from_secs(20)).success();
    } else {
        let ran = started.finish_within(Duration::from_secs(10));
        ran.fails_with(&["metadata.db", "no space left on device"]);
    }
    full.disk.clear();
    full.daemon.spawn();
    let ran = client.build(&context, &[NOTHING]).success();
    drop(ran);
    full.sound();
    full.end((context, client));
}
