//! Expressions, sets and elements as nf_tables wants them (`linux/netfilter/nf_tables.h`).

use super::attributes::Writer;
use crate::firewall::table::{
    Base, Data, Direction, Element, ElementKey, Expression, Field, Lookup, Set, SetData,
};

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const NF_DROP: u32 = 0;
pub const NF_ACCEPT: u32 = 1;
pub const NFT_JUMP: u32 = -3i32 as u32;
const NFT_GOTO: u32 = -4i32 as u32;
const NFT_RETURN: u32 = -5i32 as u32;
/// `NFT_DYNSET_OP_ADD`
const DYNSET_ADD: u32 = 0;
const REG_VERDICT: u32 = 0;
const NFPROTO_IPV4: u32 = 2;

/// `NFT_SET_ANONYMOUS`: a part of a rule.
pub const SET_ANONYMOUS: u32 = 0x1;
/// `NFT_SET_INTERVAL`, `NFT_SET_MAP`, `NFT_SET_EVAL`, `NFT_SET_CONCAT`
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
pub const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
/// `NFT_DATA_VERDICT` as the type of a map's data.
pub const VERDICT_TYPE: u32 = 0xffff_ff00;

/// `NF_NAT_RANGE_MAP_IPS`, `NF_NAT_RANGE_PROTO_SPECIFIED`
const MAP_IPS: u32 = 1;
const PROTO_SPECIFIED: u32 = 2;

/// Longest comment that user data has room for, in bytes.
const COMMENT: usize = 120;

/// A register as the kernel names it when it lists rules.
fn register(word: usize) -> u32 {
    let word = u32::try_from(word).unwrap_or(u32::MAX);
    match word % 4 {
        0 => 1 + word / 4,
        _ => 8 + word,
    }
}

fn value(writer: &mut Writer, kind: u16, data: &[u8]) {
    writer.nested(kind, |data_| {
        data_.bytes(DATA_VALUE, data);
    });
}

fn verdict(writer: &mut Writer, kind: u16, code: u32, chain: Option<&str>) {
    writer.nested(kind, |data| {
        data.nested(DATA_VERDICT, |verdict| {
            verdict.u32(VERDICT_CODE, code);
            if let Some(chain) = chain {
                verdict.string(VERDICT_CHAIN, chain);
            }
        });
    });
}

