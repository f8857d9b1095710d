//! What of a configuration is different in a user namespace, for ordinary users (BuildKit,
//! `util/rootless/specconv` and `executor/oci`).

use std::path::Path;

use cooper_sys::userns;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxNamespaceType, MountBuilder, Spec};

use crate::is_of_systemd;

/// Takes out what a runtime in a user namespace cannot do. Control groups are below `delegated`,
/// the one that was handed over, if one was.
pub(crate) fn adapt(spec: &mut Spec, delegated: Option<&str>) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    // A sysfs belongs to the owner of the network that it shows; with the host's network that is
    // the machine's root. And the control groups below it are not there.
    mounts.retain(|mount| !mount.destination().starts_with("/sys"));
    for mount in &mut mounts {
        if mount.typ().as_deref() == Some("devpts")
            && let Some(options) = mount.options_mut()
        {
            // The group of terminals need not be mapped.
            options.retain(|option| !option.starts_with("gid="));
        }
    }
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        let path = linux.cgroups_path().as_ref().and_then(|path| path.to_str());
        let path = path.filter(|path| !is_of_systemd(path));
        let path = delegated
            .zip(path)
            .map(|(above, path)| format!("{above}{path}"));
        let mut resources = linux.resources().clone().filter(|_| path.is_some());
        if let Some(resources) = &mut resources {
            // The kernel takes no rules for devices from an ordinary user.
            resources.set_devices(None);
        }
        linux.set_cgroups_path(path.map(Into::into));
        linux.set_resources(resources);
        if let Some(devices) = linux.devices_mut() {
            // They are not made but borrowed.
            devices.retain(|device| device.path().exists());
        }
    }
    if let Some(process) = spec.process_mut()
        && userns::groups_are_fixed()
    {
        process.user_mut().set_additional_gids(None);
    }
}

/// Lets the container see the host's processes, by the host's `/proc`.
pub(crate) fn share_processes(spec: &mut Spec) -> Result<(), OciSpecError> {
    let in_proc = |path: &Path| path.starts_with("/proc");
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|mount| !in_proc(mount.destination()));
    let proc = MountBuilder::default()
        .destination("/proc")
        .typ("bind")
        .source("/proc")
        .options(["rbind".to_owned()]);
    mounts.insert(0, proc.build()?);
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
        linux.set_namespaces(Some(namespaces));
        // Covering a part of the host's needs what is not there in a user namespace.
        let outside = |paths: &Option<Vec<String>>| {
            let paths = paths.iter().flatten();
            let paths = paths.filter(|path| !in_proc(Path::new(path)));
            Some(paths.cloned().collect())
        };
        let (masked, read_only) = (linux.masked_paths(), linux.readonly_paths());
        let (masked, read_only) = (outside(masked), outside(read_only));
        linux.set_masked_paths(masked);
        linux.set_readonly_paths(read_only);
    }
    Ok(())
}
