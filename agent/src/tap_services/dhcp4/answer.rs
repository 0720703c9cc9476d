//! What a client is answered (RFC 2131 section 4.3).

use std::net::Ipv4Addr;

use dhcproto::v4::{
    DhcpOption, Encodable, Encoder, Flags, Message, MessageType, Opcode, OptionCode,
};
use hickory_proto::rr::Name;
use ipnet::Ipv4Net;

use super::request::Request;
use crate::tap_services::{TapConfig, names};

/// A lease's time, and when it is renewed and rebound (RFC 2131 section 4.4.5), in seconds. The
/// address is the interface's for as long as that lives.
const LEASE: u32 = 12 * 60 * 60;
const RENEWAL: u32 = LEASE / 2;
const REBINDING: u32 = LEASE / 8 * 7;

/// Every client takes so much (RFC 2131 section 2): 576 bytes without IP and UDP headers.
const SMALLEST_MAX: usize = 576 - 28;

/// Shorter messages are filled up: old clients and relays drop them (RFC 1542 section 2.1).
const MIN_LENGTH: usize = 300;

/// Where guests find the metadata service.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// A message and where it goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub to: Ipv4Addr,
    pub bytes: Vec<u8>,
}

/// The answer to a request, if it gets one.
pub fn answer(config: &TapConfig, domain: &str, request: &Request) -> Option<Reply> {
    if request.mac != config.mac {
        return None;
    }
    let ours = config.ipv4_gateway;
    if request.server.is_some_and(|server| server != ours) {
        // It has taken another server's offer.
        return None;
    }
    let kind = match request.kind {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => {
            // In the states SELECTING and INIT-REBOOT the address is in the option, in RENEWING
            // and REBINDING in the header.
            let wanted = request.requested.unwrap_or(request.ciaddr);
            if wanted == config.ipv4 {
                MessageType::Ack
            } else {
                MessageType::Nak
            }
        }
        MessageType::Inform if request.ciaddr == config.ipv4 => MessageType::Ack,
        MessageType::Decline => {
            tracing::warn!(
                interface = config.interface_id,
                "the guest declines {}: somebody else has it, it says",
                config.ipv4
            );
            return None;
        }
        // A release gives nothing back: the address stays the interface's.
        _ => return None,
    };
    let mut message = Message::new_with_id(
        request.xid,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &request.mac,
    );
    message.set_opcode(Opcode::BootReply);
    if request.broadcast {
        message.set_flags(Flags::default().set_broadcast());
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(ours));
    if let Some(id) = &request.client_id {
        options.insert(DhcpOption::ClientIdentifier(id.clone()));
    }
    if kind == MessageType::Nak {
        let text = format!("this interface has {}", config.ipv4);
        options.insert(DhcpOption::Message(text));
        return reply(message, request, Ipv4Addr::BROADCAST);
    }
    if request.kind == MessageType::Inform {
        message.set_ciaddr(request.ciaddr);
    } else {
        message.set_yiaddr(config.ipv4);
        if kind == MessageType::Ack {
            message.set_ciaddr(request.ciaddr);
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::AddressLeaseTime(LEASE));
        options.insert(DhcpOption::Renewal(RENEWAL));
        options.insert(DhcpOption::Rebinding(REBINDING));
    }
    configure(&mut message, config, domain, request);
    // The guest is alone on its link: a broadcast is for it, and reaches it also before it has
    // its address.
    let to = match request.ciaddr {
        Ipv4Addr::UNSPECIFIED => Ipv4Addr::BROADCAST,
        address => address,
    };
    reply(message, request, to)
}

fn configure(message: &mut Message, config: &TapConfig, domain: &str, request: &Request) {
    let gateway = config.ipv4_gateway;
    let options = message.opts_mut();
    options.insert(DhcpOption::SubnetMask(config.ipv4_range.netmask()));
    options.insert(DhcpOption::Router(vec![gateway]));
    options.insert(DhcpOption::DomainNameServer(vec![gateway]));
    options.insert(DhcpOption::Hostname(names::of_address(config.ipv4)));
    options.insert(DhcpOption::InterfaceMtu(config.mtu));
    if !domain.is_empty() {
        options.insert(DhcpOption::DomainName(domain.to_owned()));
        if request.asks_for(OptionCode::DomainSearch)
            && let Ok(name) = Name::from_ascii(domain)
        {
            options.insert(DhcpOption::DomainSearch(vec![name]));
        }
    }
    if request.asks_for(OptionCode::BroadcastAddr) {
        options.insert(DhcpOption::BroadcastAddr(config.ipv4_range.broadcast()));
    }
    if request.asks_for(OptionCode::ClasslessStaticRoute) {
        // Whoever takes these takes no other router (RFC 3442). The second one is for guests
        // that hold 169.254.0.0/16 for what is on the link.
        let default = Ipv4Net::default();
        options.insert(DhcpOption::ClasslessStaticRoute(vec![
            (default, gateway),
            (Ipv4Net::from(METADATA), gateway),
        ]));
    }
}

/// Leaves out what is dearest while the message is too long for the client.
fn reply(mut message: Message, request: &Request, to: Ipv4Addr) -> Option<Reply> {
    let most = usize::from(request.max_size.unwrap_or(0))
        .saturating_sub(28)
        .max(SMALLEST_MAX);
    let dear = [
        OptionCode::DomainSearch,
        OptionCode::ClasslessStaticRoute,
        OptionCode::DomainName,
        OptionCode::ClientIdentifier,
    ];
    let mut bytes = encode(&message)?;
    for option in dear {
        if bytes.len() <= most {
            break;
        }
        message.opts_mut().remove(option);
        bytes = encode(&message)?;
    }
    if bytes.len() < MIN_LENGTH {
        bytes.resize(MIN_LENGTH, 0);
    }
    Some(Reply { to, bytes })
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}
