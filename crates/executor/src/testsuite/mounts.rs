//! Mounts of all kinds, and where they may be.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use cooper_snapshot::Mount;
use cooper_sys::MountPoint;

use super::files::mount;
use super::{Fixture, shell};
use crate::{ContainerMount, ContainerSpec, SecurityMode};

fn with(fixture: &Fixture, mounts: Vec<ContainerMount>) -> ContainerSpec {
    ContainerSpec {
        mounts,
        ..fixture.container()
    }
}

fn tmpfs(options: &[&str]) -> Mount {
    Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

/// Runs what may fail, and returns whether it worked.
async fn works(fixture: &Fixture, container: ContainerSpec) -> bool {
    match fixture.executor.start(container, shell("true")).await {
        Ok(running) => running.wait().await.unwrap().success(),
        Err(_) => false,
    }
}

pub(super) async fn a_mount_can_be_in_another(fixture: &Fixture) {
    let (outer, inner) = (fixture.folder("outer"), fixture.folder("inner"));
    fs::create_dir(outer.join("in")).unwrap();
    fs::write(inner.join("file"), "inner").unwrap();
    let mounts = vec![
        mount("/m", Mount::bind(&outer, false)),
        mount("/m/in", Mount::bind(&inner, true)),
        mount("/m/in/../memory", tmpfs(&[])),
    ];
    let mut mounts = mounts;
    // As callers give them: clean.
    mounts[2].dest = "/m/memory".into();
    let script = "cat /m/in/file; touch /m/out; touch /m/memory/x; ! touch /m/in/x 2>/dev/null";
    assert_eq!(fixture.script(with(fixture, mounts), script).await, "inner");
    assert!(outer.join("out").exists() && !outer.join("memory/x").exists());
}

pub(super) async fn a_tmpfs_has_its_size_and_flags(fixture: &Fixture) {
    let mounts = vec![
        mount("/small", tmpfs(&["nosuid", "size=65536"])),
        mount("/plain", tmpfs(&["nosuid"])),
        mount("/flags", tmpfs(&["nosuid", "nodev", "noexec", "mode=0700"])),
    ];
    let script = "head -c 100000 /dev/zero > /small/x 2>/dev/null || echo full; stat -c %s /small/x; \
                  stat -c %a /flags; cp /bin/busybox /flags/true; /flags/true 2>/dev/null || echo noexec; \
                  grep ' /flags ' /proc/mounts | grep -c nosuid,nodev,noexec; \
                  head -c 1000000 /dev/zero > /plain/x && echo large";
    let text = fixture.script(with(fixture, mounts), script).await;
    assert_eq!(text, "full\n65536\n700\nnoexec\n1\nlarge\n");
}

pub(super) async fn shared_memory_can_be_larger(fixture: &Fixture) {
    let script = "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2";
    let text = fixture.script(fixture.container(), script).await;
    assert_eq!(text, "65536\n");
    let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=134217728"];
    let mounts = vec![mount("/dev/shm", tmpfs(&options))];
    let text = fixture.script(with(fixture, mounts), script).await;
    assert_eq!(text, "131072\n");
}

pub(super) async fn flags_of_binds_count(fixture: &Fixture) {
    let data = fixture.folder("data");
    fs::copy(fixture.path("rootfs/bin/busybox"), data.join("true")).unwrap();
    let mut bind = Mount::bind(&data, true);
    bind.options
        .extend(["nosuid", "nodev", "noexec"].map(str::to_owned));
    let script = "/data/true 2>/dev/null || echo noexec; touch /data/x 2>/dev/null || echo ro; \
                  grep ' /data ' /proc/mounts | cut -d' ' -f4";
    let text = fixture
        .script(with(fixture, vec![mount("/data", bind)]), script)
        .await;
    assert!(text.starts_with("noexec\nro\n"), "{text}");
    for flag in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(text.contains(flag), "{text}");
    }
}

pub(super) async fn hosts_and_names_can_be_mounted_over(fixture: &Fixture) {
    let file = fixture.path("own-hosts");
    fs::write(&file, "own\n").unwrap();
    for dest in ["/etc/hosts", "/etc/resolv.conf"] {
        let mounts = vec![mount(dest, Mount::bind(&file, true))];
        let script = format!("cat {dest}");
        let text = fixture.script(with(fixture, mounts), &script).await;
        assert_eq!(text, "own\n");
    }
}

pub(super) async fn a_mount_must_fit_its_place(fixture: &Fixture) {
    let data = fixture.folder("data");
    let file = fixture.path("file");
    fs::write(&file, "").unwrap();
    fs::write(fixture.path("rootfs/tmp/file"), "kept").unwrap();
    fs::create_dir(fixture.path("rootfs/tmp/folder")).unwrap();
    // A folder on a file, below a file, and a file on a folder.
    for (dest, source) in [
        ("/tmp/file", &data),
        ("/tmp/file/below", &data),
        ("/tmp/folder", &file),
    ] {
        let mounts = vec![mount(dest, Mount::bind(source, false))];
        assert!(!works(fixture, with(fixture, mounts)).await, "{dest}");
    }
    let kept = fs::read_to_string(fixture.path("rootfs/tmp/file")).unwrap();
    assert_eq!(kept, "kept");
    assert!(works(fixture, fixture.container()).await);
}

