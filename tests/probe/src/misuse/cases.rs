//! The kinds of misuse, by what is wrong.

use super::{AREA_BYTES, Case, DATA, DATA_BYTES, DEVICE_MEMORY, INDIRECT, NOWHERE, SIZE};
use crate::disk::{SECTOR, operation};
use crate::random::Random;
use crate::virtio::queue::{Descriptor, flags};
use crate::virtio::registers::{Rings, VERSION_1, offset, status};

/// Chains whose descriptors are wrong.
pub const CHAINS: &[Case] = &[
    ("bad_descriptor", |b, _| {
        b.start_well();
        b.offer(SIZE);
    }),
    ("bad_descriptor_max", |b, _| {
        b.start_well();
        b.offer(u16::MAX);
    }),
    ("loop", |b, _| b.chain_with(|_, c| c[1].next = 1)),
    ("loop_to_head", |b, _| {
        b.chain_with(|_, c| (c[2].flags, c[2].next) = (flags::WRITE | flags::NEXT, 0));
    }),
    ("next_out_of_range", |b, _| {
        b.chain_with(|_, c| c[1].next = u16::MAX)
    }),
    ("out_of_range", |b, _| {
        b.chain_with(|_, c| c[1].address = NOWHERE)
    }),
    ("header_out_of_range", |b, _| {
        b.chain_with(|_, c| c[0].address = NOWHERE)
    }),
    ("status_out_of_range", |b, _| {
        b.chain_with(|_, c| c[2].address = NOWHERE)
    }),
    ("address_wraps", |b, _| {
        b.chain_with(|_, c| c[1].address = u64::MAX - 100)
    }),
    ("device_memory", |b, _| {
        b.chain_with(|_, c| c[1].address = DEVICE_MEMORY)
    }),
    ("huge_length", |b, _| {
        b.chain_with(|_, c| c[1].length = u32::MAX)
    }),
    ("zero_length", |b, _| b.chain_with(|_, c| c[1].length = 0)),
    ("zero_length_header", |b, _| {
        b.chain_with(|_, c| c[0].length = 0)
    }),
    ("zero_length_status", |b, _| {
        b.chain_with(|_, c| c[2].length = 0)
    }),
    ("short_header", |b, _| b.chain_with(|_, c| c[0].length = 8)),
    ("header_only", |b, _| b.chain_with(|_, c| c[0].flags = 0)),
    ("write_only_header", |b, _| {
        b.chain_with(|_, c| c[0].flags |= flags::WRITE)
    }),
    ("read_only_status", |b, _| {
        b.chain_with(|_, c| c[2].flags = 0)
    }),
    ("indirect_not_negotiated", |b, _| {
        b.chain_with(|b, c| {
            (c[0].address, c[0].length, c[0].flags) = (b.at(INDIRECT), 48, flags::INDIRECT);
        });
    }),
    ("indirect_with_next", |b, _| {
        b.chain_with(|_, c| c[0].flags |= flags::INDIRECT)
    }),
    ("all_descriptors_huge", |b, _| {
        b.start_well();
        let mut chain = [b.chain()[1]; SIZE as usize];
        chain[0] = b.chain()[0];
        for (index, descriptor) in chain.iter_mut().enumerate().skip(1) {
            (descriptor.length, descriptor.next) = (u32::MAX, index as u16 + 1);
        }
        chain[SIZE as usize - 1].flags = flags::WRITE;
        b.put(&chain);
        b.offer(0);
    }),
];

/// Well-formed chains that ask for what can't be.
pub const REQUESTS: &[Case] = &[
    ("unknown_type", |b, _| b.request(0x1234, 0, 512, false)),
    ("odd_length", |b, _| {
        b.request(operation::READ, 0, 100, false)
    }),
    ("beyond_capacity", |b, _| {
        b.request(operation::READ, b.capacity, 512, false)
    }),
    ("across_capacity", |b, _| {
        b.request(operation::READ, b.capacity.saturating_sub(1), 1024, false)
    }),
    ("sector_overflow", |b, _| {
        b.request(operation::READ, u64::MAX, 512, false)
    }),
    ("sector_bytes_overflow", |b, _| {
        b.request(operation::READ, u64::MAX / SECTOR, 1024, false)
    }),
    ("write_beyond_capacity", |b, _| {
        b.request(operation::WRITE, b.capacity, 512, true)
    }),
    ("write_with_writable_data", |b, _| {
        b.request(operation::WRITE, 0, 512, false)
    }),
    ("read_with_readable_data", |b, _| {
        b.request(operation::READ, 0, 512, true)
    }),
    ("discard_beyond_capacity", |b, _| {
        b.segment(operation::DISCARD, b.capacity, 8, 0, 16)
    }),
    ("discard_overflow", |b, _| {
        b.segment(operation::DISCARD, u64::MAX, u32::MAX, 0, 16)
    }),
    ("discard_too_long", |b, _| {
        b.segment(operation::DISCARD, 0, u32::MAX, 0, 16)
    }),
    ("discard_part_of_segment", |b, _| {
        b.segment(operation::DISCARD, b.capacity, 8, 0, 15)
    }),
    ("discard_too_many_segments", |b, _| {
        b.segment(operation::DISCARD, b.capacity, 8, 0, DATA_BYTES)
    }),
    ("discard_bad_flags", |b, _| {
        b.segment(operation::DISCARD, b.capacity, 8, u32::MAX, 16)
    }),
    ("write_zeroes_overflow", |b, _| {
        b.segment(operation::WRITE_ZEROES, u64::MAX, u32::MAX, 0, 16)
    }),
];

