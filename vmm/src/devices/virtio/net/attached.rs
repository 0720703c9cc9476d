//! How many queues of a tap somebody holds (rtnetlink(7): `RTM_GETLINK`).

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Attributes of a link (linux/if_link.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// Bytes of `nlmsghdr` and of `ifinfomsg`.
const MESSAGE_HEADER_BYTES: usize = 16;
const LINK_HEADER_BYTES: usize = 16;

/// The longest answer about one link; those of taps have some 1500 bytes.
const ANSWER_BYTES: usize = 32 << 10;

/// Queues that are attached and queues that are detached, whoever made them; `None` of a tap that
/// can have one queue only.
pub fn queues(tap: &str) -> io::Result<Option<u32>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE, which is 0.
        None,
    )?;
    send(&socket, &request(tap), SendFlags::empty())?;
    let mut answer = vec![0; ANSWER_BYTES];
    let (count, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    parse(&answer[..count])
}

/// `nlmsghdr`, `ifinfomsg`, and the name as an attribute.
fn request(tap: &str) -> Vec<u8> {
    let mut message = vec![0; MESSAGE_HEADER_BYTES + LINK_HEADER_BYTES];
    let attribute_bytes = 4 + tap.len() + 1;
    message.extend((attribute_bytes as u16).to_ne_bytes());
    message.extend(IFLA_IFNAME.to_ne_bytes());
    message.extend(tap.as_bytes());
    message.push(0);
    message.resize(message.len().next_multiple_of(4), 0);
    let total = message.len() as u32;
    message[..4].copy_from_slice(&total.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message
}

fn parse(answer: &[u8]) -> io::Result<Option<u32>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no answer about a link");
    let body = answer.get(MESSAGE_HEADER_BYTES..).ok_or_else(malformed)?;
    match u16::from_ne_bytes([answer[4], answer[5]]) {
        libc::RTM_NEWLINK => {}
        kind if i32::from(kind) == libc::NLMSG_ERROR => {
            let error = word(body).ok_or_else(malformed)?.cast_signed();
            return Err(io::Error::from_raw_os_error(error.wrapping_neg()));
        }
        _ => return Err(malformed()),
    }
    let attributes = body.get(LINK_HEADER_BYTES..).ok_or_else(malformed)?;
    let data = attribute(attributes, IFLA_LINKINFO)
        .and_then(|info| attribute(info, IFLA_INFO_DATA))
        .ok_or_else(malformed)?;
    let figure = |kind| attribute(data, kind).and_then(word);
    Ok(figure(IFLA_TUN_NUM_QUEUES)
        .map(|attached| attached + figure(IFLA_TUN_NUM_DISABLED_QUEUES).unwrap_or(0)))
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    /// The upper bits say how a value is encoded.
    const KIND: u16 = 0x3fff;
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & KIND == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_cut_off_or_errors_are_no_figures() {
        for length in 0..64 {
            assert!(parse(&vec![0; length]).is_err());
        }
        let mut error = vec![0; 36];
        error[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        error[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        let error = parse(&error).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn attributes_with_bad_lengths_end_the_search() {
        assert_eq!(
            attribute(&[8, 0, 5, 0, 1, 2, 3, 4], 5),
            Some(&[1, 2, 3, 4][..])
        );
        for bad in [&[0, 0, 5, 0][..], &[3, 0, 5, 0], &[9, 0, 5, 0, 1, 2, 3, 4]] {
            assert_eq!(attribute(bad, 5), None);
        }
        let second = [5, 0, 1, 0, 9, 0, 0, 0, 8, 0, 2, 0x80, 1, 0, 0, 0];
        assert_eq!(attribute(&second, 2), Some(&[1, 0, 0, 0][..]));
    }
}