pub(super) async fn a_missing_source_is_an_error(fixture: &Fixture) {
    let missing = fixture.path("missing");
    let mounts = vec![mount("/m", Mount::bind(&missing, false))];
    assert!(!works(fixture, with(fixture, mounts)).await);
    assert!(!missing.exists());
    let mounts = vec![mount("/m", tmpfs(&["size=nonsense"]))];
    assert!(!works(fixture, with(fixture, mounts)).await);
}

pub(super) async fn links_lead_mounts_nowhere_outside(fixture: &Fixture) {
    let (data, outside) = (fixture.folder("data"), fixture.folder("outside"));
    fs::write(data.join("file"), "data").unwrap();
    fs::create_dir(outside.join("sub")).unwrap();
    let before = fs::metadata(&outside).unwrap().mtime_nsec();
    symlink(&outside, fixture.path("rootfs/absolute")).unwrap();
    symlink("../outside", fixture.path("rootfs/relative")).unwrap();
    symlink("/tmp/inside", fixture.path("rootfs/inside")).unwrap();
    for dest in [
        "/absolute/sub",
        "/absolute/new",
        "/relative/sub",
        "/relative/new",
    ] {
        let container = ContainerSpec {
            remove_mount_stubs: true,
            ..with(fixture, vec![mount(dest, Mount::bind(&data, false))])
        };
        let (exit, text) = fixture
            .run(container, shell(&format!("cat {dest}/file")))
            .await;
        assert!(!exit.success() || text == "data", "{dest}: {text}");
        assert!(
            outside.join("sub").is_dir() && !outside.join("new").exists(),
            "{dest}"
        );
    }
    assert_eq!(fs::metadata(&outside).unwrap().mtime_nsec(), before);
    let mounts = vec![mount("/inside/deep", Mount::bind(&data, false))];
    let script = shell("cat /tmp/inside/deep/file");
    let (exit, text) = fixture.run(with(fixture, mounts), script).await;
    let refused = fixture.quirks.follows_no_dangling_link && !exit.success();
    assert!(refused || text == "data", "{exit}: {text}");
}

pub(super) async fn links_of_hosts_and_names_stay_inside(fixture: &Fixture) {
    let outside = fixture.folder("outside");
    for name in ["hosts", "resolv.conf"] {
        fs::write(outside.join(name), "untouched").unwrap();
        symlink(outside.join(name), fixture.path("rootfs/etc").join(name)).unwrap();
    }
    let script = "cat /etc/hosts | grep -c localhost; grep -c . /etc/resolv.conf > /dev/null; true";
    let (exit, text) = fixture.run(fixture.container(), shell(script)).await;
    assert!(!exit.success() || text == "2\n", "{text}");
    for name in ["hosts", "resolv.conf"] {
        let text = fs::read_to_string(outside.join(name)).unwrap();
        assert_eq!(text, "untouched");
    }
}

pub(super) async fn mounts_made_inside_stay_inside(fixture: &Fixture) {
    let data = fixture.folder("data");
    let container = ContainerSpec {
        security: SecurityMode::Insecure,
        ..with(fixture, vec![mount("/data", Mount::bind(&data, false))])
    };
    let process = shell("mount -t tmpfs none /data && touch /data/x && echo up; sleep 1000");
    let (running, mut output) = super::process::piped_in(fixture, container, process).await;
    std::io::Read::read_exact(&mut output, &mut [0; 3]).unwrap();
    assert_eq!(MountPoint::below(&data).unwrap(), []);
    assert!(!data.join("x").exists());
    drop(running);
}

pub(super) async fn a_root_can_be_layers(fixture: &Fixture) {
    let (upper, work) = (fixture.folder("upper"), fixture.folder("work"));
    let middle = fixture.folder("middle");
    fs::write(middle.join("file"), "middle").unwrap();
    let root = |read_only: bool| {
        let lower = format!(
            "lowerdir={}:{}",
            middle.display(),
            fixture.path("rootfs").display()
        );
        let options = vec![
            lower,
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        ContainerSpec {
            root: vec![Mount {
                kind: "overlay".into(),
                source: "overlay".into(),
                options,
            }],
            root_read_only: read_only,
            ..ContainerSpec::default()
        }
    };
    let text = fixture
        .script(root(false), "cat /file; echo new > /new")
        .await;
    assert_eq!(text, "middle");
    assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "new\n");
    let (exit, _) = fixture.run(root(true), shell("echo x > /other")).await;
    assert!(!exit.success() && !upper.join("other").exists());
    assert!(!fixture.path("rootfs/new").exists());
}

