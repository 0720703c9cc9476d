//! What a caller writes as a permission, checked and brought into its normal form.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::model::{Peer, Permission, Traffic, protocol_word, protocols};
use crate::{
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, shortened},
};

/// A permission as it came.
#[derive(Clone, Debug, Default)]
pub struct PermissionRequest {
    pub protocol: String,
    pub from: Option<i32>,
    pub to: Option<i32>,
    pub peer: Option<PeerRequest>,
    pub description: String,
}

/// The other end as it came.
#[derive(Clone, Debug)]
pub enum PeerRequest {
    Ipv4(String),
    Ipv6(String),
    Group(String),
    PrefixList(String),
}

/// Reads what can be read without the database; `field` is the permission's path.
pub fn parse(request: &PermissionRequest, field: &str) -> ApiResult<Permission> {
    let protocol = protocol(&request.protocol, &format!("{field}.protocol"))?;
    let traffic = traffic(protocol, request.from, request.to, field)?;
    let peer = match &request.peer {
        None => {
            return Err(ApiError::field(
                Reason::MissingParameter,
                format!("{field}.peer"),
                "say who the other end is: a block, a security group or a prefix list",
            ));
        }
        Some(PeerRequest::Ipv4(text)) => {
            Peer::Block(ipv4_block(text, &format!("{field}.cidr_ipv4"))?.into())
        }
        Some(PeerRequest::Ipv6(text)) => {
            Peer::Block(ipv6_block(text, &format!("{field}.cidr_ipv6"))?.into())
        }
        Some(PeerRequest::Group(id)) => {
            Kind::SecurityGroup.check(id, &format!("{field}.security_group_id"))?;
            Peer::Group(id.clone())
        }
        Some(PeerRequest::PrefixList(id)) => {
            Kind::PrefixList.check(id, &format!("{field}.prefix_list_id"))?;
            Peer::PrefixList(id.clone())
        }
    };
    if let Peer::Block(block) = &peer {
        check_family(traffic, matches!(block, IpNet::V6(_)), field)?;
    }
    Ok(Permission { traffic, peer })
}

/// ICMP is IPv4's, ICMPv6 is IPv6's: the other family's addresses would never match.
pub fn check_family(traffic: Traffic, ipv6: bool, field: &str) -> ApiResult<()> {
    let (wrong, right) = match (traffic.protocol(), ipv6) {
        (Some(protocols::ICMP), true) => ("icmp has no IPv6 addresses", "icmpv6"),
        (Some(protocols::ICMPV6), false) => ("icmpv6 has no IPv4 addresses", "icmp"),
        _ => return Ok(()),
    };
    Err(ApiError::field(
        Reason::InvalidParameterCombination,
        format!("{field}.protocol"),
        format!("{wrong}; use {right}"),
    ))
}

/// A protocol's number; `None` for all of them. Names may be upper case.
pub fn protocol(text: &str, field: &str) -> ApiResult<Option<u8>> {
    let number = match text.to_ascii_lowercase().as_str() {
        "" | "-1" => return Ok(None),
        "icmp" => Some(protocols::ICMP),
        "tcp" => Some(protocols::TCP),
        "udp" => Some(protocols::UDP),
        "icmpv6" => Some(protocols::ICMPV6),
        // `parse` would take a sign.
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(ApiError::invalid(
            field,
            format!(
                "{:?} is not a protocol: tcp, udp, icmp, icmpv6, a number from 0 to 255, or -1 for all",
                shortened(text)
            ),
        )),
    }
}

fn traffic(
    protocol: Option<u8>,
    from: Option<i32>,
    to: Option<i32>,
    field: &str,
) -> ApiResult<Traffic> {
    let (from_field, to_field) = (format!("{field}.from_port"), format!("{field}.to_port"));
    match protocol {
        Some(protocol @ (protocols::TCP | protocols::UDP)) => {
            let (from, to) = match (from, to) {
                (None, None) => return Ok(Traffic::Protocol(protocol)),
                (Some(from), Some(to)) => (from, to),
                (None, Some(_)) => return Err(half(&from_field)),
                (Some(_), None) => return Err(half(&to_field)),
            };
            let (first, last) = (port(from, &from_field)?, port(to, &to_field)?);
            match (first, last) {
                (0, u16::MAX) => Ok(Traffic::Protocol(protocol)),
                (first, last) if first > last => Err(ApiError::invalid(
                    to_field,
                    format!("the last port, {last}, is before the first, {first}"),
                )),
                (first, last) => Ok(Traffic::Ports {
                    protocol,
                    first,
                    last,
                }),
            }
        }
        Some(protocol @ (protocols::ICMP | protocols::ICMPV6)) => {
            let kind = icmp_number(from, "type", &from_field)?;
            let code = icmp_number(to, "code", &to_field)?;
            match (kind, code) {
                (None, None) => Ok(Traffic::Protocol(protocol)),
                (None, Some(_)) => Err(ApiError::field(
                    Reason::InvalidParameterCombination,
                    to_field,
                    "a code (to_port) goes with a type (from_port)",
                )),
                (Some(kind), code) => Ok(Traffic::Icmp {
                    protocol,
                    kind,
                    code,
                }),
            }
        }
        other => {
            for (value, field) in [(from, from_field), (to, to_field)] {
                if value.is_some_and(|value| value != -1) {
                    let what = other.map_or("all protocols together".to_owned(), |protocol| {
                        format!("protocol {}", protocol_word(protocol))
                    });
                    return Err(ApiError::field(
                        Reason::InvalidParameterCombination,
                        field,
                        format!("{what}: no ports; they go with tcp and udp"),
                    ));
                }
            }
            Ok(other.map_or(Traffic::All, Traffic::Protocol))
        }
    }
}

