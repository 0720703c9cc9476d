//! What a hostile guest tries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    packet::{ACK, Packet},
    world::{
        self, End, HOST_MAC, HOST4, OUTSIDE4, OUTSIDE6, World, closed, eni, in_namespace,
        interface, ip, policy, sg,
    },
};
use crate::firewall::policy::{Change, Direction, Group, Match, Peer, Policy, Rule};

fn v4(number: usize) -> IpAddr {
    interface(number).ipv4.into()
}

fn v6(number: usize) -> IpAddr {
    interface(number).ipv6.expect("given").into()
}

/// Groups that allow everything: only what is no matter of groups is in the way.
fn open(guests: usize) -> Policy {
    let mut policy = policy(guests);
    for (number, group) in policy.groups.values_mut().enumerate() {
        open_group(group, number);
    }
    policy
}

fn open_group(group: &mut Group, number: usize) {
    for block in ["0.0.0.0/0", "::/0"] {
        let rule = Rule {
            direction: Direction::Ingress,
            matches: Match::All,
            peer: Peer::Block(block.parse().expect("block")),
        };
        group.rules.insert(format!("sgr-{number}-{block}"), rule);
    }
}

fn spoofed(world: &mut World, number: usize) -> u64 {
    world.engine.dropped().expect("read")[&eni(number)]
        .spoofed
        .packets
}

#[test]
fn a_guest_sends_as_itself_only() {
    in_namespace(|| {
        let mut world = World::new(open(4));
        let guest = End::Guest(0);
        let udp = |from, to| Packet::udp((from, 5000), (to, 5001), b"x");
        for (own, to) in [
            (v4(0), v4(2)),
            (v6(0), v6(2)),
            (v4(0), OUTSIDE4),
            (v6(0), OUTSIDE6),
        ] {
            assert!(world.pass(guest, &udp(own, to)).is_some(), "{own} to {to}");
        }
        let foreign = [
            udp(v4(2), v4(0)),
            udp(v4(2), OUTSIDE4),
            udp(HOST4, v4(2)),
            udp("10.0.0.1".parse().expect("ip"), v4(2)),
            udp("127.0.0.1".parse().expect("ip"), v4(2)),
            udp("0.0.0.0".parse().expect("ip"), v4(2)),
            udp("255.255.255.255".parse().expect("ip"), v4(2)),
            udp("224.0.0.1".parse().expect("ip"), v4(2)),
            udp("169.254.7.7".parse().expect("ip"), v4(2)),
            udp(v6(2), OUTSIDE6),
            udp(
                "fe80::1".parse().expect("ip"),
                "fe80::1".parse().expect("ip"),
            ),
            udp("fe80::2".parse().expect("ip"), v6(2)),
            udp("::".parse().expect("ip"), v6(2)),
            udp("::1".parse().expect("ip"), v6(2)),
            udp("::ffff:10.0.0.4".parse().expect("ip"), v6(2)),
            // As a DHCP server.
            Packet::udp((v4(0), 67), (v4(2), 68), b"offer"),
            Packet::udp((v6(0), 547), (v6(2), 546), b"reply"),
        ];
        for packet in foreign {
            let before = spoofed(&mut world, 0);
            assert_eq!(world.pass(guest, &packet), None, "{packet:?}");
            // The kernel drops some by itself, before any rule.
            let source = packet.source.to_string();
            if source != "::1" && !source.starts_with("::ffff:") {
                assert_eq!(spoofed(&mut world, 0), before + 1, "{packet:?}");
            }
        }
        // To addresses that mean something within a host only. The kernel drops the first itself.
        for to in [
            "::1",
            "::",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.4",
        ] {
            let packet = udp(v6(0), to.parse().expect("ip"));
            let before = spoofed(&mut world, 0);
            assert_eq!(world.pass(guest, &packet), None, "{to}");
            if to != "::1" {
                assert_eq!(spoofed(&mut world, 0), before + 1, "{to}");
            }
        }
        // Under another's MAC address, or a group's.
        for mac in [interface(2).mac, HOST_MAC, [0xff; 6], [0; 6]] {
            let mut packet = udp(v4(0), v4(2));
            packet.source_mac = mac;
            packet.destination_mac = HOST_MAC;
            world.drain();
            world.send_frame(guest, &packet.frame());
            assert_eq!(world.arrived(), [], "{mac:?}");
        }
        // Source routes, record route.
        for kind in [131, 137, 7] {
            let mut packet = udp(v4(0), v4(2));
            packet.options = vec![kind, 7, 4, 10, 0, 0, 6, 0];
            assert_eq!(world.pass(guest, &packet), None, "option {kind}");
        }
        let mut routed = udp(v6(0), v6(2));
        let udp_header = routed.payload.clone();
        routed.protocol = 43;
        routed.payload = [&[17, 2, 0, 1, 0, 0, 0, 0][..], &[0xfd; 16], &udp_header].concat();
        assert_eq!(world.pass(guest, &routed), None, "routing header 0");
    });
}

