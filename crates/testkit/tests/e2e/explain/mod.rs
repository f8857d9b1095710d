//! Why a step was not cached: two hundred changes, and what is to be said of each.

mod beds;
mod change;
mod changes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cooper_testkit::{Client, Context, Daemon, Ran, Registry, leak, push_busybox, run};

use crate::Out;
use crate::dockerfile_git::Files;
use change::{Change, Edit};

/// Causes that have to be named right, of a hundred.
const RIGHT: usize = 95;

/// What a build is made of.
#[derive(Clone, Default)]
struct Bed {
    dockerfile: String,
    files: BTreeMap<&'static str, String>,
    modes: BTreeMap<&'static str, u32>,
    args: Vec<String>,
}

/// All that changes are tried on.
struct World {
    registry: Registry,
    daemon: Daemon,
    client: Client,
    /// Served by http: the file `file`, and the repository `r`.
    served: tempfile::TempDir,
    server: Files,
    base: String,
}

impl World {
    fn new() -> Self {
        let registry = Registry::start();
        let base = push_busybox(&registry);
        let daemon = Daemon::start();
        let client = Client::cooper(&daemon);
        let served = tempfile::Builder::new().prefix("cooper-served-").tempdir();
        let served = served.unwrap();
        let server = Files::serve(served.path());
        let world = Self {
            registry,
            daemon,
            client,
            served,
            server,
            base,
        };
        world.git("init -q -b main .");
        world
    }

    fn repository(&self) -> PathBuf {
        let repository = self.served.path().join("r");
        std::fs::create_dir_all(&repository).unwrap();
        repository
    }

    fn git(&self, words: &str) {
        let mut command = Command::new("git");
        command
            .args(["-c", "user.name=x", "-c", "user.email=x@example.org"])
            .args(words.split(' '))
            .current_dir(self.repository())
            .env("HOME", "/dev/null");
        run(&mut command).success();
    }

    fn commit(&self, content: &str) {
        std::fs::write(self.repository().join("file"), content).unwrap();
        self.git("add .");
        self.git("commit -q --allow-empty -m x");
        self.git("update-server-info");
    }

    fn serve(&self, content: &str) {
        std::fs::write(self.served.path().join("file"), content).unwrap();
    }

    /// Pushes an image `moving:TAG` that has `content` in a file.
    fn push(&self, tag: &str, content: &str) {
        let context = Context::new().file(
            "Dockerfile",
            format!("FROM {}\nCOPY <<EOF /moving\n{content}\nEOF\n", self.base),
        );
        let name = format!("{}/moving:{tag}", self.registry.host());
        let output = format!("--output=type=image,push=true,name={name}");
        self.client.build(&context, &[&output]).success();
    }

    fn push_for_platforms(&self) {
        let text = "FROM scratch\nARG TARGETPLATFORM\nCOPY <<EOF /for\n$TARGETPLATFORM\nEOF\n";
        let context = Context::new().file("Dockerfile", text);
        let name = format!("{}/moving:every", self.registry.host());
        let output = format!("--output=type=image,push=true,name={name}");
        let all = "--platform=linux/amd64,linux/arm64,linux/riscv64,linux/s390x";
        self.client.build(&context, &[all, &output]).success();
    }

    fn filled(&self, text: &str) -> String {
        text.replace("{base}", &self.base)
            .replace("{registry}", &self.registry.host())
            .replace("{server}", &self.server.host)
    }

    fn build(&self, bed: &Bed) -> Ran {
        let context = Context::new().file("Dockerfile", self.filled(&bed.dockerfile));
        for (path, content) in &bed.files {
            let path = context.write(path, content);
            let name = path.strip_prefix(context.path()).unwrap();
            let mode = bed.modes.get(name.to_str().unwrap()).copied();
            set_mode(&path, mode.unwrap_or(0o644));
        }
        let args = ["--explain".to_owned()].into_iter();
        let args: Vec<String> = args.chain(bed.args.iter().cloned()).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.client.build(&context, &args)
    }

    fn prune(&self, keep: Duration, space: i64) {
        use cooper_proto::control::PruneRequest;
        use futures::TryStreamExt;
        let rt = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        rt.block_on(async {
            let client = cooper_client::Client::connect(&self.daemon.address()).await;
            let request = PruneRequest {
                all: true,
                keep_duration: i64::try_from(keep.as_nanos()).unwrap(),
                max_used_space: space,
                ..PruneRequest::default()
            };
            let pruned = client.unwrap().prune(request).await.unwrap();
            pruned.try_for_each(|_| async { Ok(()) }).await.unwrap();
        });
    }

