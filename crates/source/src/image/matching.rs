//! Which image of an index runs on a platform, in containerd's order of preference
//! (`platforms/compare.go`).

use cooper_llb::platform::normalize;
use cooper_proto::pb::Platform;

/// The place of the best of `candidates` for `wanted`: a closer variant is better, then an
/// earlier place. `None` stands for a candidate that says no platform, which fits when nothing
/// else does.
pub fn best<'a>(
    wanted: &Platform,
    candidates: impl IntoIterator<Item = Option<&'a Platform>>,
) -> Option<usize> {
    let accepted = accepted(&normalize(wanted));
    let mut best: Option<(usize, usize)> = None;
    for (place, candidate) in candidates.into_iter().enumerate() {
        let rank = match candidate {
            None => accepted.len(),
            Some(candidate) => {
                let candidate = normalize(candidate);
                let fits = |accepted: &Platform| same(accepted, &candidate);
                match accepted.iter().position(fits) {
                    Some(rank) => rank,
                    None => continue,
                }
            }
        };
        if best.is_none_or(|(other, _)| rank < other) {
            best = Some((rank, place));
        }
    }
    best.map(|(_, place)| place)
}

fn same(wanted: &Platform, candidate: &Platform) -> bool {
    let version = wanted.os != "windows"
        || wanted.os_version.is_empty()
        || candidate.os_version.is_empty()
        || build(&wanted.os_version) == build(&candidate.os_version);
    wanted.os == candidate.os
        && wanted.architecture == candidate.architecture
        && wanted.variant == candidate.variant
        && version
}

/// The part of a version of Windows that has to be the same: `10.0.17763` of `10.0.17763.1`.
fn build(version: &str) -> Vec<&str> {
    version.split('.').take(3).collect()
}

/// What runs on a platform, the best first.
fn accepted(wanted: &Platform) -> Vec<Platform> {
    let with = |architecture: &str, variant: &str| Platform {
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..wanted.clone()
    };
    let number = |variant: &str| {
        variant
            .strip_prefix('v')
            .and_then(|number| number.parse::<u32>().ok())
    };
    let mut all = vec![wanted.clone()];
    match wanted.architecture.as_str() {
        "amd64" => {
            if let Some(level) = number(&wanted.variant).filter(|level| *level > 1) {
                let lower = (2..level).rev().map(|l| with("amd64", &format!("v{l}")));
                all.extend(lower);
                all.push(with("amd64", ""));
            }
            all.push(with("386", ""));
        }
        "arm" => {
            if let Some(level) = number(&wanted.variant).filter(|level| *level > 5) {
                all.extend((5..level).rev().map(|l| with("arm", &format!("v{l}"))));
            }
        }
        "arm64" => {
            if !wanted.variant.is_empty() && wanted.variant != "v8" {
                all.push(with("arm64", ""));
            }
            all.extend((5..=8).rev().map(|l| with("arm", &format!("v{l}"))));
        }
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_llb::platform::parse;

    #[test]
    fn the_closest_variant_wins() {
        let table: [(&str, &[&str], Option<usize>); 7] = [
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/386", "linux/amd64"], Some(1)),
            (
                "linux/amd64/v3",
                &["linux/amd64", "linux/amd64/v2"],
                Some(1),
            ),
            ("linux/amd64", &["linux/amd64/v2"], None),
            ("linux/arm64", &["linux/arm/v6", "linux/arm/v7"], Some(1)),
            ("linux/arm/v7", &["linux/arm/v8", "linux/arm/v5"], Some(1)),
            ("linux/s390x", &["linux/amd64"], None),
        ];
        for (wanted, candidates, expected) in table {
            let candidates: Vec<_> = candidates.iter().map(|c| parse(c).unwrap()).collect();
            let found = best(&parse(wanted).unwrap(), candidates.iter().map(Some));
            assert_eq!(found, expected, "{wanted} of {candidates:?}");
        }
        let amd64 = parse("linux/amd64").unwrap();
        assert_eq!(best(&amd64, [None, Some(&amd64)]), Some(1));
        assert_eq!(best(&amd64, [None]), Some(0));
    }
}
