//! Ordinary users: builds without the machine's root, in the process of the command and by a
//! daemon of the user's own.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cooper_testkit::{Buildx, Ran, Started, bin, leak, run, wait_until};
use nix::sys::signal::Signal;

use crate::read;

/// The number of the user, whom the machine does not know otherwise.
const USER: u32 = 54_321;
/// The first of the ids that the user has besides the own one.
const FIRST: u32 = 300_000;
/// The variable with where the user's programs are looked for, if that is not where ours are.
const PATH_OF_USER: &str = "PATH_OF_USER";

/// A user with a home, and a machine on which the user is known: the files that say so are
/// mounted where only the user's programs see them, so that nothing of the machine is changed.
struct User {
    dir: tempfile::TempDir,
}

impl User {
    /// One with subordinate ids, or without.
    fn new(ids: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("cooper-user-").tempdir();
        let user = Self { dir: dir.unwrap() };
        for name in ["home", "run", "etc", "bin"] {
            std::fs::create_dir(user.path(name)).unwrap();
        }
        let home = user.path("home");
        let mut passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        passwd += &format!("builder:x:{USER}:{USER}::{}:/bin/sh\n", home.display());
        let ranges = match ids {
            true => format!("builder:{FIRST}:65536\n"),
            false => String::new(),
        };
        for (name, text) in [
            ("passwd", &passwd),
            ("subuid", &ranges),
            ("subgid", &ranges),
        ] {
            std::fs::write(user.path("etc").join(name), text).unwrap();
        }
        // The programs need not be where everybody can reach them.
        for name in ["cooper", "cooperd"] {
            std::fs::write(user.path("bin").join(name), "").unwrap();
        }
        for name in ["newuidmap", "newgidmap"] {
            let link = user.path("bin").join(name);
            std::os::unix::fs::symlink(Path::new("/usr/bin").join(name), link).unwrap();
        }
        for name in ["", "home", "run"] {
            std::os::unix::fs::chown(user.path(name), Some(USER), Some(USER)).unwrap();
        }
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => self.dir.path().to_owned(),
            name => self.dir.path().join(name),
        }
    }

    /// Where programs are looked for: once with the runtime that is installed, and once with none,
    /// which leaves the built-in one. Debian's runc is in more than one folder.
    fn paths(&self) -> [PathBuf; 2] {
        ["/usr/sbin:/usr/bin:/sbin:/bin".into(), self.path("bin")]
    }

    /// A program as the user starts it.
    fn command(&self, program: &str) -> Command {
        const AS_USER: &str = r#"set -e
            for file in passwd subuid subgid; do
                test -e "/etc/$file" || touch "/etc/$file"
                mount --bind "$1/etc/$file" "/etc/$file"
            done
            mount --bind "$2" "$1/bin/cooper"
            mount --bind "$3" "$1/bin/cooperd"
            cd "$1/home"
            user="$4"
            shift 4
            exec setpriv --reuid "$user" --regid "$user" --clear-groups -- \
                env PATH="${PATH_OF_USER:-$PATH}" "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", AS_USER, "sh"]);
        command.arg(self.dir.path());
        command
            .args([bin("cooper"), bin("cooperd")])
            .arg(USER.to_string());
        command.arg(match program {
            "cooper" | "cooperd" => self.path("bin").join(program),
            other => other.into(),
        });
        command
            .env("HOME", self.path("home"))
            .env("USER", "builder")
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env_remove("XDG_DATA_HOME");
        command
    }

    /// A context of this Dockerfile, with busybox beside it.
    fn context(&self, dockerfile: &str) -> PathBuf {
        let context = self.path("home").join("context");
        std::fs::create_dir_all(&context).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.iter().find(|path| path.exists());
        std::fs::copy(busybox.expect("busybox"), context.join("busybox")).unwrap();
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        std::fs::write(context.join("greeting.in"), "Hello, @NAME@!\n").unwrap();
        context
    }

    /// A build in the process of the command.
    fn build(&self, context: &Path, args: &[&str]) -> Ran {
        let mut command = self.command("cooper");
        command
            .args(["build", "--progress=plain"])
            .args(args)
            .arg(context);
        run(&mut command)
    }

    fn daemon(&self, args: &[&str]) -> Owned<'_> {
        let mut command = self.command("cooperd");
        let config = self.path("etc/buildkitd.toml");
        std::fs::write(&config, "").unwrap();
        command.arg("--config").arg(config).args(args);
        let socket = self.path("run/cooper/cooperd.sock");
        let mut started = Started::new(&mut command);
        wait_until("the user's daemon serves", Duration::from_secs(120), || {
            assert!(started.is_running(), "cooperd ended: {}", started.output());
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Owned {
            user: self,
            started,
        }
    }

    /// Fails the test if something that the build wrote for the user is another's.
    #[track_caller]
    fn owns(&self, path: &Path) {
        let meta = path.symlink_metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (USER, USER), "{}", path.display());
    }
}

