//! Who is there: an attacker, a neighbour, a guest of another network, the outside. Every rule of
//! every group is as open as can be, so that nothing but what this is about keeps packets away.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    AuthorizeSecurityGroupRequest, DescribeSecurityGroupsRequest, Direction,
    SecurityGroupPermission, security_group_permission::Peer,
};
use hearth_tests::{
    Hearth,
    net::{
        Body, End, GuestEnd, HOST_MAC, Lab, OUTSIDE4, OUTSIDE6, Outside, Packet, packet::tcp,
        relayed,
    },
    networks::in_network,
};

pub const ATTACKER: usize = 0;
pub const NEIGHBOUR: usize = 1;
pub const STRANGER: usize = 2;

/// What an attacker sends, and whether the firewall counts it as the tap's false packets: the
/// kernel itself has no use for some.
pub struct Case {
    pub name: String,
    pub frames: Vec<Vec<u8>>,
    pub is_counted: bool,
}

impl Case {
    pub fn counted(name: impl Into<String>, frames: Vec<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            frames,
            is_counted: true,
        }
    }

    pub fn ignored(name: impl Into<String>, frames: Vec<Vec<u8>>) -> Self {
        Self {
            is_counted: false,
            ..Self::counted(name, frames)
        }
    }
}

pub struct Scene {
    pub hearth: Hearth,
    pub lab: Lab,
    tag: u32,
}

impl Scene {
    pub async fn new() -> Result<Self> {
        let hearth = Hearth::start_with_namespace().await?;
        let netns = hearth.netns()?;
        let outside = Outside::new(netns)?;
        let first = hearth.network("10.20.0.0/24", |it| {
            it.ipv6_range = "fd12:3456:789a:1::/64".to_owned();
            it.nat = Some(false);
        });
        let first = first.await?;
        let second = hearth.network("10.30.0.0/24", |_| {}).await?;
        let mut guests = Vec::new();
        for (number, network) in [&first, &first, &second].into_iter().enumerate() {
            let control = format!("ctl{number}");
            let relay = relayed(netns, &control)?;
            let run = |request: &mut _| {
                in_network(network)(request);
                relay(request);
            };
            let probe = hearth.probe(run).await?;
            guests.push(GuestEnd::new(netns, probe, &control).await?);
        }
        let lab = Lab::new(netns, outside, guests)?;
        let scene = Self {
            hearth,
            lab,
            tag: 0,
        };
        scene.open_everything().await?;
        Ok(scene)
    }

    async fn open_everything(&self) -> Result<()> {
        let mut client = self.hearth.security_groups();
        let all = DescribeSecurityGroupsRequest::default();
        let groups = client.describe_security_groups(all).await?.into_inner();
        ensure!(groups.security_groups.len() == 2, "{groups:?}");
        for group in groups.security_groups {
            let permission = |peer| SecurityGroupPermission {
                protocol: "-1".to_owned(),
                peer: Some(peer),
                ..Default::default()
            };
            let request = AuthorizeSecurityGroupRequest {
                security_group_id: group.security_group_id,
                direction: Direction::Ingress.into(),
                permissions: vec![
                    permission(Peer::CidrIpv4("0.0.0.0/0".to_owned())),
                    permission(Peer::CidrIpv6("::/0".to_owned())),
                ],
                dry_run: false,
            };
            client.authorize_security_group(request).await?;
        }
        Ok(())
    }

    pub fn attacker(&self) -> &GuestEnd {
        &self.lab.guests[ATTACKER]
    }

    pub fn neighbour(&self) -> &GuestEnd {
        &self.lab.guests[NEIGHBOUR]
    }

    /// A guest's address.
    pub fn address(&self, guest: usize, ipv6: bool) -> Result<IpAddr> {
        let address = self.lab.guests[guest].address(ipv6);
        address.context("it has no such address")
    }

    pub fn tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    /// A datagram.
    pub fn udp(&mut self, source: IpAddr, destination: IpAddr) -> Packet {
        let tag = self.tag();
        let port = 20_000 + u16::try_from(tag % 40_000).unwrap_or_default();
        let body = Body::Udp {
            source: port,
            destination: 5000,
        };
        Packet::new(source, destination, body, tag)
    }

    /// Frames of a packet with the attacker's own Ethernet address.
    pub fn frames(&self, packet: &Packet) -> Vec<Vec<u8>> {
        packet.frames(self.attacker().mac, HOST_MAC)
    }