fn half(field: &str) -> ApiError {
    ApiError::field(
        Reason::MissingParameter,
        field,
        "give the first and the last port, or none for all",
    )
}

fn port(value: i32, field: &str) -> ApiResult<u16> {
    u16::try_from(value)
        .map_err(|_| ApiError::invalid(field, format!("{value} is not a port: 0 to 65535")))
}

fn icmp_number(value: Option<i32>, what: &str, field: &str) -> ApiResult<Option<u8>> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => u8::try_from(value).map(Some).map_err(|_| {
            let message = format!("{value} is not an ICMP {what}: 0 to 255, or -1 for all");
            ApiError::invalid(field, message)
        }),
    }
}

/// Reads an IPv4 block.
pub fn ipv4_block(text: &str, field: &str) -> ApiResult<Ipv4Net> {
    let block: Ipv4Net = well_written::<Ipv4Addr>(text)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| no_block(text, "IPv4", "203.0.113.0/24", field))?;
    if block.trunc() != block {
        return Err(host_bits(text, block.trunc(), field));
    }
    Ok(block)
}

/// Reads an IPv6 block.
pub fn ipv6_block(text: &str, field: &str) -> ApiResult<Ipv6Net> {
    let block: Ipv6Net = well_written::<Ipv6Addr>(text)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| no_block(text, "IPv6", "2001:db8::/32", field))?;
    if block.trunc() != block {
        return Err(host_bits(text, block.trunc(), field));
    }
    Ok(block)
}

/// The library takes 010.0.0.0 for 10.0.0.0, which others read as 8.0.0.0: such addresses are
/// refused.
fn well_written<A: FromStr>(text: &str) -> Option<&str> {
    let (address, _) = text.split_once('/')?;
    address.parse::<A>().ok().map(|_| text)
}

fn no_block(text: &str, family: &str, example: &str, field: &str) -> ApiError {
    // An address alone is the most common slip.
    let hint = match text.parse::<IpAddr>() {
        Ok(address) if address.is_ipv4() == (family == "IPv4") => {
            format!("; for this one address write {}", IpNet::from(address))
        }
        _ => format!(", such as {example}"),
    };
    ApiError::invalid(
        field,
        format!("{:?} is not an {family} block{hint}", shortened(text)),
    )
}