    /// Carries a change out. What has to be there before is built before.
    fn change(&self, change: &Change) -> Ran {
        let mut bed = beds::bed(change.bed);
        for edit in &change.before {
            self.edit(&mut bed, edit);
        }
        self.build(&bed).success();
        for edit in &change.edits {
            self.edit(&mut bed, edit);
        }
        self.build(&bed)
    }

    fn edit(&self, bed: &mut Bed, edit: &Edit) {
        match edit {
            Edit::Replace(old, new) => {
                assert!(bed.dockerfile.contains(old), "{old:?} is in the Dockerfile");
                bed.dockerfile = bed.dockerfile.replacen(old, new, 1);
            }
            Edit::Write(path, content) => {
                bed.files.insert(path, (*content).to_owned());
            }
            Edit::Mode(path, mode) => {
                bed.modes.insert(path, *mode);
            }
            Edit::Remove(path) => {
                assert!(bed.files.remove(path).is_some(), "{path} is there");
            }
            Edit::Flag(flag) => bed.args.push((*flag).to_owned()),
            Edit::Push(tag, content) => self.push(tag, content),
            Edit::PushForPlatforms => self.push_for_platforms(),
            Edit::Commit(content) => self.commit(content),
            Edit::Serve(content) => self.serve(content),
            Edit::Prune => self.prune(Duration::ZERO, 0),
            Edit::PruneOld => {
                std::thread::sleep(Duration::from_millis(20));
                self.prune(Duration::from_millis(10), 0);
            }
            Edit::PruneToFit => self.prune(Duration::ZERO, 1),
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// What was said of the first step of that name of which something was; empty when nothing was.
fn said(ran: &Ran, step: &str) -> String {
    const MARK: &str = " not cached: ";
    let lines = || ran.output.lines().filter(|line| line.starts_with('#'));
    let named = lines().filter(|line| line.contains(step) && !line.contains(MARK));
    let numbers = named.filter_map(|line| line.split(' ').next());
    let said = numbers.filter_map(|number| {
        let mark = format!("{number}{MARK}");
        lines().find_map(|line| line.strip_prefix(&mark))
    });
    said.map(str::to_owned).next().unwrap_or_default()
}

/// What came of one change.
struct Outcome {
    kind: &'static str,
    /// What is not right.
    wrong: Option<String>,
}

/// Tries all changes of some beds.
fn try_all(changes: &[Change]) -> Vec<Outcome> {
    let world = World::new();
    let outcome = |change: &Change| {
        let ran = world.change(change);
        let said = said(&ran, change.step);
        let mut causes = change.causes.iter().map(|part| world.filled(part));
        let right = causes.all(|part| said.contains(&part));
        assert!(!change.causes.is_empty(), "something is expected");
        Outcome {
            kind: change.kind,
            wrong: (!right).then(|| {
                let shown = if said.is_empty() { &*ran.output } else { &said };
                format!(
                    "{} of {} ({:?}): {:?} is not said of {:?}, but {shown}",
                    change.kind, change.bed, change.edits, change.causes, change.step
                )
            }),
        }
    };
    changes.iter().map(outcome).collect()
}

#[test]
fn sol_explain_names_the_cause_of_two_hundred_changes() {
    let watch = leak::Watch::begin();
    let all = changes::all();
    let count = all.len();
    assert!(count >= 200, "{count} changes");
    let begin = Instant::now();
    // What is built on one bed is near to each other: it stays with one daemon.
    let (some, others): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|change| matches!(change.bed, "files" | "order" | "meta" | "mounts"));
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads = [&some, &others].map(|changes| scope.spawn(move || try_all(changes)));
        let done = threads.into_iter().map(|thread| thread.join().unwrap());
        done.flatten().collect()
    });
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for outcome in outcomes {
        let of_kind = kinds.entry(outcome.kind).or_default();
        of_kind.1 += 1;
        of_kind.0 += usize::from(outcome.wrong.is_none());
        wrong.extend(outcome.wrong);
    }
    for (kind, (right, all)) in &kinds {
        println!("{kind}: {right} of {all}");
    }
    let right = count - wrong.len();
    let took = begin.elapsed();
    println!("{right} of {count} causes are right, after {took:?}");
    let wrong = wrong.join("\n");
    println!("{wrong}");
    assert!(
        right * 100 >= count * RIGHT,
        "{right} of {count} causes are right:\n{wrong}"
    );
    watch.check();
}

