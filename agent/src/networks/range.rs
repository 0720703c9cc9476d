//! Which ranges a network may have.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::model::Network;
use crate::{
    error::{ApiError, ApiResult, Reason},
    ids::shortened,
    links::{host, seen::Seen},
};

/// What callers write for an IPv6 range that they leave to the agent.
pub const AUTO: &str = "auto";

/// Private ranges: RFC 1918, and the shared one of RFC 6598.
const PRIVATE: [&str; 4] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
];

/// Largest and smallest IPv4 range, in bits of the prefix.
const PREFIXES: std::ops::RangeInclusive<u8> = 16..=28;

/// Reads an IPv4 range that a caller gave.
pub fn parse_ipv4(text: &str, field: &str) -> ApiResult<Ipv4Net> {
    if text.is_empty() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            field,
            "a network has an IPv4 range, such as 10.0.0.0/16",
        ));
    }
    let bad = |message: String| ApiError::field(Reason::NetworkRange, field, message);
    let range: Ipv4Net = text.parse().map_err(|_| {
        bad(format!(
            "{:?} is not a range such as 10.0.0.0/16",
            shortened(text)
        ))
    })?;
    if range != range.trunc() {
        return Err(bad(format!(
            "{range} has bits beyond its prefix; the range would be {}",
            range.trunc()
        )));
    }
    if !PREFIXES.contains(&range.prefix_len()) {
        return Err(bad(format!(
            "a range is between /{} and /{}",
            PREFIXES.start(),
            PREFIXES.end()
        )));
    }
    let private = |block: &&str| {
        let block: Ipv4Net = block.parse().expect("a constant");
        block.contains(&range)
    };
    if !PRIVATE.iter().any(private) {
        return Err(bad(format!(
            "{range} is not private; take it from {}",
            PRIVATE.join(", ")
        )));
    }
    Ok(range)
}

/// Reads an IPv6 range that a caller gave; empty is none.
pub fn parse_ipv6(text: &str, field: &str) -> ApiResult<Option<Ipv6Net>> {
    let bad = |message: String| ApiError::field(Reason::NetworkRange, field, message);
    match text {
        "" => return Ok(None),
        AUTO => return unique_local().map(Some),
        _ => {}
    }
    let range: Ipv6Net = text.parse().map_err(|_| {
        bad(format!(
            "{:?} is neither `auto` nor a range such as fd12:3456:789a::/64",
            shortened(text)
        ))
    })?;
    if range.prefix_len() != 64 || range != range.trunc() {
        return Err(bad(format!("{range} is not a /64")));
    }
    let first = range.network().segments()[0];
    // 2000::/3 and fc00::/7; the metadata service's is not free.
    let allowed = first & 0xe000 == 0x2000 || first & 0xfe00 == 0xfc00;
    let metadata = "fd00:ec2::/64".parse().is_ok_and(|it: Ipv6Net| it == range);
    if !allowed || metadata {
        return Err(bad(format!(
            "{range} can't be a network's; take a global or a unique local range"
        )));
    }
    Ok(Some(range))
}

/// A /64 of a global id at random (RFC 4193, section 3.2).
fn unique_local() -> ApiResult<Ipv6Net> {
    let mut random = [0; 7];
    getrandom::fill(&mut random)
        .map_err(|error| ApiError::internal("asking the host for random numbers", error))?;
    let mut address = [0; 16];
    address[0] = 0xfd;
    address[1..8].copy_from_slice(&random);
    Ok(Ipv6Net::new_assert(Ipv6Addr::from(address), 64))
}

/// Checks that nobody else uses the ranges: no other network, and not the host.
pub fn check_free(
    ipv4: Ipv4Net,
    ipv6: Option<Ipv6Net>,
    others: &[Network],
    owner: &str,
    seen: &Seen,
) -> ApiResult<()> {
    let ranges = [
        (IpNet::from(ipv4), "ipv4_range"),
        (ipv6.map_or(IpNet::from(ipv4), IpNet::from), "ipv6_range"),
    ];
    for (range, field) in ranges.into_iter().take(1 + usize::from(ipv6.is_some())) {
        let conflict = |with: String| {
            let message = format!("{range} overlaps with {with}");
            ApiError::field(Reason::NetworkConflict, field, message)
        };
        for other in others {
            let theirs = [Some(IpNet::from(other.ipv4)), other.ipv6.map(IpNet::from)];
            for their in theirs.into_iter().flatten() {
                if their.contains(&range) || range.contains(&their) {
                    // Ids of other accounts are not told.
                    let whose = match other.owner == owner {
                        true => format!("{} ({their})", other.id),
                        false => format!("a network of another account ({their})"),
                    };
                    return Err(conflict(whose));
                }
            }
        }
        if let Some(with) = host::overlap(seen, range) {
            return Err(conflict(with));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::model::tests::network;

    #[test]
    fn private_ranges_of_the_right_size_are_taken_and_others_refused() {
        for good in [
            "10.0.0.0/16",
            "172.31.0.0/20",
            "192.168.1.0/28",
            "100.64.0.0/24",
        ] {
            let range = parse_ipv4(good, "ipv4_range").expect(good);
            assert_eq!(range.to_string(), good);
        }
        for bad in [
            "10.0.0.0/15",
            "10.0.0.0/29",
            "10.0.0.1/24",
            "8.8.8.0/24",
            "172.32.0.0/16",
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/64",
            "nonsense",
        ] {
            let error = parse_ipv4(bad, "ipv4_range").expect_err(bad);
            assert_eq!(error.reason(), Reason::NetworkRange);
            assert_eq!(error.fields(), ["ipv4_range"]);
        }
        let missing = parse_ipv4("", "ipv4_range").expect_err("missing");
        assert_eq!(missing.reason(), Reason::MissingParameter);
    }

    #[test]
    fn an_ipv6_range_is_a_64_that_may_be_picked() {
        assert_eq!(parse_ipv6("", "f").expect("none"), None);
        let auto = parse_ipv6(AUTO, "f").expect("auto").expect("one");
        assert_eq!((auto.prefix_len(), auto.network().octets()[0]), (64, 0xfd));
        assert_eq!(auto, auto.trunc());
        assert!(parse_ipv6("2001:db8:1:2::/64", "f").is_ok());
        for bad in [
            "fd00::/48",
            "fd00::1/64",
            "fe80::/64",
            "fd00:ec2::/64",
            "::/64",
            "x",
        ] {
            let error = parse_ipv6(bad, "f").expect_err(bad);
            assert_eq!(error.reason(), Reason::NetworkRange);
        }
    }

    #[test]
    fn what_another_network_has_is_not_free_and_its_id_is_its_owners() {
        let others = [network("10.1.0.0/16", Some("fd01::/64"))];
        let free = |ipv4: &str, ipv6: Option<&str>, owner: &str| {
            let ipv6 = ipv6.map(|range| range.parse().expect("range"));
            let ipv4 = ipv4.parse().expect("range");
            check_free(ipv4, ipv6, &others, owner, &Seen::default())
        };
        free("10.2.0.0/16", Some("fd02::/64"), "local").expect("free");
        let error = free("10.1.2.0/24", None, "local").expect_err("inside");
        assert!(error.message().contains("net-"), "{error}");
        let error = free("10.2.0.0/16", Some("fd01::/64"), "other").expect_err("the same");
        assert_eq!(error.fields(), ["ipv6_range"]);
        assert!(!error.message().contains("net-"), "{error}");
    }
}