/// One expression: its name, and what it is told.
pub fn expression(expression: &Expression) -> Vec<u8> {
    use Expression as E;
    let mut data = Writer::new();
    let it = &mut data;
    let name = match expression {
        E::Meta { key, register: to } => {
            it.u32(1, register(*to)).u32(2, *key);
            "meta"
        }
        E::Payload {
            base,
            offset,
            len,
            register: to,
        } => {
            it.u32(1, register(*to)).u32(2, *base);
            it.u32(3, *offset).u32(4, *len);
            "payload"
        }
        E::Ct {
            key,
            direction,
            register: to,
        } => {
            it.u32(1, register(*to)).u32(2, *key);
            if let Some(direction) = direction {
                it.u8(3, u8::from(*direction == Direction::Reply));
            }
            "ct"
        }
        E::SetCtMark { register: from } => {
            it.u32(2, 3).u32(4, register(*from));
            "ct"
        }
        E::Exthdr {
            op,
            kind,
            offset,
            present,
            register: to,
        } => {
            it.u32(1, register(*to)).u8(2, *kind);
            it.u32(3, *offset).u32(4, 1);
            it.u32(5, u32::from(*present)).u32(6, *op);
            "exthdr"
        }
        E::FibType { register: to } => {
            // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
            it.u32(1, register(*to)).u32(2, 3).u32(3, 2);
            "fib"
        }
        E::Value { data, register: to } => {
            it.u32(1, register(*to));
            value(it, 2, data);
            "immediate"
        }
        E::Mask { mask, register: at } => {
            let len = u32::try_from(mask.len()).unwrap_or_default();
            it.u32(1, register(*at)).u32(2, register(*at)).u32(3, len);
            value(it, 4, mask);
            value(it, 5, &vec![0; mask.len()]);
            "bitwise"
        }
        E::Compare {
            equal,
            data,
            register: from,
        } => {
            it.u32(1, register(*from)).u32(2, u32::from(!equal));
            value(it, 3, data);
            "cmp"
        }
        E::Lookup {
            set,
            invert,
            register: from,
        } => {
            it.string(1, set).u32(2, register(*from));
            it.u32(5, u32::from(*invert));
            "lookup"
        }
        E::VerdictMap {
            set,
            register: from,
        } => {
            it.string(1, set)
                .u32(2, register(*from))
                .u32(3, REG_VERDICT);
            "lookup"
        }
        E::Map {
            set,
            register: from,
            to,
        } => {
            it.string(1, set)
                .u32(2, register(*from))
                .u32(3, register(*to));
            "lookup"
        }
        E::Accept => {
            it.u32(1, REG_VERDICT);
            verdict(it, 2, NF_ACCEPT, None);
            "immediate"
        }
        E::Drop => {
            it.u32(1, REG_VERDICT);
            verdict(it, 2, NF_DROP, None);
            "immediate"
        }
        E::Jump(chain) => {
            it.u32(1, REG_VERDICT);
            verdict(it, 2, NFT_JUMP, Some(chain));
            "immediate"
        }
        E::Goto(chain) => {
            it.u32(1, REG_VERDICT);
            verdict(it, 2, NFT_GOTO, Some(chain));
            "immediate"
        }
        E::Return => {
            it.u32(1, REG_VERDICT);
            verdict(it, 2, NFT_RETURN, None);
            "immediate"
        }
        E::Count {
            set,
            register: from,
        } => {
            it.string(1, set).u32(3, DYNSET_ADD).u32(4, register(*from));
            "dynset"
        }
        E::Snat { address } => {
            let address = register(*address);
            it.u32(1, 0).u32(2, NFPROTO_IPV4);
            it.u32(3, address).u32(4, address).u32(7, MAP_IPS);
            "nat"
        }
        E::Dnat { address, port } => {
            let address = register(*address);
            it.u32(1, 1).u32(2, NFPROTO_IPV4);
            it.u32(3, address).u32(4, address);
            let mut flags = MAP_IPS;
            if let Some(port) = port {
                let port = register(*port);
                it.u32(5, port).u32(6, port);
                flags |= PROTO_SPECIFIED;
            }
            it.u32(7, flags);
            "nat"
        }
        E::Masquerade => "masq",
        E::Redirect { port } => {
            let port = register(*port);
            it.u32(1, port).u32(2, port).u32(3, PROTO_SPECIFIED);
            "redir"
        }
        // Never wanted.
        E::Foreign => "",
    };
    let mut whole = Writer::new();
    whole.string(1, name);
    whole.nested(2, |inner| *inner = data);
    whole.into_bytes()
}

/// `NFTA_RULE_EXPRESSIONS`' content.
pub fn expressions(list: &[Expression]) -> impl FnOnce(&mut Writer) {
    move |writer| {
        for it in list {
            let bytes = expression(it);
            writer.bytes(LIST_ELEM | 1 << 15, &bytes);
        }
    }
}

/// Comments, as `nft` keeps them in user data: type, length, string with the zero at its end.
pub fn comment(text: &str) -> Vec<u8> {
    let end = (0..=text.len().min(COMMENT))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or_default();
    let text = &text[..end];
    let len = u8::try_from(text.len() + 1).unwrap_or_default();
    [&[0, len][..], text.as_bytes(), &[0]].concat()
}

/// `NFTA_CHAIN_HOOK`
pub fn hook(writer: &mut Writer, base: Base) {
    writer.nested(4, |hook| {
        hook.u32(1, base.hook);
        hook.u32(2, u32::from_ne_bytes(base.priority.to_ne_bytes()));
    });
}

