//! Containers, made for real. Needs root, and a `busybox` that is linked statically.
//!
//! It has a main of its own, because it is its own helper.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cooper_oci_runtime::{Event, Group, Runtime, RuntimeError, Started};
use cooper_sys::cgroup::Hierarchies;
use cooper_sys::{MountPoint, PidFd};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

const APPLETS: &str = "sh cat echo env id pwd ls readlink sleep stat tty stty test true mount touch \
                       hostname grep head tr cut kill mknod sort ip";

type Case = fn(&Fixture);

fn main() {
    cooper_oci_runtime::enter_if_asked();
    let cases: [(&str, Case); 14] = [
        ("a_container_runs", a_container_runs),
        ("mistakes_have_runcs_words", mistakes_have_runcs_words),
        (
            "paths_are_hidden_or_read_only",
            paths_are_hidden_or_read_only,
        ),
        ("mounts_stay_inside", mounts_stay_inside),
        (
            "proc_and_sys_cannot_be_replaced",
            proc_and_sys_cannot_be_replaced,
        ),
        (
            "nothing_of_the_program_is_seen",
            nothing_of_the_program_is_seen,
        ),
        ("privileges_are_as_asked", privileges_are_as_asked),
        ("the_kernel_takes_filters", the_kernel_takes_filters),
        ("a_terminal_is_handed_over", a_terminal_is_handed_over),
        ("others_enter_the_container", others_enter_the_container),
        ("a_new_network_has_loopback", a_new_network_has_loopback),
        ("devices_are_limited", devices_are_limited),
        (
            "what_is_not_done_is_refused_by_name",
            what_is_not_done_is_refused_by_name,
        ),
        (
            "a_helper_that_dies_is_replaced",
            a_helper_that_dies_is_replaced,
        ),
    ];
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let mut failed = false;
    for (name, case) in cases {
        if filter
            .as_ref()
            .is_some_and(|filter| !name.contains(filter.as_str()))
        {
            continue;
        }
        let ran = std::panic::catch_unwind(|| {
            let fixture = Fixture::new();
            case(&fixture);
            fixture.nothing_remains();
        });
        println!("{name} {}", if ran.is_ok() { "ok" } else { "FAILED" });
        failed |= ran.is_err();
    }
    assert!(!failed);
}

struct Fixture {
    dir: tempfile::TempDir,
    runtime: Runtime,
    hierarchies: Arc<Hierarchies>,
    parent: String,
    tokio: tokio::runtime::Runtime,
}

