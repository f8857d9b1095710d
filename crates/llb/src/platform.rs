//! Platforms, with the meaning that containerd's `platforms` package gives to their names.

use cooper_proto::pb::Platform;

/// A platform's name that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// A part has letters that no platform has.
    #[error(
        "\"{part}\" is an invalid component of \"{specifier}\": platform specifier component must match \"{pattern}\": invalid argument"
    )]
    Component {
        /// The part.
        part: String,
        /// The whole.
        specifier: String,
        /// What it has to look like.
        pattern: &'static str,
    },
    /// The first part is not an operating system.
    #[error(
        "\"{part}\" is an invalid OS component of \"{specifier}\": OSAndVersion specifier component must match \"{pattern}\": invalid argument"
    )]
    Os {
        /// The part.
        part: String,
        /// The whole.
        specifier: String,
        /// What it has to look like.
        pattern: &'static str,
    },
    /// A pattern instead of a platform.
    #[error("\"{specifier}\": wildcards not yet supported: invalid argument")]
    Wildcard {
        /// The whole.
        specifier: String,
    },
    /// A single word that is neither.
    #[error("\"{specifier}\": unknown operating system or architecture: invalid argument")]
    Unknown {
        /// The whole.
        specifier: String,
    },
    /// Too many parts.
    #[error("\"{specifier}\": cannot parse platform specifier: invalid argument")]
    Parts {
        /// The whole.
        specifier: String,
    },
}

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const KNOWN_ARCH: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

const COMPONENT: &str = "^[A-Za-z0-9_.-]+$";
const OS: &str = r"^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.%-]*)((?:\\+[A-Za-z0-9_.%-]+)*)\\))?$";

/// Reads `os`, `arch`, `os/arch` or `os/arch/variant`, where the system may carry a version and
/// features: `windows(10.0.17763+win32k)`. What is missing is taken from the host.
///
/// ```
/// use cooper_llb::platform::{format, parse};
///
/// assert_eq!(format(&parse("linux/aarch64")?), "linux/arm64");
/// assert_eq!(format(&parse("linux/arm64/v8")?), "linux/arm64/v8");
/// assert!(parse("linux/amd64/v2/x").is_err());
/// # Ok::<_, cooper_llb::platform::PlatformError>(())
/// ```
pub fn parse(specifier: &str) -> Result<Platform, PlatformError> {
    let own = || specifier.to_owned();
    if specifier.contains('*') {
        return Err(PlatformError::Wildcard { specifier: own() });
    }
    let parts: Vec<_> = specifier.splitn(4, '/').collect();
    let (os, os_version, os_features) = parse_os(parts[0]).ok_or_else(|| PlatformError::Os {
        part: parts[0].to_owned(),
        specifier: own(),
        pattern: OS,
    })?;
    let letters = |part: &str, more: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    if let Some(part) = parts[1..].iter().find(|part| !letters(part, "_.-")) {
        return Err(PlatformError::Component {
            part: (*part).to_owned(),
            specifier: own(),
            pattern: COMPONENT,
        });
    }
    let mut platform = Platform {
        os,
        os_version,
        os_features,
        ..Platform::default()
    };
    match parts[..] {
        [_] if KNOWN_OS.contains(&platform.os.as_str()) => {
            let host = host();
            platform.architecture = host.architecture;
            if platform.architecture == "arm" && host.variant != "v7" {
                platform.variant = host.variant;
            }
        }
        [part] => {
            (platform.architecture, platform.variant) = normalize_arch(part, "");
            if platform.architecture == "arm" && platform.variant == "v7" {
                platform.variant.clear();
            }
            if !KNOWN_ARCH.contains(&platform.architecture.as_str()) {
                return Err(PlatformError::Unknown { specifier: own() });
            }
            platform.os = normalize_os("");
        }
        [_, arch] => {
            (platform.architecture, platform.variant) = normalize_arch(arch, "");
            if platform.architecture == "arm" && platform.variant == "v7" {
                platform.variant.clear();
            }
        }
        [_, arch, variant] => {
            (platform.architecture, platform.variant) = normalize_arch(arch, variant);
            if platform.architecture == "arm64" && platform.variant.is_empty() {
                platform.variant = "v8".to_owned();
            }
        }
        _ => return Err(PlatformError::Parts { specifier: own() }),
    }
    Ok(platform)
}

