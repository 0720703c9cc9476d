//! The world outside of the host: the far end of its uplink, in a namespace where the kernel has
//! no address and so says nothing by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::{Wire, packet};
use crate::{Netns, netns::EVERY_FRAME};

/// The host's own address on the uplink.
pub const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// The same, IPv6.
pub const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1));
/// The router that the host's default route goes to. All other addresses are out there, too.
pub const OUTSIDE4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
/// The same, IPv6.
pub const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 2));

const UPLINK: &str = "up0";
const FAR: &str = "out0";
const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

/// Of frames that only tell where in the stream of frames we are.
pub(super) const MARKER: u16 = 0x88b6;

/// The outside.
pub struct Outside {
    wire: Wire,
    /// The host's side of the uplink, to send markers.
    near: Wire,
    /// What was read while looking for something else.
    pub(super) inbox: Vec<Vec<u8>>,
    /// Its namespace.
    pub netns: Netns,
}

impl Outside {
    /// Gives the host an uplink with addresses and default routes, and takes its other end.
    pub fn new(host: &Netns) -> Result<Self> {
        let netns = Netns::new()?;
        let far = netns.holder();
        host.ip(&format!(
            "link add {UPLINK} type veth peer name {FAR} netns {far}"
        ))?;
        for netns in [host, &netns] {
            // Checksums are in the frames that are seen, and frames are as they were sent.
            let interface = if std::ptr::eq(netns, host) {
                UPLINK
            } else {
                FAR
            };
            netns.sysctl(&format!("ipv6.conf.{interface}.accept_dad"), "0")?;
            netns.sysctl(&format!("ipv6.conf.{interface}.router_solicitations"), "0")?;
        }
        netns.sysctl(&format!("ipv6.conf.{FAR}.disable_ipv6"), "1")?;
        host.ip(&format!("link set {UPLINK} address 02:00:00:00:00:fe"))?;
        netns.ip(&format!("link set {FAR} address 02:00:00:00:00:ff"))?;
        netns.ip(&format!("link set {FAR} up"))?;
        host.ip(&format!("link set {UPLINK} up"))?;
        host.ip(&format!("addr add {HOST4}/24 dev {UPLINK}"))?;
        host.ip(&format!("addr add {HOST6}/64 dev {UPLINK} nodad"))?;
        for router in [OUTSIDE4, OUTSIDE6] {
            host.ip(&format!(
                "neigh add {router} lladdr 02:00:00:00:00:ff dev {UPLINK} nud permanent"
            ))?;
        }
        host.ip(&format!("route add default via {OUTSIDE4}"))?;
        host.ip(&format!("-6 route add default via {OUTSIDE6}"))?;
        Ok(Self {
            wire: Wire::open(&netns, FAR, EVERY_FRAME)?,
            near: Wire::open(host, UPLINK, 0)?,
            inbox: Vec::new(),
            netns,
        })
    }

    /// Sends a packet to the host, for whomever it is.
    pub fn send(&self, packet: &super::Packet) -> Result<()> {
        for frame in packet.frames(FAR_MAC, UPLINK_MAC) {
            self.wire.send(&frame)?;
        }
        Ok(())
    }

    /// Sends an IP packet as it is.
    pub fn send_ip(&self, ip: &[u8]) -> Result<()> {
        let kind = if ip.first().is_some_and(|it| it >> 4 == 6) {
            0x86dd
        } else {
            0x0800
        };
        self.wire
            .send(&packet::frame(FAR_MAC, UPLINK_MAC, kind, ip))
    }

    /// Has the host send a frame that [`Self::receive`] gives after all that went before.
    pub(super) fn mark(&self, number: u32) -> Result<()> {
        let content = number.to_be_bytes();
        self.near
            .send(&packet::frame(UPLINK_MAC, FAR_MAC, MARKER, &content))
    }

    pub(super) fn wait(&self, deadline: std::time::Instant) -> Result<()> {
        self.wire.wait(deadline)
    }

    /// The next frame that came from the host.
    pub(super) fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        while let Some(frame) = self.wire.receive()? {
            // Our own are shown as well.
            if frame.get(6..12) == Some(&UPLINK_MAC) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

/// The number of a marker.
pub(super) fn marker(frame: &[u8]) -> Option<u32> {
    if frame.get(12..14)? != MARKER.to_be_bytes() {
        return None;
    }
    Some(u32::from_be_bytes(frame.get(14..18)?.try_into().ok()?))
}
