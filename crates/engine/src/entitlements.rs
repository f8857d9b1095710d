//! Rights: what the daemon allows and the client gives (`util/entitlements` in BuildKit).

use cooper_llb::Entitlements;

use crate::EngineError;

/// Reads the rights that a client gives to its build; each must be among those that the daemon
/// `supports`.
pub(crate) fn allowed(
    given: &[String],
    supports: &Entitlements,
) -> Result<Entitlements, EngineError> {
    let mut allowed = Entitlements::default();
    for name in given {
        let (right, supported) = match name.as_str() {
            "network.host" => (&mut allowed.network_host, supports.network_host),
            "security.insecure" => (&mut allowed.security_insecure, supports.security_insecure),
            "device" => (&mut allowed.device, supports.device),
            other if other.starts_with("device=") => (&mut allowed.device, supports.device),
            other => {
                return Err(EngineError::UnknownEntitlement {
                    name: other.to_owned(),
                });
            }
        };
        if !supported {
            return Err(EngineError::Entitlement { name: name.clone() });
        }
        *right = true;
    }
    Ok(allowed)
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
            "granting entitlement device=all is not allowed by build daemon configuration"
        );
        assert_eq!(check(&["all"]).unwrap_err(), "unknown entitlement all");
    }
}
