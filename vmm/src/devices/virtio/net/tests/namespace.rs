//! A network namespace for one test, with a tap in it. Both go away with the test's thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::thread;

use vm_memory::VolatileSlice;

use crate::devices::virtio::net::tap::{Tap, set_interface};
use crate::devices::virtio::testing::wait_for;

/// The tap of each test.
pub const TAP: &str = "tap0";

/// Bytes of the header that a packet socket has before a frame: without `num_buffers`.
const PACKET_HEADER_BYTES: usize = 10;
const SOL_PACKET: libc::c_int = 263;
const PACKET_VNET_HDR: libc::c_int = 15;

/// Runs `test` on a thread in a network namespace of its own; its threads are in there, too.
pub fn in_namespace(test: impl FnOnce(&Host) + Send + 'static) {
    in_namespace_of(libc::IFF_TAP, test);
}

/// [`in_namespace`] with a tap of these flags.
pub fn in_namespace_of(flags: libc::c_int, test: impl FnOnce(&Host) + Send + 'static) {
    // SAFETY: takes nothing, can't fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: needs root");
        return;
    }
    if !Path::new("/dev/net/tun").exists() {
        println!("skipped: no /dev/net/tun");
        return;
    }
    let test = thread::spawn(move || {
        // SAFETY: changes the namespace of this thread only, which nothing else depends on.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!(
                "skipped: no network namespace: {}",
                io::Error::last_os_error()
            );
            return;
        }
        make_tap(TAP, flags);
        test(&Host::new());
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Makes an interface that stays when it is closed, of kind `IFF_TAP` or `IFF_TUN`, and perhaps with
/// `IFF_MULTI_QUEUE`.
pub fn make_tap(name: &str, kind: libc::c_int) {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    set_interface(&tun, name, kind | libc::IFF_NO_PI).unwrap();
    // SAFETY: TUNSETPERSIST takes its argument by value.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) };
    assert_eq!(result, 0);
}

/// The host's side of the tap: a packet socket on it.
pub struct Host {
    socket: File,
}

impl Host {
    fn new() -> Self {
        // What the host says by itself on a new interface would only be in the way.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1");
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes no memory; the descriptor is checked, and nobody else's.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, kind, 0);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        set_up(true);
        let on: libc::c_int = 1;
        // SAFETY: zeroes are a valid sockaddr_ll; the pointers are to live values of the lengths
        // that are given.
        unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = libc::if_nametoindex(c"tap0".as_ptr()) as i32;
            let length = size_of::<libc::c_int>() as u32;
            let option = (&raw const on).cast();
            let fd = socket.as_raw_fd();
            assert_eq!(
                libc::setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, option, length),
                0
            );
            let length = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
        }
        Host { socket }
    }

    /// Sends a frame to the guest, with the start of a virtio_net_hdr.
    pub fn send_with(&self, header: [u8; PACKET_HEADER_BYTES], frame: &[u8]) {
        let packet = [&header, frame].concat();
        assert_eq!((&self.socket).write(&packet).unwrap(), packet.len());
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        self.send_with([0; PACKET_HEADER_BYTES], frame);
    }

    /// The next frame from the address `from`, with its header.
    pub fn receive(&self, from: [u8; 6]) -> (Vec<u8>, Vec<u8>) {
        let mut packet = vec![0; 1 << 17];
        let len = wait_for("a frame on the host's side", || {
            loop {
                match (&self.socket).read(&mut packet) {
                    Ok(len) if packet[PACKET_HEADER_BYTES..len][6..12] == from => return Some(len),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                    Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        packet.truncate(len);
        let frame = packet.split_off(PACKET_HEADER_BYTES);
        (packet, frame)
    }
}

/// Brings the tap up or down.
pub fn set_up(up: bool) {
    ask_tap(libc::SIOCSIFFLAGS, |request| {
        request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as libc::c_short } else { 0 };
    });
}

/// Waits until frames get through to `tap`: the kernel notices in the background that somebody is
/// attached to it, and throws away what is sent before.
pub fn wait_for_carrier(tap: &Tap) {
    let host = Host::new();
    let mut frame = [0; 1000];
    wait_for("frames to get through", || {
        host.send(&[0x88; 60]);
        tap.read(&[VolatileSlice::from(&mut frame[..])]).ok()
    });
}

/// Sets the tap's MTU.
pub fn set_mtu(mtu: i32) {
    ask_tap(libc::SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = mtu);
}

/// Removes the tap, whoever uses it (RTM_DELLINK, rtnetlink(7)). Not by a process of its own: that
/// would hold the taps of other tests open for a moment.
pub fn remove_tap() {
    // SAFETY: takes a string that ends with a zero.
    let index = unsafe { libc::if_nametoindex(c"tap0".as_ptr()) };
    assert_ne!(index, 0);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::new();
    // nlmsghdr: length, type, flags, sequence number, port
    message.extend(32u32.to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    // ifinfomsg: family and type, index, flags, change
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: takes no memory; the descriptor is checked, and nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    assert_eq!((&socket).write(&message).unwrap(), message.len());
    let mut answer = [0; 1024];
    assert!((&socket).read(&mut answer).unwrap() >= 20);
    // nlmsgerr: the error behind the header
    assert_eq!(answer[16..20], [0; 4], "{}", io::Error::last_os_error());
}

fn ask_tap(call: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) -> libc::ifreq {
    // SAFETY: zeroes are a valid ifreq; the call reads one ifreq; the descriptor is checked, and
    // nobody else's.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
            *to = from as libc::c_char;
        }
        fill(&mut request);
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        let socket = File::from_raw_fd(fd);
        let result = libc::ioctl(socket.as_raw_fd(), call, &mut request);
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        request
    }
}
