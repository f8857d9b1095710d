//! What a step sees and may do, as programs ask for it.

use cooper_llb::build::{Constraints, Exec, State};
use cooper_proto::pb;

use crate::client::{Bench, Files, args, bind, copy, mkdir, mkfile, request, sh};
use crate::read;

/// What a command writes to `/out`.
fn output(bench: &Bench, state: &State, exec: Exec) -> String {
    let made = state.run(exec);
    let out = bench.files(&State::scratch().copy(copy(&made, "/out", "/")));
    read(&out.path().join("out")).trim_end().to_owned()
}

#[test]
fn exe01_a_step_has_its_folder_user_names_and_limits() {
    let bench = Bench::start();
    let image = bench.image();
    let pwd = sh("pwd > /out");
    assert_eq!(
        output(&bench, &image.clone().dir("test1").dir("test2"), pwd),
        "/test1/test2"
    );

    let names = sh("cp /etc/hosts /out; cat /etc/resolv.conf >> /out; hostname >> /out");
    let text = output(&bench, &image, names);
    assert!(
        text.contains("127.0.0.1\tlocalhost buildkitsandbox"),
        "{text}"
    );
    assert!(
        text.contains("nameserver") && text.ends_with("buildkitsandbox"),
        "{text}"
    );
    let mut exec = sh("cp /etc/hosts /out; hostname >> /out; ping -c 1 -W 1 testhost >/dev/null");
    exec.extra_hosts.push(pb::HostIp {
        host: "some.host".into(),
        ip: "1.2.3.4".into(),
    });
    let text = output(&bench, &image.clone().hostname("testhost"), exec);
    assert!(
        text.contains("1.2.3.4\tsome.host") && text.ends_with("\ntesthost"),
        "{text}"
    );

    let mut exec = sh("ulimit -n > /out");
    exec.ulimits.push(pb::Ulimit {
        name: "nofile".into(),
        soft: 1062,
        hard: 1062,
    });
    assert_eq!(output(&bench, &image, exec), "1062");

    // The input is closed: a program that reads does not wait.
    bench.solve(&image.run(args(&["cat"])));
    let shm = output(&bench, &image, sh("mount | grep /dev/shm > /out"));
    assert!(shm.contains("size=65536k"), "{shm}");
    bench.end();
}

#[test]
fn exe01_users_are_looked_up_in_the_image() {
    let bench = Bench::start();
    let people = sh(
        "echo daemon:x:1:1:daemon:/usr/sbin:/bin/sh >> /etc/passwd; echo daemon:x:1: >> /etc/group; \
         echo nobody:x:65534:65534:nobody:/:/bin/sh >> /etc/passwd; \
         echo nogroup:x:65534: >> /etc/group; echo extra:x:77:daemon >> /etc/group; \
         mkdir -m 0777 /o",
    );
    let image = bench.image().run(people);
    let id = |user: &str, what: &str| {
        let exec = sh(&format!("id {what} > /o/out"));
        let made = image.clone().user(user).run(exec);
        let out = bench.files(&State::scratch().copy(copy(&made, "/o/out", "/")));
        read(&out.path().join("out")).trim_end().to_owned()
    };
    for (user, what, expected) in [
        ("daemon", "-un", "daemon"),
        ("daemon:nogroup", "-gn", "nogroup"),
        ("daemon:daemon", "-gn", "daemon"),
        ("1", "-un", "daemon"),
        ("1", "-gn", "daemon"),
        ("1:nogroup", "-gn", "nogroup"),
        ("1:2", "-g", "2"),
        ("12345", "-u", "12345"),
        ("daemon", "-G", "1 77"),
    ] {
        assert_eq!(id(user, what), expected, "{user} {what}");
    }
    let error = bench.fails(&image.user("whoever").run(sh("true")));
    assert!(error.contains("whoever"), "{error}");
    bench.end();
}

#[test]
fn exe14_codes_of_success_are_chosen() {
    let bench = Bench::start();
    let exit = |code: u32, valid: &[i32]| {
        let mut exec = sh(&format!("exit {code}"));
        exec.valid_exit_codes = valid.to_vec();
        bench.image().run(exec)
    };
    bench.solve(&exit(0, &[]));
    assert!(bench.fails(&exit(1, &[])).contains("exit code: 1"));
    bench.solve(&exit(1, &[1]));
    bench.solve(&exit(3, &[2, 3]));
    assert!(bench.fails(&exit(0, &[1])).contains("exit code: 0"));
    bench.end();
}