/// A daemon of a user's own.
struct Owned<'a> {
    user: &'a User,
    started: Started,
}

impl Owned<'_> {
    fn address(&self) -> String {
        let socket = self.user.path("run/cooper/cooperd.sock");
        format!("unix://{}", socket.display())
    }

    #[track_caller]
    fn stop(self) -> String {
        self.started.signal(Signal::SIGTERM);
        let ran = self.started.finish_within(Duration::from_secs(20));
        ran.success().output
    }
}

/// What a user's build does besides files: owners, removed files and folders of the stage
/// below, a cache mount, devices, further stages.
const STAGES: &str = r#"FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ENV PATH=/bin
RUN mkdir -p /old/deep /other && echo x > /old/deep/file && echo y > /other/file

FROM base AS build
ARG NAME=world
RUN rm -r /old && mkdir /old && rm /other/file && ls -A /old /other > /left
COPY --chown=7:8 greeting.in /src/
RUN --mount=type=cache,target=/cache echo run >> /cache/runs && wc -l < /cache/runs > /runs
RUN sed "s/@NAME@/$NAME/" /src/greeting.in > /greeting.txt && stat -c %u:%g /src/greeting.in > /owner
RUN echo lost > /dev/null && test -c /dev/zero && id -u > /user && ls /old >> /left
USER 7:8
RUN id -u > /tmp/user 2>/dev/null || id -u

FROM scratch
COPY --from=build /greeting.txt /owner /left /runs /user /
"#;

#[track_caller]
fn greeted(dir: &Path, runs: &str) {
    assert_eq!(read(&dir.join("greeting.txt")), "Hello, world!\n");
    assert_eq!(read(&dir.join("owner")), "7:8\n");
    // Nothing of the layer below shows in a folder that was made anew.
    assert_eq!(read(&dir.join("left")), "/old:\n\n/other:\n");
    assert_eq!(read(&dir.join("runs")), runs);
    assert_eq!(read(&dir.join("user")), "0\n");
}

#[test]
fn wrk06_snp07_a_user_builds_with_no_daemon() {
    let watch = leak::Watch::begin();
    let user = User::new(true);
    let context = user.context(STAGES);
    for (number, path) in user.paths().into_iter().enumerate() {
        let result = user.path("home").join(format!("result-{number}"));
        let local = format!("--output=type=local,dest={}", result.display());
        let mut command = user.command("cooper");
        command.args(["build", "--progress=plain", "--no-cache", &local]);
        run(command.arg(&context).env(PATH_OF_USER, path)).success();
        greeted(&result, "1\n");
        for name in ["", "greeting.txt", "owner"] {
            user.owns(&result.join(name));
        }
    }
    let archive = user.path("home").join("image.tar");
    let oci = format!("--output=type=oci,dest={}", archive.display());
    let ran = user.build(&context, &[&oci]).success();
    assert!(ran.count("CACHED") > 5, "{}", ran.output);
    user.owns(&archive);
    let inspect = format!("oci-archive:{}", archive.display());
    run(Command::new("skopeo").args(["inspect", &inspect])).success();
    // Overlays, and no copies.
    let kept = user.path("home/.local/share/cooper");
    user.owns(&kept);
    assert!(kept.join("runc/snapshots/overlayfs").is_dir());
    drop(user);
    watch.check();
}

#[test]
fn wrk06_ex07_a_user_has_a_daemon() {
    let mut watch = leak::Watch::begin();
    let user = User::new(true);
    let context = user.context(STAGES);
    let daemon = user.daemon(&["--rootless"]);
    // Its own namespaces are no step's.
    watch.begin_steps();
    let buildx = Buildx::remote(Buildx::program(), &daemon.address());
    let result = user.path("home/result");
    let local = format!("--output=type=local,dest={}", result.display());
    run(&mut buildx.build_command(&context, &[&local])).success();
    greeted(&result, "1\n");
    let mut client = user.command("cooper");
    client.args(["build", "--progress=plain", "--addr", &daemon.address()]);
    let ran = run(client.arg(&context)).success();
    assert!(ran.count("CACHED") > 5, "{}", ran.output);
    watch.check_steps();
    drop(buildx);
    daemon.stop();
    let daemon = user.daemon(&["--rootless", "--oci-worker-binary=builtin"]);
    watch.begin_steps();
    let buildx = Buildx::remote(Buildx::program(), &daemon.address());
    run(&mut buildx.build_command(&context, &["--no-cache", &local])).success();
    greeted(&result, "1\n");
    watch.check_steps();
    drop(buildx);
    daemon.stop();
    // Steps that see the processes of the daemon's machine, by its /proc.
    let daemon = user.daemon(&["--rootless", "--oci-worker-no-process-sandbox"]);
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\n\
        RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo number $$ && /bin/busybox ps\"]\n";
    let context = user.context(dockerfile);
    let buildx = Buildx::remote(Buildx::program(), &daemon.address());
    let ran = run(&mut buildx.build_command(&context, &["--no-cache"])).success();
    assert!(ran.count("cooperd") > 0, "{}", ran.output);
    assert!(!ran.output.contains("number 1\n"), "{}", ran.output);
    drop(buildx);
    let log = daemon.stop();
    assert!(
        log.contains("share the daemon's process namespace"),
        "{log}"
    );
    drop(user);
    watch.check();
}