/// Frames that are none; the header is `struct virtio_net_hdr`.
pub const FRAMES: &[Case] = &[
    ("garbage_header", |b, _| {
        b.area.bytes()[..16].fill(0xff);
        b.chain_with(|_, _| {});
    }),
    ("impossible_checksum", |b, _| {
        // A checksum to be put behind the end of the frame.
        b.area.bytes()[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0xf0, 0xff, 0xfe, 0xff]);
        b.chain_with(|_, _| {});
    }),
    ("impossible_segments", |b, _| {
        // TCP over IPv4 in pieces of no bytes.
        b.area.bytes()[..10].copy_from_slice(&[0, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
        b.chain_with(|_, _| {});
    }),
    ("no_frame", |b, _| {
        b.chain_with(|b, c| (c[0].flags, c[0].length) = (c[2].flags, b.target.header_bytes));
    }),
    ("tiny_frame", |b, _| b.chain_with(|_, c| c[1].length = 1)),
    ("long_frame", |b, _| {
        b.start_well();
        let mut chain = [b.chain()[1]; SIZE as usize];
        for (index, descriptor) in chain.iter_mut().enumerate() {
            descriptor.next = index as u16 + 1;
        }
        chain[SIZE as usize - 1].flags &= flags::WRITE;
        b.put(&chain);
        b.offer(0);
    }),
];

/// Commands that no driver gives to a network card; class 4 sets the number of pairs of queues.
pub const COMMANDS: &[Case] = &[
    ("unknown_class", |b, _| b.command(&[0xff, 0xff], 0, 2)),
    ("unknown_command", |b, _| b.command(&[4, 99], 1, 2)),
    ("no_pairs", |b, _| b.command(&[4, 0], 0, 2)),
    ("too_many_pairs", |b, _| b.command(&[4, 0], u16::MAX, 2)),
    ("pairs_cut_off", |b, _| b.command(&[4, 0], 1, 1)),
    ("pairs_and_more", |b, _| b.command(&[4, 0], 1, DATA_BYTES)),
    ("pairs_out_of_range", |b, _| {
        b.area.bytes()[..2].copy_from_slice(&[4, 0]);
        b.chain_with(|_, c| c[1].address = NOWHERE);
    }),
];

/// Rings that are wrong.
pub const RINGS: &[Case] = &[
    ("bad_avail", |b, _| {
        b.start_well();
        let chain = b.chain();
        b.put(&chain);
        b.queue.publish(SIZE * 4);
        b.offered = true;
        b.ring();
    }),
    ("bad_avail_max", |b, _| {
        b.start_well();
        b.queue.publish(u16::MAX);
        b.offered = true;
        b.ring();
    }),
    ("same_head_twice", |b, _| {
        b.start_well();
        let chain = b.chain();
        b.put(&chain);
        b.queue.offer(0);
        b.offer(0);
    }),
    ("rings_out_of_range", |b, _| {
        let rings = Rings {
            descriptors: NOWHERE,
            available: NOWHERE,
            used: NOWHERE,
        };
        b.start(SIZE.into(), &rings);
        b.offer(0);
    }),
    ("used_out_of_range", |b, _| {
        let rings = Rings {
            used: NOWHERE,
            ..b.queue.rings()
        };
        b.start(SIZE.into(), &rings);
        let chain = b.chain();
        b.put(&chain);
        b.offer(0);
    }),
    ("rings_wrap", |b, _| {
        let rings = Rings {
            descriptors: !15,
            available: !1,
            used: !3,
        };
        b.start(SIZE.into(), &rings);
        b.offer(0);
    }),
    ("rings_misaligned", |b, _| {
        let good = b.queue.rings();
        let rings = Rings {
            descriptors: good.descriptors + 1,
            available: good.available + 1,
            used: good.used + 1,
        };
        b.start(SIZE.into(), &rings);
        b.offer(0);
    }),
    ("rings_overlap", |b, _| {
        let at = b.queue.rings().descriptors;
        b.start(
            SIZE.into(),
            &Rings {
                descriptors: at,
                available: at,
                used: at,
            },
        );
        b.offer(0);
    }),
    ("rings_in_device_memory", |b, _| {
        let at = DEVICE_MEMORY;
        b.start(
            SIZE.into(),
            &Rings {
                descriptors: at,
                available: at,
                used: at,
            },
        );
        b.offer(0);
    }),
];

/// Registers written as they should not be.
pub const REGISTERS: &[Case] = &[
    ("queue_size_zero", |b, _| {
        b.start(0, &b.queue.rings());
        b.offer(0);
    }),
    ("queue_size_odd", |b, _| {
        b.start(15, &b.queue.rings());
        b.offer(0);
    }),
    ("queue_size_huge", |b, _| {
        b.start(u32::MAX, &b.queue.rings());
        b.offer(0);
    }),
    ("notify_before_ready", |b, _| b.ring()),
    ("notify_unknown_queue", |b, _| {
        b.start_well();
        b.registers.notify(999);
        b.registers.notify(u32::MAX);
    }),
    ("unknown_queue", |b, _| {
        b.registers.set_queue(999, SIZE.into(), &b.queue.rings());
        b.registers.driver_ok();
    }),
    ("features_not_offered", |b, _| {
        b.registers.reset();
        b.registers
            .write(offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        b.registers.accept(u64::MAX);
        b.start_well();
    }),
    ("features_without_version_1", |b, _| {
        b.registers.reset();
        b.registers
            .write(offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        b.registers.accept(0);
        b.start_well();
    }),
    ("queue_moved_while_running", |b, _| {
        b.chain_with(|_, _| {});
        b.registers.set_queue(
            b.queue.index,
            SIZE.into(),
            &Rings {
                used: NOWHERE,
                ..b.queue.rings()
            },
        );
        b.offer(0);
    }),
    // Not even wrong: section 4.2.2.1 has a driver stop a queue so.
    ("queue_stopped", |b, _| {
        b.start_well();
        b.registers.write(offset::QUEUE_READY, 0);
        let chain = b.chain();
        b.put(&chain);
        b.offer(0);
    }),
    ("driver_ok_twice", |b, _| {
        b.start_well();
        b.registers.driver_ok();
        let chain = b.chain();
        b.put(&chain);
        b.offer(0);
    }),
    ("reset_in_flight", |b, options| {
        b.start_well();
        let chain = b.chain();
        b.put(&chain);
        for _ in 0..options.count.min(200) {
            b.offer(0);
            b.registers.reset();
            b.registers.negotiate(VERSION_1);
            b.queue.publish(0);
            b.start_well();
        }
        b.offered = false;
    }),
    // Any register with any value, also while the device runs.
    ("random_registers", |b, options| {
        b.start_well();
        let mut random = Random::new(options.seed);
        for _ in 0..options.count {
            let at = random.below(0x80) * 4;
            let value = match random.below(4) {
                0 => random.below(16) as u32,
                1 => b.area.address() as u32,
                _ => random.next() as u32,
            };
            b.registers.write(at, value);
            b.registers.read(random.below(0x80) * 4);
        }
    }),
    // Descriptors and heads of random bytes.
    ("random_descriptors", |b, options| {
        b.start_well();
        let mut random = Random::new(options.seed);
        for _ in 0..options.count {
            let index = random.below(SIZE.into()) as u16;
            // With success the device may only write to the area: nothing else of ours.
            let room = AREA_BYTES as u64 - u64::from(DATA_BYTES);
            let address = match random.below(3) {
                0 => b.at(random.below(room)),
                1 => NOWHERE | random.next(),
                _ => b.at(DATA),
            };
            let length = random.below(DATA_BYTES.into()) as u32;
            let (flags, next) = (random.below(8) as u16, random.below(20) as u16);
            b.queue.set_descriptor(
                index,
                Descriptor {
                    address,
                    length,
                    flags,
                    next,
                },
            );
            b.queue.offer(random.below(20) as u16);
            if random.below(4) == 0 {
                b.ring();
            }
        }
        b.offered = true;
        b.ring();
    }),
];