    /// What the host knows of neighbours, and by which routes.
    pub fn host_state(&self) -> Result<String> {
        let netns = self.hearth.netns()?;
        let mut state = String::new();
        for words in [
            "neigh show nud permanent",
            "-6 neigh show nud permanent",
            "route show table all",
            "-6 route show table all",
            "-o addr show",
        ] {
            let mut lines: Vec<_> = netns.ip(words)?.lines().map(str::to_owned).collect();
            lines.sort();
            state.push_str(&lines.join("\n"));
        }
        Ok(state)
    }

    /// Packets that the firewall has counted as false, all taps together.
    fn counted(&self) -> Result<u64> {
        let netns = self.hearth.netns()?;
        let mut nft = netns.command("nft");
        let said = hearth_tests::programs::output_of(
            nft.args(["list", "set", "inet", "hearth", "spoofed"]),
        )?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let counts = words.windows(2).filter(|it| it[0] == "packets");
        counts.map(|it| Ok(it[1].parse::<u64>()?)).sum()
    }

    /// None of what the attacker sends comes to anybody.
    pub fn never_arrives(
        &mut self,
        cases: impl FnOnce(&mut Self) -> Result<Vec<Case>>,
    ) -> Result<()> {
        let cases = cases(self)?;
        ensure!(!cases.is_empty());
        for case in cases {
            let name = &case.name;
            let done = self.one_never_arrives(&case);
            done.with_context(|| format!("{name}: {:02x?}", case.frames))?;
        }
        Ok(())
    }

    fn one_never_arrives(&mut self, case: &Case) -> Result<()> {
        let before = self.counted()?;
        self.lab.guests[ATTACKER].send(&case.frames)?;
        for (end, frame) in self.lab.settle()? {
            let has_mark = frame.windows(4).any(|it| it == b"HtSt" || it == b"HtEn");
            // The host may say to the attacker what is wrong with its packet; and its kernel
            // speaks by itself of neighbours and listeners, on its own account.
            let is_the_hosts = frame.get(6..12) == Some(&HOST_MAC) || end == End::Outside;
            ensure!(
                end == End::Guest(ATTACKER) || !has_mark && is_the_hosts,
                "at {end:?} arrived {frame:02x?}"
            );
            // An answer would mean that it was believed.
            let is_arp = frame.get(12..14) == Some(&[0x08, 0x06]);
            ensure!(!is_arp || end == End::Outside, "at {end:?}: {frame:02x?}");
        }
        let at_the_host = self.lab.at_the_host();
        ensure!(at_the_host.is_empty(), "at the host: {at_the_host:?}");
        let counted = self.counted()? - before;
        let wanted = if case.is_counted {
            case.frames.len()
        } else {
            0
        };
        ensure!(
            counted >= u64::try_from(wanted)?,
            "{counted} of {wanted} packets were counted"
        );
        Ok(())
    }

    /// The attacker and its neighbour are who they say, and reach whom they may.
    pub fn honest_packets_pass(&mut self) -> Result<()> {
        for ipv6 in [false, true] {
            let own = self.address(ATTACKER, ipv6)?;
            let neighbour = self.address(NEIGHBOUR, ipv6)?;
            let outside = if ipv6 { OUTSIDE6 } else { OUTSIDE4 };
            let attacker = End::Guest(ATTACKER);
            for (to, end) in [(neighbour, End::Guest(NEIGHBOUR)), (outside, End::Outside)] {
                let udp = self.udp(own, to);
                let seen = self.lab.passes(attacker, &udp, end)?;
                ensure!(seen.source == own, "{seen:?}");
                let answer = seen.answer(self.tag());
                self.lab.passes(end, &answer, attacker)?;
                let syn = Body::Tcp {
                    source: 30_000 + u16::try_from(self.tag() % 30_000)?,
                    destination: 22,
                    flags: tcp::SYN,
                };
                let syn = Packet::new(own, to, syn, self.tag());
                self.lab.passes(attacker, &syn, end)?;
            }
            // What is the neighbour's comes to the neighbour.
            let udp = self.udp(outside, neighbour);
            self.lab.passes(End::Outside, &udp, End::Guest(NEIGHBOUR))?;
        }
        Ok(())
    }

    pub async fn finish(self) -> Result<()> {
        drop(self.lab);
        self.hearth.finish().await
    }
}