#[test]
fn wrk06_a_user_without_further_ids_builds_as_far_as_that_goes() {
    let watch = leak::Watch::begin();
    let user = User::new(false);
    let start = "FROM scratch\nCOPY busybox /bin/busybox\n";
    let step = "RUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox id -u > /user\"]\n";
    let result = user.path("home/result");
    let local = format!("--output=type=local,dest={}", result.display());
    for path in user.paths() {
        let context = user.context(&format!("{start}{step}"));
        let mut command = user.command("cooper");
        command.args(["build", "--progress=plain", "--no-cache", &local]);
        let ran = run(command.arg(&context).env(PATH_OF_USER, path)).success();
        assert!(
            ran.output.contains("no subordinate ids for builder"),
            "{}",
            ran.output
        );
        assert_eq!(read(&result.join("user")), "0\n");
        user.owns(&result.join("user"));
    }
    // What it does not do says so.
    for line in [
        "COPY --chown=7:8 greeting.in /\n",
        &format!("USER 7:8\n{step}"),
    ] {
        let context = user.context(&format!("{start}{line}"));
        let ran = user.build(&context, &[]);
        ran.fails_with(&["7", "8", "is not mapped", "/etc/subuid"]);
    }
    drop(user);
    watch.check();
}

#[test]
fn oci12_what_a_users_steps_have() {
    let watch = leak::Watch::begin();
    let user = User::new(true);
    let script = "set -e; for path in /sys/fs /dev/pts/ptmx /dev/shm /dev/mqueue; do \
        test -e $path && echo has $path || echo lacks $path; done; \
        grep ' /dev/pts ' /proc/mounts; grep -c . /proc/self/uid_map; cat /etc/resolv.conf; \
        mknod /device c 1 3 || echo no devices; mknod /dev/loop0 b 7 0 || echo no disks";
    let dockerfile = format!(
        "FROM scratch\nCOPY busybox /bin/busybox\n\
         RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV PATH=/bin\nRUN {script}\n"
    );
    let context = user.context(&dockerfile);
    for path in user.paths() {
        let mut command = user.command("cooper");
        command.args(["build", "--progress=plain", "--no-cache"]);
        command.arg(&context);
        let ran = run(command.env(PATH_OF_USER, path)).success();
        for line in [
            "lacks /sys/fs",
            "has /dev/pts/ptmx",
            "has /dev/shm",
            "has /dev/mqueue",
            "no devices",
            "no disks",
        ] {
            assert!(ran.output.contains(line), "no {line:?} in {}", ran.output);
        }
        let terminals = ran.output.lines().find(|line| line.contains("devpts"));
        assert!(!terminals.unwrap().contains("gid="), "{terminals:?}");
    }
    drop(user);
    watch.check();
}

#[test]
fn wrk06_a_daemon_in_a_namespace_of_rootlesskit() {
    let watch = leak::Watch::begin();
    let user = User::new(true);
    let context = user.context(STAGES);
    let result = user.path("home/result");
    let mut command = user.command("rootlesskit");
    command.arg("--state-dir").arg(user.path("run/kit"));
    command.arg(user.path("bin/cooperd")).arg("--rootless");
    let daemon = Owned {
        started: Started::new(&mut command),
        user: &user,
    };
    let socket = user.path("run/cooper/cooperd.sock");
    wait_until("the daemon serves", Duration::from_secs(120), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let buildx = Buildx::remote(Buildx::program(), &daemon.address());
    let local = format!("--output=type=local,dest={}", result.display());
    run(&mut buildx.build_command(&context, &[&local])).success();
    greeted(&result, "1\n");
    assert!(user.path("home/.local/share/cooper/runc").is_dir());
    daemon.stop();
    drop((user, buildx));
    watch.check();
}
