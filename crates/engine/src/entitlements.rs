//! Rights: what the daemon allows and the client gives (`util/entitlements` in BuildKit).

use cooper_llb::Entitlements;

use crate::EngineError;

const DEVICE: &str = "device";

/// Reads the rights that a client gives to its build; each must be among those that the daemon
/// `supports`.
pub(crate) fn allowed(
    given: &[String],
    supports: &Entitlements,
) -> Result<Entitlements, EngineError> {
    let mut allowed = Entitlements::default();
    for given in given {
        // Which device comes behind the name of the right.
        let name = match given.split_once('=') {
            Some((DEVICE, device)) => {
                check_device(device)?;
                DEVICE
            }
            _ => given,
        };
        let (right, supported) = match name {
            "network.host" => (&mut allowed.network_host, supports.network_host),
            "security.insecure" => (&mut allowed.security_insecure, supports.security_insecure),
            DEVICE => (&mut allowed.device, supports.device),
            other => {
                return Err(EngineError::UnknownEntitlement {
                    name: other.to_owned(),
                });
            }
        };
        if !supported {
            let name = name.to_owned();
            return Err(EngineError::Entitlement { name });
        }
        *right = true;
    }
    Ok(allowed)
}

/// `NAME[,alias=NAME]`; nothing is all devices.
fn check_device(device: &str) -> Result<(), EngineError> {
    for field in device.split(',').skip(1) {
        let problem = match field.split_once('=') {
            Some(("alias", _)) => continue,
            Some((key, _)) => format!("unknown device config key {key:?}"),
            None => format!("invalid device config {field:?}"),
        };
        return Err(EngineError::Invalid(problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_needs_the_daemon_and_the_client() {
        let host = Entitlements {
            network_host: true,
            ..Entitlements::default()
        };
        let check = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            allowed(&names, &host).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[]), Ok(Entitlements::default()));
        assert_eq!(check(&["network.host"]), Ok(host));
        assert_eq!(
            check(&["security.insecure"]).unwrap_err(),
            "granting entitlement security.insecure is not allowed by build daemon configuration"
        );
        assert_eq!(
            check(&["device=all"]).unwrap_err(),
            "granting entitlement device is not allowed by build daemon configuration"
        );
        let wrong = |text: &str| check(&[text]).unwrap_err();
        assert_eq!(wrong("device=gpu,alias"), "invalid device config \"alias\"");
        assert_eq!(
            wrong("device=gpu,alias=a,b=c"),
            "unknown device config key \"b\""
        );
        assert_eq!(
            wrong("network.host=1"),
            "unknown entitlement network.host=1"
        );
        assert_eq!(check(&["all"]).unwrap_err(), "unknown entitlement all");
    }
}