/// Operating system, version and features of `os(version+feature+…)`.
fn parse_os(part: &str) -> Option<(String, String, Vec<String>)> {
    let (name, options) = match part.split_once('(') {
        Some((name, rest)) => (name, rest.strip_suffix(')')?),
        None => (part, ""),
    };
    let name_ok = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if name.is_empty() || !name.chars().all(name_ok) {
        return None;
    }
    let mut words = options.split('+');
    let version = words.next().unwrap_or_default();
    let features: Vec<_> = words.collect();
    let option_ok = |c: char| c.is_ascii_alphanumeric() || "_.%-".contains(c);
    let all_ok = version.chars().all(option_ok)
        && features
            .iter()
            .all(|feature| !feature.is_empty() && feature.chars().all(option_ok));
    if !all_ok {
        return None;
    }
    let features = features
        .into_iter()
        .map(unescape)
        .collect::<Option<Vec<_>>>()?;
    Some((normalize_os(name), unescape(version)?, features))
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            bytes.extend(hex::decode(tail.get(..2)?).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// `os/arch[/variant]`.
pub fn format(platform: &Platform) -> String {
    if platform.os.is_empty() {
        return "unknown".to_owned();
    }
    join(&platform.os, platform)
}

/// [`format`] with the version and the features of the operating system.
pub fn format_all(platform: &Platform) -> String {
    if platform.os.is_empty() {
        return "unknown".to_owned();
    }
    let escape = |text: &str| {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '%' | '+' | '(' | ')' | '/' => out.push_str(&format!("%{:02X}", u32::from(c))),
                c => out.push(c),
            }
        }
        out
    };
    let mut options = escape(&platform.os_version);
    let mut features = platform.os_features.clone();
    features.sort();
    for feature in &features {
        options.push('+');
        options.push_str(&escape(feature));
    }
    if options.is_empty() {
        return format(platform);
    }
    join(&format!("{}({options})", platform.os), platform)
}

fn join(os: &str, platform: &Platform) -> String {
    [os, &platform.architecture, &platform.variant]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/")
}

/// The platform that this program runs on.
pub fn host() -> Platform {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "arm" => "arm",
        "powerpc64" => "ppc64le",
        "riscv64" => "riscv64",
        other => other,
    };
    normalize(&Platform {
        os: std::env::consts::OS.to_owned(),
        architecture: arch.to_owned(),
        ..Platform::default()
    })
}

/// Writes a platform the one way that platforms are compared by: known aliases replaced, and
/// variants that are an architecture's default left out.
pub fn normalize(platform: &Platform) -> Platform {
    let os = normalize_os(&platform.os);
    let (architecture, variant) = normalize_arch(&platform.architecture, &platform.variant);
    let mut os_features = platform.os_features.clone();
    os_features.sort();
    os_features.dedup();
    Platform {
        architecture,
        os,
        variant,
        os_version: platform.os_version.clone(),
        os_features,
    }
}

fn normalize_os(os: &str) -> String {
    if os.is_empty() {
        return std::env::consts::OS.to_owned();
    }
    match os.to_ascii_lowercase().as_str() {
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normalize_arch(arch: &str, variant: &str) -> (String, String) {
    let arch = arch.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (arch, variant) = match arch.as_str() {
        "i386" => ("386", String::new()),
        "x86_64" | "x86-64" | "amd64" => (
            "amd64",
            if variant == "v1" {
                String::new()
            } else {
                variant
            },
        ),
        "aarch64" | "arm64" => (
            "arm64",
            match variant.as_str() {
                "8" | "v8" | "v8.0" => String::new(),
                "9" | "9.0" | "v9.0" => "v9".to_owned(),
                _ => variant,
            },
        ),
        "armhf" => ("arm", "v7".to_owned()),
        "armel" => ("arm", "v6".to_owned()),
        "arm" => (
            "arm",
            match variant.as_str() {
                "" | "7" => "v7".to_owned(),
                "5" | "6" | "8" => format!("v{variant}"),
                _ => variant,
            },
        ),
        other => return (other.to_owned(), variant),
    };
    (arch.to_owned(), variant)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_normalised_as_containerd_does() {
        for (name, formatted, normal) in [
            ("linux/amd64", "linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64/v8", "linux/arm64"),
            ("Linux/AArch64", "linux/arm64", "linux/arm64"),
            ("linux/arm", "linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6", "linux/arm/v6"),
            ("linux/i386", "linux/386", "linux/386"),
            ("macos/arm64", "darwin/arm64", "darwin/arm64"),
            ("riscv64", "linux/riscv64", "linux/riscv64"),
            ("linux/riscv64", "linux/riscv64", "linux/riscv64"),
        ] {
            let platform = parse(name).unwrap();
            assert_eq!(format(&platform), formatted, "{name}");
            assert_eq!(format(&normalize(&platform)), normal, "{name}");
        }
    }

    #[test]
    fn versions_and_features_go_both_ways() {
        for name in [
            "windows(10.0.17763)/amd64",
            "windows(10.0.17763+win32k)/amd64",
            "linux(+a+b%2Fc)/arm64/v9",
        ] {
            assert_eq!(format_all(&parse(name).unwrap()), name);
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for name in [
            "",
            "linux/",
            "linux/*",
            "a/b/c/d",
            "linux(/amd64",
            "weird",
            "li nux/amd64",
        ] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}
