//! What this machine runs.

use std::path::Path;

use cooper_llb::platform;
use cooper_proto::pb;

/// The platforms whose programs run here, the machine's own first: with its lesser variants, and
/// what binfmt_misc hands to an emulator.
pub fn host_platforms() -> Vec<pb::Platform> {
    let host = platform::normalize(&platform::host());
    let mut found = vec![host.clone()];
    let mut add = |architecture: &str, variant: &str| {
        let platform = pb::Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..pb::Platform::default()
        };
        if !found.contains(&platform) {
            found.push(platform);
        }
    };
    match host.architecture.as_str() {
        "amd64" => {
            for variant in amd64_variants() {
                add("amd64", variant);
            }
            if cooper_sys::abi::ia32() {
                add("386", "");
            }
        }
        "arm" => {
            for variant in ["v6", "v5"] {
                add("arm", variant);
            }
        }
        _ => {}
    }
    for handler in emulators(Path::new("/proc/sys/fs/binfmt_misc")) {
        for (_, architecture, variant) in EMULATED.iter().filter(|(name, ..)| *name == handler) {
            add(architecture, variant);
        }
    }
    found
}

#[cfg(target_arch = "x86_64")]
fn amd64_variants() -> Vec<&'static str> {
    // The x86-64 psABI's micro-architecture levels.
    let v2 = std::is_x86_feature_detected!("ssse3")
        && std::is_x86_feature_detected!("sse4.2")
        && std::is_x86_feature_detected!("popcnt");
    let v3 = v2
        && std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("movbe");
    let v4 = v3
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512cd")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl");
    let levels = [(v2, "v2"), (v3, "v3"), (v4, "v4")];
    let has = levels.iter().filter(|(has, _)| *has);
    has.map(|(_, level)| *level).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_variants() -> Vec<&'static str> {
    Vec::new()
}

/// Emulators by the name under which Debian and tonistiigi/binfmt register them.
const EMULATED: &[(&str, &str, &str)] = &[
    ("qemu-aarch64", "arm64", ""),
    ("qemu-arm", "arm", "v7"),
    ("qemu-arm", "arm", "v6"),
    ("qemu-i386", "386", ""),
    ("qemu-loongarch64", "loong64", ""),
    ("qemu-mips64", "mips64", ""),
    ("qemu-mips64el", "mips64le", ""),
    ("qemu-ppc64le", "ppc64le", ""),
    ("qemu-riscv64", "riscv64", ""),
    ("qemu-s390x", "s390x", ""),
    ("qemu-x86_64", "amd64", ""),
];

/// Emulators that work inside containers: switched on, and with the interpreter held open
/// (flag `F`, kernel document binfmt-misc), since the container's root does not have it.
fn emulators(dir: &Path) -> Vec<String> {
    let Ok(list) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for entry in list.filter_map(Result::ok) {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let on = text.lines().next() == Some("enabled");
        if on && flags.is_some_and(|flags| flags.contains('F')) {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_own_platform_comes_first() {
        let all = host_platforms();
        assert_eq!(all[0], platform::normalize(&platform::host()));
    }

    #[test]
    fn emulators_count_when_they_are_on_and_held_open() {
        let dir = tempfile::tempdir().unwrap();
        let handler = |name: &str, first: &str, flags: &str| {
            let text = format!("{first}\ninterpreter /usr/bin/x\nflags: {flags}\noffset 0\n");
            std::fs::write(dir.path().join(name), text).unwrap();
        };
        handler("qemu-aarch64", "enabled", "OCF");
        handler("qemu-arm", "disabled", "OCF");
        handler("qemu-s390x", "enabled", "");
        std::fs::write(dir.path().join("status"), "enabled\n").unwrap();
        assert_eq!(emulators(dir.path()), ["qemu-aarch64"]);
        assert_eq!(emulators(&dir.path().join("none")), [""; 0]);
    }
}
