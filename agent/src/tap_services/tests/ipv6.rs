//! Router advertisements, as Linux takes them, and DHCPv6.

use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use dhcproto::v6::{
    DhcpOption, Encodable, Encoder, IAAddr, IANA, Message, MessageType, OptionCode, Status,
};
use dhcproto::{Decodable, Decoder};
use tokio::{net::UdpSocket, time::timeout};

use super::link::{Link, on_a_link};

const CLIENT: &[u8] = &[0, 3, 0, 1, 2, 0, 0, 0, 0, 5];

/// The guest's link is up, with a link-local address that can be used at once.
async fn up(link: &Link) {
    link.must(
        "sh",
        &["-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad"],
    )
    .await;
    link.ip("link set eth0 up");
}

#[test]
fn linux_takes_its_way_out_from_the_advertisement() {
    on_a_link(async |link| {
        up(link).await;
        let mut routes = String::new();
        // It asks by itself, three times.
        for _ in 0..100 {
            routes = link.ip("-6 route");
            if routes.contains("default") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(
            routes.contains("default via fe80::1 dev eth0 proto ra"),
            "{routes}"
        );
        assert!(routes.contains("mtu 1400"), "{routes}");
        // The prefix is neither on the link nor for addresses of its own making.
        assert!(!routes.contains("fd09::/64"), "{routes}");
        assert!(
            !link
                .ip("-6 addr show dev eth0 scope global")
                .contains("fd09:")
        );
    });
}

async fn exchange(socket: &UdpSocket, index: u32, request: &Message) -> Option<Message> {
    let mut bytes = Vec::new();
    request
        .encode(&mut Encoder::new(&mut bytes))
        .expect("bytes");
    let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let to = SocketAddr::from(SocketAddrV6::new(servers, 547, 0, index));
    socket.send_to(&bytes, to).await.expect("sent");
    let mut answer = [0; 1500];
    // An answer comes within milliseconds; none is what some requests are to get.
    let length = timeout(Duration::from_secs(2), socket.recv(&mut answer))
        .await
        .ok()?
        .expect("it");
    let answer = Message::decode(&mut Decoder::new(&answer[..length])).expect("a message");
    assert_eq!(answer.xid(), request.xid());
    Some(answer)
}

fn message(kind: MessageType, address: Option<&str>) -> Message {
    let mut message = Message::new(kind);
    let options = message.opts_mut();
    options.insert(DhcpOption::ClientId(CLIENT.to_vec()));
    let mut opts = dhcproto::v6::DhcpOptions::new();
    if let Some(address) = address {
        opts.insert(DhcpOption::IAAddr(IAAddr {
            addr: address.parse().expect("address"),
            preferred_life: 0,
            valid_life: 0,
            opts: dhcproto::v6::DhcpOptions::new(),
        }));
    }
    let ia = IANA {
        id: 7,
        t1: 0,
        t2: 0,
        opts,
    };
    options.insert(DhcpOption::IANA(ia));
    message
}

/// The addresses that an answer gives, with their lifetimes.
fn given(answer: &Message) -> Vec<(String, u32)> {
    let Some(DhcpOption::IANA(ia)) = answer.opts().get(OptionCode::IANA) else {
        return Vec::new();
    };
    assert_eq!(ia.id, 7);
    let address = |option: &DhcpOption| match option {
        DhcpOption::IAAddr(it) => Some((it.addr.to_string(), it.valid_life)),
        _ => None,
    };
    ia.opts.iter().filter_map(address).collect()
}

fn status(answer: &Message) -> Option<Status> {
    match answer.opts().get(OptionCode::StatusCode)? {
        DhcpOption::StatusCode(it) => Some(it.status),
        _ => None,
    }
}

#[test]
fn dhcpv6_gives_the_interfaces_address_and_no_other() {
    on_a_link(async |link| {
        up(link).await;
        let index = link.ip("-o link show eth0");
        let index = index
            .split(':')
            .next()
            .and_then(|it| it.parse().ok())
            .expect("an index");
        let socket = link.guest_udp("[::]:546").await;
        let ours = vec![("fd09::5".to_owned(), u32::MAX)];

        let advertise = exchange(&socket, index, &message(MessageType::Solicit, None)).await;
        let advertise = advertise.expect("an answer");
        assert_eq!(advertise.msg_type(), MessageType::Advertise);
        assert_eq!(given(&advertise), ours);
        let servers = advertise
            .opts()
            .get(OptionCode::DomainNameServers)
            .expect("DNS");
        let gateway = vec!["fd09::1".parse().expect("address")];
        assert_eq!(*servers, DhcpOption::DomainNameServers(gateway));
        assert!(advertise.opts().get(OptionCode::DomainSearchList).is_some());
        let server = advertise
            .opts()
            .get(OptionCode::ServerId)
            .expect("its id")
            .clone();

        let mut request = message(MessageType::Request, None);
        request.opts_mut().insert(server.clone());
        let reply = exchange(&socket, index, &request).await.expect("an answer");
        assert_eq!(
            (reply.msg_type(), given(&reply)),
            (MessageType::Reply, ours.clone())
        );

        let mut rapid = message(MessageType::Solicit, None);
        rapid.opts_mut().insert(DhcpOption::RapidCommit);
        let reply = exchange(&socket, index, &rapid).await.expect("an answer");
        assert_eq!(
            (reply.msg_type(), given(&reply)),
            (MessageType::Reply, ours.clone())
        );
        assert!(reply.opts().get(OptionCode::RapidCommit).is_some());

        // What it has wrongly is taken away.
        let mut renew = message(MessageType::Renew, Some("fd09::77"));
        renew.opts_mut().insert(server.clone());
        let mut addresses = given(&exchange(&socket, index, &renew).await.expect("an answer"));
        addresses.sort();
        assert_eq!(addresses, [ours[0].clone(), ("fd09::77".to_owned(), 0)]);

        for (address, expected) in [
            ("fd09::5", Status::Success),
            ("fd09::77", Status::NotOnLink),
        ] {
            let confirm = message(MessageType::Confirm, Some(address));
            let reply = exchange(&socket, index, &confirm).await.expect("an answer");
            assert_eq!(status(&reply), Some(expected), "{address}");
        }

        let mut information = Message::new(MessageType::InformationRequest);
        information
            .opts_mut()
            .insert(DhcpOption::ClientId(CLIENT.to_vec()));
        let reply = exchange(&socket, index, &information)
            .await
            .expect("an answer");
        assert!(reply.opts().get(OptionCode::DomainNameServers).is_some());

        // For another server, and without saying who asks.
        let mut foreign = message(MessageType::Request, None);
        foreign
            .opts_mut()
            .insert(DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]));
        assert!(exchange(&socket, index, &foreign).await.is_none());
        let nameless = Message::new(MessageType::Solicit);
        assert!(exchange(&socket, index, &nameless).await.is_none());
    });
}
