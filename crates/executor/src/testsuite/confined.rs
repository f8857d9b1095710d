//! What processes may not do.

use std::fs;
use std::os::unix::fs::symlink;

use super::{Fixture, shell};
use crate::{ContainerSpec, NetworkMode, Process, SecurityMode};

/// The fourteen capabilities that containerd leaves, as a mask.
const DEFAULT_MASK: &str = "00000000a80425fb";
const NO_MASK: &str = "0000000000000000";

fn insecure(fixture: &Fixture) -> ContainerSpec {
    ContainerSpec {
        security: SecurityMode::Insecure,
        ..fixture.container()
    }
}

pub(super) async fn capabilities_are_exactly_the_usual(fixture: &Fixture) {
    let script = "grep ^Cap /proc/self/status | tr -d '\\t'";
    let text = fixture.script(fixture.container(), script).await;
    let expected = format!(
        "CapInh:{NO_MASK}\nCapPrm:{DEFAULT_MASK}\nCapEff:{DEFAULT_MASK}\n\
         CapBnd:{DEFAULT_MASK}\nCapAmb:{NO_MASK}\n"
    );
    assert_eq!(text, expected);
}

pub(super) async fn other_users_have_no_capabilities(fixture: &Fixture) {
    let process = Process {
        user: "app".into(),
        ..shell("grep ^Cap /proc/self/status | tr -d '\\t'")
    };
    let (_, text) = fixture.run(fixture.container(), process).await;
    let expected = format!(
        "CapInh:{NO_MASK}\nCapPrm:{NO_MASK}\nCapEff:{NO_MASK}\n\
         CapBnd:{DEFAULT_MASK}\nCapAmb:{NO_MASK}\n"
    );
    assert_eq!(text, expected);
}

pub(super) async fn an_insecure_container_has_what_the_daemon_has(fixture: &Fixture) {
    let script = "grep ^CapEff /proc/self/status | cut -f2; grep ^Seccomp: /proc/self/status | \
                  cut -f2; mount -t tmpfs none /tmp && echo mounted; test -c /dev/kmsg && echo kmsg; \
                  test -b /dev/loop0 && echo loop; unshare -U true && echo user; \
                  [ -w /proc/sys/vm/drop_caches ] && echo sysctl; \
                  [ -w /sys/fs/cgroup/. ] && echo groups; [ -w /sys/kernel ] && echo sys";
    let text = fixture.script(insecure(fixture), script).await;
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
    let expected = format!(
        "{}\n0\nmounted\nkmsg\nloop\nuser\nsysctl\ngroups\nsys\n",
        own.unwrap().trim()
    );
    assert_eq!(text, expected);
}

pub(super) async fn system_calls_are_filtered(fixture: &Fixture) {
    if !std::path::Path::new("/proc/sys/kernel/seccomp").exists() {
        return;
    }
    // A user namespace needs no capability: only the filter refuses it.
    let script = "grep -q 'Seccomp:.2' /proc/self/status && echo filter; \
                  unshare -U true 2>&1 | grep -c 'Operation not permitted'";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "filter\n1\n");
}

pub(super) async fn paths_are_masked(fixture: &Fixture) {
    let script = "for path in acpi asound kcore keys latency_stats timer_list timer_stats \
                  sched_debug scsi; do \
                  if [ -d /proc/$path ]; then ls -A /proc/$path; \
                  elif [ -e /proc/$path ]; then head -c 1 /proc/$path | wc -c | grep -v ^0; fi; done; \
                  for path in firmware devices/virtual/powercap; do \
                  if [ -d /sys/$path ]; then ls -A /sys/$path; fi; done; echo end";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "end\n");
    let script = "for name in kcore keys timer_list; do \
                  if [ -e /proc/$name ]; then umount /proc/$name 2>/dev/null && echo $name; fi; \
                  done; true";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "");
}

pub(super) async fn the_kernel_cannot_be_set(fixture: &Fixture) {
    let script = "cd /proc; for path in sysrq-trigger sys/kernel/core_pattern sys/vm/drop_caches \
                  sys/kernel/hostname; do if [ -e $path ]; then \
                  (echo x > $path) 2>&1 | grep -q Read-only || echo $path; fi; done; \
                  for path in bus fs irq sys; do if [ -d $path ]; then \
                  grep -q \" /proc/$path .* ro,\" mounts || echo $path; fi; done; \
                  grep -q ' /sys sysfs ro,' mounts || echo sysfs; \
                  grep '^cgroup' mounts | grep -v ' ro,'; echo end";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "end\n");
}

