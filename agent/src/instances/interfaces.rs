//! Network interfaces on taps that somebody else made: what may be asked for, and what the VMM
//! is told.

use hearth_vmm::config::{ConfigError, NetConfig};

use super::{
    model::{Instance, Interface},
    state::InstanceState,
};
use crate::{
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
};

/// Most interfaces of one instance.
const MAX_INTERFACES: usize = 4;

/// Checks what a caller asks for. An interface without an address gets one when its instance has
/// an id; see [`for_instance`].
pub fn check(interfaces: &[Interface], max_count: u32) -> ApiResult<()> {
    if interfaces.is_empty() {
        return Ok(());
    }
    if interfaces.len() > MAX_INTERFACES {
        return Err(ApiError::invalid(
            "tap_interfaces",
            format!("at most {MAX_INTERFACES} interfaces"),
        ));
    }
    if max_count > 1 {
        return Err(ApiError::field(
            Reason::InvalidParameterCombination,
            "max_count",
            "a tap serves one instance: with tap_interfaces, ask for one",
        ));
    }
    for (index, interface) in interfaces.iter().enumerate() {
        let mut config = net_config(interface);
        if config.mac.is_empty() {
            config.mac = address("i-", index);
        }
        if let Err(error) = config.validate() {
            let field = match error {
                ConfigError::Mac { .. } => "mac_address",
                _ => "tap_name",
            };
            let field = format!("tap_interfaces[{index}].{field}");
            return Err(ApiError::invalid(field, error.to_string()));
        }
        if interfaces[..index]
            .iter()
            .any(|other| other.tap == interface.tap)
        {
            let field = format!("tap_interfaces[{index}].tap_name");
            return Err(ApiError::invalid(field, "the tap is there twice"));
        }
    }
    Ok(())
}

/// Refuses a tap that another instance runs on.
pub fn check_free(tx: &Tx<'_>, interfaces: &[Interface]) -> ApiResult<()> {
    if interfaces.is_empty() {
        return Ok(());
    }
    for other in db::instances::living(tx)? {
        if other.state == InstanceState::Stopped {
            continue;
        }
        let taken = |wanted: &Interface| other.interfaces.iter().any(|it| it.tap == wanted.tap);
        if let Some(index) = interfaces.iter().position(taken) {
            return Err(ApiError::field(
                Reason::NetworkInterfaceInUse,
                format!("tap_interfaces[{index}].tap_name"),
                format!("{} is in use by {}", interfaces[index].tap, other.id),
            ));
        }
    }
    Ok(())
}

/// The interfaces of the instance `id`, each with an address.
pub fn for_instance(interfaces: &[Interface], id: &str) -> Vec<Interface> {
    let with_address = |(index, interface): (usize, &Interface)| Interface {
        mac: match interface.mac.as_str() {
            "" => address(id, index),
            given => given.to_owned(),
        },
        tap: interface.tap.clone(),
    };
    interfaces.iter().enumerate().map(with_address).collect()
}

/// What the VMM is told.
pub fn configs(instance: &Instance) -> Vec<NetConfig> {
    instance.interfaces.iter().map(net_config).collect()
}

fn net_config(interface: &Interface) -> NetConfig {
    NetConfig {
        tap: interface.tap.clone(),
        mac: interface.mac.clone(),
        queue_pairs: 0,
        mtu: None,
    }
}

/// A locally administered address (second bit of the first byte) from the last digits of an
/// instance's id, which are random.
fn address(id: &str, index: usize) -> String {
    let digits: Vec<u8> = id.bytes().rev().filter(u8::is_ascii_hexdigit).collect();
    let digit = |at: usize| char::from(digits.get(at).copied().unwrap_or(b'0'));
    let mut text = format!("02:{index:02x}");
    for at in 0..4 {
        text.push(':');
        text.push(digit(2 * at));
        text.push(digit(2 * at + 1));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(tap: &str, mac: &str) -> Interface {
        Interface {
            tap: tap.to_owned(),
            mac: mac.to_owned(),
        }
    }

    #[test]
    fn a_bad_interface_names_its_field() {
        let good = interface("tap0", "02:00:00:00:00:01");
        assert!(check(std::slice::from_ref(&good), 1).is_ok());
        assert!(check(&[interface("tap0", "")], 1).is_ok());
        for (interfaces, count, field) in [
            (vec![good.clone()], 2, "max_count"),
            (vec![good.clone(); 2], 1, "tap_interfaces[1].tap_name"),
            (vec![good.clone(); 5], 1, "tap_interfaces"),
            (vec![interface("a/b", "")], 1, "tap_interfaces[0].tap_name"),
            (vec![interface("", "")], 1, "tap_interfaces[0].tap_name"),
            (
                vec![good, interface("tap1", "01:00:00:00:00:01")],
                1,
                "tap_interfaces[1].mac_address",
            ),
        ] {
            let error = check(&interfaces, count).unwrap_err();
            assert!(format!("{error:?}").contains(field), "{error:?}");
        }
    }

    #[test]
    fn an_interface_without_an_address_gets_a_valid_one_of_its_own() {
        let asked = [interface("tap0", ""), interface("tap1", "")];
        let made = for_instance(&asked, "i-0123456789abcdef0");
        assert_ne!(made[0].mac, made[1].mac);
        assert!(check(&made, 1).is_ok(), "{made:?}");
    }
}
