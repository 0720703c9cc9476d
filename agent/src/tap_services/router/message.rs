//! Router solicitations and advertisements, byte for byte (RFC 4861 sections 4.1, 4.2 and 4.6;
//! RFC 8106 section 5).

use std::net::Ipv6Addr;

use crate::tap_services::TapIpv6;

/// Types of ICMPv6.
pub const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;

/// What has passed a router has less.
const HOP_LIMIT: i32 = 255;

/// The hop limit that guests are to use.
const GUEST_HOP_LIMIT: u8 = 64;
/// Addresses and other things are to be had by DHCPv6.
const MANAGED_AND_OTHER: u8 = 0x80 | 0x40;
/// Seconds.
const ROUTER_LIFETIME: u16 = 1800;

/// Kinds of options.
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

/// Whether this is a router solicitation that is to be answered (RFC 4861 section 6.1.1). The
/// kernel has looked at the checksum.
pub fn is_solicitation(message: &[u8], from: Ipv6Addr, hop_limit: Option<i32>) -> bool {
    let [SOLICITATION, 0, _, _, _, _, _, _, options @ ..] = message else {
        return false;
    };
    hop_limit == Some(HOP_LIMIT) && options_hold(options, from.is_unspecified())
}

fn options_hold(mut options: &[u8], anonymous: bool) -> bool {
    while let [kind, units, ..] = options {
        let length = usize::from(*units) * 8;
        if length == 0 || length > options.len() {
            return false;
        }
        if anonymous && *kind == SOURCE_LINK_LAYER_ADDRESS {
            return false;
        }
        options = &options[length..];
    }
    options.is_empty()
}

/// The advertisement of a network's router; the kernel adds the checksum.
pub fn advertisement(mtu: u16, ipv6: &TapIpv6, domain: &str) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, GUEST_HOP_LIMIT, MANAGED_AND_OTHER];
    message.extend(ROUTER_LIFETIME.to_be_bytes());
    // Reachable time and retransmission timer: as the guest likes.
    message.extend([0; 8]);

    message.extend([MTU, 1, 0, 0]);
    message.extend(u32::from(mtu).to_be_bytes());

    // Neither on the link (neighbours are reached by the router) nor for addresses of the
    // guest's own making.
    message.extend([PREFIX_INFORMATION, 4, ipv6.range.prefix_len(), 0]);
    message.extend(u32::MAX.to_be_bytes());
    message.extend(u32::MAX.to_be_bytes());
    message.extend([0; 4]);
    message.extend(ipv6.range.network().octets());

    let lifetime = u32::from(ROUTER_LIFETIME).to_be_bytes();
    message.extend([RDNSS, 3, 0, 0]);
    message.extend(lifetime);
    message.extend(ipv6.gateway.octets());

    if let Some(name) = wire_name(domain) {
        let units = 1 + name.len().div_ceil(8);
        // A name has at most 255 bytes.
        message.extend([DNSSL, units as u8, 0, 0]);
        message.extend(lifetime);
        message.extend(&name);
        message.resize(message.len().next_multiple_of(8), 0);
    }
    message
}

/// A domain as labels with their lengths; `None` for what is none.
fn wire_name(domain: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    for label in domain.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|&it| (1..64).contains(&it))?;
        name.push(length);
        name.extend(label.as_bytes());
    }
    name.push(0);
    (name.len() <= 255).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5);

    fn ipv6() -> TapIpv6 {
        TapIpv6 {
            address: "fd09::5".parse().expect("address"),
            range: "fd09::/64".parse().expect("range"),
            gateway: "fd09::1".parse().expect("address"),
        }
    }

    #[test]
    fn a_solicitation_from_the_link_is_answered_and_no_other() {
        let plain = [133, 0, 9, 9, 0, 0, 0, 0];
        let mut with_address = plain.to_vec();
        with_address.extend([1, 1, 2, 0, 0, 0, 0, 5]);
        assert!(is_solicitation(&plain, GUEST, Some(255)));
        assert!(is_solicitation(&with_address, GUEST, Some(255)));
        assert!(is_solicitation(&plain, Ipv6Addr::UNSPECIFIED, Some(255)));
        // RFC 4861 section 6.1.1, line by line.
        assert!(!is_solicitation(&plain, GUEST, Some(254)), "was forwarded");
        assert!(!is_solicitation(&plain, GUEST, None));
        assert!(!is_solicitation(&plain[..7], GUEST, Some(255)), "too short");
        assert!(!is_solicitation(
            &[133, 1, 0, 0, 0, 0, 0, 0],
            GUEST,
            Some(255)
        ));
        assert!(!is_solicitation(
            &[134, 0, 0, 0, 0, 0, 0, 0],
            GUEST,
            Some(255)
        ));
        assert!(!is_solicitation(
            &with_address,
            Ipv6Addr::UNSPECIFIED,
            Some(255)
        ));
        let empty_option = [&plain[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert!(!is_solicitation(&empty_option, GUEST, Some(255)));
        let long_option = [&plain[..], &[1, 2, 0, 0, 0, 0, 0, 0]].concat();
        assert!(!is_solicitation(&long_option, GUEST, Some(255)));
    }

    #[test]
    fn an_advertisement_says_where_to_go_and_what_to_ask() {
        let message = advertisement(1400, &ipv6(), "hearth.internal");
        assert_eq!(message[..8], [134, 0, 0, 0, 64, 0xc0, 7, 8]);
        assert_eq!(message[16..24], [5, 1, 0, 0, 0, 0, 5, 120]);
        assert_eq!(message[24..28], [3, 4, 64, 0], "neither L nor A");
        assert_eq!(
            message[40..56],
            "fd09::".parse::<Ipv6Addr>().expect("it").octets()
        );
        assert_eq!(message[56..60], [25, 3, 0, 0]);
        assert_eq!(message[64..80], ipv6().gateway.octets());
        assert_eq!(message[80..82], [31, 4]);
        assert_eq!(&message[88..105], b"\x06hearth\x08internal\0");
        assert_eq!(message.len() % 8, 0);
        // A domain that can't be is left out.
        assert_eq!(advertisement(1400, &ipv6(), "").len(), 80);
        assert_eq!(advertisement(1400, &ipv6(), &"x".repeat(64)).len(), 80);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = is_solicitation(&bytes, GUEST, Some(255));
            let mut solicitation = vec![133, 0, 0, 0, 0, 0, 0, 0];
            solicitation.extend(bytes);
            let _ = is_solicitation(&solicitation, GUEST, Some(255));
        }
    }
}
