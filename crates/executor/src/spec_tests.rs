use super::*;
use serde_json::{Value, json};

fn spec(container: &ContainerSpec, context: &SpecContext) -> Value {
    let process = Process {
        env: vec!["A=b".into()],
        ..Process::new(["/bin/true"])
    };
    let user = User {
        uid: 1,
        gid: 2,
        groups: vec![3],
    };
    let spec = oci_spec(container, &process, &user, context).unwrap();
    serde_json::to_value(spec).unwrap()
}

fn context() -> SpecContext {
    SpecContext {
        resolv_conf: Some("/b/resolv.conf".into()),
        hosts: Some("/b/hosts".into()),
        ..SpecContext::new("id", Path::new("/rootfs"))
    }
}

fn mount<'a>(spec: &'a Value, dest: &str) -> &'a Value {
    let mounts = spec["mounts"].as_array().unwrap();
    let mut found = mounts.iter().filter(|mount| mount["destination"] == dest);
    let mount = found.next().unwrap_or_else(|| panic!("no {dest}"));
    assert!(found.next().is_none(), "{dest} twice");
    mount
}

fn sorted(value: &Value) -> Vec<String> {
    let mut names: Vec<String> = value
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_sandbox_is_what_containerd_makes() {
    let spec = spec(&ContainerSpec::default(), &context());
    assert_eq!(spec["root"], json!({"path": "/rootfs", "readonly": false}));
    assert_eq!(spec["hostname"], "buildkitsandbox");
    let process = &spec["process"];
    assert_eq!(process["cwd"], "/");
    assert_eq!(process["env"], json!(["A=b"]));
    assert_eq!(process["noNewPrivileges"], false);
    assert_eq!(process.get("rlimits"), None);
    let user = json!({"uid": 1, "gid": 2, "additionalGids": [2, 3]});
    assert_eq!(process["user"], user);
    let bounding = sorted(&process["capabilities"]["bounding"]);
    assert_eq!(bounding.len(), 14);
    assert!(bounding.contains(&"CAP_NET_BIND_SERVICE".to_owned()));
    assert_eq!(sorted(&process["capabilities"]["ambient"]).len(), 0);
    let destinations: Vec<_> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert_eq!(
        destinations,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/etc/resolv.conf",
            "/etc/hosts",
            "/sys/fs/cgroup"
        ]
    );
    assert_eq!(
        mount(&spec, "/etc/hosts"),
        &json!({
            "destination": "/etc/hosts", "type": "bind", "source": "/b/hosts",
            "options": ["nosuid", "noexec", "nodev", "rbind", "ro"]
        })
    );
    let linux = &spec["linux"];
    assert_eq!(linux["cgroupsPath"], "/buildkit/id");
    assert_eq!(
        linux["resources"]["devices"],
        json!([{"allow": false, "type": "a", "access": "rwm"}])
    );
    assert_eq!(linux["maskedPaths"].as_array().unwrap().len(), 11);
    assert_eq!(linux["readonlyPaths"].as_array().unwrap().len(), 5);
    let namespaces = linux["namespaces"].as_array().unwrap();
    assert_eq!(namespaces.len(), 5);
    assert!(namespaces.contains(&json!({"type": "network"})));
}

#[test]
fn an_insecure_container_has_everything() {
    let container = ContainerSpec {
        security: SecurityMode::Insecure,
        ..ContainerSpec::default()
    };
    let mut context = context();
    context.capabilities = Capabilities::effective("Name:\tx\nCapEff:\t000001ffffffffff\n");
    context.apparmor_profile = "profile".into();
    context.loop_devices = 2;
    let spec = spec(&container, &context);
    assert_eq!(
        sorted(&spec["process"]["capabilities"]["ambient"]).len(),
        41
    );
    assert_eq!(spec["process"].get("apparmorProfile"), None);
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert_eq!(spec["linux"]["devices"].as_array().unwrap().len(), 8);
    let options = &mount(&spec, "/sys")["options"];
    assert_eq!(options, &json!(["nosuid", "noexec", "nodev", "rw"]));
    let rules = &spec["linux"]["resources"]["devices"];
    assert_eq!(
        rules[0],
        json!({"allow": true, "type": "c", "access": "rwm"})
    );
}

