//! What every executor does the same, as a test that panics when it does not. Needs root, and a
//! `busybox` that is linked statically. With `COOPER_SUITE` in the environment only the cases run
//! whose names it is a part of.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod commands;
mod confined;
mod entering;
mod files;
mod lifetime;
mod limits;
mod mounts;
mod process;
mod streams;

use std::os::fd::OwnedFd;
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
                       false hostname stty tty kill df mount umount ulimit wc grep seq cmp cut tail sort cp mv ln yes \
                       readlink printf sha256sum";

/// An executor with a root file system of its own, and a place to look at afterwards.
struct Fixture {
    dir: tempfile::TempDir,
    parent: String,
    executor: Arc<dyn Executor>,
    descriptors: usize,
    quirks: Quirks,
}

/// What a runtime of others is known not to do, in versions that are still around.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quirks {
    /// It tells a process that its terminal has another size, and gives the terminal none: crun
    /// before 1.8.7 (containers/crun, pull request 1262).
    pub keeps_terminal_size: bool,
    /// Of a command that is not executable it says why and not which it is: crun before 1.21
    /// (containers/crun, pull request 1672).
    pub hides_program: bool,
    /// It makes no mount point behind a link that leads to nothing: crun 1.8.
    pub follows_no_dangling_link: bool,
}

/// Runs the suite on executors that `open` makes, each for a root folder and a parent of
/// control groups of its own.
pub async fn run(open: impl Fn(&Path, &str) -> Arc<dyn Executor>) {
    run_with(Quirks::default(), open).await;
}