#[test]
fn a_fragment_does_not_get_into_somebody_elses_packet() {
    in_namespace(|| {
        let mut world = World::new(open(5));
        // In two, with the same IP id, as the kernel tells packets apart.
        let whole = Packet::udp((v4(0), 5000), (v4(2), 5001), &[7; 64]).with_checksum();
        let fragment = |from: usize, first: bool| {
            let mut packet = Packet::new(v4(0), v4(2), 17, Vec::new());
            packet.payload = if first {
                whole[..40].to_vec()
            } else {
                whole[40..].to_vec()
            };
            packet.source_mac = interface(from).mac;
            packet.destination_mac = HOST_MAC;
            packet.fragment(if first { 0 } else { 40 }, first)
        };
        world.drain();
        world.send_frame(End::Guest(0), &fragment(0, true));
        world.send_frame(End::Guest(4), &fragment(4, false));
        assert_eq!(world.arrived(), []);
        world.send_frame(End::Guest(0), &fragment(0, false));
        let arrived = world.arrived();
        assert!(
            matches!(&arrived[..], [(End::Guest(2), packet), ..] if packet.protocol == 17),
            "the owner's own: {arrived:?}"
        );
    });
}

#[test]
fn networks_are_isolated_whatever_groups_say() {
    in_namespace(|| {
        let mut world = World::new(open(4));
        for (from, to) in [(v4(0), v4(1)), (v6(0), v6(1))] {
            let packet = Packet::udp((from, 5000), (to, 5001), b"x");
            assert_eq!(world.pass(End::Guest(0), &packet), None);
        }
        // Nor with an ICMP error about a connection of somebody else.
        let syn = Packet::tcp((OUTSIDE4, 40000), (v4(1), 22), 2);
        let (_, seen) = world.pass(End::Outside, &syn).expect("open");
        let answer = seen.answer();
        world.pass(End::Guest(1), &answer).expect("established");
        let quoted = &answer.frame()[14..14 + 28];
        let error = [&[3, 4, 0, 0, 0, 0, 2, 0][..], quoted].concat();
        let attack = Packet::new(v4(0), v4(1), 1, error.clone());
        world.drain();
        world.send(End::Guest(0), &attack);
        assert_eq!(
            world.everything_at(End::Guest(1)),
            0,
            "from another network"
        );
        let inside = Packet::new(v4(3), v4(1), 1, error);
        world.send(End::Guest(3), &inside);
        assert_eq!(
            world.everything_at(End::Guest(1)),
            0,
            "from the same network"
        );
        // The router out there may say so.
        let mut genuine = attack;
        genuine.source = "198.51.100.77".parse().expect("ip");
        world.send(End::Outside, &genuine);
        assert_eq!(world.everything_at(End::Guest(1)), 1, "from outside");
    });
}