#[test]
fn what_a_container_asks_for_is_there() {
    let container = ContainerSpec {
        root_read_only: true,
        hostname: "me".into(),
        ulimits: vec![Ulimit {
            name: "nofile".into(),
            soft: 1024,
            hard: -1,
        }],
        cgroup_parent: "../../mine".into(),
        resources: Resources {
            memory: 1 << 20,
            cpu_quota: 5,
            cpuset_cpus: "0".into(),
            ..Resources::default()
        },
        ..ContainerSpec::default()
    };
    let mut context = context();
    context.host_network = true;
    context.cgroup_namespace = true;
    context.cgroup_parent = "other".into();
    context.mounts = vec![
        MountBuilder::default()
            .destination("/dev/shm")
            .typ("tmpfs")
            .build()
            .unwrap(),
    ];
    let spec = spec(&container, &context);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["hostname"], "me");
    assert_eq!(
        spec["process"]["rlimits"],
        json!([{"type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 1024}])
    );
    let linux = &spec["linux"];
    assert_eq!(linux["cgroupsPath"], "/mine/buildkit/id");
    assert_eq!(linux["resources"]["memory"]["limit"], 1 << 20);
    assert_eq!(linux["resources"]["cpu"], json!({"quota": 5, "cpus": "0"}));
    let namespaces = linux["namespaces"].as_array().unwrap();
    assert!(!namespaces.contains(&json!({"type": "network"})));
    assert!(namespaces.contains(&json!({"type": "cgroup"})));
    assert_eq!(mount(&spec, "/dev/shm").get("options"), None);
}

#[test]
fn cgroups_are_named_as_buildkit_names_them() {
    let cases = [
        ("", "", "/buildkit/id"),
        ("a", "", "/a/buildkit/id"),
        ("/a/b/", "", "/a/b/buildkit/id"),
        ("a", "b", "/b/buildkit/id"),
        ("system.slice:buildkit:", "", "system.slice:buildkit:id"),
        ("system.slice", "", "/system.slice/buildkit/id"),
    ];
    for (default, own, expected) in cases {
        let mut context = context();
        context.cgroup_parent = default.into();
        let container = ContainerSpec {
            cgroup_parent: own.into(),
            ..ContainerSpec::default()
        };
        assert_eq!(context.cgroup(&container), expected);
    }
}

#[test]
fn an_ordinary_user_has_the_groups_that_were_handed_over() {
    let container = ContainerSpec {
        resources: Resources {
            memory: 1 << 20,
            ..Resources::default()
        },
        ..ContainerSpec::default()
    };
    let user = User::default();
    let process = Process::new(["true"]);
    let linux = |delegated: Option<&str>, parent: &str| {
        let mut context = context();
        context.user_namespace = true;
        context.cgroup_delegated = delegated.map(str::to_owned);
        context.cgroup_parent = parent.into();
        let spec = oci_spec(&container, &process, &user, &context).unwrap();
        serde_json::to_value(spec).unwrap()["linux"].clone()
    };
    let given = linux(Some("/user.slice/mine.scope"), "x");
    assert_eq!(given["cgroupsPath"], "/user.slice/mine.scope/x/buildkit/id");
    assert_eq!(given["resources"]["memory"]["limit"], 1 << 20);
    assert_eq!(given["resources"].get("devices"), None);
    // systemd's own manager is not asked.
    for none in [linux(None, "x"), linux(Some("/y"), "a.slice:x:")] {
        assert_eq!(none.get("cgroupsPath"), None);
        assert_eq!(none.get("resources"), None);
    }
}

#[test]
fn another_process_inherits_what_it_does_not_say() {
    let user = User::default();
    let base = oci_spec(
        &ContainerSpec::default(),
        &Process {
            env: vec!["A=b".into()],
            cwd: "/work".into(),
            ..Process::new(["init"])
        },
        &user,
        &context(),
    )
    .unwrap();
    let init = base.process().as_ref().unwrap();
    let same = exec_process(&Process::new(["x"]), None, init);
    assert_eq!(same.env().as_ref().unwrap(), &["A=b"]);
    assert_eq!(same.cwd(), Path::new("/work"));
    let other = Process {
        env: vec!["C=d".into()],
        cwd: "/".into(),
        ..Process::new(["y"])
    };
    let own = exec_process(&other, Some(&User { uid: 5, ..user }), init);
    assert_eq!(own.env().as_ref().unwrap(), &["C=d"]);
    assert_eq!((own.user().uid(), own.cwd().as_path()), (5, Path::new("/")));
}

#[test]
fn mistakes_are_named() {
    let limit = Ulimit {
        name: "none".into(),
        soft: 0,
        hard: 0,
    };
    assert!(matches!(rlimit(&limit), Err(ExecError::Ulimit { .. })));
    let container = ContainerSpec::default();
    let none = oci_spec(
        &container,
        &Process::default(),
        &User::default(),
        &context(),
    );
    assert!(matches!(none, Err(ExecError::NoArgs)));
    let line = "one\n1.2.3.4 other".to_owned();
    let hosts = vec![crate::HostIp {
        host: line.clone(),
        ip: "1.1.1.1".into(),
    }];
    for container in [
        ContainerSpec {
            hostname: line,
            ..ContainerSpec::default()
        },
        ContainerSpec {
            extra_hosts: hosts,
            ..ContainerSpec::default()
        },
    ] {
        let process = Process::new(["true"]);
        let error = oci_spec(&container, &process, &User::default(), &context()).unwrap_err();
        let expected = "invalid host name \"one\\n1.2.3.4 other\"";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn open_files_are_those_of_the_container_or_else_of_the_context() {
    let mut context = context();
    context.open_files = Some((1024, 4096));
    let limits =
        |container: &ContainerSpec| spec(container, &context)["process"]["rlimits"].clone();
    assert_eq!(
        limits(&ContainerSpec::default()),
        json!([{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 1024}])
    );
    let container = ContainerSpec {
        ulimits: vec![Ulimit {
            name: "nofile".into(),
            soft: 7,
            hard: 8,
        }],
        ..ContainerSpec::default()
    };
    assert_eq!(
        limits(&container),
        json!([{"type": "RLIMIT_NOFILE", "hard": 8, "soft": 7}])
    );
}
