//! Rules of security groups: how they are typed (`--tcp 80,443 --from 0.0.0.0/0`), and printed.

use std::{collections::HashMap, net::IpAddr};

use clap::Args;
use hearth_proto::v1::{
    Direction, SecurityGroupPermission, SecurityGroupRule, security_group_permission::Peer,
};
use tonic::Status;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    human, output,
};

/// Stands for every address of both families.
const ANY: &str = "any";

/// Stands for all ports, or all types of ICMP.
const ALL: &str = "all";

/// Traffic, and the other end. Several of both are all combinations.
#[derive(Args)]
pub struct RuleArgs {
    /// TCP ports, such as `80,443` or `8000-8100`; all of them without a value.
    #[arg(
        long,
        value_name = "PORTS",
        num_args = 0..=1,
        default_missing_value = ALL,
        value_delimiter = ',',
        value_parser = parse_ports
    )]
    tcp: Vec<Ports>,
    /// UDP ports, likewise.
    #[arg(
        long,
        value_name = "PORTS",
        num_args = 0..=1,
        default_missing_value = ALL,
        value_delimiter = ',',
        value_parser = parse_ports
    )]
    udp: Vec<Ports>,
    /// ICMP of a type, and code, such as `8` or `3/4`; all of it without a value.
    #[arg(
        long,
        value_name = "TYPE[/CODE]",
        num_args = 0..=1,
        default_missing_value = ALL,
        value_delimiter = ',',
        value_parser = parse_icmp
    )]
    icmp: Vec<Icmp>,
    /// ICMPv6, likewise.
    #[arg(
        long,
        value_name = "TYPE[/CODE]",
        num_args = 0..=1,
        default_missing_value = ALL,
        value_delimiter = ',',
        value_parser = parse_icmp
    )]
    icmpv6: Vec<Icmp>,
    /// Another protocol, by its number; may be repeated.
    #[arg(long, value_name = "NUMBER")]
    protocol: Vec<u8>,
    /// All protocols.
    #[arg(long)]
    all: bool,
    /// Traffic to the instance from here: an address, a block, a group or prefix list (id or
    /// name), or `any`; may be repeated.
    #[arg(
        long,
        value_name = "PEER",
        value_delimiter = ',',
        conflicts_with = "to"
    )]
    from: Vec<String>,
    /// Traffic from the instance to there.
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    to: Vec<String>,
}

/// First and last port; `None` for all.
type Ports = Option<(u16, u16)>;

/// Type and code; `None` for all.
type Icmp = Option<(u8, Option<u8>)>;

/// What [`RuleArgs`] ask for.
pub struct Asked {
    pub direction: Direction,
    pub permissions: Vec<SecurityGroupPermission>,
}

impl RuleArgs {
    /// The permissions; names are looked for in the network of `group`.
    pub async fn read(&self, client: &mut Client, group: &str) -> Result<Asked, Failure> {
        let traffic = self.traffic();
        if traffic.is_empty() {
            return Err(Failure::new("no traffic is named").hint(
                "use --tcp PORTS, --udp PORTS, --icmp, --icmpv6, --protocol NUMBER or --all",
            ));
        }
        let (direction, peers) = match (self.from.is_empty(), self.to.is_empty()) {
            (false, _) => (Direction::Ingress, &self.from),
            (true, false) => (Direction::Egress, &self.to),
            (true, true) => {
                return Err(Failure::new("the other end is not named").hint(
                    "use --from for traffic to the instance, --to for traffic from it; \
                     `any` is everybody",
                ));
            }
        };
        let mut permissions = Vec::new();
        for peer in peers {
            for peer in read_peer(client, group, peer).await? {
                permissions.extend(
                    traffic
                        .iter()
                        .filter(|traffic| peer.goes_with(traffic))
                        .map(|traffic| SecurityGroupPermission {
                            peer: Some(peer.peer.clone()),
                            ..traffic.clone()
                        }),
                );
            }
        }
        Ok(Asked {
            direction,
            permissions,
        })
    }

    fn traffic(&self) -> Vec<SecurityGroupPermission> {
        let of = |protocol: &str, from: Option<i32>, to: Option<i32>| SecurityGroupPermission {
            protocol: protocol.to_owned(),
            from_port: from,
            to_port: to,
            ..Default::default()
        };
        let ports = |protocol, ports: &[Ports]| -> Vec<SecurityGroupPermission> {
            let one = |ports: &Ports| {
                let (first, last) = ports.unzip();
                of(protocol, first.map(i32::from), last.map(i32::from))
            };
            ports.iter().map(one).collect()
        };
        let icmp = |protocol, icmp: &[Icmp]| -> Vec<SecurityGroupPermission> {
            let one = |icmp: &Icmp| {
                let kind = icmp.map(|(kind, _)| kind.into());
                let code = icmp.and_then(|(_, code)| code).map(i32::from);
                of(protocol, kind, code)
            };
            icmp.iter().map(one).collect()
        };
        let mut all = ports("tcp", &self.tcp);
        all.extend(ports("udp", &self.udp));
        all.extend(icmp("icmp", &self.icmp));
        all.extend(icmp("icmpv6", &self.icmpv6));
        let numbers = self.protocol.iter();
        all.extend(numbers.map(|number| of(&number.to_string(), None, None)));
        all.extend(self.all.then(|| of("-1", None, None)));
        all
    }
}

