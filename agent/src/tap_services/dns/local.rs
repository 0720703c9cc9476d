//! Names of a network: which questions are about it, and their answers.

use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Edns, Message, Metadata, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SOA},
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::MAX_UDP;
use crate::{
    db::tap_services::{Host, Key, NetworkFacts},
    ids::Kind,
    tap_services::names,
};

/// Seconds that an answer is good for: instances come and go.
const TTL: u32 = 10;

/// Seconds that it is good for that there is no such name.
const NEGATIVE_TTL: u32 = 5;

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is about this network.
    Local(Lookup),
    /// It is about the rest of the world.
    Forward,
    /// Not a question that is answered.
    Refused,
}

/// A question about this network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The instance that it is about, if there may be one.
    pub key: Option<Key>,
    /// Whether the name is there without any instance: the domain itself, and the parts of an
    /// address.
    pub exists: bool,
    /// The name whose SOA says how long it is good for that something is not there.
    zone: Name,
}

fn domain(network: &NetworkFacts) -> Option<Name> {
    let mut name = Name::from_ascii(&network.dns_domain).ok()?;
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

/// Decides.
pub fn classify(query: &Query, network: &NetworkFacts) -> Verdict {
    if query.query_class() != DNSClass::IN
        || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
    {
        return Verdict::Refused;
    }
    let name = query.name();
    if let Some(domain) = domain(network)
        && domain.zone_of(name)
    {
        let below = name.num_labels().saturating_sub(domain.num_labels());
        return Verdict::Local(Lookup {
            key: (below == 1)
                .then(|| name.iter().next().and_then(key_of))
                .flatten(),
            exists: below == 0,
            zone: domain,
        });
    }
    match name.parse_arpa_name() {
        Ok(asked) => reverse(asked, name, network),
        Err(_) => Verdict::Forward,
    }
}

fn key_of(label: &[u8]) -> Option<Key> {
    let label = std::str::from_utf8(label).ok()?.to_ascii_lowercase();
    Some(if Kind::Instance.matches(&label) {
        Key::Id(label)
    } else if let Some(address) = names::address_of(&label) {
        Key::Ipv4(address)
    } else {
        Key::Label(label)
    })
}

/// Addresses of the network belong to it, and so do the names above them.
fn reverse(asked: IpNet, name: &Name, network: &NetworkFacts) -> Verdict {
    let (inside, key) = match asked {
        IpNet::V4(asked) => {
            let range: Option<Ipv4Net> = network.ipv4_range.parse().ok();
            (
                range.is_some_and(|range| range.contains(&asked)),
                (asked.prefix_len() == 32).then(|| Key::Ipv4(asked.addr())),
            )
        }
        IpNet::V6(asked) => {
            let range: Option<Ipv6Net> = network
                .ipv6_range
                .as_ref()
                .and_then(|range| range.parse().ok());
            (
                range.is_some_and(|range| range.contains(&asked)),
                (asked.prefix_len() == 128).then(|| Key::Ipv6(asked.addr())),
            )
        }
    };
    if !inside {
        return Verdict::Forward;
    }
    Verdict::Local(Lookup {
        exists: key.is_none(),
        key,
        zone: name.base_name(),
    })
}

/// The answer to a question about this network.
pub fn respond(
    request: &Message,
    network: &NetworkFacts,
    lookup: &Lookup,
    hosts: &[Host],
) -> Message {
    let mut message = failure(request, ResponseCode::NoError);
    message.metadata.authoritative = true;
    let Some(query) = request.queries.first() else {
        return message;
    };
    let soa =
        |minimum| Record::from_rdata(lookup.zone.clone(), minimum, soa(network, &lookup.zone));
    let reverse = query.name().parse_arpa_name().is_ok();
    if query.query_type() == RecordType::SOA && *query.name() == lookup.zone {
        message.add_answer(soa(TTL));
        return message;
    }
    let answers = hosts
        .iter()
        .flat_map(|host| records(query.query_type(), reverse, host, network))
        .map(|data| Record::from_rdata(query.name().clone(), TTL, data));
    message.add_answers(answers);
    if message.answers.is_empty() {
        if hosts.is_empty() && !lookup.exists {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        message.add_authority(soa(NEGATIVE_TTL));
    }
    message
}

fn records(kind: RecordType, reverse: bool, host: &Host, network: &NetworkFacts) -> Vec<RData> {
    let wants = |it: RecordType| kind == it || kind == RecordType::ANY;
    let mut data = Vec::new();
    if reverse {
        if wants(RecordType::PTR)
            && let Some(name) = host_name(host.ipv4, network)
        {
            data.push(RData::PTR(PTR(name)));
        }
        return data;
    }
    if wants(RecordType::A) {
        data.push(RData::A(A(host.ipv4)));
    }
    if let Some(address) = host.ipv6
        && wants(RecordType::AAAA)
    {
        data.push(RData::AAAA(AAAA(address)));
    }
    data
}

fn host_name(address: Ipv4Addr, network: &NetworkFacts) -> Option<Name> {
    domain(network)?
        .prepend_label(names::of_address(address))
        .ok()
}

fn soa(network: &NetworkFacts, zone: &Name) -> RData {
    let primary = domain(network).unwrap_or_else(|| zone.clone());
    let contact = primary
        .prepend_label("hostmaster")
        .unwrap_or_else(|_| primary.clone());
    RData::SOA(SOA::new(
        primary,
        contact,
        1,
        3600,
        600,
        86_400,
        NEGATIVE_TTL,
    ))
}

/// An answer without records.
pub fn failure(request: &Message, code: ResponseCode) -> Message {
    let id = request.metadata.id;
    let mut message = Message::response(id, request.metadata.op_code);
    message.metadata = Metadata::response_from_request(&request.metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        message.set_edns(edns);
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network() -> NetworkFacts {
        NetworkFacts {
            id: "net-1".to_owned(),
            ipv4_range: "10.9.0.0/20".to_owned(),
            ipv6_range: Some("fd09::/64".to_owned()),
            dns_domain: "Hearth.internal".to_owned(),
        }
    }

    fn verdict(name: &str, kind: RecordType) -> Verdict {
        let name = Name::from_ascii(name).expect("a name");
        classify(&Query::query(name, kind), &network())
    }

    fn key(name: &str) -> Option<Key> {
        match verdict(name, RecordType::A) {
            Verdict::Local(lookup) => lookup.key,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn only_names_of_the_network_are_answered_here() {
        assert_eq!(
            key("WEB.hearth.INTERNAL."),
            Some(Key::Label("web".to_owned()))
        );
        assert_eq!(
            key("i-0123456789abcdef0.hearth.internal."),
            Some(Key::Id("i-0123456789abcdef0".to_owned()))
        );
        assert_eq!(
            key("ip-10-9-0-5.hearth.internal."),
            Some(Key::Ipv4([10, 9, 0, 5].into()))
        );
        assert_eq!(key("a.web.hearth.internal."), None);
        assert_eq!(key("hearth.internal."), None);
        assert_eq!(
            key("5.0.9.10.in-addr.arpa."),
            Some(Key::Ipv4([10, 9, 0, 5].into()))
        );
        for name in [
            "internal.",
            "notHearth.internal.",
            "example.com.",
            ".",
            "web.",
        ] {
            assert_eq!(verdict(name, RecordType::A), Verdict::Forward, "{name}");
        }
        // Just outside of 10.9.0.0/20, and what is partly outside.
        for name in [
            "5.16.9.10.in-addr.arpa.",
            "9.10.in-addr.arpa.",
            "x.9.10.in-addr.arpa.",
        ] {
            assert_eq!(verdict(name, RecordType::PTR), Verdict::Forward, "{name}");
        }
        assert_eq!(
            verdict("hearth.internal.", RecordType::AXFR),
            Verdict::Refused
        );
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(labels in proptest::collection::vec("[ -~]{1,20}", 0..8)) {
            for tail in ["hearth.internal.", "in-addr.arpa.", "ip6.arpa.", "."] {
                let mut name = Name::from_ascii(tail).expect("a name");
                for label in &labels {
                    name = name.prepend_label(label.as_bytes()).unwrap_or(name);
                }
                let query = Query::query(name, RecordType::ANY);
                let mut request = Message::query();
                request.add_query(query.clone());
                if let Verdict::Local(lookup) = classify(&query, &network()) {
                    let message = respond(&request, &network(), &lookup, &[]);
                    prop_assert!(message.to_vec().is_ok());
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Message::from_vec(&bytes)
                && let Some(query) = request.queries.first()
            {
                let _ = classify(query, &network());
            }
        }
    }
}
