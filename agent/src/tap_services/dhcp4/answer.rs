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

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];

    fn config() -> TapConfig {
        TapConfig {
            interface_id: "eni-1".to_owned(),
            tap: "hth1".to_owned(),
            mac: MAC,
            mtu: 1500,
            ipv4: [10, 9, 0, 5].into(),
            ipv4_range: "10.9.0.0/24".parse().expect("range"),
            ipv4_gateway: [10, 9, 0, 1].into(),
            ipv6: None,
        }
    }

    /// A client's message, in bytes.
    fn message(change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::new_with_id(
            42,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            &MAC,
        );
        change(&mut message);
        encode(&message).expect("bytes")
    }

    fn of_kind(kind: MessageType) -> Vec<u8> {
        message(|it| {
            it.opts_mut().insert(DhcpOption::MessageType(kind));
        })
    }

    fn replied(bytes: &[u8]) -> Option<(Ipv4Addr, Message)> {
        let request = Request::read(bytes)?;
        let reply = answer(&config(), "hearth.internal", &request)?;
        assert!(reply.bytes.len() >= MIN_LENGTH);
        let message = Message::decode(&mut Decoder::new(&reply.bytes)).expect("a message");
        assert_eq!((message.xid(), message.opcode()), (42, Opcode::BootReply));
        Some((reply.to, message))
    }

    fn kind_of(bytes: &[u8]) -> Option<MessageType> {
        replied(bytes)?.1.opts().msg_type()
    }

    fn request(change: impl FnOnce(&mut Message)) -> Vec<u8> {
        message(|it| {
            it.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Request));
            change(it);
        })
    }

    #[test]
    fn the_states_of_a_client_get_what_rfc_2131_says() {
        let ours = Ipv4Addr::new(10, 9, 0, 5);
        let wrong = Ipv4Addr::new(10, 9, 0, 77);
        let server = DhcpOption::ServerIdentifier([10, 9, 0, 1].into());
        let other_server = DhcpOption::ServerIdentifier([10, 9, 0, 2].into());
        let wanting = |address, server: Option<DhcpOption>| {
            request(|it| {
                it.opts_mut()
                    .insert(DhcpOption::RequestedIpAddress(address));
                if let Some(server) = server {
                    it.opts_mut().insert(server);
                }
            })
        };
        let having = |address: Ipv4Addr| {
            request(|it| {
                it.set_ciaddr(address);
            })
        };
        let (to, offer) = replied(&of_kind(MessageType::Discover)).expect("an offer");
        assert_eq!(to, Ipv4Addr::BROADCAST);
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!(offer.yiaddr(), ours);
        for (what, bytes, expected) in [
            (
                "selecting",
                wanting(ours, Some(server.clone())),
                Some(MessageType::Ack),
            ),
            (
                "selecting, wrong",
                wanting(wrong, Some(server)),
                Some(MessageType::Nak),
            ),
            ("another's", wanting(ours, Some(other_server)), None),
            ("rebooting", wanting(ours, None), Some(MessageType::Ack)),
            (
                "rebooting, wrong",
                wanting(wrong, None),
                Some(MessageType::Nak),
            ),
            ("renewing", having(ours), Some(MessageType::Ack)),
            ("renewing, wrong", having(wrong), Some(MessageType::Nak)),
            ("nothing", request(|_| {}), Some(MessageType::Nak)),
            ("decline", of_kind(MessageType::Decline), None),
            ("release", of_kind(MessageType::Release), None),
            ("an offer", of_kind(MessageType::Offer), None),
            ("BOOTP", message(|_| {}), None),
        ] {
            assert_eq!(kind_of(&bytes), expected, "{what}");
        }
        // A renewal goes to the client itself, a refusal to all.
        assert_eq!(replied(&having(ours)).expect("an answer").0, ours);
        assert_eq!(
            replied(&having(wrong)).expect("an answer").0,
            Ipv4Addr::BROADCAST
        );
    }

    #[test]
    fn inform_gets_the_configuration_without_a_lease() {
        let bytes = message(|it| {
            it.set_ciaddr([10, 9, 0, 5]);
            it.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Inform));
        });
        let (_, ack) = replied(&bytes).expect("an answer");
        assert_eq!(ack.yiaddr(), Ipv4Addr::UNSPECIFIED);
        assert!(!ack.opts().contains(OptionCode::AddressLeaseTime));
        assert!(ack.opts().contains(OptionCode::DomainNameServer));
    }

    #[test]
    fn strangers_and_relays_get_nothing() {
        let stranger = message(|it| {
            it.set_chaddr(&[2, 0, 0, 0, 0, 6]);
            it.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Discover));
        });
        assert_eq!(kind_of(&stranger), None);
        let relayed = message(|it| {
            it.set_giaddr([10, 9, 0, 9]);
            it.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Discover));
        });
        assert_eq!(kind_of(&relayed), None);
    }

    #[test]
    fn what_is_too_long_for_the_client_is_left_out_dearest_first() {
        let domain = ["x".repeat(60).as_str(); 4].join(".");
        let bytes = message(|it| {
            it.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Discover));
            let wanted = vec![OptionCode::DomainSearch, OptionCode::ClasslessStaticRoute];
            it.opts_mut()
                .insert(DhcpOption::ParameterRequestList(wanted));
        });
        let request = Request::read(&bytes).expect("a request");
        let reply = answer(&config(), &domain, &request).expect("an answer");
        assert!(reply.bytes.len() <= SMALLEST_MAX, "{}", reply.bytes.len());
        let roomy = Request {
            max_size: Some(1500),
            ..request
        };
        let reply = answer(&config(), &domain, &roomy).expect("an answer");
        assert!(reply.bytes.len() > SMALLEST_MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            if let Some(request) = Request::read(&bytes) {
                let _ = answer(&config(), "hearth.internal", &request);
            }
        }

        #[test]
        fn no_options_make_it_panic(
            options in proptest::collection::vec(any::<u8>(), 0..400),
            changes in proptest::collection::vec((0usize..300, any::<u8>()), 0..4),
        ) {
            let mut bytes = of_kind(MessageType::Request);
            // Behind the options that are there, which end with 255.
            bytes.truncate(243);
            bytes.extend(options);
            for (at, to) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = to;
                }
            }
            if let Some(request) = Request::read(&bytes) {
                let reply = answer(&config(), "hearth.internal", &request);
                prop_assert!(reply.is_none_or(|it| it.bytes.len() <= 1500));
            }
        }
    }
}