/// The other end, and whether it is one half of [`ANY`].
struct PeerArg {
    peer: Peer,
    half_of_any: bool,
}

impl PeerArg {
    /// `any` with ICMP is the family that ICMP belongs to.
    fn goes_with(&self, traffic: &SecurityGroupPermission) -> bool {
        match (&self.peer, traffic.protocol.as_str()) {
            (Peer::CidrIpv6(_), "icmp") | (Peer::CidrIpv4(_), "icmpv6") => !self.half_of_any,
            _ => true,
        }
    }
}

async fn read_peer(client: &mut Client, group: &str, text: &str) -> Result<Vec<PeerArg>, Failure> {
    let one = |peer| PeerArg {
        peer,
        half_of_any: false,
    };
    if text == ANY {
        let everywhere = [
            Peer::CidrIpv4("0.0.0.0/0".to_owned()),
            Peer::CidrIpv6("::/0".to_owned()),
        ];
        return Ok(everywhere
            .map(|peer| PeerArg {
                peer,
                half_of_any: true,
            })
            .into());
    }
    if let Some(peer) = block(text) {
        return Ok(vec![one(peer)]);
    }
    if text.starts_with("sg-") {
        return Ok(vec![one(Peer::SecurityGroupId(text.to_owned()))]);
    }
    if text.starts_with("pl-") {
        return Ok(vec![one(Peer::PrefixListId(text.to_owned()))]);
    }
    let own = [group.to_owned()];
    let own = client.describe_security_groups(&own, &[]).await?.pop();
    let network = own.unwrap_or_default().network_id;
    let groups = client.groups_called(text, &network).await?;
    let lists = client.prefix_lists_called(text).await?;
    match (&groups[..], &lists[..]) {
        ([group], []) => Ok(vec![one(Peer::SecurityGroupId(group.clone()))]),
        ([], [list]) => Ok(vec![one(Peer::PrefixListId(list.clone()))]),
        ([], []) => Err(Failure::new(format!(
            "`{text}` is not an address, a block, or the name of a group of the network or of a \
             prefix list"
        ))
        .hint("see what there is with `hearth sg list` and `hearth prefix-list list`")),
        _ => {
            let ids = [groups, lists].concat();
            Err(Failure::new(format!("{} are called `{text}`", ids.len()))
                .hint(format!("use one of their ids: {}", ids.join(", "))))
        }
    }
}

/// A block, or an address as the block that holds it alone. What looks like one and is none is
/// left to the agent, whose error says more.
fn block(text: &str) -> Option<Peer> {
    let (address, block) = match text.split_once('/') {
        Some((address, _)) => (address, text.to_owned()),
        None => match text.parse().ok()? {
            IpAddr::V4(_) => (text, format!("{text}/32")),
            IpAddr::V6(_) => (text, format!("{text}/128")),
        },
    };
    Some(match address.contains(':') {
        true => Peer::CidrIpv6(block),
        false => Peer::CidrIpv4(block),
    })
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    if text == ALL {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first <= last => Ok(Some((first, last))),
        _ => Err("expected ports (80), ranges (8000-8100), or all".to_owned()),
    }
}

fn parse_icmp(text: &str) -> Result<Icmp, String> {
    if text == ALL {
        return Ok(None);
    }
    let bad = |_| "expected a type (8), a type and a code (3/4), or all".to_owned();
    match text.split_once('/') {
        None => Ok(Some((text.parse().map_err(bad)?, None))),
        Some((kind, code)) => Ok(Some((
            kind.parse().map_err(bad)?,
            Some(code.parse().map_err(bad)?),
        ))),
    }
}

/// A failed call about rules.
pub fn failed(status: Status) -> Failure {
    rpc_with_flags(
        status,
        &flags([
            ("security_group_id", "GROUP"),
            ("rule_ids", "--rule"),
            ("description", "--description"),
        ]),
    )
}

/// The names of all groups and prefix lists, by id.
pub async fn peer_names(client: &mut Client) -> Result<HashMap<String, String>, Failure> {
    let groups = client.describe_security_groups(&[], &[]).await?;
    let lists = client.describe_prefix_lists(&[], &[]).await?;
    let groups = groups.into_iter().map(|it| (it.security_group_id, it.name));
    let lists = lists.into_iter().map(|it| (it.prefix_list_id, it.name));
    Ok(groups.chain(lists).collect())
}

