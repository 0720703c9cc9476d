//! What rules are made of: the kernel's own expressions, which work on 16 registers of 4 bytes.

use super::{Field, Rule};

/// Direction of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Original,
    Reply,
}

/// One step of a rule. `register` counts words of 4 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads `NFT_META_*`.
    Meta {
        key: u32,
        register: usize,
    },
    /// Loads a part of the packet: link layer 0, network 1 or transport header 2.
    Payload {
        base: u32,
        offset: u32,
        len: u32,
        register: usize,
    },
    /// Loads `NFT_CT_*`.
    Ct {
        key: u32,
        direction: Option<Direction>,
        register: usize,
    },
    /// Sets the connection's mark.
    SetCtMark {
        register: usize,
    },
    /// Loads whether an extension header or IP option is there, or a byte of it.
    Exthdr {
        /// 0: IPv6 extension header; 2: IPv4 option.
        op: u32,
        kind: u8,
        offset: u32,
        present: bool,
        register: usize,
    },
    /// Loads the kind of the destination address (`RTN_*`).
    FibType {
        register: usize,
    },
    /// Loads a constant.
    Value {
        data: Vec<u8>,
        register: usize,
    },
    /// Keeps the bits of `mask`.
    Mask {
        mask: Vec<u8>,
        register: usize,
    },
    /// Goes on if the register is (not) this.
    Compare {
        equal: bool,
        data: Vec<u8>,
        register: usize,
    },
    /// Goes on if the key is (not) in the set.
    Lookup {
        set: String,
        invert: bool,
        register: usize,
    },
    /// Does what the map says of the key.
    VerdictMap {
        set: String,
        register: usize,
    },
    /// Loads what the map says of the key; goes on if it has it.
    Map {
        set: String,
        register: usize,
        to: usize,
    },
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    /// Translates the source to the address in the register.
    Snat {
        address: usize,
    },
    /// Translates the destination to the address in the register, and the port.
    Dnat {
        address: usize,
        port: Option<usize>,
    },
    Masquerade,
    /// Counts the packet in the set's element for the key, which is made if it is not there; goes
    /// on if it counts.
    Count {
        set: String,
        register: usize,
    },
    /// Back to where the chain was jumped to from.
    Return,
    /// To this host, to the port in the register.
    Redirect {
        port: usize,
    },
    /// What somebody else made.
    Foreign,
}

use Expression as E;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_PROTO_DST: u32 = 12;
const CT_SRC_IP: u32 = 19;
const CT_DST_IP: u32 = 20;
const CT_SRC_IP6: u32 = 21;
const CT_DST_IP6: u32 = 22;
/// `IPS_DST_NAT`
const STATUS_DNAT: u32 = 1 << 5;
const RTN_LOCAL: u32 = 2;

/// A rule, put together.
#[derive(Clone, Debug, Default)]
pub struct RuleBuilder {
    expressions: Vec<Expression>,
    comment: String,
    /// Words of a key that are loaded.
    loaded: usize,
}

/// Starts a rule.
pub fn rule() -> RuleBuilder {
    RuleBuilder::default()
}

