//! A load: requests of one size, some depth, a mix of reads and writes, for some time. Nothing is
//! allocated while it runs.

use alloc::vec;
use alloc::vec::Vec;

use super::{Disk, Request, SECTOR, check, operation};
use crate::command::Failure;
use crate::cpu::clock;
use crate::histogram::Histogram;
use crate::memory::dma::Buffer;
use crate::pattern;
use crate::random::Random;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of a request.
    pub request_bytes: u64,
    /// Requests in flight, over all queues.
    pub depth: u64,
    /// Queues to use.
    pub queues: u64,
    /// How many of 100 requests read; the others write.
    pub read_percent: u64,
    /// How long, in nanoseconds.
    pub duration_ns: u64,
    /// First byte of the region.
    pub offset: u64,
    /// Bytes of the region.
    pub region: u64,
    /// One offset after the other, or random ones.
    pub sequential: bool,
    /// Of offsets, mix and data.
    pub seed: u64,
}

/// What came out.
pub struct Outcome {
    /// Time from the first request to the last answer, in nanoseconds.
    pub ns: u64,
    /// Latencies of reads, in TSC ticks.
    pub reads: Histogram,
    /// Latencies of writes, in TSC ticks.
    pub writes: Histogram,
    /// Latencies of all, in TSC ticks.
    pub all: Histogram,
    /// Requests that failed; they are in no histogram.
    pub errors: u64,
}

/// Without an answer for so long, in nanoseconds, the disk is given up.
const STALL_NS: u64 = 60_000_000_000;

struct Slot {
    started: u64,
    reads: bool,
    address: u64,
}

struct Runner<'d> {
    disk: &'d mut Disk,
    load: Load,
    random: Random,
    next: u64,
    blocks: u64,
}

impl Runner<'_> {
    fn submit(&mut self, queue: usize, slot: u16, state: &mut Slot) {
        let block = if self.load.sequential {
            let block = self.next;
            self.next = (self.next + 1) % self.blocks;
            block
        } else {
            self.random.below(self.blocks)
        };
        state.reads = self.random.below(100) < self.load.read_percent;
        let operation = if state.reads {
            operation::READ
        } else {
            operation::WRITE
        };
        let sector = (self.load.offset + block * self.load.request_bytes) / SECTOR;
        let data = Some((state.address, self.load.request_bytes as u32));
        state.started = clock::ticks();
        self.disk.submit(
            queue,
            slot,
            &Request {
                operation,
                sector,
                data,
            },
        );
    }
}

fn validate(disk: &Disk, load: &Load) -> Result<(), Failure> {
    if load.request_bytes == 0
        || !load.request_bytes.is_multiple_of(SECTOR)
        || load.request_bytes > 16 << 20
    {
        return Err("size is a multiple of 512, at most 16M".into());
    }
    if load.region < load.request_bytes || !load.offset.is_multiple_of(SECTOR) {
        return Err(
            "the region is smaller than a request, or its offset no multiple of 512".into(),
        );
    }
    let queues = u64::from(disk.properties().queues);
    if load.queues == 0 || load.queues > queues {
        return Err("queues is 1 to what the disk has".into());
    }
    if load.depth == 0 || load.depth > u64::from(disk.slots()) * load.queues {
        return Err("depth is 1 to 64 for each queue".into());
    }
    if load.read_percent > 100 {
        return Err("read_percent is 0 to 100".into());
    }
    Ok(())
}

/// Runs it.
pub fn run(disk: &mut Disk, load: Load) -> Result<Outcome, Failure> {
    validate(disk, &load)?;
    let request_bytes = load.request_bytes as usize;
    let mut buffer = Buffer::new(request_bytes * load.depth as usize)
        .ok_or("no memory for that depth and size")?;
    // Data that no layer below can take for zeroes or for its neighbour.
    pattern::fill(load.seed, 0, buffer.bytes());

    let queues = load.queues.min(load.depth) as usize;
    let mut slots: Vec<Vec<Slot>> = (0..queues).map(|_| vec![]).collect();
    for index in 0..load.depth {
        let address = buffer.address() + index * load.request_bytes;
        slots[index as usize % queues].push(Slot {
            started: 0,
            reads: false,
            address,
        });
    }
    let mut outcome = Outcome {
        ns: 0,
        reads: Histogram::default(),
        writes: Histogram::default(),
        all: Histogram::default(),
        errors: 0,
    };
    // The clock's scale is known before the loop.
    let start = clock::ticks();
    let end = ticks_of(load.duration_ns);
    let stall = ticks_of(STALL_NS);
    let mut last = start;
    let mut in_flight = load.depth;
    let mut runner = Runner {
        disk,
        load,
        random: Random::new(load.seed),
        next: 0,
        blocks: load.region / load.request_bytes,
    };
    for (queue, slots) in slots.iter_mut().enumerate() {
        for (slot, state) in slots.iter_mut().enumerate() {
            runner.submit(queue, slot as u16, state);
        }
        runner.disk.notify(queue);
    }
    while in_flight > 0 {
        let now = clock::ticks();
        let go_on = now.wrapping_sub(start) < end;
        for (queue, slots) in slots.iter_mut().enumerate() {
            let mut submitted = false;
            while let Some(completed) = runner.disk.take(queue) {
                last = clock::ticks();
                let Some(state) = slots.get_mut(usize::from(completed.slot)) else {
                    return Err("the disk completed what was not asked".into());
                };
                let latency = last.wrapping_sub(state.started);
                if check(completed.status).is_err() {
                    outcome.errors += 1;
                } else {
                    outcome.all.add(latency);
                    let side = if state.reads {
                        &mut outcome.reads
                    } else {
                        &mut outcome.writes
                    };
                    side.add(latency);
                }
                if go_on {
                    runner.submit(queue, completed.slot, state);
                    submitted = true;
                } else {
                    in_flight -= 1;
                }
            }
            if submitted {
                runner.disk.notify(queue);
            }
        }
        if now.wrapping_sub(last) > stall && now > last {
            return Err(runner.disk.give_up());
        }
        core::hint::spin_loop();
    }
    outcome.ns = clock::nanoseconds(last.wrapping_sub(start));
    Ok(outcome)
}

fn ticks_of(nanoseconds: u64) -> u64 {
    let hertz = clock::hertz().unwrap_or(1_000_000_000);
    (u128::from(nanoseconds) * u128::from(hertz) / 1_000_000_000) as u64
}
