//! Makes taps (Documentation/networking/tuntap.rst).

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

use super::{LinkError, LinkResult};

/// A tap that is gone when this is dropped, unless [`Unfinished::keep`] was called.
#[derive(Debug)]
pub struct Unfinished {
    file: File,
    name: String,
}

/// Makes a tap that is down.
pub fn make(name: &str) -> LinkResult<Unfinished> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(LinkError::NoTun)?;
    // SAFETY: ifreq is plain data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays a zero.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room {
        let source = io::ErrorKind::InvalidInput.into();
        return Err(LinkError::io(format!("making the tap {name:?}"), source));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP
        | libc::IFF_NO_PI
        | libc::IFF_VNET_HDR
        | libc::IFF_MULTI_QUEUE
        | libc::IFF_TUN_EXCL;
    // All of them are in the lower 16 bits.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    check(result).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => LinkError::Taken(name.to_owned()),
        _ => LinkError::io(format!("making the tap {name}"), error),
    })?;
    Ok(Unfinished {
        file,
        name: name.to_owned(),
    })
}

impl Unfinished {
    /// The tap outlives this process from now on.
    pub fn keep(self) -> LinkResult<()> {
        // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETPERSIST, 1) })
            .map_err(|error| LinkError::io(format!("keeping the tap {}", self.name), error))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