#[test]
fn nothing_but_its_services_of_the_host_is_reached() {
    in_namespace(|| {
        let mut world = World::new(open(4));
        let guest = End::Guest(0);
        let gateway: IpAddr = "10.0.0.1".parse().expect("ip");
        let gateway6: IpAddr = "fd00:10::1".parse().expect("ip");
        let host = |world: &mut World| world.engine.dropped().expect("read")[&eni(0)].host.packets;
        let echo = |from, to, protocol: u8| {
            let kind = if protocol == 1 { 8 } else { 128 };
            Packet::new(from, to, protocol, vec![kind, 0, 0, 0, 0, 1, 0, 1])
        };
        for (from, to, protocol) in [(v4(0), gateway, 1), (v6(0), gateway6, 58)] {
            let (end, _) = world
                .pass(guest, &echo(from, to, protocol))
                .expect("answered");
            assert_eq!(end, guest);
        }
        let refused = [
            echo(v4(0), HOST4, 1),
            echo(v4(0), "10.1.0.1".parse().expect("ip"), 1),
            echo(v6(0), "fd00:10:1::1".parse().expect("ip"), 58),
            echo(v6(0), "2001:db8:ff::1".parse().expect("ip"), 58),
            Packet::tcp((v4(0), 40000), (gateway, 22), 2),
            Packet::tcp((v4(0), 40000), (gateway, 8775), 2),
            Packet::tcp((v4(0), 40000), (gateway, 53), ACK),
            Packet::udp((v4(0), 68), (HOST4, 67), b"x"),
            Packet::udp(
                (v4(0), 5353),
                ("224.0.0.251".parse().expect("ip"), 5353),
                b"x",
            ),
            Packet::udp((v6(0), 546), (gateway6, 547), b"x"),
        ];
        for packet in refused {
            let before = host(&mut world);
            assert_eq!(world.pass(guest, &packet), None, "{packet:?}");
            // Multicast that nobody on the host has joined does not even come to the rules.
            if !packet.destination.is_multicast() {
                assert_eq!(host(&mut world), before + 1, "{packet:?}");
            }
        }
        // Nobody listens here, so that the host's RST says that a packet came through.
        let served = [
            Packet::tcp((v4(0), 40001), (gateway, 53), 2),
            Packet::tcp((v6(0), 40001), (gateway6, 53), 2),
            Packet::tcp(
                (v4(0), 40001),
                ("169.254.169.254".parse().expect("ip"), 80),
                2,
            ),
            Packet::tcp(
                (v6(0), 40001),
                ("fd00:ec2::254".parse().expect("ip"), 80),
                2,
            ),
        ];
        for packet in served {
            let (end, answer) = world.pass(guest, &packet).expect("answered");
            assert_eq!(end, guest);
            assert_eq!(answer.source, packet.destination);
        }
        // The metadata service of a cloud that the host is in, at its other ports.
        for to in ["169.254.169.254", "169.254.169.253"] {
            let packet = Packet::tcp((v4(0), 40002), (to.parse().expect("ip"), 443), 2);
            assert_eq!(world.pass(guest, &packet), None, "{to}");
        }
        let packet = Packet::tcp(
            (v6(0), 40002),
            ("fd00:ec2::254".parse().expect("ip"), 443),
            2,
        );
        assert_eq!(world.pass(guest, &packet), None);
    });
}

#[test]
fn a_tap_that_is_not_in_the_policy_gets_nothing_through_nor_does_a_renamed_one() {
    in_namespace(|| {
        let mut world = World::new(open(4));
        world.add_tap(6);
        let out = Packet::udp((v4(6), 5000), (OUTSIDE4, 5001), b"x");
        let to = Packet::udp((v4(0), 5000), (v4(6), 5001), b"x");
        assert_eq!(world.pass(End::Guest(6), &out), None);
        assert_eq!(world.pass(End::Guest(0), &to), None);
        let from_outside = Packet::udp((OUTSIDE4, 5000), (v4(6), 5001), b"x");
        assert_eq!(world.pass(End::Outside, &from_outside), None);
        assert_eq!(
            world.arp(End::Guest(6), interface(6).mac, interface(6).ipv4),
            None
        );
        world.apply(Change::PutInterface(eni(6), interface(6)));
        assert!(world.pass(End::Guest(6), &out).is_some());
        assert!(world.pass(End::Guest(0), &to).is_some());
        assert!(
            world
                .arp(End::Guest(6), interface(6).mac, interface(6).ipv4)
                .is_some()
        );
        ip(&format!(
            "link set {} down\nlink set {} name stray up",
            world::tap_name(6),
            world::tap_name(6)
        ));
        assert_eq!(world.pass(End::Guest(6), &out), None, "renamed");
        // And nobody out there is one of us.
        let posing = Packet::udp((v4(2), 5000), (v4(0), 5001), b"x");
        assert_eq!(world.pass(End::Outside, &posing), None);
        let posing = Packet::udp((v6(2), 5000), (v6(0), 5001), b"x");
        assert_eq!(world.pass(End::Outside, &posing), None);
    });
}

