//! Profiles of AppArmor that are not there: runtimes say so where a process would have written, in
//! words of the kernel.

use std::path::Path;

use oci_spec::runtime::Spec;

/// Where the kernel says whether it has AppArmor.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Where it lists the profiles that are loaded, to root: `name (mode)` on each line.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Why a process of this configuration cannot be confined as it is to be, if that is so: for a
/// container that could not be started.
pub fn unconfinable(spec: &Spec) -> Option<String> {
    let process = spec.process().as_ref()?;
    let profile = process.apparmor_profile().as_deref()?;
    unusable(profile, Path::new(ENABLED), Path::new(LOADED))
}

fn unusable(profile: &str, enabled: &Path, loaded: &Path) -> Option<String> {
    if profile.is_empty() || profile == "unconfined" {
        return None;
    }
    let on = std::fs::read_to_string(enabled).is_ok_and(|text| text.trim() == "Y");
    if !on {
        return Some(format!(
            "this machine has no AppArmor for the profile {profile:?}"
        ));
    }
    // Who may not look does not know.
    let text = std::fs::read_to_string(loaded).ok()?;
    let mut names = text
        .lines()
        .filter_map(|line| Some(line.rsplit_once(" (")?.0));
    let found = names.any(|name| name == profile);
    (!found).then(|| format!("the AppArmor profile {profile:?} is not loaded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (enabled, loaded) = (dir.path().join("enabled"), dir.path().join("profiles"));
        let unusable = |profile| unusable(profile, &enabled, &loaded);
        assert!(unusable("mine").unwrap().contains("no AppArmor"));
        assert_eq!(unusable(""), None);
        std::fs::write(&enabled, "Y\n").unwrap();
        assert_eq!(unusable("mine"), None);
        std::fs::write(&loaded, "other (enforce)\nwith (round) ones (complain)\n").unwrap();
        let message = unusable("mine").unwrap();
        assert!(message.contains("\"mine\" is not loaded"), "{message}");
        for there in ["other", "with (round) ones", "unconfined"] {
            assert_eq!(unusable(there), None);
        }
    }
}