/// A container that runs.
struct Running {
    process: PidFd,
    events: Vec<Event>,
    stdout: Option<File>,
    group: Group,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        let path = std::env::var_os("PATH").unwrap();
        let mut found = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
        let busybox = found
            .find(|file| file.is_file())
            .expect("a busybox in PATH");
        std::fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
        std::fs::write(rootfs.join("etc/passwd"), passwd).unwrap();
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Self {
            dir,
            runtime: Runtime::of_this_program().unwrap(),
            hierarchies: Arc::new(Hierarchies::detect().unwrap()),
            parent: format!("/cooper-oci-{}", std::process::id()),
            tokio: tokio.unwrap(),
        }
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn script(&self, name: &str, text: &str, mode: u32) {
        let file = self.rootfs().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(file, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn spec(&self, args: &[&str]) -> Value {
        let caps = [
            "CAP_CHOWN",
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_KILL",
            "CAP_MKNOD",
        ];
        json!({
            "ociVersion": "1.0.2",
            "hostname": "inside",
            "root": {"path": self.rootfs()},
            "process": {
                "args": args, "cwd": "/", "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options":
                 ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["ro", "nosuid", "noexec", "nodev"]},
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "maskedPaths": ["/proc/cmdline", "/proc/kcore", "/proc/acpi", "/sys/firmware", "/proc/none"],
                "readonlyPaths": ["/proc/sys", "/proc/none"],
            },
        })
    }

    fn group(&self) -> Group {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("{}/{number}", self.parent);
        Group::create(self.hierarchies.clone(), &path).unwrap()
    }

    fn start(&self, spec: &Value) -> Running {
        let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
        let terminal = spec.process().as_ref().unwrap().terminal() == Some(true);
        let mut group = self.group();
        let resources = spec.linux().as_ref().unwrap().resources().clone();
        group.limit(&resources.unwrap()).unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = File::open("/dev/null").unwrap();
        let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
        let prepared = self.runtime.prepare(group.clone()).unwrap();
        let started = self
            .runtime
            .create(&spec, (!terminal).then_some(stdio), prepared);
        drop(write);
        self.running(started.unwrap(), (!terminal).then(|| read.into()), group)
    }

    fn running(&self, started: Started, stdout: Option<File>, group: Group) -> Running {
        let (process, events) = self.tokio.block_on(async {
            let (process, mut status) = started.status().unwrap();
            let mut events = Vec::new();
            loop {
                match status.next().await.unwrap() {
                    Event::Started => return (process, events),
                    event => events.push(event),
                }
            }
        });
        Running {
            process,
            events,
            stdout,
            group,
        }
    }

    /// Runs a container to its end: its code, output and what was told.
    fn run(&self, spec: &Value) -> (i32, String, Option<String>) {
        self.start(spec).finish()
    }

    fn shell(&self, script: &str) -> String {
        let (code, text, failed) = self.run(&self.spec(&["sh", "-c", script]));
        assert_eq!((code, failed), (0, None), "{script}: {text}");
        text
    }

    fn nothing_remains(self) {
        assert_eq!(MountPoint::below(self.dir.path()).unwrap(), []);
        self.hierarchies.remove(&self.parent).unwrap();
        drop(self.runtime);
        let own = format!("PPid:\t{}\n", std::process::id());
        for entry in std::fs::read_dir("/proc").unwrap() {
            let status = std::fs::read_to_string(entry.unwrap().path().join("status"));
            assert!(
                !status.unwrap_or_default().contains(&own),
                "a child is left"
            );
        }
    }
}

impl Running {
    fn finish(self) -> (i32, String, Option<String>) {
        let mut text = String::new();
        if let Some(mut stdout) = self.stdout {
            stdout.read_to_string(&mut text).unwrap();
        }
        let status = self.process.reap().unwrap();
        for directory in self.group.directories() {
            std::fs::remove_dir(directory).unwrap();
        }
        let failed = self.events.into_iter().find_map(|event| match event {
            Event::Failed(message) => Some(message),
            _ => None,
        });
        (status.code().unwrap_or(-1), text, failed)
    }
}

fn a_container_runs(fixture: &Fixture) {
    let text = fixture.shell("echo $$ $(hostname) $(pwd) $HOME; id; ls /proc | grep -c '^[0-9]'");
    assert!(
        text.starts_with("1 inside / /root\nuid=0(root) gid=0"),
        "{text}"
    );
    let (code, _, _) = fixture.run(&fixture.spec(&["sh", "-c", "exit 7"]));
    assert_eq!(code, 7);
    let mut spec = fixture.spec(&[
        "sh",
        "-c",
        "id -u; id -G; pwd; echo $HOME; ulimit -n; umask",
    ]);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [1000, 10]});
    spec["process"]["cwd"] = json!("/made/here");
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    let (_, text, _) = fixture.run(&spec);
    assert_eq!(text, "1000\n1000 10\n/made/here\n/home/app\n100\n0022\n");
    let mut spec = fixture.spec(&["touch", "/file"]);
    spec["root"]["readonly"] = json!(true);
    let (code, text, _) = fixture.run(&spec);
    assert!(
        code == 1 && text.contains("Read-only file system"),
        "{text}"
    );
    let groups = fixture.shell("cat /proc/self/cgroup; ls /sys/fs/cgroup");
    assert!(groups.contains(&fixture.parent), "{groups}");
}