#[test]
fn arp_is_answered_to_the_guest_itself() {
    in_namespace(|| {
        let mut world = World::new(open(4));
        let guest = End::Guest(0);
        let own = interface(0);
        assert!(world.arp(guest, own.mac, own.ipv4).is_some());
        for (mac, address) in [
            (own.mac, interface(2).ipv4),
            (own.mac, Ipv4Addr::new(10, 0, 0, 1)),
            (interface(2).mac, own.ipv4),
            (HOST_MAC, own.ipv4),
        ] {
            assert_eq!(world.arp(guest, mac, address), None, "{mac:?} {address}");
        }
    });
}

#[test]
fn router_advertisements_and_redirects_of_guests_go_nowhere() {
    in_namespace(|| {
        let mut world = World::new(open(4));
        let link_local: IpAddr = "fe80::aaaa".parse().expect("ip");
        for (kind, to) in [
            (134, "ff02::1"),
            (134, "fe80::1"),
            (137, "fe80::1"),
            (134, "fd00:10::6"),
        ] {
            let before = spoofed(&mut world, 0);
            let payload = [&[kind, 0, 0, 0][..], &[0; 36]].concat();
            for source in [link_local, v6(0)] {
                let packet = Packet::new(source, to.parse().expect("ip"), 58, payload.clone());
                world.send(End::Guest(0), &packet);
            }
            assert_eq!(spoofed(&mut world, 0), before + 2, "{kind} to {to}");
        }
        // What a guest may say from its link-local address.
        let before = spoofed(&mut world, 0);
        let solicitation = Packet::new(
            link_local,
            "ff02::2".parse().expect("ip"),
            58,
            vec![133, 0, 0, 0, 0, 0, 0, 0],
        );
        world.send(End::Guest(0), &solicitation);
        let to: Ipv6Addr = "ff02::1:2".parse().expect("ip");
        world.send(
            End::Guest(0),
            &Packet::udp((link_local, 546), (to.into(), 547), b"solicit"),
        );
        assert_eq!(spoofed(&mut world, 0), before);
    });
}

#[test]
fn the_agents_mark_lets_only_the_host_in() {
    in_namespace(|| {
        let mut policy = policy(3);
        policy.groups.insert(sg(0), closed(0));
        let mut world = World::new(policy);
        let target = std::net::SocketAddr::from((interface(0).ipv4, 22));
        assert_eq!(
            world.connect(target),
            None,
            "the host, too, is subject to groups"
        );
        // As SO_MARK does.
        super::world::nft(
            "table inet agent { chain c { type filter hook output priority -300; \
             meta mark set 0x48540001; }; }",
        );
        let (end, syn) = world.connect(target).expect("marked");
        assert_eq!((end, syn.ports().1), (End::Guest(0), 22));
        world.pass(End::Guest(0), &syn.answer());
        // It lives through changes of the groups.
        let cut = world.apply(Change::PutGroup(
            sg(0),
            Group {
                network: closed(0).network,
                ..Group::default()
            },
        ));
        assert_eq!(cut, 0);
        // Somebody's mark on what is forwarded does not help.
        super::world::nft(
            "table inet theirs { chain c { type filter hook prerouting priority -150; \
             meta mark set 0x48540001; }; }",
        );
        let syn = Packet::tcp((OUTSIDE4, 40000), (v4(0), 22), 2);
        assert_eq!(world.pass(End::Outside, &syn), None);
    });
}
