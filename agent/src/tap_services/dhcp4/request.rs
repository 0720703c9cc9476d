//! Reads a client's message. The options that matter are read here: `dhcproto` counts lengths
//! down without looking in a few others, which a hostile client could make panic.

use std::net::Ipv4Addr;

use dhcproto::v4::{HType, MessageType, Opcode, OptionCode, borrowed::Message};

/// What matters of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub kind: MessageType,
    pub xid: u32,
    pub secs: u16,
    pub broadcast: bool,
    /// The address that the client has and uses.
    pub ciaddr: Ipv4Addr,
    pub mac: [u8; 6],
    /// The server that it talks to, if it says so.
    pub server: Option<Ipv4Addr>,
    /// The address that it wants.
    pub requested: Option<Ipv4Addr>,
    /// Codes of options that it asks for.
    pub parameters: Vec<u8>,
    /// Its own name for itself, to be sent back (RFC 6842).
    pub client_id: Option<Vec<u8>>,
    /// Largest message, with IP and UDP headers.
    pub max_size: Option<u16>,
}

impl Request {
    /// `None` for what is not a DHCP message of an Ethernet client on this very link.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let message = Message::new(bytes).ok()?;
        let relayed = message.giaddr() != Ipv4Addr::UNSPECIFIED || message.hops() != 0;
        if message.opcode() != Opcode::BootRequest
            || message.htype() != HType::Eth
            || message.hlen() != 6
            || relayed
        {
            return None;
        }
        let mut request = Self {
            kind: MessageType::Unknown(0),
            xid: message.xid(),
            secs: message.secs(),
            broadcast: message.flags().broadcast(),
            ciaddr: message.ciaddr(),
            mac: message.chaddr().try_into().ok()?,
            server: None,
            requested: None,
            parameters: Vec::new(),
            client_id: None,
            max_size: None,
        };
        for option in message.opts() {
            let data = option.data();
            match option.code() {
                OptionCode::MessageType => request.kind = MessageType::from(*data.first()?),
                OptionCode::ServerIdentifier => request.server = Some(address(data)?),
                OptionCode::RequestedIpAddress => request.requested = Some(address(data)?),
                OptionCode::ParameterRequestList => request.parameters = data.to_vec(),
                OptionCode::ClientIdentifier if data.len() <= 255 => {
                    request.client_id = Some(data.to_vec());
                }
                OptionCode::MaxMessageSize => {
                    request.max_size = Some(u16::from_be_bytes(data.try_into().ok()?));
                }
                _ => {}
            }
        }
        Some(request)
    }

    /// Whether it asks for an option.
    pub fn asks_for(&self, option: OptionCode) -> bool {
        self.parameters.contains(&u8::from(option))
    }
}

fn address(data: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = data.try_into().ok()?;
    Some(octets.into())
}