/// Prints rules, with their groups if wanted.
pub fn print(
    rules: &[SecurityGroupRule],
    names: &HashMap<String, String>,
    with_groups: bool,
) -> Result<(), Failure> {
    let row = |rule: &SecurityGroupRule| {
        let permission = rule.permission.clone().unwrap_or_default();
        let mut row = vec![rule.rule_id.clone()];
        if with_groups {
            row.push(named(&rule.security_group_id, names));
        }
        row.extend([
            direction_word(rule.direction()).to_owned(),
            protocol(&permission),
            ports(&permission),
            peer(&permission, names),
            rule.packets.to_string(),
            human::bytes(rule.bytes),
            permission.description,
        ]);
        row
    };
    let mut header = vec!["RULE"];
    header.extend(with_groups.then_some("GROUP"));
    header.extend([
        "WAY",
        "PROTOCOL",
        "PORTS",
        "PEER",
        "PACKETS",
        "BYTES",
        "DESCRIPTION",
    ]);
    let packets = header.len() - 3;
    let rows = rules.iter().map(row).collect();
    output::table(&header, &[packets, packets + 1], rows)
}

fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "out",
        _ => "in",
    }
}

fn protocol(permission: &SecurityGroupPermission) -> String {
    match permission.protocol.as_str() {
        "-1" => "all".to_owned(),
        protocol => protocol.to_owned(),
    }
}

fn ports(permission: &SecurityGroupPermission) -> String {
    let icmp = permission.protocol.starts_with("icmp");
    match (permission.from_port, permission.to_port) {
        (None, _) => "all".to_owned(),
        (Some(kind), None) => kind.to_string(),
        (Some(kind), Some(code)) if icmp => format!("{kind}/{code}"),
        (Some(first), Some(last)) if first == last => first.to_string(),
        (Some(first), Some(last)) => format!("{first}-{last}"),
    }
}

fn peer(permission: &SecurityGroupPermission, names: &HashMap<String, String>) -> String {
    match &permission.peer {
        Some(Peer::CidrIpv4(block) | Peer::CidrIpv6(block)) => block.clone(),
        Some(Peer::SecurityGroupId(id) | Peer::PrefixListId(id)) => named(id, names),
        None => String::new(),
    }
}

/// `sg-… (web)`.
fn named(id: &str, names: &HashMap<String, String>) -> String {
    match names.get(id) {
        Some(name) => format!("{id} ({name})"),
        None => id.to_owned(),
    }
}

/// A rule in words: `in tcp 443 with 0.0.0.0/0`.
pub fn words(rule: &SecurityGroupRule) -> String {
    let permission = rule.permission.clone().unwrap_or_default();
    let ports = match ports(&permission) {
        all if all == ALL => String::new(),
        ports => format!(" {ports}"),
    };
    format!(
        "{} {}{ports} with {}",
        direction_word(rule.direction()),
        protocol(&permission),
        peer(&permission, &HashMap::new())
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        group: String,
        #[command(flatten)]
        rules: RuleArgs,
    }

    fn traffic(words: &str) -> Vec<(String, Option<i32>, Option<i32>)> {
        let words = ["x", "web"].into_iter().chain(words.split(' '));
        let line = Line::try_parse_from(words).expect("arguments");
        assert_eq!(line.group, "web");
        let permissions = line.rules.traffic().into_iter();
        permissions
            .map(|it| (it.protocol, it.from_port, it.to_port))
            .collect()
    }

    #[test]
    fn ports_types_and_protocols_are_written_as_people_think_of_them() {
        let of = |protocol: &str, from, to| (protocol.to_owned(), from, to);
        assert_eq!(
            traffic("--tcp 80,443,8000-8100 --from any"),
            [
                of("tcp", Some(80), Some(80)),
                of("tcp", Some(443), Some(443)),
                of("tcp", Some(8000), Some(8100)),
            ]
        );
        assert_eq!(traffic("--udp --from any"), [of("udp", None, None)]);
        assert_eq!(
            traffic("--icmp 8/0 --icmpv6 --from any"),
            [of("icmp", Some(8), Some(0)), of("icmpv6", None, None)]
        );
        assert_eq!(traffic("--icmp 8 --to any"), [of("icmp", Some(8), None)]);
        assert_eq!(traffic("--protocol 47 --from any"), [of("47", None, None)]);
        assert_eq!(traffic("--all --to any"), [of("-1", None, None)]);
    }

    #[test]
    fn what_is_no_port_and_both_ways_at_once_are_refused() {
        for words in [
            "--tcp 70000 --from any",
            "--tcp 90-80 --from any",
            "--icmp 8/x --from any",
            "--protocol 256 --from any",
            "--all --from any --to any",
        ] {
            let line = ["x", "web"].into_iter().chain(words.split(' '));
            assert!(Line::try_parse_from(line).is_err(), "{words}");
        }
    }

    #[test]
    fn an_address_alone_is_a_block_of_one() {
        let ipv4 = |text: &str| Some(Peer::CidrIpv4(text.to_owned()));
        assert_eq!(block("192.0.2.1"), ipv4("192.0.2.1/32"));
        assert_eq!(block("192.0.2.1/24"), ipv4("192.0.2.1/24"));
        assert_eq!(block("fd00::1"), Some(Peer::CidrIpv6("fd00::1/128".into())));
        assert_eq!(block("web"), None);
    }
}
