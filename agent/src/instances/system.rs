//! What the guest finds in SMBIOS of its machine. Programs that know EC2's machines by it, such as
//! cloud-init, take ours for one: the UUID begins with `ec2`, and the serial number is the same.

use hearth_vmm::smbios::{MAX_TEXT_BYTES, SystemConfig};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::model::Instance;

const MANUFACTURER: &str = "Hearth";

/// Of instances without a type.
const PRODUCT: &str = "micro-VM";

/// The same for as long as there is this instance, and of no other.
pub fn of(instance: &Instance) -> SystemConfig {
    let uuid = uuid(&instance.id);
    SystemConfig {
        manufacturer: MANUFACTURER.to_owned(),
        product: product(&instance.instance_type),
        serial: uuid.to_string(),
        asset_tag: instance.id.clone(),
        uuid,
    }
}

/// Of version 8 (RFC 9562, 5.8): `ec2`, and what is left of the id's SHA-256.
fn uuid(id: &str) -> Uuid {
    let digest = Sha256::digest(id);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[0] = 0xec;
    bytes[1] = 0x20 | bytes[1] & 0x0f;
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The type's name, as far as it can be told.
fn product(instance_type: &str) -> String {
    let printable = |c: &char| matches!(c, ' '..='~');
    let name = instance_type.chars().filter(printable);
    match name.take(MAX_TEXT_BYTES).collect::<String>() {
        name if name.is_empty() => PRODUCT.to_owned(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_an_id_stays_the_same_and_begins_with_ec2() {
        let first = uuid("i-0123456789abcdef0").to_string();
        // What stopped instances had before an update, they must have after it.
        assert_eq!(first, "ec2f7329-1f7c-8399-99b0-62b1a6e8a901");
        let other = uuid("i-0123456789abcdef1").to_string();
        assert!(other.starts_with("ec2") && other != first, "{other}");
    }

    #[test]
    fn any_type_is_a_product_that_the_vmm_takes() {
        let long = "x".repeat(100);
        for (name, expected) in [
            ("t.small", "t.small"),
            ("", PRODUCT),
            ("\u{e9}", PRODUCT),
            ("a\u{e9}b", "ab"),
            (&long, &long[..MAX_TEXT_BYTES]),
        ] {
            assert_eq!(product(name), expected);
        }
    }
}