#[test]
fn exe18_proxies_are_seen_and_do_not_matter() {
    let bench = Bench::start();
    let build = |proxy: &str| {
        let mut exec =
            sh("echo -n $HTTP_PROXY-$HTTPS_PROXY-$NO_PROXY-$no_proxy-$ALL_PROXY > /o/env");
        exec.proxy = Some(pb::ProxyEnv {
            http_proxy: proxy.into(),
            https_proxy: "httpsvalue".into(),
            no_proxy: "noproxyvalue".into(),
            all_proxy: "allproxyvalue".into(),
            ..pb::ProxyEnv::default()
        });
        exec.mounts.push(bind("/o", &State::scratch()));
        let out = bench.files(&bench.image().run_mounted(exec, "/o").unwrap());
        read(&out.path().join("env"))
    };
    let first = build("httpvalue");
    assert_eq!(
        first,
        "httpvalue-httpsvalue-noproxyvalue-noproxyvalue-allproxyvalue"
    );
    assert_eq!(build("another"), first);
    bench.end();
}

#[test]
fn slv07_exe11_rights_have_to_be_given_and_allowed() {
    let secure = |bench: &Bench, given: &[&str]| {
        let mut exec = sh("grep CapEff /proc/self/status | cut -f 2 > /out");
        exec.security = pb::SecurityMode::Insecure;
        let made = State::scratch().copy(copy(&bench.image().run(exec), "/out", "/"));
        let mut solve = request(&made);
        solve.request.entitlements = given.iter().map(|name| (*name).to_owned()).collect();
        solve
    };
    let host = |bench: &Bench, given: &[&str]| {
        let mut exec = sh("ip link > /out 2>&1 || true; ls /sys/class/net >> /out");
        exec.network = Some(pb::NetMode::Host);
        let mut solve = request(&bench.image().run(exec));
        solve.request.entitlements = given.iter().map(|name| (*name).to_owned()).collect();
        solve
    };
    let bench = Bench::start();
    for given in [&[][..], &["security.insecure"]] {
        let error = bench.try_solve(secure(&bench, given)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("security.insecure is not allowed"),
            "{error}"
        );
    }
    for given in [&[][..], &["network.host"]] {
        let error = bench.try_solve(host(&bench, given)).unwrap_err();
        assert!(
            error.to_string().contains("network.host is not allowed"),
            "{error}"
        );
    }
    let text = output(
        &bench,
        &bench.image(),
        sh("grep CapEff /proc/self/status | cut -f 2 > /out"),
    );
    assert_eq!(text, "00000000a80425fb");
    bench.end();

    let config = "insecure-entitlements = [\"network.host\", \"security.insecure\"]\n";
    let bench = Bench::with_config(config);
    let error = bench.try_solve(secure(&bench, &[])).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("security.insecure is not allowed"),
        "{error}"
    );
    let out = bench.export(secure(&bench, &["security.insecure"]));
    let capabilities = u64::from_str_radix(read(&out.path().join("out")).trim(), 16).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"));
    let own = u64::from_str_radix(own.unwrap(), 16).unwrap();
    assert_eq!(capabilities & own, own, "{capabilities:x}");
    bench.try_solve(host(&bench, &["network.host"])).unwrap();
    bench.end();
}

#[test]
fn exe10_no_network_is_none() {
    let bench = Bench::start();
    let mut exec = sh("ls /sys/class/net > /out; ip addr show lo | grep -c UP >> /out");
    exec.network = Some(pb::NetMode::None);
    assert_eq!(output(&bench, &bench.image(), exec), "lo\n1");
    bench.end();
}

