//! File systems, names and networks.

use std::fs;
use std::time::{Duration, SystemTime};

use cooper_snapshot::Mount;

use super::{Fixture, shell};
use crate::{ContainerMount, ContainerSpec, HostIp, NetworkMode};

pub(super) fn mount(dest: &str, mount: Mount) -> ContainerMount {
    ContainerMount {
        dest: dest.into(),
        mounts: vec![mount],
        ..ContainerMount::default()
    }
}

pub(super) async fn a_read_only_root_is_read_only(fixture: &Fixture) {
    let data = fixture.folder("data");
    let container = || ContainerSpec {
        root_read_only: true,
        mounts: vec![mount("/data", Mount::bind(&data, false))],
        ..fixture.container()
    };
    let (exit, text) = fixture.run(container(), shell("touch /new")).await;
    assert_eq!(exit.code, 1);
    assert!(text.contains("Read-only file system"), "{text}");
    fixture.script(container(), "touch /data/new").await;
    assert!(data.join("new").exists());
    assert!(!fixture.path("rootfs/data").exists());
    fixture.script(fixture.container(), "touch /new").await;
    assert!(fixture.path("rootfs/new").exists());
}

pub(super) async fn mounts_are_there_and_leave_no_mount_points(fixture: &Fixture) {
    let (data, lower, upper, work) = (
        fixture.folder("data"),
        fixture.folder("lower"),
        fixture.folder("upper"),
        fixture.folder("work"),
    );
    fs::write(data.join("file"), "content").unwrap();
    fs::write(lower.join("below"), "below").unwrap();
    let overlay = Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ],
    };
    let tmpfs = Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["nosuid".into(), "size=1048576".into()],
    };
    let etc = fixture.path("rootfs/etc");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    fs::File::open(&etc).unwrap().set_modified(old).unwrap();
    let container = ContainerSpec {
        mounts: vec![
            mount("/a/b/rw", Mount::bind(&data, false)),
            ContainerMount {
                read_only: true,
                ..mount("/ro", Mount::bind(&data, false))
            },
            mount("/a/b/single", Mount::bind(&data.join("file"), true)),
            mount("/over", overlay),
            mount("/memory", tmpfs),
        ],
        remove_mount_stubs: true,
        ..fixture.container()
    };
    let script = "cat /a/b/rw/file /ro/file /a/b/single /over/below; \
                  echo new > /a/b/rw/new; echo new > /over/new; \
                  ! touch /ro/x 2>/dev/null && ! echo 2>/dev/null > /a/b/single; \
                  df -k /memory | grep -q ' 1024 ' && echo small; \
                  grep ' /memory ' /proc/mounts | grep -q nosuid && echo nosuid";
    let text = fixture.script(container, script).await;
    assert_eq!(text, "contentcontentcontentbelowsmall\nnosuid\n");
    assert!(data.join("new").exists() && !data.join("x").exists());
    assert!(upper.join("new").exists() && !lower.join("new").exists());
    let mut left: Vec<_> = fs::read_dir(fixture.path("rootfs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["bin", "dev", "etc", "proc", "sys", "tmp"]);
    assert!(!etc.join("hosts").exists() && !etc.join("resolv.conf").exists());
    assert_eq!(fs::metadata(&etc).unwrap().modified().unwrap(), old);
}

pub(super) async fn selectors_pick(fixture: &Fixture) {
    let data = fixture.folder("data");
    fs::create_dir(data.join("sub")).unwrap();
    fs::write(data.join("sub/file"), "picked").unwrap();
    std::os::unix::fs::symlink("/sub/file", data.join("link")).unwrap();
    let pick = |dest: &str, selector: &str| ContainerMount {
        selector: selector.into(),
        ..mount(dest, Mount::bind(&data, true))
    };
    let container = ContainerSpec {
        mounts: vec![pick("/dir", "/sub"), pick("/file", "link")],
        ..fixture.container()
    };
    let text = fixture
        .script(container, "cat /dir/file /file; ! touch /dir/x 2>/dev/null")
        .await;
    assert_eq!(text, "pickedpicked");
    let container = ContainerSpec {
        mounts: vec![pick("/dir", "nothing")],
        ..fixture.container()
    };
    let error = fixture.executor.start(container, shell("true")).await;
    assert_eq!(error.err().unwrap().to_string(), "failed to mount /dir");
}

pub(super) async fn names_and_hosts_are_set(fixture: &Fixture) {
    let script = "hostname; cat /etc/hosts; grep -c nameserver /etc/resolv.conf >/dev/null";
    let text = fixture.script(fixture.container(), script).await;
    assert!(
        text.starts_with("buildkitsandbox\n127.0.0.1\tlocalhost buildkitsandbox\n"),
        "{text}"
    );
    let container = ContainerSpec {
        hostname: "somebody".into(),
        extra_hosts: vec![HostIp {
            host: "elsewhere".into(),
            ip: "192.0.2.7".into(),
        }],
        ..fixture.container()
    };
    let text = fixture.script(container, script).await;
    assert!(text.starts_with("somebody\n127.0.0.1\tlocalhost somebody\n"));
    assert!(text.contains("\n192.0.2.7\telsewhere\n"));
    let script = "! echo x 2>/dev/null >> /etc/hosts";
    fixture.script(fixture.container(), script).await;
}

pub(super) async fn networks_are_separate_or_not(fixture: &Fixture) {
    let mut host: Vec<_> = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    host.sort();
    let container = |network| ContainerSpec {
        network,
        ..fixture.container()
    };
    let list = "ls /sys/class/net; grep -q : /proc/net/dev";
    let text = fixture.script(container(NetworkMode::Host), list).await;
    assert_eq!(text.lines().collect::<Vec<_>>(), host);
    let none = format!("{list}; cat /sys/class/net/lo/flags");
    let text = fixture.script(container(NetworkMode::None), &none).await;
    // Up and running, though there is nothing else.
    assert_eq!(text, "lo\n0x9\n");
}