fn mistakes_have_runcs_words(fixture: &Fixture) {
    fixture.script("script", "#!/nope\n", 0o755);
    fixture.script("garbage", "garbage", 0o755);
    fixture.script("file", "", 0o644);
    let start = "unable to start container process: ";
    for (args, cwd, words) in [
        (
            "nope",
            "/",
            "exec: \"nope\": executable file not found in $PATH",
        ),
        (
            "/nope",
            "/",
            "exec: \"/nope\": stat /nope: no such file or directory",
        ),
        (
            "./x",
            "/",
            "exec: \"./x\": stat ./x: no such file or directory",
        ),
        ("/file", "/", "exec: \"/file\": permission denied"),
        ("/bin", "/", "exec: \"/bin\": permission denied"),
        (
            "sh",
            "/file",
            "error during container init: mkdir /file: not a directory",
        ),
    ] {
        let mut spec = fixture.spec(&[args]);
        spec["process"]["cwd"] = json!(cwd);
        let (code, _, failed) = fixture.run(&spec);
        assert_eq!(
            (code, failed),
            (1, Some(format!("{start}{words}"))),
            "{args}"
        );
    }
    for (args, words) in [
        ("/script", "exec /script: no such file or directory"),
        ("/garbage", "exec /garbage: exec format error"),
    ] {
        let (code, _, failed) = fixture.run(&fixture.spec(&[args]));
        assert_eq!((code, failed.as_deref()), (1, Some(words)));
    }
}

fn paths_are_hidden_or_read_only(fixture: &Fixture) {
    // A null device of the image's own is not what hides.
    std::fs::write(fixture.rootfs().join("dev/null"), "fake").unwrap();
    let text = fixture.shell(
        "stat -c '%F %t:%T' /proc/cmdline; ls /sys/firmware | grep -c .; \
         (echo 1 > /proc/sys/kernel/domainname) 2>&1 | grep -o 'Read-only.*'; true",
    );
    assert_eq!(
        text,
        "character special file 1:3\n0\nRead-only file system\n"
    );
    // And a bind of another null device over it does not hide less.
    let fake = fixture.dir.path().join("fake");
    std::fs::write(&fake, "").unwrap();
    let mut spec = fixture.spec(&["sh", "-c", "stat -c %F /proc/cmdline /dev/null"]);
    let bind =
        json!({"destination": "/dev/null", "type": "bind", "source": fake, "options": ["rbind"]});
    spec["mounts"].as_array_mut().unwrap().push(bind);
    let (_, text, failed) = fixture.run(&spec);
    assert!(
        failed.is_some() || text.starts_with("character special file\n"),
        "{text}"
    );
}