#[test]
fn sol_explain_is_asked_for_by_any_client_and_kept_with_the_build() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::start();
    let context = |value: &str| {
        let text = format!("FROM {base}\nENV TOPIC={value}\nRUN true\n");
        Context::new().file("Dockerfile", text)
    };
    let out = Out::new();
    let [buildx, cooper] = Client::of(&daemon);
    buildx.build(&context("a"), &[]).success();
    // Nobody asked.
    let quiet = buildx.build(&context("b"), &[]).success();
    assert_eq!(quiet.count("not cached"), 0, "{}", quiet.output);
    // The notes outlive the daemon, and those of builds that did not ask are notes, too.
    daemon.stop();
    daemon.spawn();
    let file = out.path("metadata.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let metadata = format!("--metadata-file={}", file.display());
    let asked = ["--build-arg=COOPER_EXPLAIN=1", &metadata];
    let told = buildx.build(&context("c"), &asked).success();
    let expected = r#"not cached: variable TOPIC changed from "b" to "c""#;
    let step = told.step("RUN true").join("\n");
    assert!(step.contains(expected), "{}", told.output);
    assert_eq!(told.count("not cached"), 1, "{}", told.output);
    let kept = std::fs::read_to_string(&file).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let one = &kept["cooper.explain"]["steps"][0];
    assert_eq!(
        (&one["kind"], &one["root"]),
        (&"part".into(), &"part".into()),
        "{kept}"
    );
    assert_eq!(one["cause"], r#"variable TOPIC changed from "b" to "c""#);
    // And what is cached needs no word.
    for client in [&buildx, &cooper] {
        let again = client.build(&context("c"), &asked).success();
        assert_eq!(again.count("not cached"), 0, "{}", again.output);
    }
    let shown = cooper.build(&context("d"), &["--explain"]).success();
    assert_eq!(
        shown.count("not cached: variable TOPIC"),
        1,
        "{}",
        shown.output
    );
    drop((buildx, cooper, daemon, registry, out));
    watch.check();
}

#[test]
fn sol_explain_never_has_a_secret() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::start();
    let client = Client::cooper(&daemon);
    let out = Out::new();
    let secret = out.path("secret");
    std::fs::create_dir_all(secret.parent().unwrap()).unwrap();
    let build = |value: &str, id: &str| {
        std::fs::write(&secret, value).unwrap();
        let text = format!(
            "FROM {base}\nRUN --mount=type=secret,id={id},target=/s --mount=type=secret,id={id},\
             env=VALUE cat /s >/dev/null\n"
        );
        let context = Context::new().file("Dockerfile", text);
        let offered = format!("--secret=id={id},src={}", secret.display());
        client.build(&context, &["--explain", &offered]).success()
    };
    build("first-hidden-value", "one");
    let told = build("second-hidden-value", "two");
    let said = said(&told, "RUN");
    assert!(said.contains("secret") && said.contains("two"), "{said}");
    assert!(!told.output.contains("hidden"), "{}", told.output);
    daemon.stop();
    let grep = run(Command::new("grep")
        .args(["-rlE", "(first|second)-hidden-value"])
        .arg(daemon.root()));
    assert_eq!(grep.output, "", "a secret is in the daemon's folder");
    drop((client, daemon, registry, out));
    watch.check();
}

/// What is cached is not looked at, so that asking costs nothing. The figure is printed; the bound
/// leaves room for a busy machine.
#[test]
fn sol_explain_costs_a_cached_build_nothing() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let client = Client::cooper(&daemon);
    let steps: String = (0..50).map(|n| format!("COPY one.txt /{n}\n")).collect();
    let context = Context::new()
        .file("Dockerfile", format!("FROM {base}\n{steps}"))
        .file("one.txt", "1");
    client.build(&context, &[]).success();
    let ways: [&[&str]; 2] = [&[], &["--explain"]];
    let mut times = [Vec::new(), Vec::new()];
    for turn in 0..30 {
        // Neither is always the first.
        for way in [turn % 2, (turn + 1) % 2] {
            let ran = client.build(&context, ways[way]).success();
            assert_eq!(ran.count("not cached"), 0, "{}", ran.output);
            times[way].push(ran.took);
        }
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    let median = |way: usize| times[way][times[way].len() / 2].as_secs_f64();
    let least = |way: usize| times[way][0].as_secs_f64();
    println!(
        "50 cached steps: {:.2} ms, with --explain {:.2} ms: {:.3} times (the least {:.3})",
        1e3 * median(0),
        1e3 * median(1),
        median(1) / median(0),
        least(1) / least(0)
    );
    assert!(least(1) < 1.5 * least(0), "{times:?}");
    drop((client, daemon, registry, context));
    watch.check();
}
