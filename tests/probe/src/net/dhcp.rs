//! Asks for an address by DHCP.

use alloc::boxed::Box;
use alloc::vec;

use smoltcp::socket::dhcpv4::{Event, RetryConfig, Socket};
use smoltcp::time::Duration;
use smoltcp::wire::IpCidr;

use super::Stack;
use crate::command::Failure;
use crate::json::{Hex, Json};

/// Options that are asked for: mask, router, DNS, host name, domain, MTU, broadcast, static
/// routes, NTP, lease, server, T1, T2, search list, classless routes.
const PARAMETERS: &[u8] = &[1, 3, 6, 12, 15, 26, 28, 33, 42, 51, 54, 58, 59, 119, 121];
/// `IP Address Lease Time` (RFC 2132 section 9.2).
const LEASE_TIME: u8 = 51;

/// Takes an address and the default route, and tells all that the server said.
pub fn lease(stack: &mut Stack, timeout_ns: u64, json: &mut Json) -> Result<(), Failure> {
    stack.clear_addresses(true);
    let mut socket = Socket::new();
    let mut retry = RetryConfig::default();
    retry.discover_timeout = Duration::from_secs(1);
    retry.initial_request_timeout = Duration::from_secs(1);
    socket.set_retry_config(retry);
    socket.set_parameter_request_list(PARAMETERS);
    // Stays allocated: the socket set lives for ever.
    socket.set_receive_packet_buffer(Box::leak(vec![0; 1500].into_boxed_slice()));
    let handle = stack.sockets.add(socket);
    let configured = stack.wait(timeout_ns, |stack| {
        match stack.sockets.get_mut::<Socket<'_>>(handle).poll()? {
            Event::Deconfigured => None,
            Event::Configured(config) => {
                tell(&config, json);
                Some((config.address, config.router))
            }
        }
    });
    stack.sockets.remove(handle);
    let (address, router) = configured.ok_or("no DHCP server has answered")?;
    stack.set_address(IpCidr::Ipv4(address), router.map(Into::into))
}

fn tell(config: &smoltcp::socket::dhcpv4::Config<'_>, json: &mut Json) {
    json.shown("ip", config.address.address())
        .number("prefix", config.address.prefix_len());
    json.optional_shown("gateway", config.router);
    json.shown("server", config.server.address)
        .array("dns", |json| {
            for server in &config.dns_servers {
                json.item(&alloc::format!("{server}"));
            }
        });
    let Some(packet) = &config.packet else { return };
    let lease = packet.options().find(|option| option.kind == LEASE_TIME);
    let seconds = lease
        .and_then(|option| option.data.try_into().ok())
        .map(u32::from_be_bytes);
    json.optional("lease_seconds", seconds)
        .array("options", |json| {
            for option in packet.options() {
                json.element(|json| {
                    json.number("code", option.kind)
                        .shown("hex", Hex(option.data));
                });
            }
        });
}