fn mounts_stay_inside(fixture: &Fixture) {
    let outside = fixture.dir.path().join("outside");
    let source = fixture.dir.path().join("source");
    for dir in [&outside, &source] {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::write(source.join("file"), "text").unwrap();
    symlink(&outside, fixture.rootfs().join("absolute")).unwrap();
    symlink("../../../outside", fixture.rootfs().join("up")).unwrap();
    symlink("/run/dangling/file", fixture.rootfs().join("etc/link")).unwrap();
    let bind = |dest: &str, source: &Path, options: &[&str]| json!({"destination": dest, "type": "bind", "source": source, "options": options});
    let mut spec = fixture.spec(&[
        "sh",
        "-c",
        "cat /absolute/file /up/x/file /etc/link; \
        touch /absolute/no 2>&1 | grep -o 'Read-only.*'; touch /up/x/yes; \
        grep -E ' /ro ' /proc/self/mountinfo | cut -d ' ' -f 6",
    ]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(bind("/absolute", &source, &["rbind", "ro"]));
    mounts.push(bind("/up/x", &source, &["rbind"]));
    mounts.push(bind("/etc/link", &source.join("file"), &["bind", "ro"]));
    mounts.push(bind(
        "/ro",
        &source,
        &["rbind", "ro", "nosuid", "nodev", "noexec", "rprivate"],
    ));
    let (_, text, failed) = fixture.run(&spec);
    assert_eq!(failed, None);
    assert_eq!(
        text,
        "texttexttextRead-only file system\nro,nosuid,nodev,noexec,relatime\n"
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(source.join("yes").exists());
    let inside = fixture.rootfs().join("run/dangling/file");
    assert_eq!(std::fs::read(inside).unwrap(), b"");
    let mut spec = fixture.spec(&["true"]);
    let bad = bind("/x", &source, &["rbind", "tmpcopyup"]);
    spec["mounts"].as_array_mut().unwrap().push(bad);
    let (_, _, failed) = fixture.run(&spec);
    assert!(failed.unwrap().contains("unknown option \"tmpcopyup\""));
}

fn proc_and_sys_cannot_be_replaced(fixture: &Fixture) {
    let empty = fixture.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    symlink("/proc/self", fixture.rootfs().join("alias")).unwrap();
    for dest in [
        "/proc",
        "/proc/self/attr",
        "/proc/sys",
        "/alias/attr",
        "/etc/../proc/1",
    ] {
        let mut spec = fixture.spec(&["true"]);
        let bind =
            json!({"destination": dest, "type": "bind", "source": empty, "options": ["rbind"]});
        spec["mounts"].as_array_mut().unwrap().push(bind);
        let (code, _, failed) = fixture.run(&spec);
        let failed = failed.unwrap_or_default();
        assert!(
            code == 1 && failed.contains("inside /proc"),
            "{dest}: {failed}"
        );
    }
    std::fs::remove_dir(fixture.rootfs().join("sys")).unwrap();
    symlink("tmp", fixture.rootfs().join("sys")).unwrap();
    let (_, _, failed) = fixture.run(&fixture.spec(&["true"]));
    assert!(
        failed
            .unwrap()
            .contains("must be mounted on ordinary directory")
    );
}

fn nothing_of_the_program_is_seen(fixture: &Fixture) {
    let kept = File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
    let text = fixture.shell(
        "ls /proc/self/fd | sort | tr '\\n' ' '; env | sort; ls -l /proc/1/exe | grep -o '/bin/.*'",
    );
    let lines: Vec<&str> = text.lines().collect();
    // The third is the folder that is listed.
    assert_eq!(lines[0], "0 1 2 3 HOME=/root");
    assert!(lines.iter().all(|line| !line.contains("CARGO")), "{text}");
    // A working directory by way of a descriptor is nowhere.
    for number in 3..9 {
        let mut spec = fixture.spec(&["pwd"]);
        spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let (code, text, _) = fixture.run(&spec);
        assert_ne!(code, 0, "{text}");
    }
}

fn privileges_are_as_asked(fixture: &Fixture) {
    let script = "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";
    let caps = "00000000080000e1";
    let text = fixture.shell(script);
    assert_eq!(
        text.trim(),
        format!(
            "CapInh:0000000000000000 CapPrm:{caps} CapEff:{caps} CapBnd:{caps} \
                 CapAmb:0000000000000000 NoNewPrivs:0 Seccomp:0"
        )
    );
    let mut spec = fixture.spec(&["sh", "-c", script]);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    spec["process"]["noNewPrivileges"] = json!(true);
    let one = json!(["CAP_KILL"]);
    for set in [
        "inheritable",
        "ambient",
        "permitted",
        "effective",
        "bounding",
    ] {
        spec["process"]["capabilities"][set] = one.clone();
    }
    let (_, text, _) = fixture.run(&spec);
    let kill = "0000000000000020";
    assert_eq!(
        text.trim(),
        format!(
            "CapInh:{kill} CapPrm:{kill} CapEff:{kill} CapBnd:{kill} CapAmb:{kill} \
                 NoNewPrivs:1 Seccomp:0"
        )
    );
}

fn the_kernel_takes_filters(fixture: &Fixture) {
    let filter = |action: &str, args: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
               "syscalls": [{"names": ["sethostname"], "action": action, "args": args}]})
    };
    let script = "grep Seccomp: /proc/self/status; hostname other && hostname";
    for (seccomp, privileges, expected) in [
        (
            filter("SCMP_ACT_ERRNO", json!([])),
            false,
            (1, "not permitted"),
        ),
        (
            filter("SCMP_ACT_ERRNO", json!([])),
            true,
            (1, "not permitted"),
        ),
        (
            filter("SCMP_ACT_KILL_PROCESS", json!([])),
            false,
            (159, "Bad system call"),
        ),
        (filter("SCMP_ACT_LOG", json!([])), false, (0, "other")),
        (
            filter(
                "SCMP_ACT_ERRNO",
                json!([{"index": 1, "op": "SCMP_CMP_EQ", "value": 5}]),
            ),
            false,
            (1, "not permitted"),
        ),
        (
            filter(
                "SCMP_ACT_ERRNO",
                json!([{"index": 1, "op": "SCMP_CMP_GT", "value": 5}]),
            ),
            false,
            (0, "other"),
        ),
    ] {
        let mut spec = fixture.spec(&["sh", "-c", script]);
        spec["process"]["noNewPrivileges"] = json!(privileges);
        for set in ["permitted", "effective", "bounding"] {
            let set = spec["process"]["capabilities"][set].as_array_mut().unwrap();
            set.push(json!("CAP_SYS_ADMIN"));
        }
        spec["linux"]["seccomp"] = seccomp.clone();
        let (code, text, failed) = fixture.run(&spec);
        assert_eq!(failed, None);
        assert!(text.starts_with("Seccomp:\t2\n"), "{text}");
        assert_eq!(code, expected.0, "{seccomp}: {text}");
        assert!(text.contains(expected.1), "{seccomp}: {text}");
    }
}

