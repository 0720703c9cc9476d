//! Networks: smoltcp's TCP/IP over virtio-net.
//!
//! A card keeps its addresses and services between commands, and answers ARP, neighbour
//! solicitations and pings while the probe waits for a command.

pub mod card;
pub mod dhcp;
pub mod http;
pub mod ping;
pub mod relay;
pub mod services;
pub mod tcp;
pub mod udp;
mod unanswered;

use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Display};

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv6Address, Ipv6Cidr};

use self::card::Card;
use self::services::Service;
use crate::command::Failure;
use crate::cpu::{clock, interrupts};
use crate::virtio::Found;

/// How long to look for more, once something has happened, before the CPU is given up, in
/// nanoseconds: an interrupt costs more than a look.
const SPIN_NS: u64 = 200_000;
/// Longest sleep while a command waits for something, in nanoseconds.
const SLEEP_NS: u64 = 20_000_000;
/// Longest sleep else.
const IDLE_NS: u64 = 1_000_000_000;

/// An Ethernet address.
#[derive(Clone, Copy, Debug)]
pub struct Mac(pub [u8; 6]);

impl Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A card with its protocols.
pub struct Stack {
    /// The card.
    pub card: Card,
    /// Addresses and routes.
    pub interface: Interface,
    /// Sockets of the command that runs and of services.
    pub sockets: SocketSet<'static>,
    /// What is served while no command runs.
    pub services: Vec<Service>,
    next_port: u16,
}

/// smoltcp's time.
pub fn instant() -> Instant {
    Instant::from_micros((clock::now() / 1000) as i64)
}

impl Stack {
    /// Opens a card. It has its IPv6 link-local address and no other.
    pub fn open(found: Found) -> Result<Self, Failure> {
        let mut card = Card::open(found)?;
        let mut interface = interface(&mut card);
        interface.update_ip_addrs(|addresses| {
            // Never full: it is the first.
            let _ = addresses.push(IpCidr::Ipv6(Ipv6Cidr::new(link_local(card.mac()), 64)));
        });
        Ok(Self {
            card,
            interface,
            sockets: SocketSet::new(vec![]),
            services: Vec::new(),
            next_port: 49152 + (clock::ticks() % 8192) as u16,
        })
    }

    /// Forgets all neighbours. smoltcp asks for one a second at most, whoever it is, and so would
    /// have a command wait for what the one before it has asked.
    pub fn forget_neighbours(&mut self) {
        let mut fresh = interface(&mut self.card);
        let old = &mut self.interface;
        fresh.update_ip_addrs(|addresses| addresses.extend(old.ip_addrs().iter().copied()));
        old.routes_mut().update(|from| {
            fresh
                .routes_mut()
                .update(|to| to.extend(from.iter().copied()));
        });
        self.interface = fresh;
    }

    /// A port that was not used of late.
    pub fn local_port(&mut self) -> u16 {
        self.next_port = if self.next_port >= 65000 {
            49152
        } else {
            self.next_port + 1
        };
        self.next_port
    }

    /// Takes and sends what there is; whether anything happened.
    fn step(&mut self) -> bool {
        let frames = |card: &Card| card.counters().received + card.counters().sent;
        let before = frames(&self.card);
        self.card.set_interrupts(false);
        let result = self
            .interface
            .poll(instant(), &mut self.card, &mut self.sockets);
        let served = services::step(&mut self.services, &mut self.sockets);
        self.card.flush();
        result == PollResult::SocketStateChanged || served || frames(&self.card) != before
    }

    /// Steps until it is quiet. Returns for how long nothing has to be done, in nanoseconds; 0 if
    /// there is more already.
    pub fn poll(&mut self) -> u64 {
        let mut active = clock::now().saturating_sub(SPIN_NS);
        while {
            if self.step() {
                active = clock::now();
            }
            clock::now() - active < SPIN_NS
        } {}
        self.rest(IDLE_NS)
    }

    /// For how long the CPU may be given up, at most `limit`, in nanoseconds.
    fn rest(&mut self, limit: u64) -> u64 {
        self.card.set_interrupts(true);
        self.card.acknowledge();
        if self.card.has_received() {
            return 0;
        }
        let delay = self.interface.poll_delay(instant(), &self.sockets);
        delay
            .map_or(limit, |delay| delay.total_micros().saturating_mul(1000))
            .min(self.card.wait().unwrap_or(limit))
            .min(limit)
    }

    /// Steps until `check` finds what it waits for; `None` after `timeout` nanoseconds.
    pub fn wait<T>(
        &mut self,
        timeout: u64,
        mut check: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let start = clock::now();
        let mut active = start;
        loop {
            let happened = self.step();
            if let Some(found) = check(self) {
                // What the check has queued, such as the answer to what it got.
                self.step();
                return Some(found);
            }
            let now = clock::now();
            if now - start >= timeout {
                return None;
            }
            if happened {
                active = now;
            }
            if now - active >= SPIN_NS {
                match self.rest(SLEEP_NS.min(timeout - (now - start))) {
                    0 => {}
                    idle => interrupts::wait(idle),
                }
            }
        }
    }

    /// Sets the address of its family, instead of what it was, and the default route.
    pub fn set_address(
        &mut self,
        address: IpCidr,
        gateway: Option<IpAddress>,
    ) -> Result<(), Failure> {
        self.clear_addresses(matches!(address, IpCidr::Ipv4(_)));
        let mut pushed = false;
        self.interface
            .update_ip_addrs(|addresses| pushed = addresses.push(address).is_ok());
        let routes = self.interface.routes_mut();
        let routed = match gateway {
            Some(IpAddress::Ipv4(gateway)) => routes.add_default_ipv4_route(gateway).is_ok(),
            Some(IpAddress::Ipv6(gateway)) => routes.add_default_ipv6_route(gateway).is_ok(),
            None => true,
        };
        if pushed && routed {
            Ok(())
        } else {
            Err("too many addresses or routes".into())
        }
    }

    /// Forgets the addresses of a family but the link-local one, and its default route.
    pub fn clear_addresses(&mut self, version_4: bool) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.retain(|address| match address {
                IpCidr::Ipv4(_) => !version_4,
                IpCidr::Ipv6(address) => version_4 || address.address().is_unicast_link_local(),
            });
        });
        let routes = self.interface.routes_mut();
        if version_4 {
            routes.remove_default_ipv4_route();
        } else {
            routes.remove_default_ipv6_route();
        }
    }
}

/// An interface without addresses.
fn interface(card: &mut Card) -> Interface {
    let mut config = Config::new(EthernetAddress(card.mac().0).into());
    config.random_seed = clock::ticks();
    Interface::new(config, card, instant())
}

/// fe80::/64 with the modified EUI-64 of the card (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Address {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    let word = |high: u16, low: u16| high << 8 | low;
    Ipv6Address::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}
