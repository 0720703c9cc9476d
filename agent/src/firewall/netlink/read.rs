//! What the kernel has, read back.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::{
    NFTABLES, NetlinkError, Socket,
    attributes::{self, Attribute, Writer, find, parse},
    encode::{self, SetHeader},
    nft,
};
use crate::firewall::table::{
    Base, Chain, Data, Element, ElementKey, Expression, Family, Lookup, Rule, TABLE, Table,
};

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// A table as the kernel has it.
#[derive(Debug, Default)]
pub struct Found {
    pub table: Table,
    /// Elements of sets that are not wanted.
    pub strangers: Table,
    /// It can't be made of what is wanted by changes of rules, elements, and whole chains and
    /// sets, for this reason.
    pub beyond_repair: Option<String>,
}

/// The number of the rules' present generation; any change by anybody makes another.
///
/// # Errors
/// [`NetlinkError`].
pub fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let answer = match socket.ask(NFTABLES << 8 | nft::GETGEN, 0, 0, &[]) {
        // No such subsystem of netfilter.
        Err(error) if error.errno() == Some(Errno::INVAL) => return Err(NetlinkError::Missing),
        answer => answer?,
    };
    let generation = answer.and_then(|it| find(it.attributes(), 1)?.u32());
    generation.ok_or_else(|| NetlinkError::Socket("an answer without generation".to_owned()))
}

/// Our table in `family`, or `None`. Where a rule is what is `wanted`, it is that in the answer,
/// too; what is not is [`Expression::Foreign`].
///
/// # Errors
/// [`NetlinkError`].
pub fn table(
    socket: &mut Socket,
    family: Family,
    wanted: &Table,
) -> Result<Option<Found>, NetlinkError> {
    let mut name = Writer::new();
    name.string(1, TABLE);
    let name = name.into_bytes();
    let header = match socket.ask(NFTABLES << 8 | nft::GETTABLE, 0, family.number(), &name) {
        Ok(header) => header,
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut found = Found::default();
    let mut objects = 0;
    chains(socket, family, wanted, &mut found, &mut objects)?;
    rules(socket, family, wanted, &name, &mut found)?;
    sets(socket, family, wanted, &name, &mut found, &mut objects)?;
    if let Some(header) = &header {
        let number = |kind| find(header.attributes(), kind).and_then(|it| it.u32());
        if number(2).unwrap_or_default() != 0 {
            beyond(&mut found, "the table is dormant or owned".to_owned());
        }
        if number(3).is_some_and(|uses| uses != objects) {
            beyond(&mut found, "objects that are not ours".to_owned());
        }
    }
    Ok(Some(found))
}

fn beyond(found: &mut Found, reason: String) {
    found.beyond_repair.get_or_insert(reason);
}

fn is_ours(attributes: &[u8], kind: u16) -> bool {
    find(attributes, kind).is_some_and(|it| it.string() == TABLE)
}

fn chains(
    socket: &mut Socket,
    family: Family,
    wanted: &Table,
    found: &mut Found,
    objects: &mut u32,
) -> Result<(), NetlinkError> {
    for message in socket.dump(NFTABLES << 8 | nft::GETCHAIN, family.number(), &[])? {
        let attributes = message.attributes();
        if !is_ours(attributes, 1) {
            continue;
        }
        *objects += 1;
        let Some(name) = find(attributes, 3).map(|it| it.string().to_owned()) else {
            continue;
        };
        let hook = find(attributes, 4).map(|hook| {
            let number = |kind| find(hook.value, kind).and_then(|it| it.u32());
            let priority = number(2).unwrap_or_default();
            let policy = find(attributes, 5).and_then(|it| it.u32());
            (
                find(attributes, 7).map(|it| it.string().to_owned()),
                number(1).unwrap_or_default(),
                i32::from_ne_bytes(priority.to_ne_bytes()),
                policy,
            )
        });
        let base = wanted.chains.get(&name).and_then(|it| it.base);
        let says = |base: Base| {
            (
                Some(base.kind.to_owned()),
                base.hook,
                base.priority,
                Some(1),
            )
        };
        if hook != base.map(says) {
            beyond(found, format!("chain {name} is at another hook"));
        }
        let rules = Vec::new();
        found.table.chains.insert(name, Chain { base, rules });
    }
    Ok(())
}

fn rules(
    socket: &mut Socket,
    family: Family,
    wanted: &Table,
    name: &[u8],
    found: &mut Found,
) -> Result<(), NetlinkError> {
    for message in socket.dump(NFTABLES << 8 | nft::GETRULE, family.number(), name)? {
        let attributes = message.attributes();
        let chain = find(attributes, 2).map_or("", |it| it.string());
        let Some(has) = found.table.chains.get_mut(chain) else {
            continue;
        };
        if !is_ours(attributes, 1) {
            continue;
        }
        let wants = wanted.chains.get(chain);
        let wanted = wants.and_then(|it| it.rules.get(has.rules.len()));
        has.rules.push(match wanted {
            Some(rule) if is_rule(attributes, rule) => rule.clone(),
            _ => Rule {
                expressions: vec![Expression::Foreign],
                comment: String::new(),
            },
        });
    }
    Ok(())
}

fn is_rule(attributes: &[u8], wanted: &Rule) -> bool {
    let comment = find(attributes, 7).map_or(&[][..], |it| it.value);
    let expressions = find(attributes, 4).map_or(&[][..], |it| it.value);
    let mut actual = parse(expressions);
    let all = wanted.expressions.iter().all(|wanted| {
        let actual = actual.next();
        actual.is_some_and(|it| attributes::same(&encode::expression(wanted), it.value))
    });
    let says = if wanted.comment.is_empty() {
        Vec::new()
    } else {
        encode::comment(&wanted.comment)
    };
    all && actual.next().is_none() && comment == says
}

fn sets(
    socket: &mut Socket,
    family: Family,
    wanted: &Table,
    name: &[u8],
    found: &mut Found,
    objects: &mut u32,
) -> Result<(), NetlinkError> {
    for message in socket.dump(NFTABLES << 8 | nft::GETSET, family.number(), name)? {
        let attributes = message.attributes();
        if !is_ours(attributes, 1) {
            continue;
        }
        *objects += 1;
        let Some(name) = find(attributes, 2).map(|it| it.string().to_owned()) else {
            continue;
        };
        let header = header(attributes);
        // Anonymous sets are a part of a rule.
        if header.flags & 1 != 0 {
            continue;
        }
        let Some(set) = wanted.sets.get(&name) else {
            // It goes, whatever it is; what it is does not matter.
            let set = crate::firewall::table::Set {
                key: Vec::new(),
                lookup: crate::firewall::table::Lookup::Exact,
                data: crate::firewall::table::SetData::Nothing,
                counters: false,
            };
            // Of rules' sets, which rules are in there: they may stay in another.
            if name.starts_with("sg-") {
                let each = |_: &ElementKey, _: &str, _: Counter| {};
                let elements = elements(socket, family, &name, each)?;
                found.strangers.elements.insert(name.clone(), elements);
            }
            found.table.sets.insert(name, set);
            continue;
        };
        if !header.is(&SetHeader::of(set)) {
            beyond(found, format!("set {name} is of another kind"));
        }
        // What packets put there is right as it is.
        if set.lookup == Lookup::Filled {
            found.table.sets.insert(name, set.clone());
            continue;
        }
        let counters = |_: &ElementKey, _: &str, _: Counter| {};
        let elements = elements(socket, family, &name, counters)?;
        if !elements.is_empty() {
            found.table.elements.insert(name.clone(), elements);
        }
        found.table.sets.insert(name, set.clone());
    }
    Ok(())
}

fn header(attributes: &[u8]) -> SetHeader {
    let number = |kind| find(attributes, kind).and_then(|it| it.u32());
    let mut header = SetHeader {
        flags: number(3).unwrap_or_default(),
        key_type: number(4).unwrap_or_default(),
        key_len: number(5).unwrap_or_default(),
        data_type: number(6).unwrap_or_default(),
        data_len: number(7).unwrap_or_default(),
        ..SetHeader::default()
    };
    if header.data_type == encode::VERDICT_TYPE {
        header.data_len = 0;
    }
    if let Some(concat) = find(attributes, 9).and_then(|desc| find(desc.value, 2)) {
        let lengths = parse(concat.value).filter_map(|field| find(field.value, 1)?.u32());
        header.fields = lengths.collect();
    }
    let counter = |expression: Attribute<'_>| {
        find(expression.value, 1).is_some_and(|it| it.string() == "counter")
    };
    header.counters = find(attributes, 17).is_some_and(counter);
    header
}