/// What a mount leaves behind on the folders that it is in.
pub(super) async fn stubs_go_and_their_folders_keep_their_times(fixture: &Fixture) {
    let data = fixture.folder("data");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let work = fixture.path("rootfs/work");
    fs::create_dir(&work).unwrap();
    let dirs = [
        work.clone(),
        fixture.path("rootfs/etc"),
        fixture.path("rootfs"),
    ];
    for dir in &dirs {
        fs::File::open(dir).unwrap().set_modified(old).unwrap();
    }
    let container = |dest: &str, remove_mount_stubs| ContainerSpec {
        remove_mount_stubs,
        ..with(fixture, vec![mount(dest, Mount::bind(&data, false))])
    };
    fixture.script(container("/work/a/b", true), "true").await;
    assert!(!work.join("a").exists());
    for dir in &dirs {
        let modified = fs::metadata(dir).unwrap().modified().unwrap();
        assert_eq!(modified, old, "{}", dir.display());
    }
    // Without being asked only the mount point itself.
    fixture.script(container("/work/a/b", false), "true").await;
    assert!(work.join("a").is_dir() && !work.join("a/b").exists());
    // What is not empty any more is the process's.
    let script = "umount /work/c 2>/dev/null; touch /work/new";
    fixture.script(container("/work/c/d", true), script).await;
    assert!(work.join("new").exists() && !work.join("c").exists());
    let modified = fs::metadata(&work).unwrap().modified().unwrap();
    assert!(modified > old);
}

pub(super) async fn stubs_are_not_removed_outside(fixture: &Fixture) {
    let (data, victim) = (fixture.folder("data"), fixture.folder("victim"));
    for dir in ["b", "etc"] {
        fs::create_dir(victim.join(dir)).unwrap();
    }
    for file in ["hosts", "resolv.conf"] {
        fs::write(victim.join("etc").join(file), "").unwrap();
    }
    let exchange = |link: &Path| {
        format!(
            "mv /a /moved && ln -s {0} /a; mv /etc /gone; ln -s {0}/etc /etc; true",
            link.display()
        )
    };
    for link in [victim.as_path(), Path::new("../victim")] {
        let container = ContainerSpec {
            remove_mount_stubs: true,
            ..with(fixture, vec![mount("/a/b", Mount::bind(&data, false))])
        };
        fixture.script(container, &exchange(link)).await;
        assert!(victim.join("b").is_dir());
        assert!(victim.join("etc/hosts").exists());
        assert!(victim.join("etc/resolv.conf").exists());
        for name in ["a", "etc"] {
            fs::remove_file(fixture.path("rootfs").join(name)).unwrap();
        }
        let _ = fs::remove_dir_all(fixture.path("rootfs/moved"));
        let gone = fixture.path("rootfs/gone");
        fs::rename(&gone, fixture.path("rootfs/etc")).unwrap();
    }
}

pub(super) async fn a_selector_does_not_lead_out(fixture: &Fixture) {
    let (data, outside) = (fixture.folder("data"), fixture.folder("outside"));
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::create_dir(data.join("sub")).unwrap();
    fs::write(data.join("sub/file"), "file").unwrap();
    symlink(&outside, data.join("absolute")).unwrap();
    symlink("../outside", data.join("relative")).unwrap();
    symlink("/sub", data.join("link")).unwrap();
    for selector in [
        "absolute",
        "relative/secret",
        "../outside",
        "/../outside/secret",
    ] {
        let mut picked = mount("/m", Mount::bind(&data, true));
        picked.selector = selector.into();
        let container = with(fixture, vec![picked]);
        let text = match fixture
            .executor
            .start(container, shell("cat /m /m/secret"))
            .await
        {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{selector} was found"),
        };
        assert_eq!(text, "failed to mount /m", "{selector}");
    }
    let mut picked = mount("/m", Mount::bind(&data, true));
    picked.selector = "link".into();
    let text = fixture
        .script(with(fixture, vec![picked]), "cat /m/file")
        .await;
    assert_eq!(text, "file");
}

pub(super) async fn a_selector_picks_from_layers(fixture: &Fixture) {
    let (lower, upper, work) = (
        fixture.folder("lower"),
        fixture.folder("upper"),
        fixture.folder("work"),
    );
    fs::create_dir(lower.join("sub")).unwrap();
    fs::write(lower.join("sub/file"), "below").unwrap();
    let overlay = Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ],
    };
    let mut picked = mount("/m", overlay);
    picked.selector = "/sub".into();
    let text = fixture
        .script(
            with(fixture, vec![picked]),
            "cat /m/file; echo new > /m/new",
        )
        .await;
    assert_eq!(text, "below");
    assert_eq!(fs::read_to_string(upper.join("sub/new")).unwrap(), "new\n");
}