fn host_bits(text: &str, right: impl std::fmt::Display, field: &str) -> ApiError {
    ApiError::invalid(
        field,
        format!("{text} has bits beyond its prefix; did you mean {right}?"),
    )
    .with("suggestion", right.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(protocol: &str, from: Option<i32>, to: Option<i32>) -> PermissionRequest {
        PermissionRequest {
            protocol: protocol.to_owned(),
            from,
            to,
            peer: Some(PeerRequest::Ipv4("10.0.0.0/8".to_owned())),
            description: String::new(),
        }
    }

    fn with_peer(protocol: &str, peer: PeerRequest) -> PermissionRequest {
        PermissionRequest {
            peer: Some(peer),
            ..request(protocol, None, None)
        }
    }

    fn read(protocol: &str, from: Option<i32>, to: Option<i32>) -> Traffic {
        parse(&request(protocol, from, to), "permissions[0]")
            .unwrap_or_else(|error| panic!("{protocol} {from:?} {to:?}: {error}"))
            .traffic
    }

    fn refused(request: &PermissionRequest) -> ApiError {
        let result = parse(request, "permissions[0]");
        result.expect_err(&format!("{request:?} is taken"))
    }

    #[test]
    fn different_words_for_the_same_are_one_normal_form() {
        let https = Traffic::Ports {
            protocol: 6,
            first: 443,
            last: 443,
        };
        for name in ["tcp", "TCP", "6"] {
            assert_eq!(read(name, Some(443), Some(443)), https);
        }
        for (from, to) in [(None, None), (Some(0), Some(65535))] {
            assert_eq!(read("tcp", from, to), Traffic::Protocol(6));
        }
        for (name, number) in [("17", 17), ("udp", 17), ("icmp", 1), ("1", 1), ("47", 47)] {
            assert_eq!(read(name, None, None), Traffic::Protocol(number));
        }
        for (from, to) in [(None, None), (Some(-1), Some(-1)), (Some(-1), None)] {
            assert_eq!(read("icmp", from, to), Traffic::Protocol(1));
            assert_eq!(read("-1", from, to), Traffic::All);
            assert_eq!(read("", from, to), Traffic::All);
        }
        let echo = |code| Traffic::Icmp {
            protocol: 1,
            kind: 8,
            code,
        };
        assert_eq!(read("icmp", Some(8), Some(0)), echo(Some(0)));
        for code in [None, Some(-1)] {
            assert_eq!(read("1", Some(8), code), echo(None));
        }
    }

    #[test]
    fn what_makes_no_sense_names_the_field_at_fault() {
        for (protocol, from, to, field) in [
            ("tcpp", None, None, "protocol"),
            ("256", None, None, "protocol"),
            ("+6", None, None, "protocol"),
            ("-2", None, None, "protocol"),
            ("tcp", Some(80), None, "to_port"),
            ("udp", None, Some(80), "from_port"),
            ("tcp", Some(443), Some(80), "to_port"),
            ("tcp", Some(-1), Some(80), "from_port"),
            ("tcp", Some(1), Some(65536), "to_port"),
            ("icmp", Some(256), None, "from_port"),
            ("icmp", Some(8), Some(256), "to_port"),
            ("icmp", Some(-1), Some(0), "to_port"),
            ("47", Some(1), Some(2), "from_port"),
            ("-1", None, Some(2), "to_port"),
        ] {
            let error = refused(&request(protocol, from, to));
            assert_eq!(error.fields(), [format!("permissions[0].{field}")]);
        }
        let none = PermissionRequest::default();
        assert_eq!(refused(&none).reason(), Reason::MissingParameter);
    }

    #[test]
    fn a_block_with_host_bits_is_refused_with_the_right_one() {
        for (peer, right) in [
            (PeerRequest::Ipv4("10.1.2.3/8".to_owned()), "10.0.0.0/8"),
            (PeerRequest::Ipv6("fd00::1/64".to_owned()), "fd00::/64"),
            (PeerRequest::Ipv4("10.1.2.3".to_owned()), "10.1.2.3/32"),
            (PeerRequest::Ipv6("fd00::1".to_owned()), "fd00::1/128"),
        ] {
            let error = refused(&with_peer("tcp", peer));
            assert!(error.message().contains(right), "{error}");
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::/8",
            "010.0.0.0/8",
            "x",
        ] {
            let error = refused(&with_peer("tcp", PeerRequest::Ipv4(text.to_owned())));
            assert_eq!(error.fields(), ["permissions[0].cidr_ipv4"], "{text}");
        }
        let error = refused(&with_peer(
            "tcp",
            PeerRequest::Ipv6("10.0.0.0/8".to_owned()),
        ));
        assert_eq!(error.fields(), ["permissions[0].cidr_ipv6"]);
    }

    #[test]
    fn icmp_goes_with_ipv4_and_icmpv6_with_ipv6() {
        let ipv4 = || PeerRequest::Ipv4("0.0.0.0/0".to_owned());
        let ipv6 = || PeerRequest::Ipv6("::/0".to_owned());
        for (protocol, peer) in [("icmp", ipv6()), ("1", ipv6()), ("icmpv6", ipv4())] {
            let error = refused(&with_peer(protocol, peer));
            assert_eq!(error.fields(), ["permissions[0].protocol"]);
        }
        for (protocol, peer) in [
            ("icmp", ipv4()),
            ("58", ipv6()),
            ("-1", ipv6()),
            ("tcp", ipv6()),
        ] {
            parse(&with_peer(protocol, peer), "permissions[0]").expect("fine");
        }
    }

    #[test]
    fn ids_of_other_things_are_no_peers() {
        let error = refused(&with_peer("tcp", PeerRequest::Group("web".to_owned())));
        assert_eq!(error.reason(), Reason::SecurityGroupIdMalformed);
        let error = refused(&with_peer(
            "tcp",
            PeerRequest::PrefixList("sg-1".to_owned()),
        ));
        assert_eq!(error.reason(), Reason::PrefixListIdMalformed);
    }
}
