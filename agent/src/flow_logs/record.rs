//! Records as lines: the fields of EC2's version 2 in its order, and the direction behind them.

use std::net::IpAddr;

use crate::firewall::flows::{Flow, Side};

/// Of the format.
pub const VERSION: u32 = 2;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub account: String,
    pub interface: String,
    /// Seconds since 1970.
    pub start: i64,
    pub end: i64,
    pub content: Content,
}

/// What a record tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// `OK`
    Data(Data),
    /// `NODATA`: there was no such traffic.
    Nothing,
    /// `SKIPDATA`: there was more than is in the records.
    Skipped,
}

/// Packets that have the addresses in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub packets: u64,
    pub bytes: u64,
    pub accepted: bool,
    pub side: Side,
}

impl From<&Flow> for Data {
    fn from(flow: &Flow) -> Self {
        Self {
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            protocol: flow.protocol,
            packets: flow.counter.packets,
            bytes: flow.counter.bytes,
            accepted: flow.accepted,
            side: flow.side,
        }
    }
}

impl Data {
    pub fn action(&self) -> &'static str {
        if self.accepted { "ACCEPT" } else { "REJECT" }
    }

    pub fn direction(&self) -> &'static str {
        match self.side {
            Side::In => "ingress",
            Side::Out => "egress",
        }
    }
}

impl Content {
    /// `log-status`
    pub fn status(&self) -> &'static str {
        match self {
            Content::Data(_) => "OK",
            Content::Nothing => "NODATA",
            Content::Skipped => "SKIPDATA",
        }
    }
}

impl Record {
    /// Without a line's end.
    pub fn line(&self) -> String {
        let (account, interface) = (&self.account, &self.interface);
        let (start, end, status) = (self.start, self.end, self.content.status());
        match &self.content {
            Content::Data(it) => format!(
                "{VERSION} {account} {interface} {} {} {} {} {} {} {} {start} {end} {} {status} {}",
                it.source,
                it.destination,
                it.source_port,
                it.destination_port,
                it.protocol,
                it.packets,
                it.bytes,
                it.action(),
                it.direction(),
            ),
            _ => {
                format!("{VERSION} {account} {interface} - - - - - - - {start} {end} - {status} -")
            }
        }
    }

    /// Reads [`Self::line`]; `None` for what is none.
    pub fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let fields: [&str; 15] = fields.try_into().ok()?;
        let [version, account, interface, source, destination, ..] = fields;
        let [.., start, end, action, status, direction] = fields;
        let [
            _,
            _,
            _,
            _,
            _,
            source_port,
            destination_port,
            protocol,
            packets,
            bytes,
            ..,
        ] = fields;
        if version.parse() != Ok(VERSION) {
            return None;
        }
        let content = match status {
            "NODATA" => Content::Nothing,
            "SKIPDATA" => Content::Skipped,
            "OK" => Content::Data(Data {
                source: source.parse().ok()?,
                destination: destination.parse().ok()?,
                source_port: source_port.parse().ok()?,
                destination_port: destination_port.parse().ok()?,
                protocol: protocol.parse().ok()?,
                packets: packets.parse().ok()?,
                bytes: bytes.parse().ok()?,
                accepted: action == "ACCEPT",
                side: if direction == "ingress" {
                    Side::In
                } else {
                    Side::Out
                },
            }),
            _ => return None,
        };
        Some(Self {
            account: account.to_owned(),
            interface: interface.to_owned(),
            start: start.parse().ok()?,
            end: end.parse().ok()?,
            content,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_ec2s_record_and_is_read_back() {
        let mut record = Record {
            account: "local".to_owned(),
            interface: "eni-0123456789abcdef0".to_owned(),
            start: 1_431_280_876,
            end: 1_431_280_934,
            content: Content::Data(Data {
                source: "10.0.0.5".parse().expect("address"),
                destination: "fd00::1".parse().expect("address"),
                source_port: 20641,
                destination_port: 22,
                protocol: 6,
                packets: 20,
                bytes: 4249,
                accepted: true,
                side: Side::In,
            }),
        };
        assert_eq!(
            record.line(),
            "2 local eni-0123456789abcdef0 10.0.0.5 fd00::1 20641 22 6 20 4249 1431280876 \
             1431280934 ACCEPT OK ingress"
        );
        assert_eq!(Record::parse(&record.line()).as_ref(), Some(&record));
        for content in [Content::Nothing, Content::Skipped] {
            record.content = content;
            assert_eq!(Record::parse(&record.line()).as_ref(), Some(&record));
        }
        assert_eq!(
            record.line(),
            "2 local eni-0123456789abcdef0 - - - - - - - 1431280876 1431280934 - SKIPDATA -"
        );
        let line = record.line();
        for cut in 0..line.len() {
            // The last field may be cut without being wrong; committed lines are whole.
            let _ = Record::parse(&line[..cut]);
        }
        assert_eq!(Record::parse("# 1764073071123"), None);
    }
}