impl RuleBuilder {
    fn push(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    fn load(mut self, field: Field, expression: impl FnOnce(usize) -> Expression) -> Self {
        let register = self.loaded;
        self.loaded += field.words();
        self.push(expression(register))
    }

    fn test(self, equal: bool, data: &[u8]) -> Self {
        let data = data.to_vec();
        self.push(E::Compare {
            equal,
            data,
            register: 0,
        })
    }

    fn meta(self, key: u32) -> Self {
        self.push(E::Meta { key, register: 0 })
    }

    fn payload(self, base: u32, offset: u32, len: u32) -> Self {
        self.push(E::Payload {
            base,
            offset,
            len,
            register: 0,
        })
    }

    pub fn comment(mut self, comment: &str) -> Self {
        comment.clone_into(&mut self.comment);
        self
    }

    // Tests.

    pub fn iif_prefix(self, equal: bool, prefix: &str) -> Self {
        self.meta(META_IIFNAME).test(equal, prefix.as_bytes())
    }

    pub fn oif_prefix(self, equal: bool, prefix: &str) -> Self {
        self.meta(META_OIFNAME).test(equal, prefix.as_bytes())
    }

    pub fn iif_is_not(self, name: &str) -> Self {
        let mut whole = [0; 16];
        for (to, from) in whole[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        self.meta(META_IIFNAME).test(false, &whole)
    }

    pub fn mark(self, mark: u32) -> Self {
        self.meta(META_MARK).test(true, &mark.to_ne_bytes())
    }

    pub fn ipv4(self) -> Self {
        self.meta(META_NFPROTO).test(true, &[2])
    }

    pub fn ipv6(self) -> Self {
        self.meta(META_NFPROTO).test(true, &[10])
    }

    pub fn protocol(self, protocol: u8) -> Self {
        self.meta(META_L4PROTO).test(true, &[protocol])
    }

    pub fn protocol_is_not(self, protocol: u8) -> Self {
        self.meta(META_L4PROTO).test(false, &[protocol])
    }

    pub fn ct_state(self, equal: bool, state: CtState) -> Self {
        self.push(E::Ct {
            key: CT_STATE,
            direction: None,
            register: 0,
        })
        .test(equal, &(state as u32).to_ne_bytes())
    }

    /// No connection of any kind: what is not tracked, or can't be.
    pub fn of_no_connection(self) -> Self {
        let tracked = CtState::Established as u32 | CtState::Related as u32 | CtState::New as u32;
        self.push(E::Ct {
            key: CT_STATE,
            direction: None,
            register: 0,
        })
        .push(E::Mask {
            mask: tracked.to_ne_bytes().to_vec(),
            register: 0,
        })
        .test(true, &0u32.to_ne_bytes())
    }

    pub fn ct_direction(self, direction: Direction) -> Self {
        self.push(E::Ct {
            key: CT_DIRECTION,
            direction: None,
            register: 0,
        })
        .test(true, &[u8::from(direction == Direction::Reply)])
    }

    /// Whether the connection's destination was translated.
    pub fn dnat(self, yes: bool) -> Self {
        self.push(E::Ct {
            key: CT_STATUS,
            direction: None,
            register: 0,
        })
        .push(E::Mask {
            mask: STATUS_DNAT.to_ne_bytes().to_vec(),
            register: 0,
        })
        .test(!yes, &0u32.to_ne_bytes())
    }

    /// TCP that does not begin a connection: of FIN, SYN, RST and ACK, not SYN alone.
    pub fn tcp_not_first(self) -> Self {
        self.protocol(6)
            .payload(2, 13, 1)
            .push(E::Mask {
                mask: vec![0x17],
                register: 0,
            })
            .test(false, &[0x02])
    }

    pub fn source_port(self, port: u16) -> Self {
        self.payload(2, 0, 2).test(true, &port.to_be_bytes())
    }

    pub fn destination_port(self, port: u16) -> Self {
        self.payload(2, 2, 2).test(true, &port.to_be_bytes())
    }

    /// ICMP or ICMPv6.
    pub fn icmp_type(self, kind: u8) -> Self {
        self.payload(2, 0, 1).test(true, &[kind])
    }

    pub fn source4_is(self, address: std::net::Ipv4Addr) -> Self {
        self.payload(1, 12, 4).test(true, &address.octets())
    }

    pub fn destination4_is(self, address: std::net::Ipv4Addr) -> Self {
        self.payload(1, 16, 4).test(true, &address.octets())
    }

    pub fn destination6_is(self, address: std::net::Ipv6Addr) -> Self {
        self.payload(1, 24, 16).test(true, &address.octets())
    }

    pub fn source4_in(self, equal: bool, block: ipnet::Ipv4Net) -> Self {
        self.payload(1, 12, 4)
            .block(equal, &block.network().octets(), &block.netmask().octets())
    }

    pub fn destination4_in(self, equal: bool, block: ipnet::Ipv4Net) -> Self {
        self.payload(1, 16, 4)
            .block(equal, &block.network().octets(), &block.netmask().octets())
    }

    pub fn source6_in(self, equal: bool, block: ipnet::Ipv6Net) -> Self {
        self.payload(1, 8, 16)
            .block(equal, &block.network().octets(), &block.netmask().octets())
    }

    pub fn destination6_in(self, equal: bool, block: ipnet::Ipv6Net) -> Self {
        self.payload(1, 24, 16)
            .block(equal, &block.network().octets(), &block.netmask().octets())
    }

    fn block(self, equal: bool, network: &[u8], mask: &[u8]) -> Self {
        self.push(E::Mask {
            mask: mask.to_vec(),
            register: 0,
        })
        .test(equal, network)
    }

    pub fn ip_option(self, kind: u8) -> Self {
        self.push(E::Exthdr {
            op: 2,
            kind,
            offset: 0,
            present: true,
            register: 0,
        })
        .test(true, &[1])
    }

    /// A routing header of type 0.
    pub fn routing_header_0(self) -> Self {
        self.push(E::Exthdr {
            op: 0,
            kind: 43,
            offset: 2,
            present: false,
            register: 0,
        })
        .test(true, &[0])
    }

    /// The destination is one of the host's own addresses.
    pub fn destination_is_local(self) -> Self {
        self.push(E::FibType { register: 0 })
            .test(true, &RTN_LOCAL.to_ne_bytes())
    }

    // Keys: fields are loaded one behind the other, then looked up.

    /// A constant.
    pub fn key_value(self, field: Field, value: &[u8]) -> Self {
        let data = value.to_vec();
        self.load(field, |register| E::Value { data, register })
    }

    pub fn key_iif(self) -> Self {
        self.load(Field::Interface, |register| E::Meta {
            key: META_IIFNAME,
            register,
        })
    }

    pub fn key_oif(self) -> Self {
        self.load(Field::Interface, |register| E::Meta {
            key: META_OIFNAME,
            register,
        })
    }

    /// The sender's MAC address in the frame.
    pub fn key_ether_source(self) -> Self {
        self.key_payload(Field::Ether, 0, 6)
    }

    pub fn key_payload(self, field: Field, base: u32, offset: u32) -> Self {
        let len = u32::try_from(field.size()).unwrap_or_default();
        self.load(field, |register| E::Payload {
            base,
            offset,
            len,
            register,
        })
    }

    pub fn key_source(self, field: Field) -> Self {
        let offset = if field == Field::Ipv6 { 8 } else { 12 };
        self.key_payload(field, 1, offset)
    }

    pub fn key_destination(self, field: Field) -> Self {
        let offset = if field == Field::Ipv6 { 24 } else { 16 };
        self.key_payload(field, 1, offset)
    }

    pub fn key_protocol(self) -> Self {
        self.load(Field::Protocol, |register| E::Meta {
            key: META_L4PROTO,
            register,
        })
    }

    pub fn key_source_port(self) -> Self {
        self.key_payload(Field::Port, 2, 0)
    }

    pub fn key_destination_port(self) -> Self {
        self.key_payload(Field::Port, 2, 2)
    }

    /// The source that the connection began with, or the one of its replies.
    pub fn key_ct_source(self, field: Field, direction: Direction) -> Self {
        let key = if field == Field::Ipv6 {
            CT_SRC_IP6
        } else {
            CT_SRC_IP
        };
        self.load(field, |register| E::Ct {
            key,
            direction: Some(direction),
            register,
        })
    }

    /// The destination that the connection was opened to, before any translation.
    pub fn key_ct_destination(self, field: Field) -> Self {
        self.key_ct_destination_of(field, Direction::Original)
    }

    /// The destination of packets in one direction, as they are sent.
    pub fn key_ct_destination_of(self, field: Field, direction: Direction) -> Self {
        let key = if field == Field::Ipv6 {
            CT_DST_IP6
        } else {
            CT_DST_IP
        };
        self.load(field, |register| E::Ct {
            key,
            direction: Some(direction),
            register,
        })
    }

    pub fn key_ct_destination_port(self) -> Self {
        self.key_ct_destination_port_of(Direction::Original)
    }

    pub fn key_ct_destination_port_of(self, direction: Direction) -> Self {
        self.load(Field::Port, |register| E::Ct {
            key: CT_PROTO_DST,
            direction: Some(direction),
            register,
        })
    }

    /// The key that was loaded is in the set.
    pub fn in_set(mut self, set: &str) -> Self {
        self.loaded = 0;
        let set = set.to_owned();
        self.push(E::Lookup {
            set,
            invert: false,
            register: 0,
        })
    }

    pub fn not_in_set(mut self, set: &str) -> Self {
        self.loaded = 0;
        let set = set.to_owned();
        self.push(E::Lookup {
            set,
            invert: true,
            register: 0,
        })
    }

    // Ends.

    fn end(self) -> Rule {
        Rule {
            expressions: self.expressions,
            comment: self.comment,
        }
    }

    pub fn accept(self) -> Rule {
        self.push(E::Accept).end()
    }

    pub fn drop(self) -> Rule {
        self.push(E::Drop).end()
    }

    pub fn jump(self, chain: &str) -> Rule {
        self.push(E::Jump(chain.to_owned())).end()
    }

    pub fn goto(self, chain: &str) -> Rule {
        self.push(E::Goto(chain.to_owned())).end()
    }

    pub fn back(self) -> Rule {
        self.push(E::Return).end()
    }

    /// Counts by the key that was loaded, and goes back; goes on if the set is full.
    pub fn count(self, set: &str) -> Rule {
        let set = set.to_owned();
        self.push(E::Count { set, register: 0 }).back()
    }

    /// What the map says of the key that was loaded.
    pub fn verdict_map(self, set: &str) -> Rule {
        let set = set.to_owned();
        self.push(E::VerdictMap { set, register: 0 }).end()
    }

    /// To the address that the map has for the key that was loaded.
    pub fn snat_by(self, set: &str) -> Rule {
        let set = set.to_owned();
        self.push(E::Map {
            set,
            register: 0,
            to: 0,
        })
        .push(E::Snat { address: 0 })
        .end()
    }

    pub fn dnat_by(self, set: &str) -> Rule {
        let set = set.to_owned();
        self.push(E::Map {
            set,
            register: 0,
            to: 0,
        })
        .push(E::Dnat {
            address: 0,
            port: None,
        })
        .end()
    }

    /// To the address and port that the map has.
    pub fn dnat_port_by(self, set: &str) -> Rule {
        let set = set.to_owned();
        self.push(E::Map {
            set,
            register: 0,
            to: 0,
        })
        .push(E::Dnat {
            address: 0,
            port: Some(1),
        })
        .end()
    }

    pub fn masquerade(self) -> Rule {
        self.push(E::Masquerade).end()
    }

    pub fn redirect(self, port: u16) -> Rule {
        self.push(E::Value {
            data: port.to_be_bytes().to_vec(),
            register: 0,
        })
        .push(E::Redirect { port: 0 })
        .end()
    }

    /// Marks the connection, so that it is known later.
    pub fn mark_connection(self, mark: u32) -> Self {
        self.push(E::Value {
            data: mark.to_ne_bytes().to_vec(),
            register: 0,
        })
        .push(E::SetCtMark { register: 0 })
    }
}

/// States of connection tracking, as bits of `ct state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CtState {
    Invalid = 1,
    Established = 2,
    Related = 4,
    New = 8,
    Untracked = 64,
}