/// The elements of a set; `each` is told of their counters.
///
/// # Errors
/// [`NetlinkError`].
pub fn elements(
    socket: &mut Socket,
    family: Family,
    set: &str,
    mut each: impl FnMut(&ElementKey, &str, Counter),
) -> Result<BTreeMap<ElementKey, Element>, NetlinkError> {
    let mut which = Writer::new();
    which.string(1, TABLE).string(2, set);
    let kind = NFTABLES << 8 | nft::GETSETELEM;
    let mut all = BTreeMap::new();
    for message in socket.dump(kind, family.number(), &which.into_bytes())? {
        let Some(list) = find(message.attributes(), 3) else {
            continue;
        };
        for item in parse(list.value) {
            let value = |kind| find(item.value, kind).and_then(|it| find(it.value, 1));
            let flags = find(item.value, 3).and_then(|it| it.u32());
            let key = ElementKey {
                first: value(1).map(|it| it.value.to_vec()).unwrap_or_default(),
                last: value(10).map(|it| it.value.to_vec()),
                starts: flags.unwrap_or_default() & 1 == 0,
            };
            let data = find(item.value, 2).and_then(|data| {
                if let Some(value) = find(data.value, 1) {
                    return Some(Data::Value(value.value.to_vec()));
                }
                let verdict = find(data.value, 2)?;
                let chain = find(verdict.value, 2).map_or("", |it| it.string());
                let code = find(verdict.value, 1).and_then(|it| it.u32());
                // Another verdict is not ours: no chain has an empty name.
                let jumps = code == Some(encode::NFT_JUMP);
                Some(Data::Jump(if jumps { chain } else { "" }.to_owned()))
            });
            let comment = find(item.value, 6)
                .map_or("", |it| said(it.value))
                .to_owned();
            if let Some(counter) = counter(item.value) {
                each(&key, &comment, counter);
            }
            all.insert(key, Element { data, comment });
        }
    }
    Ok(all)
}

/// The comment in user data.
fn said(userdata: &[u8]) -> &str {
    match userdata {
        [0, len, text @ ..] => {
            let text = text.get(..usize::from(*len).saturating_sub(1));
            std::str::from_utf8(text.unwrap_or_default()).unwrap_or_default()
        }
        _ => "",
    }
}

fn counter(element: &[u8]) -> Option<Counter> {
    let expression = find(element, 7)?;
    let data = find(expression.value, 2)?;
    Some(Counter {
        bytes: find(data.value, 1)?.u64()?,
        packets: find(data.value, 2)?.u64()?,
    })
}
