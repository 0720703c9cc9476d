//! What a client is answered (RFC 8415 section 18.3).

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, Encodable, Encoder, IAAddr, IANA, IAPD, IATA, Message, MessageType,
    Status, StatusCode,
};
use hickory_proto::rr::Name;

use super::request::{Association, AssociationKind, Request};
use crate::tap_services::TapIpv6;

/// The address is the interface's for as long as that lives.
const FOREVER: u32 = u32::MAX;

/// DUID-LL (RFC 8415 section 11.4) of the address that every tap has on the host's side.
const SERVER_DUID: [u8; 10] = [0, 3, 0, 1, 0x02, 0x68, 0x74, 0x68, 0x00, 0x01];

/// The answer to a request, if it gets one.
pub fn answer(ipv6: &TapIpv6, domain: &str, request: &Request) -> Option<Vec<u8>> {
    let for_us = request
        .server
        .as_ref()
        .is_none_or(|server| *server == SERVER_DUID);
    // Which messages must name a server, and which must not (RFC 8415 section 16).
    let named = request.server.is_some();
    let kind = match request.kind {
        MessageType::Solicit if !named && request.rapid_commit => MessageType::Reply,
        MessageType::Solicit if !named => MessageType::Advertise,
        MessageType::Confirm | MessageType::Rebind if !named => MessageType::Reply,
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline
            if named && for_us =>
        {
            MessageType::Reply
        }
        MessageType::InformationRequest if for_us && request.associations.is_empty() => {
            MessageType::Reply
        }
        _ => return None,
    };
    if request.client.is_none() && request.kind != MessageType::InformationRequest {
        return None;
    }
    let mut message = Message::new_with_id(kind, request.xid);
    let options = message.opts_mut();
    options.insert(DhcpOption::ServerId(SERVER_DUID.to_vec()));
    if let Some(client) = &request.client {
        options.insert(DhcpOption::ClientId(client.clone()));
    }
    match request.kind {
        MessageType::Confirm => {
            options.insert(confirmation(ipv6, request)?);
            return encode(&message);
        }
        // It gives nothing back: the address stays the interface's.
        MessageType::Release | MessageType::Decline => {
            options.insert(status(
                Status::Success,
                "the address stays this interface's",
            ));
            return encode(&message);
        }
        MessageType::Solicit if request.rapid_commit => {
            options.insert(DhcpOption::RapidCommit);
        }
        _ => {}
    }
    let mut given = false;
    for association in &request.associations {
        options.insert(grant(ipv6, association, &mut given));
    }
    options.insert(DhcpOption::DomainNameServers(vec![ipv6.gateway]));
    if !domain.is_empty()
        && let Ok(mut name) = Name::from_ascii(domain)
    {
        name.set_fqdn(true);
        options.insert(DhcpOption::DomainSearchList(vec![name]));
    }
    encode(&message)
}

/// Whether all addresses that a client has are right for this link; no answer without any
/// (RFC 8415 section 18.3.3).
fn confirmation(ipv6: &TapIpv6, request: &Request) -> Option<DhcpOption> {
    let mut addresses = request
        .associations
        .iter()
        .flat_map(|it| &it.addresses)
        .peekable();
    addresses.peek()?;
    Some(if addresses.all(|address| *address == ipv6.address) {
        status(Status::Success, "")
    } else {
        status(Status::NotOnLink, "this interface has another address")
    })
}

/// The address for the first who asks for one; what else is wanted is not to be had.
fn grant(ipv6: &TapIpv6, wanted: &Association, given: &mut bool) -> DhcpOption {
    let mut opts = DhcpOptions::new();
    match wanted.kind {
        AssociationKind::Address if !*given => {
            *given = true;
            opts.insert(address(ipv6.address, FOREVER));
            // Others that it has are no good (RFC 8415 section 18.3.4).
            for other in &wanted.addresses {
                if *other != ipv6.address {
                    opts.insert(address(*other, 0));
                }
            }
        }
        AssociationKind::Prefix => {
            opts.insert(status(Status::NoPrefixAvail, "no prefixes here"));
        }
        _ => {
            opts.insert(status(
                Status::NoAddrsAvail,
                "one address for each interface",
            ));
        }
    }
    let id = wanted.id;
    let (t1, t2) = (FOREVER, FOREVER);
    match wanted.kind {
        AssociationKind::Address => DhcpOption::IANA(IANA { id, t1, t2, opts }),
        AssociationKind::Temporary => DhcpOption::IATA(IATA { id, opts }),
        AssociationKind::Prefix => DhcpOption::IAPD(IAPD { id, t1, t2, opts }),
    }
}

fn address(addr: Ipv6Addr, life: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr {
        addr,
        preferred_life: life,
        valid_life: life,
        opts: DhcpOptions::new(),
    })
}

fn status(status: Status, words: &str) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode {
        status,
        msg: words.to_owned(),
    })
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ipv6() -> TapIpv6 {
        TapIpv6 {
            address: "fd09::5".parse().expect("address"),
            range: "fd09::/64".parse().expect("range"),
            gateway: "fd09::1".parse().expect("address"),
        }
    }

    /// Message types that clients send.
    const KINDS: [u8; 9] = [1, 3, 4, 5, 6, 8, 9, 11, 12];

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            kind in proptest::sample::select(&KINDS[..]),
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut message = vec![kind, 1, 2, 3];
            message.extend(bytes);
            if let Some(request) = Request::read(&message) {
                let _ = answer(&ipv6(), "hearth.internal", &request);
            }
        }

        #[test]
        fn options_of_any_shape_make_no_panic(
            kind in proptest::sample::select(&KINDS[..]),
            options in proptest::collection::vec(
                (0u16..30, proptest::collection::vec(any::<u8>(), 0..60)), 0..8),
        ) {
            let mut message = vec![kind, 1, 2, 3];
            for (code, data) in options {
                message.extend(code.to_be_bytes());
                message.extend((data.len() as u16).to_be_bytes());
                message.extend(data);
            }
            if let Some(request) = Request::read(&message) {
                let reply = answer(&ipv6(), "hearth.internal", &request);
                prop_assert!(reply.is_none_or(|bytes| bytes.len() < 4096));
            }
        }
    }
}