pub(super) async fn devices_are_the_usual(fixture: &Fixture) {
    let script = "ls /dev | grep -v core | sort | tr '\\n' ' '; for name in null zero full random urandom tty; do \
                  stat -c %t:%T:%a /dev/$name; done; \
                  for name in ptmx fd stdin; do readlink /dev/$name; done";
    let text = fixture.script(fixture.container(), script).await;
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom \
                    zero 1:3:666\n1:5:666\n1:7:666\n1:8:666\n1:9:666\n5:0:666\n\
                    pts/ptmx\n/proc/self/fd\n/proc/self/fd/0\n";
    assert_eq!(text, expected);
    let script = "echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 2 /dev/random | wc -c; \
                  (echo x > /dev/full) 2>&1 | grep -c 'No space left'";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "3\n2\n1\n");
}

pub(super) async fn other_devices_are_refused(fixture: &Fixture) {
    // They can be made, because images have them, but not opened.
    let script = "cd /tmp && mknod disk b 7 0 && mknod kmsg c 1 11 && mknod mem c 1 1 && mknod own c 1 3; \
                  for name in disk kmsg mem; do \
                  (: < $name) 2>&1 | grep -c 'Operation not permitted'; done; : < own && echo own";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "1\n1\n1\nown\n");
}

pub(super) async fn no_descriptors_leak(fixture: &Fixture) {
    // With no pipe and no redirection in the shell, which would be one more for a moment.
    let script = "(ls /proc/1/fd > /tmp/fds); cat /tmp/fds";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "0\n1\n2\n");
    // Of a program that is no shell, besides that of the list.
    let process = Process::new(["/bin/ls", "/proc/self/fd"]);
    let (_, text) = fixture.run(fixture.container(), process).await;
    assert_eq!(text, "0\n1\n2\n3\n");
}

pub(super) async fn no_environment_leaks(fixture: &Fixture) {
    let script = "tr '\\0' '\\n' < /proc/1/environ | cut -d= -f1 | grep -vxE 'PATH|HOME'; true";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "");
}

pub(super) async fn signals_are_neither_ignored_nor_blocked(fixture: &Fixture) {
    let process = Process::new(["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    let (_, text) = fixture.run(fixture.container(), process).await;
    for line in text.lines() {
        let (_, mask) = line.split_once('\t').unwrap();
        // Those from 32 on belong to C libraries, which leave them ignored for who is started.
        let mask = u64::from_str_radix(mask, 16).unwrap() & 0x7fff_ffff;
        assert_eq!(mask, 0, "{line}");
    }
    assert_eq!(text.lines().count(), 2);
}

pub(super) async fn namespaces_are_its_own(fixture: &Fixture) {
    let container = ContainerSpec {
        network: NetworkMode::None,
        ..fixture.container()
    };
    let script = "for name in pid ipc uts mnt net user; do readlink /proc/self/ns/$name; done";
    let text = fixture.script(container, script).await;
    for line in text.lines() {
        let (name, _) = line.split_once(':').unwrap();
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let same = own.to_str() == Some(line);
        // A user namespace is what nobody asked for.
        assert_eq!(same, name == "user", "{line}");
    }
    assert_eq!(text.lines().count(), 6);
}

pub(super) async fn the_process_is_the_first_one(fixture: &Fixture) {
    let script = "echo $$; ls /proc | grep -c '^[0-9]*$'; cat /proc/1/comm; umask";
    let text = fixture.script(fixture.container(), script).await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("1", "sh", "0022"));
    // The shell, and the two of the pipe.
    assert!(lines[1].parse::<u32>().unwrap() <= 3, "{text}");
}

pub(super) async fn privileges_can_be_gained(fixture: &Fixture) {
    // Programs that are root's whoever runs them are a part of images.
    let script = "grep NoNewPrivs /proc/self/status | cut -f2";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "0\n");
}

pub(super) async fn special_folders_cannot_be_links_out(fixture: &Fixture) {
    let victim = fixture.folder("victim");
    for name in ["proc", "sys", "dev"] {
        let path = fixture.path("rootfs").join(name);
        fs::remove_dir(&path).unwrap();
        symlink(&victim, &path).unwrap();
        // Refused, or resolved inside; never mounted on or written to the host's folder.
        let start = fixture
            .executor
            .start(
                fixture.container(),
                shell("touch /proc/x /sys/x /dev/x; true"),
            )
            .await;
        if let Ok(running) = start {
            let _ = running.wait().await;
        }
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{name}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
}

pub(super) async fn a_working_directory_of_leaked_descriptors_leads_nowhere(fixture: &Fixture) {
    let marker = fixture.path("marker");
    fs::write(&marker, "outside").unwrap();
    let up = "../".repeat(24);
    let script = format!("cat {up}{} 2>/dev/null", marker.display());
    for number in 0..14 {
        let written = super::Written::default();
        let process = Process {
            cwd: format!("/proc/self/fd/{number}"),
            stdout: written.output(),
            ..shell(&script)
        };
        let start = fixture.executor.start(fixture.container(), process);
        if let Ok(running) = start.await {
            let _ = running.wait().await;
        }
        assert_eq!(written.text(), "", "descriptor {number}");
    }
}
