//! What the kernel has, read back, in its own words. [`super::compare`] says what that is of what
//! is wanted.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::{
    NFTABLES, NetlinkError, Socket,
    attributes::{Attribute, Writer, find, parse},
    encode::{self, SetHeader},
    nft,
};
use crate::firewall::table::{Data, Element, ElementKey, Family, TABLE};

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// A table as the kernel has it, whatever that is.
#[derive(Debug, Default)]
pub struct Raw {
    /// How many objects the kernel counts in it, if it says so.
    pub uses: Option<u32>,
    /// How many of them are chains and sets.
    pub objects: u32,
    /// It is dormant or has an owner.
    pub unusual: bool,
    /// Where packets come in, of those that are not jumped to.
    pub chains: BTreeMap<String, Option<Hook>>,
    /// By chain, in order.
    pub rules: BTreeMap<String, Vec<RawRule>>,
    /// But for those that are a part of a rule.
    pub sets: BTreeMap<String, SetHeader>,
    /// By set.
    pub elements: BTreeMap<String, BTreeMap<ElementKey, Element>>,
}

/// Where packets come into a chain.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: String,
    pub number: u32,
    pub priority: i32,
    /// What becomes of packets at its end: `NF_*`.
    pub policy: Option<u32>,
}

/// A rule in the kernel's words.
#[derive(Debug)]
pub struct RawRule {
    pub expressions: Vec<u8>,
    /// User data.
    pub comment: Vec<u8>,
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

/// Our table in `family`, or `None`.
///
/// # Errors
/// [`NetlinkError`].
pub fn table(socket: &mut Socket, family: Family) -> Result<Option<Raw>, NetlinkError> {
    let mut name = Writer::new();
    name.string(1, TABLE);
    let name = name.into_bytes();
    let header = match socket.ask(NFTABLES << 8 | nft::GETTABLE, 0, family.number(), &name) {
        Ok(header) => header,
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut raw = Raw::default();
    if let Some(header) = &header {
        let number = |kind| find(header.attributes(), kind).and_then(|it| it.u32());
        raw.unusual = number(2).unwrap_or_default() != 0;
        raw.uses = number(3);
    }
    chains(socket, family, &mut raw)?;
    rules(socket, family, &name, &mut raw)?;
    sets(socket, family, &name, &mut raw)?;
    Ok(Some(raw))
}

fn is_ours(attributes: &[u8], kind: u16) -> bool {
    find(attributes, kind).is_some_and(|it| it.string() == TABLE)
}

fn chains(socket: &mut Socket, family: Family, raw: &mut Raw) -> Result<(), NetlinkError> {
    for message in socket.dump(NFTABLES << 8 | nft::GETCHAIN, family.number(), &[])? {
        let attributes = message.attributes();
        if !is_ours(attributes, 1) {
            continue;
        }
        raw.objects += 1;
        let Some(name) = find(attributes, 3).map(|it| it.string().to_owned()) else {
            continue;
        };
        let hook = find(attributes, 4).map(|hook| {
            let number = |kind| find(hook.value, kind).and_then(|it| it.u32());
            let priority = number(2).unwrap_or_default();
            Hook {
                kind: find(attributes, 7).map_or("", |it| it.string()).to_owned(),
                number: number(1).unwrap_or_default(),
                priority: i32::from_ne_bytes(priority.to_ne_bytes()),
                policy: find(attributes, 5).and_then(|it| it.u32()),
            }
        });
        raw.chains.insert(name, hook);
    }
    Ok(())
}

fn rules(
    socket: &mut Socket,
    family: Family,
    name: &[u8],
    raw: &mut Raw,
) -> Result<(), NetlinkError> {
    for message in socket.dump(NFTABLES << 8 | nft::GETRULE, family.number(), name)? {
        let attributes = message.attributes();
        if !is_ours(attributes, 1) {
            continue;
        }
        let value = |kind| find(attributes, kind).map_or(&[][..], |it| it.value);
        let chain = find(attributes, 2).map_or("", |it| it.string());
        raw.rules
            .entry(chain.to_owned())
            .or_default()
            .push(RawRule {
                expressions: value(4).to_vec(),
                comment: value(7).to_vec(),
            });
    }
    Ok(())
}

fn sets(
    socket: &mut Socket,
    family: Family,
    name: &[u8],
    raw: &mut Raw,
) -> Result<(), NetlinkError> {
    for message in socket.dump(NFTABLES << 8 | nft::GETSET, family.number(), name)? {
        let attributes = message.attributes();
        if !is_ours(attributes, 1) {
            continue;
        }
        raw.objects += 1;
        let Some(name) = find(attributes, 2).map(|it| it.string().to_owned()) else {
            continue;
        };
        let header = header(attributes);
        if header.flags & encode::SET_ANONYMOUS != 0 {
            continue;
        }
        // What packets put there is right as it is.
        let elements = match header.flags & encode::SET_EVAL {
            0 => elements(socket, family, &name, |_, _, _| {})?,
            _ => BTreeMap::new(),
        };
        if !elements.is_empty() {
            raw.elements.insert(name.clone(), elements);
        }
        raw.sets.insert(name, header);
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

/// Key, comment and counter of each element of a set. One that was removed by hand has none; the
/// next reconciliation makes it again.
///
/// # Errors
/// [`NetlinkError`].
pub fn counters(
    socket: &mut Socket,
    set: &str,
    each: impl FnMut(&ElementKey, &str, Counter),
) -> Result<(), NetlinkError> {
    match elements(socket, Family::Inet, set, each) {
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
        read => read.map(drop),
    }
}

/// The comment in user data.
pub fn said(userdata: &[u8]) -> &str {
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