fn a_terminal_is_handed_over(fixture: &Fixture) {
    let mut spec = fixture.spec(&[
        "sh",
        "-c",
        "tty; stty size; stat -c %u $(tty); test -c /dev/console && read x; echo got $x",
    ]);
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"height": 33, "width": 101});
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let running = fixture.start(&spec);
    let [Event::Terminal(outer)] = running.events.as_slice() else {
        panic!("{:?}", running.events);
    };
    let mut outer: File = outer.try_clone().unwrap().into();
    outer.write_all(b"typed\n").unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    // At the end a terminal has EIO.
    while let Ok(count) = outer.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8(text)
        .unwrap()
        .replacen("typed\r\n", "", 1);
    assert_eq!(text, "/dev/pts/0\r\n33 101\r\n1000\r\ngot typed\r\n");
    assert_eq!(running.finish().0, 0);
}

fn others_enter_the_container(fixture: &Fixture) {
    let mut spec = fixture.spec(&["sleep", "1000"]);
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "network"}));
    let first = fixture.start(&spec);
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let exec = |args: &[&str]| {
        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()));
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = File::open("/dev/null").unwrap();
        let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
        let started =
            fixture
                .runtime
                .exec(&spec, &process, &first.process, Some(stdio), &first.group);
        drop(write);
        let other = fixture.running(started.unwrap(), Some(read.into()), first.group.clone());
        let mut text = String::new();
        other.stdout.unwrap().read_to_string(&mut text).unwrap();
        (other.process.reap().unwrap().code(), text, other.events)
    };
    let script = "hostname; cat /proc/1/cmdline | tr '\\0' ' '; cat /proc/net/dev | grep -c :; \
                  grep -c cooper-oci /proc/self/cgroup; readlink /proc/self/ns/pid && readlink /proc/self/ns/mnt";
    let (code, text, _) = exec(&["sh", "-c", script]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("inside\nsleep 1000 1\n"), "{text}");
    let (code, _, events) = exec(&["nope"]);
    assert_eq!(code, Some(1));
    assert!(matches!(&events[..], [Event::Failed(text)] if text.contains("not found in $PATH")));
    // The helper itself is where it was.
    let (_, host, _) = fixture.run(&fixture.spec(&["sh", "-c", "echo $$"]));
    assert_eq!(host, "1\n");
    first.process.signal(9).unwrap();
    assert_eq!(first.finish().0, -1);
}

fn a_new_network_has_loopback(fixture: &Fixture) {
    let mut spec = fixture.spec(&["sh", "-c", "cat /sys/class/net/lo/flags; ls /sys/class/net"]);
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "network"}));
    let (_, text, failed) = fixture.run(&spec);
    assert_eq!((text.as_str(), failed), ("0x9\nlo\n", None));
}

fn devices_are_limited(fixture: &Fixture) {
    let script = "head -c 3 /dev/zero | tr '\\0' x; mknod /tmp/disk b 1 0 && \
                  (head -c 1 /tmp/disk) 2>&1 | grep -o 'not permitted'; \
                  stat -c %F /dev/fd /dev/ptmx /dev/made; stat -c '%a %t:%T' -L /dev/made";
    let mut spec = fixture.spec(&["sh", "-c", script]);
    spec["linux"]["devices"] = json!([{"path": "/dev/made", "type": "c", "major": 10, "minor": 229,
                                       "fileMode": 0o620, "uid": 0, "gid": 5}]);
    let (_, text, failed) = fixture.run(&spec);
    assert_eq!(failed, None);
    let expected =
        "xxxnot permitted\nsymbolic link\nsymbolic link\ncharacter special file\n620 a:e5\n";
    assert_eq!(text, expected);
}