#[test]
fn ops01_layers_are_laid_over_each_other() {
    let bench = Bench::start();
    let none = State::scratch();
    let a = none
        .files(vec![mkfile("/foo", "A")])
        .files(vec![mkfile("/a", "A")])
        .files(vec![mkdir("/bar")])
        .files(vec![mkfile("/bar/A", "A")]);
    let b = a
        .files(vec![crate::client::rm("/foo")])
        .files(vec![mkfile("/b", "B")])
        .files(vec![mkfile("/bar/B", "B")]);
    let c = none
        .files(vec![mkfile("/foo", "C")])
        .files(vec![mkfile("/c", "C")])
        .files(vec![mkdir("/bar")])
        .files(vec![mkfile("/bar/A", "C")]);
    let merge = |states: &[State]| State::merge(states, Constraints::default());
    let content = |state: &State| {
        let archive = bench.stream(request(state), "tar", &[]);
        let entries = archive.0.into_iter();
        let text = entries.map(|(name, entry)| match entry.data.as_slice() {
            [] => name,
            data => format!("{name}={}", String::from_utf8_lossy(data)),
        });
        text.collect::<Vec<_>>().join(" ")
    };
    let one = merge(&[a.clone(), c.clone()]);
    assert_eq!(content(&one), "a=A bar/ bar/A=C c=C foo=C");
    let two = merge(&[c, b]);
    assert_eq!(content(&two), "a=A b=B bar/ bar/A=A bar/B=B c=C");
    let qaz = none.files(vec![mkdir("/qaz")]);
    let three = merge(&[one, two, qaz]);
    assert_eq!(content(&three), "a=A b=B bar/ bar/A=A bar/B=B c=C qaz/");
    let ran = merge(&[bench.image(), three]).run(sh(
        "rm /a; mkdir /a; mv /b /c /a/; rm -rf /bar; mkdir -m 0755 /bar; echo -n D > /bar/D; \
         rm -rf /qaz; touch /qaz",
    ));
    let e = none
        .files(vec![mkfile("/foo", "E")])
        .files(vec![mkdir("/bar")])
        .files(vec![mkfile("/bar/A", "A")])
        .files(vec![mkfile("/bar/E", "E")]);
    // `/foo` was removed in what lies below `ran`, and `/bar/A` within it.
    let four = merge(&[e, ran]);
    let text = content(&four);
    assert!(
        text.contains("a/ a/b=B a/c=C bar/ bar/D=D bar/E=E "),
        "{text}"
    );
    assert!(!text.contains("foo") && !text.contains("bar/A"), "{text}");
    assert!(text.contains(" qaz"), "{text}");
    bench.end();
}

#[test]
fn ops02_a_difference_is_a_layer() {
    let bench = Bench::start();
    let base = bench.image();
    let names = |state: &State| {
        let archive = bench.stream(request(state), "oci", &[]);
        let manifest = archive.manifest();
        if manifest["layers"].as_array().unwrap().is_empty() {
            return Vec::new();
        }
        let names = archive.last_layer();
        let names = names.names().into_iter();
        // Mount points that the image lacks.
        let names = names.filter(|name| !["dev/", "proc/", "sys/"].contains(name));
        names.map(str::to_owned).collect()
    };
    let diff = |lower: &State, upper: &State| State::diff(lower, upper, Constraints::default());
    let made = base.run(sh("echo x > /tmp/new; rm /etc/group"));
    assert_eq!(
        names(&diff(&base, &made)),
        ["etc/", "etc/.wh.group", "tmp/", "tmp/new"]
    );
    let none: Vec<String> = Vec::new();
    assert_eq!(names(&diff(&base, &base)), none);
    assert_eq!(names(&diff(&made, &made)), none);
    // Laid over something else it is the same change.
    let other = State::scratch().files(vec![
        mkdir("/etc"),
        mkfile("/etc/group", "x"),
        mkfile("/etc/y", "y"),
    ]);
    let rebased = State::merge(&[other, diff(&base, &made)], Constraints::default());
    let out = bench.files(&rebased);
    assert!(!out.path().join("etc/group").exists());
    assert_eq!(read(&out.path().join("etc/y")), "y");
    assert_eq!(read(&out.path().join("tmp/new")), "x\n");
    // Of states that are not above each other.
    let two = base.run(sh("echo y > /tmp/two"));
    let out = bench.files(&diff(&made, &two));
    assert_eq!(read(&out.path().join("tmp/two")), "y\n");
    assert!(out.path().join("etc/group").exists());
    bench.end();
}

/// Each place that a step comes from, the one said last first.
#[test]
fn llb02_a_failed_step_names_its_places() {
    use cooper_llb::build::SourceMap;
    use std::sync::Arc;
    let bench = Bench::start();
    let map = |name: &str, data: &str| SourceMap {
        info: Arc::new(pb::SourceInfo {
            filename: name.into(),
            data: data.into(),
            ..pb::SourceInfo::default()
        }),
    };
    let (foo, bar) = (map("foo", "data1"), map("bar", "data2"));
    let line = |line| {
        let start = Some(pb::Position { line, character: 0 });
        vec![pb::Range { start, end: None }]
    };
    let mut exec = args(&["not-exist"]);
    exec.constraints = Constraints::default()
        .location(&foo, line(7))
        .location(&bar, line(8))
        .location(&foo, line(9));
    let failed = bench.try_solve(request(&State::scratch().run(exec)));
    let sources = failed.unwrap_err().sources();
    let found: Vec<_> = sources
        .iter()
        .map(|source| (source.filename.as_str(), source.ranges[0].0))
        .collect();
    assert_eq!(found, [("foo", 9), ("bar", 8), ("foo", 7)]);
    assert_eq!(sources[1].data, b"data2");
    bench.end();
}
