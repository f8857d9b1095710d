//! What every executor does the same, as a test that panics when it does not. Needs root, and a
//! `busybox` that is linked statically.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod files;
mod lifetime;
mod process;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cooper_snapshot::Mount;
use cooper_sys::MountPoint;
use cooper_sys::cgroup::Hierarchies;

use crate::{ContainerSpec, Executor, Exit, Output, Process};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:app\nadm:x:4:\n";
const APPLETS: &str = "chroot mknod unshare sh cat echo env id pwd ls head sleep touch mkdir rm stat tr test true \
                       false hostname stty tty kill df mount ulimit wc grep seq";

/// An executor with a root file system of its own, and a place to look at afterwards.
struct Fixture {
    dir: tempfile::TempDir,
    parent: String,
    executor: Arc<dyn Executor>,
}

/// Runs the suite on executors that `open` makes, each for a root folder and a parent of
/// control groups of its own.
pub async fn run(open: impl Fn(&Path, &str) -> Arc<dyn Executor>) {
    macro_rules! cases {
        ($($module:ident :: $case:ident),* $(,)?) => {$(
            eprintln!("  {}", stringify!($case));
            let fixture = Fixture::new(&open);
            $module::$case(&fixture).await;
            fixture.nothing_remains().await;
        )*};
    }
    cases! {
        process::exit_codes_and_signals_are_told,
        process::output_and_input_are_connected,
        process::much_output_loses_nothing,
        process::environment_and_directory_are_as_asked,
        process::users_are_looked_up,
        process::a_terminal_has_a_size,
        process::limits_are_set,
        process::confinement_is_as_asked,
        process::want_of_memory_is_told_apart,
        process::mistakes_leave_nothing,
        files::a_read_only_root_is_read_only,
        files::mounts_are_there_and_leave_no_mount_points,
        files::selectors_pick,
        files::names_and_hosts_are_set,
        files::networks_are_separate_or_not,
        lifetime::dropping_the_handle_kills,
        lifetime::others_run_in_the_container,
        lifetime::dropping_another_process_kills_only_that,
        lifetime::what_the_process_left_running_ends_with_it,
        lifetime::containers_run_side_by_side,
        lifetime::a_start_that_nobody_waits_for_leaves_nothing,
        lifetime::closing_kills_and_refuses,
    }
}

impl Fixture {
    fn new(open: &impl Fn(&Path, &str) -> Arc<dyn Executor>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("cooper-suite-{}-{number}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        let all = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(rootfs.join("tmp"), all).unwrap();
        std::fs::copy(busybox(), rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        std::fs::write(rootfs.join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(rootfs.join("etc/group"), GROUP).unwrap();
        let executor = open(&dir.path().join("executor"), &parent);
        Self {
            dir,
            parent,
            executor,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new folder on the host.
    fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    fn container(&self) -> ContainerSpec {
        ContainerSpec {
            root: vec![Mount::bind(&self.path("rootfs"), false)],
            ..ContainerSpec::default()
        }
    }

    /// Runs a process and returns what it wrote to both outputs.
    async fn run(&self, container: ContainerSpec, mut process: Process) -> (Exit, String) {
        let written = Written::default();
        process.stdout = written.output();
        process.stderr = written.output();
        let running = self.executor.start(container, process).await.unwrap();
        let exit = running.wait().await.unwrap();
        (exit, written.text())
    }

    /// Runs a script that is to succeed.
    async fn script(&self, container: ContainerSpec, script: &str) -> String {
        let (exit, text) = self.run(container, shell(script)).await;
        assert!(exit.success(), "{script}: {exit}: {text}");
        text
    }

    async fn nothing_remains(self) {
        self.executor.close().await;
        assert_eq!(MountPoint::below(self.dir.path()).unwrap(), []);
        let hierarchies = Hierarchies::detect().unwrap();
        for dir in hierarchies.directories(&format!("/{}/buildkit", self.parent)) {
            let groups = std::fs::read_dir(&dir).unwrap().filter_map(Result::ok);
            let groups: Vec<_> = groups
                .filter(|entry| entry.file_type().unwrap().is_dir())
                .map(|entry| entry.path())
                .collect();
            assert_eq!(groups, Vec::<PathBuf>::new());
        }
        hierarchies.remove(&format!("/{}", self.parent)).unwrap();
    }
}

fn busybox() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    found
        .find(|file| file.is_file())
        .expect("a busybox in PATH")
}

fn shell(script: &str) -> Process {
    Process {
        env: vec!["PATH=/bin".into()],
        ..Process::new(["/bin/sh", "-c", script])
    }
}

/// What a process wrote.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn output(&self) -> Output {
        let bytes = self.0.clone();
        Output::call(move |piece| bytes.lock().unwrap().extend_from_slice(&piece))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }
}
