//! What the VMM hands over: the memory map and the kernel arguments, by `boot_params` of Linux
//! (Documentation/arch/x86/zero-page.rst) or by `hvm_start_info` of PVH (Xen's
//! xen/include/public/arch-x86/hvm/start_info.h).

/// `PROTOCOL_PVH` of `entry.s`.
const PVH: u32 = 2;
/// Magic number of `hvm_start_info`.
const PVH_MAGIC: u32 = 0x336e_c578;

/// Type of usable memory, in both protocols.
pub const USABLE: u32 = 1;

unsafe extern "C" {
    static boot_information: u64;
    static boot_tsc: u64;
    static boot_protocol: u32;
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// [`USABLE`] or another type of ACPI's.
    pub kind: u32,
}

/// TSC at one of the first instructions.
pub fn first_tsc() -> u64 {
    // SAFETY: written once, before any Rust code runs.
    unsafe { boot_tsc }
}

/// The protocol's name.
pub fn protocol() -> &'static str {
    if is_pvh() { "pvh" } else { "linux64" }
}

fn is_pvh() -> bool {
    // SAFETY: written once, before any Rust code runs.
    unsafe { boot_protocol == PVH }
}

fn base() -> u64 {
    // SAFETY: written once, before any Rust code runs.
    unsafe { boot_information }
}

fn field<T: Copy>(offset: u64) -> T {
    at(base() + offset)
}

fn at<T: Copy>(address: u64) -> T {
    // SAFETY: the VMM put the boot structures into memory that is mapped one to one, and nothing
    // of ours is below the image; T is an integer here.
    unsafe { core::ptr::read_unaligned(address as *const T) }
}

/// Calls `visit` with each range of the memory map.
pub fn memory_map(mut visit: impl FnMut(MemoryRange)) {
    if is_pvh() {
        if field::<u32>(0) != PVH_MAGIC {
            return;
        }
        let (map, entries) = (field::<u64>(40), field::<u32>(48));
        for index in 0..u64::from(entries) {
            let entry = map + 24 * index;
            visit(MemoryRange {
                start: at(entry),
                length: at(entry + 8),
                kind: at(entry + 16),
            });
        }
    } else {
        let entries: u8 = field(0x1e8);
        for index in 0..u64::from(entries) {
            let entry = base() + 0x2d0 + 20 * index;
            visit(MemoryRange {
                start: at(entry),
                length: at(entry + 8),
                kind: at(entry + 16),
            });
        }
    }
}

/// The kernel arguments; bytes that are no UTF-8 end them.
pub fn kernel_arguments() -> &'static str {
    let address = if is_pvh() {
        field::<u64>(24)
    } else {
        u64::from(field::<u32>(0x228))
    };
    if address == 0 {
        return "";
    }
    let mut length = 0;
    while length < 0x10000 && at::<u8>(address + length) != 0 {
        length += 1;
    }
    // SAFETY: these bytes have just been read; nobody changes them.
    let bytes = unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) };
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    }
}

/// Guest-physical address of ACPI's root pointer, 0 if none was named.
pub fn acpi_root() -> u64 {
    if is_pvh() { field(32) } else { field(0x70) }
}
