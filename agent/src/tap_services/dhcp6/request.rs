//! Reads a client's message. By hand: `dhcproto` subtracts from lengths without looking, which a
//! hostile client could make panic.

use std::net::Ipv6Addr;

use dhcproto::v6::MessageType;

/// Longest DUID (RFC 8415 section 11.1): two bytes of type and 128 more.
const MAX_DUID: usize = 130;

/// Most identity associations in a message that are looked at; clients send one.
const MAX_ASSOCIATIONS: usize = 8;

/// What matters of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub kind: MessageType,
    pub xid: [u8; 3],
    pub client: Option<Vec<u8>>,
    pub server: Option<Vec<u8>>,
    pub rapid_commit: bool,
    pub associations: Vec<Association>,
}

/// What a client wants to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    pub kind: AssociationKind,
    pub id: u32,
    /// Addresses that it has, or would like.
    pub addresses: Vec<Ipv6Addr>,
}

/// Kinds of identity association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssociationKind {
    /// IA_NA.
    Address,
    /// IA_TA.
    Temporary,
    /// IA_PD.
    Prefix,
}

/// Codes of options (RFC 8415 section 21).
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_TA: u16 = 4;
const IA_ADDRESS: u16 = 5;
const RAPID_COMMIT: u16 = 14;
const IA_PD: u16 = 25;

/// Options one after the other; ends at the first that is cut off.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        let code = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (data, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((code, data))
    }
}

impl Request {
    /// `None` for what is not a message of a client.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (&[kind, a, b, c], rest) = bytes.split_first_chunk::<4>()?;
        let mut request = Self {
            kind: MessageType::from(kind),
            xid: [a, b, c],
            client: None,
            server: None,
            rapid_commit: false,
            associations: Vec::new(),
        };
        let duid = |data: &[u8]| (1..=MAX_DUID).contains(&data.len()).then(|| data.to_vec());
        let mut options = Options(rest);
        for (code, data) in &mut options {
            match code {
                CLIENT_ID => request.client = Some(duid(data)?),
                SERVER_ID => request.server = Some(duid(data)?),
                RAPID_COMMIT => request.rapid_commit = true,
                IA_NA | IA_TA | IA_PD if request.associations.len() < MAX_ASSOCIATIONS => {
                    request.associations.push(association(code, data)?);
                }
                _ => {}
            }
        }
        options.0.is_empty().then_some(request)
    }
}

fn association(code: u16, data: &[u8]) -> Option<Association> {
    let (id, rest) = data.split_first_chunk::<4>()?;
    let (kind, rest) = match code {
        IA_NA => (AssociationKind::Address, rest.get(8..)?),
        IA_TA => (AssociationKind::Temporary, rest),
        _ => (AssociationKind::Prefix, rest.get(8..)?),
    };
    let address = |(code, data): (u16, &[u8])| {
        let octets = data.first_chunk::<16>()?;
        (code == IA_ADDRESS).then(|| Ipv6Addr::from(*octets))
    };
    Some(Association {
        kind,
        id: u32::from_be_bytes(*id),
        addresses: Options(rest).filter_map(address).take(8).collect(),
    })
}