/// The numbers that make a set what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetHeader {
    pub flags: u32,
    pub key_type: u32,
    pub key_len: u32,
    pub data_type: u32,
    pub data_len: u32,
    /// Lengths of the fields of ranges.
    pub fields: Vec<u32>,
    pub counters: bool,
    /// Keys are names: for those who list them.
    pub names: bool,
}

impl SetHeader {
    pub fn of(set: &Set) -> Self {
        let concat = |fields: &[Field]| {
            let kind = fields.iter().fold(0, |kind, it| kind << 6 | it.datatype());
            let words: usize = fields.iter().map(|it| it.words()).sum();
            (kind, u32::try_from(words * 4).unwrap_or_default())
        };
        let (key_type, mut key_len) = concat(&set.key);
        let mut header = Self::default();
        if let [field] = set.key[..] {
            // A single field is not filled up.
            key_len = u32::try_from(field.size()).unwrap_or_default();
        }
        header.key_type = key_type;
        header.key_len = key_len;
        header.counters = set.counters;
        header.names = set.key == [Field::Interface];
        if set.lookup == Lookup::Filled {
            header.flags |= SET_EVAL;
        }
        if set.lookup == Lookup::Ranges {
            header.flags |= SET_INTERVAL;
            if set.key.len() > 1 {
                header.flags |= SET_CONCAT;
                let lengths = set.key.iter().map(|it| u32::try_from(it.size()));
                header.fields = lengths.map(Result::unwrap_or_default).collect();
            }
        }
        match &set.data {
            SetData::Nothing => {}
            SetData::Verdict => {
                header.flags |= SET_MAP;
                header.data_type = VERDICT_TYPE;
            }
            SetData::Value(fields) => {
                header.flags |= SET_MAP;
                (header.data_type, header.data_len) = concat(fields);
            }
        }
        header
    }

    /// Whether they are the same set; what only listings look at does not count.
    pub fn is(&self, other: &SetHeader) -> bool {
        let names = self.names;
        *self
            == SetHeader {
                names,
                ..other.clone()
            }
    }

    /// The attributes of `NFT_MSG_NEWSET` but for names.
    pub fn write(&self, writer: &mut Writer, id: u32) {
        writer.u32(3, self.flags);
        writer.u32(4, self.key_type).u32(5, self.key_len);
        if self.flags & SET_MAP != 0 {
            writer.u32(6, self.data_type);
            if self.data_type != VERDICT_TYPE {
                writer.u32(7, self.data_len);
            }
        }
        if !self.fields.is_empty() {
            writer.nested(9, |desc| {
                desc.nested(2, |concat| {
                    for len in &self.fields {
                        concat.nested(LIST_ELEM, |field| {
                            field.u32(1, *len);
                        });
                    }
                });
            });
        }
        writer.u32(10, id);
        if self.names {
            // NFTNL_UDATA_SET_KEYBYTEORDER: that of the host, as `nft` has it for names.
            let order = [&[0, 4][..], &1u32.to_ne_bytes()].concat();
            writer.bytes(13, &order);
        }
        if self.counters {
            writer.nested(17, |expression| {
                expression.string(1, "counter");
                expression.nested(2, |_| {});
            });
        }
    }
}

/// One element, of a set with such keys.
pub fn element(key: &ElementKey, element: &Element) -> Vec<u8> {
    let mut writer = Writer::new();
    value(&mut writer, 1, &key.first);
    if let Some(last) = &key.last {
        value(&mut writer, 10, last);
    }
    if !key.starts {
        writer.u32(3, 1);
    }
    match &element.data {
        None => {}
        Some(Data::Jump(chain)) => verdict(&mut writer, 2, NFT_JUMP, Some(chain)),
        Some(Data::Value(data)) => value(&mut writer, 2, data),
    }
    if !element.comment.is_empty() {
        writer.bytes(6, &comment(&element.comment));
    }
    writer.into_bytes()
}
