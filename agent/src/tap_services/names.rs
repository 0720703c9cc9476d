//! Names of instances within their network.

use std::net::Ipv4Addr;

use crate::tags::Tag;

/// The tag whose value is a name.
const NAME: &str = "Name";

/// Longest label of a name (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// The label that an instance's tag `Name` makes: lower-case letters, digits and dashes, whatever
/// else becomes a dash. `None` when nothing is left, or when it would be taken for an instance's
/// id or address.
pub fn label_of(tags: &[Tag]) -> Option<String> {
    let name = &tags.iter().find(|tag| tag.key == NAME)?.value;
    let mut label = String::new();
    for c in name.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => label.push(c),
            _ if label.ends_with('-') || label.is_empty() => {}
            _ => label.push('-'),
        }
    }
    label.truncate(MAX_LABEL);
    let label = label.trim_end_matches('-');
    let reserved = crate::ids::Kind::Instance.matches(label) || address_of(label).is_some();
    (!label.is_empty() && !reserved).then(|| label.to_owned())
}

/// The label that an address makes, which is an instance's host name: `ip-10-0-0-5`.
pub fn of_address(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ip-{a}-{b}-{c}-{d}")
}

/// The address that such a label is made of.
pub fn address_of(label: &str) -> Option<Ipv4Addr> {
    let address = label.strip_prefix("ip-")?.replace('-', ".").parse().ok()?;
    (of_address(address) == label).then_some(address)
}

/// All names that an instance is found by at one of its addresses.
pub fn all(instance_id: &str, tags: &[Tag], address: Ipv4Addr, domain: &str) -> Vec<String> {
    let labels = [of_address(address), instance_id.to_owned()];
    labels
        .into_iter()
        .chain(label_of(tags))
        .map(|label| format!("{label}.{domain}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: &str) -> Option<String> {
        label_of(&[Tag {
            key: "Name".to_owned(),
            value: name.to_owned(),
        }])
    }

    #[test]
    fn a_name_tag_becomes_one_label() {
        assert_eq!(label("Web Server #1").as_deref(), Some("web-server-1"));
        assert_eq!(label("db").as_deref(), Some("db"));
        assert_eq!(label("--a..b--").as_deref(), Some("a-b"));
        assert_eq!(label("Ünïcode").as_deref(), Some("n-code"));
        assert_eq!(label(&"x".repeat(200)).map(|it| it.len()), Some(63));
        for none in ["", "...", "ip-10-0-0-1", "i-0123456789abcdef0", "日本"] {
            assert_eq!(label(none), None, "{none}");
        }
        assert_eq!(label_of(&[]), None);
    }

    #[test]
    fn an_address_label_leads_back_to_its_address_only() {
        let address = Ipv4Addr::new(10, 0, 0, 5);
        assert_eq!(of_address(address), "ip-10-0-0-5");
        assert_eq!(address_of("ip-10-0-0-5"), Some(address));
        for none in [
            "ip-10-0-0",
            "ip-10-0-0-05",
            "ip-10-0-0-256",
            "ip-",
            "10-0-0-5",
        ] {
            assert_eq!(address_of(none), None, "{none}");
        }
    }
}