/// Runs it with a runtime that has `quirks`, which it has to have then.
pub async fn run_with(quirks: Quirks, open: impl Fn(&Path, &str) -> Arc<dyn Executor>) {
    let wanted = std::env::var("COOPER_SUITE").unwrap_or_default();
    macro_rules! cases {
        ($($module:ident :: $case:ident),* $(,)?) => {$(
            if stringify!($case).contains(&wanted) {
                eprintln!("  {}", stringify!($case));
                let fixture = Fixture::new(&open, quirks);
                Box::pin($module::$case(&fixture)).await;
                fixture.nothing_remains().await;
            }
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
        streams::both_outputs_are_told_apart,
        streams::both_outputs_can_be_one_descriptor,
        streams::much_input_arrives,
        streams::no_input_is_an_end,
        streams::input_that_nobody_reads_does_not_keep_a_process,
        streams::bytes_are_not_changed,
        streams::a_line_can_have_ten_megabytes,
        streams::a_thousand_lines_keep_their_order,
        streams::closed_outputs_do_not_keep_a_process,
        streams::output_that_nobody_wants_ends_the_process,
        streams::the_last_output_is_not_lost,
        streams::output_of_an_orphan_is_not_waited_for,
        streams::a_terminal_takes_input_and_its_end,
        streams::a_terminal_gets_both_outputs,
        commands::a_missing_command_is_named,
        commands::a_command_is_looked_up_in_the_path_of_its_environment,
        commands::a_command_that_is_not_executable_is_named,
        commands::a_missing_interpreter_is_an_error,
        commands::a_file_that_is_no_program_is_an_error,
        commands::arguments_are_as_given,
        commands::arguments_can_be_long,
        commands::a_working_directory_that_is_a_file_is_named,
        commands::a_working_directory_can_be_a_link,
        commands::a_working_directory_is_not_made_outside,
        commands::a_missing_user_or_group_is_named,
        commands::users_need_no_files,
        commands::further_groups_are_those_of_the_file,
        commands::a_process_without_arguments_is_refused,
        commands::ids_that_are_paths_are_refused,
        limits::memory_is_limited,
        limits::processor_time_is_limited,
        limits::processor_shares_are_set,
        limits::processors_are_chosen,
        limits::without_limits_there_are_none,
        limits::a_control_group_can_be_put_elsewhere,
        limits::each_limit_of_processes_is_set,
        limits::a_limit_can_be_lifted,
        limits::other_limits_are_those_of_the_daemon,
        limits::an_unknown_limit_is_named,
        limits::a_kill_is_no_want_of_memory,
        limits::use_is_told,
        confined::capabilities_are_exactly_the_usual,
        confined::other_users_have_no_capabilities,
        confined::an_insecure_container_has_what_the_daemon_has,
        confined::system_calls_are_filtered,
        confined::paths_are_masked,
        confined::the_kernel_cannot_be_set,
        confined::devices_are_the_usual,
        confined::other_devices_are_refused,
        confined::no_descriptors_leak,
        confined::no_environment_leaks,
        confined::signals_are_neither_ignored_nor_blocked,
        confined::namespaces_are_its_own,
        confined::the_process_is_the_first_one,
        confined::privileges_can_be_gained,
        confined::special_folders_cannot_be_links_out,
        confined::a_working_directory_of_leaked_descriptors_leads_nowhere,
        files::a_read_only_root_is_read_only,
        files::mounts_are_there_and_leave_no_mount_points,
        files::selectors_pick,
        files::names_and_hosts_are_set,
        files::networks_are_separate_or_not,
        mounts::a_mount_can_be_in_another,
        mounts::a_tmpfs_has_its_size_and_flags,
        mounts::shared_memory_can_be_larger,
        mounts::flags_of_binds_count,
        mounts::hosts_and_names_can_be_mounted_over,
        mounts::a_mount_must_fit_its_place,
        mounts::a_missing_source_is_an_error,
        mounts::links_lead_mounts_nowhere_outside,
        mounts::links_of_hosts_and_names_stay_inside,
        mounts::mounts_made_inside_stay_inside,
        mounts::a_root_can_be_layers,
        mounts::stubs_go_and_their_folders_keep_their_times,
        mounts::stubs_are_not_removed_outside,
        mounts::a_selector_does_not_lead_out,
        mounts::a_selector_picks_from_layers,
        entering::another_process_has_its_own_environment,
        entering::another_process_has_its_own_directory,
        entering::another_process_has_its_own_user,
        entering::another_process_tells_its_end,
        entering::another_process_that_cannot_be_run_fails_alone,
        entering::another_process_is_signalled_alone,
        entering::another_process_has_a_terminal,
        entering::another_process_reads_and_writes,
        entering::another_process_is_as_confined,
        entering::many_others_run_at_once,
        entering::output_of_an_orphan_of_another_is_not_lost,
        entering::another_process_needs_a_container,
        lifetime::dropping_the_handle_kills,
        lifetime::others_run_in_the_container,
        lifetime::dropping_another_process_kills_only_that,
        lifetime::what_the_process_left_running_ends_with_it,
        lifetime::containers_run_side_by_side,
        lifetime::sixteen_run_at_once,
        lifetime::a_start_is_told,
        lifetime::an_end_can_be_asked_for_again,
        lifetime::a_stopped_process_is_killed,
        lifetime::a_thousand_signals_are_taken,
        lifetime::the_first_process_gets_each_signal,
        lifetime::a_start_that_nobody_waits_for_leaves_nothing,
        lifetime::closing_kills_and_refuses,
    }
}

impl Fixture {
    fn new(open: &impl Fn(&Path, &str) -> Arc<dyn Executor>, quirks: Quirks) -> Self {
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
        let descriptors = descriptors();
        let executor = open(&dir.path().join("executor"), &parent);
        Self {
            dir,
            parent,
            executor,
            descriptors,
            quirks,
        }
    }

    /// The size of a terminal of `old` size that was given the `new` one.
    fn resized<'a>(&self, old: &'a str, new: &'a str) -> &'a str {
        match self.quirks.keeps_terminal_size {
            true => old,
            false => new,
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
        drop(self.executor);
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
        assert!(descriptors() <= self.descriptors, "descriptors remain");
    }
}

/// How many this process has open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn busybox() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    found
        .find(|file| file.is_file())
        .expect("a busybox in PATH")
}

/// A pipe that no other process of this machine gets by accident.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
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