fn what_is_not_done_is_refused_by_name(fixture: &Fixture) {
    let refused = |path: &[&str], value: Value| {
        let mut spec = fixture.spec(&["true"]);
        let mut place = &mut spec;
        for name in path {
            place = &mut place[*name];
        }
        *place = value;
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let null = File::open("/dev/null").unwrap();
        let stdio = [null.as_fd(), null.as_fd(), null.as_fd()];
        let mut group = fixture.group();
        let directories = group.directories().to_vec();
        let result = match group.limit(spec.linux().as_ref().unwrap().resources().as_ref().unwrap())
        {
            Ok(()) => {
                let prepared = fixture.runtime.prepare(group).unwrap();
                fixture
                    .runtime
                    .create(&spec, Some(stdio), prepared)
                    .map(drop)
            }
            Err(error) => Err(error),
        };
        for directory in directories {
            std::fs::remove_dir(directory).unwrap();
        }
        match result {
            Err(RuntimeError::Unsupported { what }) => what,
            other => panic!("{path:?}: {other:?}"),
        }
    };
    let namespaces = |kind: &str| json!([{"type": "pid"}, {"type": "mount"}, {"type": kind}]);
    let cases: [(&[&str], Value, &str); 12] = [
        (
            &["linux", "namespaces"],
            namespaces("user"),
            "user namespaces",
        ),
        (
            &["linux", "namespaces"],
            namespaces("time"),
            "time namespaces",
        ),
        (
            &["linux", "namespaces"],
            json!([{"type": "mount"}]),
            "without a pid namespace",
        ),
        (
            &["hooks"],
            json!({"poststop": [{"path": "/bin/true"}]}),
            "hooks",
        ),
        (
            &["linux", "sysctl"],
            json!({"net.ipv4.ip_forward": "1"}),
            "sysctl",
        ),
        (&["linux", "intelRdt"], json!({"closID": "x"}), "intelRdt"),
        (&["linux", "mountLabel"], json!("x"), "mountLabel"),
        (
            &["linux", "rootfsPropagation"],
            json!("shared"),
            "rootfsPropagation",
        ),
        (&["process", "selinuxLabel"], json!("x"), "selinuxLabel"),
        (
            &["process", "ioPriority"],
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 1}),
            "ioPriority",
        ),
        (
            &["linux", "resources", "blockIO"],
            json!({"weight": 10}),
            "blockIO",
        ),
        (
            &["linux", "resources", "hugepageLimits"],
            json!([{"pageSize": "2MB", "limit": 1}]),
            "hugepage",
        ),
    ];
    for (path, value, expected) in cases {
        let what = refused(path, value);
        assert!(what.contains(expected), "{what}");
    }
}

fn a_helper_that_dies_is_replaced(fixture: &Fixture) {
    let running = fixture.start(&fixture.spec(&["sleep", "1000"]));
    let own = format!("PPid:\t{}\n", std::process::id());
    let helpers = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let dir = entry.unwrap().path();
        let pid: u32 = dir.file_name()?.to_str()?.parse().ok()?;
        let status = std::fs::read_to_string(dir.join("status")).ok()?;
        let line = std::fs::read(dir.join("cmdline")).ok()?;
        (status.contains(&own) && line.starts_with(b"oci-runtime")).then_some(pid)
    });
    let helpers: Vec<u32> = helpers.collect();
    assert_eq!(helpers.len(), 1);
    let helper = PidFd::open(helpers[0]).unwrap();
    helper.signal(9).unwrap();
    let fd: OwnedFd = helper.as_fd().try_clone_to_owned().unwrap();
    let mut poll = [rustix::event::PollFd::new(
        &fd,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut poll, None).unwrap();
    assert_eq!(fixture.shell("echo again"), "again\n");
    // The container does not depend on it.
    assert!(!running.process.ended().unwrap());
    running.process.signal(9).unwrap();
    running.finish();
}
