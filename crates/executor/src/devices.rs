//! Devices that an unconfined container has besides those that every container has.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

/// Path, major and minor number of the devices that BuildKit gives in insecure mode.
const INSECURE: [(&str, i64, i64); 6] = [
    ("/dev/kmsg", 1, 11),
    ("/dev/cuse", 10, 203),
    ("/dev/fuse", 10, 229),
    ("/dev/kvm", 10, 232),
    ("/dev/net/tun", 10, 200),
    ("/dev/loop-control", 10, 237),
];

/// The major number of loop devices (Documentation/admin-guide/devices.txt).
const LOOP: i64 = 7;

/// The devices of insecure mode, with `loops` loop devices.
pub(crate) fn insecure(loops: u32) -> Result<Vec<LinuxDevice>, OciSpecError> {
    let device = |path: String, kind, major, minor| {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(kind)
            .major(major)
            .minor(minor)
            .build()
    };
    let fixed = INSECURE
        .iter()
        .map(|(path, major, minor)| device((*path).into(), LinuxDeviceType::C, *major, *minor));
    let loops = (0..loops).map(|number| {
        device(
            format!("/dev/loop{number}"),
            LinuxDeviceType::B,
            LOOP,
            i64::from(number),
        )
    });
    fixed.chain(loops).collect()
}

/// The rules of the devices' control group. Without insecure mode all is forbidden first, and
/// runtimes then allow what they make themselves: null, zero, full, random, urandom, tty, ptmx
/// and terminals (config-linux.md, "Default Devices").
pub(crate) fn rules(insecure: bool) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow, kind| {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(kind)
            .access("rwm")
            .build()
    };
    if insecure {
        Ok(vec![
            rule(true, LinuxDeviceType::C)?,
            rule(true, LinuxDeviceType::B)?,
        ])
    } else {
        Ok(vec![rule(false, LinuxDeviceType::A)?])
    }
}
