//! Commands for the machine itself: ends of all kinds, memory, random numbers.

use alloc::format;
use alloc::vec;

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::Transport;

use super::{Arguments, Command, Failure, Json, Probe};
use crate::boot::information::{self, MemoryRange, USABLE};
use crate::cpu::{clock, gate, ports};
use crate::memory::dma::Identity;
use crate::memory::{heap, high};
use crate::pattern;
use crate::virtio::kind;

pub const COMMANDS: &[Command] = &[
    Command {
        name: "echo",
        keys: &["text"],
        run: echo,
    },
    Command {
        name: "poweroff",
        keys: &[],
        run: power_off,
    },
    Command {
        name: "reset",
        keys: &["method"],
        run: reset,
    },
    Command {
        name: "spin",
        keys: &["seconds"],
        run: spin,
    },
    Command {
        name: "triple_fault",
        keys: &[],
        run: triple_fault,
    },
    Command {
        name: "fault",
        keys: &["kind"],
        run: fault,
    },
    Command {
        name: "memory",
        keys: &["bytes", "pattern"],
        run: memory,
    },
    Command {
        name: "random",
        keys: &["bytes"],
        run: random,
    },
];

/// Most bytes of one `random`.
const RANDOM_MAX: u64 = 64 << 10;
const PAGE: u64 = 4096;

fn echo(_: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    json.text("text", arguments.text("text")?);
    Ok(())
}

fn power_off(_: &mut Probe, _: &Arguments, _: &mut Json) -> Result<(), Failure> {
    ports::power_off();
    lives_on()
}

/// A VMM may take a moment to end the guest.
fn lives_on() -> Result<(), Failure> {
    let start = clock::now();
    while clock::now() - start < 1_000_000_000 {
        core::hint::spin_loop();
    }
    Err("the machine runs on".into())
}

fn reset(_: &mut Probe, arguments: &Arguments, _: &mut Json) -> Result<(), Failure> {
    match arguments.get("method").unwrap_or("i8042") {
        "i8042" => ports::reset(),
        "acpi" => ports::reset_through_acpi(),
        "triple_fault" => gate::triple_fault(),
        _ => return Err("method is i8042, acpi or triple_fault".into()),
    }
    lives_on()
}

/// For ever if no time is given.
fn spin(_: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let limit = arguments.duration("seconds")?;
    let start = clock::now();
    let mut turns = 0u64;
    while limit.is_none_or(|limit| clock::now() - start < limit) {
        turns += 1;
        core::hint::spin_loop();
    }
    json.number("turns", turns);
    Ok(())
}

fn triple_fault(_: &mut Probe, _: &Arguments, _: &mut Json) -> Result<(), Failure> {
    gate::triple_fault()
}

/// Makes a fault, to see that it is told and ends the guest.
fn fault(_: &mut Probe, arguments: &Arguments, _: &mut Json) -> Result<(), Failure> {
    match arguments.text("kind")? {
        // SAFETY: ends in the fault handler, which does not return.
        "page" => unsafe { core::ptr::null::<u8>().with_addr(1 << 45).read_volatile() }.into(),
        // SAFETY: as above.
        "opcode" => unsafe { core::arch::asm!("ud2", options(noreturn)) },
        // SAFETY: as above: hlt is privileged.
        "privilege" => unsafe { core::arch::asm!("hlt", options(noreturn)) },
        "panic" => panic!("asked to"),
        _ => 0u64,
    };
    Err("kind is page, opcode, privilege or panic".into())
}

/// Writes a word of the pattern into each page of free memory and reads it back: makes the guest
/// take that much of the host, and shows that each address is memory of its own.
fn memory(_: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let limit = arguments.number_or("bytes", u64::MAX)?;
    let seed = arguments.number_or("pattern", 1)?;
    high::map();
    let (start, mut left, mut mismatch) = (clock::now(), limit, None);
    let mut free = |visit: &mut dyn FnMut(u64)| {
        left = limit;
        information::memory_map(|range| {
            let range = behind_the_heap(range);
            let pages = range.length.min(left) / PAGE;
            left -= pages * PAGE;
            (0..pages).for_each(|page| visit(range.start + page * PAGE));
        });
    };
    // SAFETY: whole pages of usable memory that nothing else uses, mapped one to one.
    free(&mut |page| unsafe {
        (page as *mut u64).write_volatile(pattern::word(seed, page / 8));
    });
    free(&mut |page| {
        // SAFETY: as above.
        let found = unsafe { (page as *const u64).read_volatile() };
        if found != pattern::word(seed, page / 8) {
            mismatch.get_or_insert(page);
        }
    });
    json.number("bytes", limit - left)
        .number("ns", clock::now() - start);
    match mismatch {
        None => Ok(()),
        Some(page) => Err(format!("page {page:#x} holds something else").into()),
    }
}

/// What of a range is free, in whole pages: what is behind the heap. The buffer that disk commands
/// use above 4 GiB is empty between commands.
fn behind_the_heap(range: MemoryRange) -> MemoryRange {
    let (heap_start, heap_bytes) = heap::range();
    let end = range.start.saturating_add(range.length);
    let start = range
        .start
        .max(heap_start + heap_bytes)
        .next_multiple_of(PAGE);
    let length = match range.kind {
        USABLE => end.saturating_sub(start) / PAGE * PAGE,
        _ => 0,
    };
    MemoryRange {
        start,
        length,
        ..range
    }
}

fn random(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let bytes = arguments.number_or("bytes", 32)?;
    if bytes == 0 || bytes > RANDOM_MAX {
        return Err("bytes is 1 to 64k".into());
    }
    let found = probe.nth(kind::RANDOM, 0)?;
    let transport = found
        .transport()
        .ok_or("the device is of a version that is not known")?;
    let driver = VirtIORng::<Identity, _>::new(transport);
    let mut driver = driver.map_err(|error| format!("virtio-rng: {error}"))?;
    let start = clock::now();
    let mut data = vec![0; bytes as usize];
    let result = fill(&mut driver, &mut data);
    // Before the driver takes its queue away and waits for the device to have noticed.
    found.registers().reset();
    let requests = result?;
    json.number("requests", requests)
        .number("ns", clock::now() - start)
        .shown("hex", crate::json::Hex(&data));
    Ok(())
}

/// Fills `data`; returns how many requests that took.
fn fill<T: Transport>(
    driver: &mut VirtIORng<Identity, T>,
    data: &mut [u8],
) -> Result<u64, Failure> {
    let (mut filled, mut requests) = (0, 0);
    while filled < data.len() {
        let count = driver
            .request_entropy(&mut data[filled..])
            .map_err(|error| format!("virtio-rng: {error}"))?;
        if count == 0 || count > data.len() - filled {
            return Err(format!("virtio-rng says that it gave {count} bytes").into());
        }
        filled += count;
        requests += 1;
    }
    Ok(requests)
}
