//! The host's end of a guest's network interface: a tap (Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use thiserror::Error;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};
use vm_memory::VolatileSlice;

use super::attached;
use super::header::HEADER_BYTES;

/// Most slices of one read or write (`IOV_MAX`).
pub const MAX_SLICES: usize = 1024;

/// Why a tap can't be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// There is no interface of this name in the network namespace of the process.
    #[error("there is no such interface: {0}")]
    NotThere(io::Error),
    /// `/dev/net/tun` can't be opened.
    #[error("/dev/net/tun: {0}")]
    Device(io::Error),
    /// The interface is no tap, is in use, or the process has no right to it.
    #[error("the tap can't be attached to: {0}")]
    Attach(io::Error),
    /// Several queues were asked for, and the tap can have one.
    #[error("the tap was made without multi_queue, so that it has no {0} pairs of queues")]
    OneQueue(u16),
    /// Somebody else has a queue of it: he would get frames of this guest.
    #[error("somebody else is attached to the tap")]
    InUse,
    /// The kernel's taps can't do what is needed.
    #[error("{what}: {source}")]
    Setup {
        /// Which call.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// How many pairs of queues a tap is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePairs {
    /// So many, or one if the tap was made without `multi_queue`.
    UpTo(u16),
    /// Neither more nor fewer.
    Exactly(u16),
}

/// One pair of queues of a tap. What is read and written is a header of [`HEADER_BYTES`], then a
/// frame.
pub struct Tap {
    file: File,
    /// The host puts frames into its queue.
    attached: AtomicBool,
}

impl Tap {
    /// Attaches to the tap `name` of this thread's network namespace. The tap must be there and
    /// belong to nobody; it is never made. Of the pairs that are returned only the first gets
    /// frames; see [`set_attached`](Self::set_attached).
    pub fn open(name: &str, pairs: QueuePairs) -> Result<Vec<Tap>, TapError> {
        // TUNSETIFF would make an interface that is missing.
        socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .and_then(|socket| netdevice::name_to_index(socket, name))
        .map_err(|error| TapError::NotThere(error.into()))?;
        let (first, count) = match Self::attach(name, libc::IFF_MULTI_QUEUE) {
            Ok(first) => match pairs {
                QueuePairs::UpTo(count) | QueuePairs::Exactly(count) => (first, count.max(1)),
            },
            // The answer for a tap of one queue, and for what is no tap.
            Err(TapError::Attach(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                let only = Self::attach(name, 0)?;
                return match pairs {
                    QueuePairs::Exactly(count @ 2..) => Err(TapError::OneQueue(count)),
                    _ => Ok(vec![only]),
                };
            }
            Err(error) => return Err(error),
        };
        let mut taps = vec![first];
        for _ in 1..count {
            let tap = Self::attach(name, libc::IFF_MULTI_QUEUE)?;
            tap.set_attached(false).map_err(TapError::Attach)?;
            taps.push(tap);
        }
        // The kernel lets anybody with the right attach to a tap of several queues. Whoever comes
        // second finds more of them than he made.
        match attached::queues(name) {
            Ok(Some(there)) if there > u32::from(count) => Err(TapError::InUse),
            Ok(_) => Ok(taps),
            Err(source) => Err(TapError::Setup {
                what: "RTM_GETLINK",
                source,
            }),
        }
    }

    fn attach(name: &str, flags: libc::c_int) -> Result<Tap, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::Device)?;
        let flags = flags | libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        set_interface(&file, name, flags).map_err(TapError::Attach)?;
        set_header_bytes(&file).map_err(|source| TapError::Setup {
            what: "TUNSETVNETHDRSZ",
            source,
        })?;
        let tap = Tap {
            file,
            attached: AtomicBool::new(true),
        };
        tap.set_offloads(0).map_err(|source| TapError::Setup {
            what: "TUNSETOFFLOAD",
            source,
        })?;
        Ok(tap)
    }

    /// Whether the host shall put frames into this pair's queue: of a tap with `multi_queue` only.
    /// Detaching throws away what is in it.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        if self.attached.load(Ordering::SeqCst) == attached {
            return Ok(());
        }
        // SAFETY: ifreq is plain data, for which zeroes are a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = match attached {
            true => libc::IFF_ATTACH_QUEUE,
            false => libc::IFF_DETACH_QUEUE,
        } as libc::c_short;
        // SAFETY: TUNSETQUEUE reads one ifreq, which `request` is.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &request) })?;
        self.attached.store(attached, Ordering::SeqCst);
        Ok(())
    }

    /// Whether the host may put frames into this pair's queue.
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::SeqCst)
    }

    /// Lets the host leave undone what a driver with `features` does itself: checksums and
    /// segmentation of the frames that the guest receives. Of all pairs of the tap.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & (1 << bit) != 0;
        let mut offloads = 0;
        // Section 5.1.3.1: segmentation needs checksums; the kernel refuses it without.
        if has(VIRTIO_NET_F_GUEST_CSUM) {
            offloads |= libc::TUN_F_CSUM;
            if has(VIRTIO_NET_F_GUEST_TSO4) {
                offloads |= libc::TUN_F_TSO4;
            }
            if has(VIRTIO_NET_F_GUEST_TSO6) {
                offloads |= libc::TUN_F_TSO6;
            }
        }
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
    }

    /// Reads one header and frame into at most [`MAX_SLICES`] slices. Returns how many bytes of
    /// them are written; what has no room is lost. `WouldBlock` if there is no frame.
    pub fn read(&self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let parts = io_vectors(into);
        // SAFETY: each part is the memory of a VolatileSlice, which is valid for writes of its
        // length while the slice lives, and shared by volatile accesses only.
        let count = unsafe {
            libc::readv(
                self.file.as_raw_fd(),
                parts.as_ptr(),
                parts.len() as libc::c_int,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Sends one header and frame from at most [`MAX_SLICES`] slices.
    pub fn write(&self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let parts = io_vectors(from);
        // SAFETY: as in `read`, for reads. The kernel copies the bytes once before it looks at
        // them, so that the guest may change them at any time.
        let count = unsafe {
            libc::writev(
                self.file.as_raw_fd(),
                parts.as_ptr(),
                parts.len() as libc::c_int,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn io_vectors(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let part = |slice: &VolatileSlice<'_>| libc::iovec {
        // The guard keeps nothing alive: guest memory is mapped for as long as slices of it live.
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().map(part).collect()
}

/// TUNSETIFF. In tests also how a tap is made.
pub(super) fn set_interface(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays a zero.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })
}

fn set_header_bytes(file: &File) -> io::Result<()> {
    let bytes = HEADER_BYTES as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `bytes` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &bytes) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
