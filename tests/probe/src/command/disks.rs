//! Commands for disks.

use alloc::format;

use super::{Arguments, Command, Failure, Json, Probe};
use crate::cpu::clock;
use crate::disk::load::{self, Load};
use crate::disk::transfer::{self, Expected, Range};
use crate::disk::{Disk, Request, operation};
use crate::histogram::Histogram;
use crate::memory::dma::Buffer;

pub const COMMANDS: &[Command] = &[
    Command {
        name: "read",
        keys: &["disk", "offset", "length", "request", "above_4g"],
        run: read,
    },
    Command {
        name: "write",
        keys: &["disk", "offset", "length", "pattern", "request", "above_4g"],
        run: write,
    },
    Command {
        name: "verify",
        keys: &["disk", "offset", "length", "pattern", "request", "above_4g"],
        run: verify,
    },
    Command {
        name: "discard",
        keys: &["disk", "offset", "length"],
        run: discard,
    },
    Command {
        name: "write_zeroes",
        keys: &["disk", "offset", "length", "unmap"],
        run: write_zeroes,
    },
    Command {
        name: "flush",
        keys: &["disk"],
        run: flush,
    },
    Command {
        name: "load",
        keys: &[
            "disk",
            "size",
            "depth",
            "queues",
            "read_percent",
            "seconds",
            "offset",
            "region",
            "order",
            "seed",
        ],
        run: run_load,
    },
];

/// Bytes of a request where none are given.
const REQUEST_BYTES: u64 = 128 << 10;
/// Reads up to this many bytes answer with them.
const SHOWN_BYTES: u64 = 512;

fn disk<'p>(probe: &'p mut Probe, arguments: &Arguments) -> Result<&'p mut Disk, Failure> {
    probe.disk(arguments.number_or("disk", 0)? as usize)
}

/// The range, its end being the disk's if no length is given.
fn range(disk: &Disk, arguments: &Arguments, request_bytes: u64) -> Result<Range, Failure> {
    let offset = arguments.number_or("offset", 0)?;
    let rest = disk.properties().size_bytes.saturating_sub(offset);
    let length = arguments.number_or("length", rest)?;
    Ok(Range {
        offset,
        length,
        request_bytes,
    })
}

fn buffered(disk: &Disk, arguments: &Arguments) -> Result<(Range, Buffer), Failure> {
    let range = range(
        disk,
        arguments,
        arguments.number_or("request", REQUEST_BYTES)?,
    )?;
    let bytes = range.request_bytes.min(range.length).min(1 << 30) as usize;
    let buffer = if arguments.flag("above_4g")? {
        Buffer::above_4_gib(bytes).ok_or("there is no memory above 4 GiB")?
    } else {
        Buffer::new(bytes).ok_or("no memory for a request of that size")?
    };
    Ok((range, buffer))
}

fn expected(arguments: &Arguments) -> Result<Expected, Failure> {
    match arguments.get("pattern") {
        Some("zeroes") => Ok(Expected::Zeroes),
        _ => Ok(Expected::Pattern(arguments.number("pattern")?)),
    }
}

fn figures(json: &mut Json, bytes: u64, start: u64) {
    let ns = (clock::now() - start).max(1);
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(ns);
    json.number("bytes", bytes)
        .number("ns", ns)
        .number("bytes_per_s", rate);
}

/// Answers with a checksum (FNV-1a of 64 bits), and with the bytes if they are few.
fn read(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let disk = disk(probe, arguments)?;
    let (range, mut buffer) = buffered(disk, arguments)?;
    let start = clock::now();
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let mut shown = alloc::vec::Vec::new();
    transfer::read(disk, range, &mut buffer, |_, bytes| {
        for &byte in bytes {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if range.length <= SHOWN_BYTES {
            shown.extend_from_slice(bytes);
        }
    })?;
    figures(json, range.length, start);
    json.shown("fnv1a", format_args!("{sum:016x}"));
    if range.length <= SHOWN_BYTES {
        json.shown("hex", crate::json::Hex(&shown));
    }
    Ok(())
}

fn write(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let disk = disk(probe, arguments)?;
    let what = expected(arguments)?;
    let (range, mut buffer) = buffered(disk, arguments)?;
    let start = clock::now();
    transfer::write(disk, range, what, &mut buffer)?;
    figures(json, range.length, start);
    Ok(())
}

fn verify(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let disk = disk(probe, arguments)?;
    let expected = expected(arguments)?;
    let (range, mut buffer) = buffered(disk, arguments)?;
    let start = clock::now();
    let (mismatch, bad_sectors) = transfer::verify(disk, range, expected, &mut buffer)?;
    figures(json, range.length, start);
    json.number("bad_sectors", bad_sectors);
    let Some(mismatch) = mismatch else {
        return Ok(());
    };
    json.object("first_mismatch", |json| {
        json.number("offset", mismatch.offset)
            .number("found", mismatch.found)
            .number("expected", mismatch.expected);
    });
    Err("the disk holds something else".into())
}

fn discard(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let disk = disk(probe, arguments)?;
    let properties = disk.properties();
    if !properties.discard {
        return Err("the disk can't discard".into());
    }
    let range = range(disk, arguments, properties.max_discard_bytes.min(1 << 30))?;
    let start = clock::now();
    transfer::zero(disk, range, operation::DISCARD, false)?;
    figures(json, range.length, start);
    Ok(())
}

fn write_zeroes(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let disk = disk(probe, arguments)?;
    let properties = disk.properties();
    if !properties.write_zeroes {
        return Err("the disk can't write zeroes".into());
    }
    let range = range(
        disk,
        arguments,
        properties.max_write_zeroes_bytes.min(1 << 30),
    )?;
    let start = clock::now();
    transfer::zero(
        disk,
        range,
        operation::WRITE_ZEROES,
        arguments.flag("unmap")?,
    )?;
    figures(json, range.length, start);
    Ok(())
}

fn flush(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let disk = disk(probe, arguments)?;
    let start = clock::now();
    disk.run(&Request {
        operation: operation::FLUSH,
        sector: 0,
        data: None,
    })?;
    json.number("ns", clock::now() - start);
    Ok(())
}

fn latencies(json: &mut Json, key: &str, histogram: &Histogram) {
    let ns = clock::nanoseconds;
    json.object(key, |json| {
        for (name, share) in [
            ("p50", 50_000),
            ("p90", 90_000),
            ("p99", 99_000),
            ("p999", 99_900),
        ] {
            json.number(name, ns(histogram.percentile(share)));
        }
        json.number("max", ns(histogram.max()))
            .number("mean", ns(histogram.mean()))
            .number("count", histogram.count());
    });
}

fn run_load(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let disk = disk(probe, arguments)?;
    let properties = disk.properties();
    let request_bytes = arguments.number_or("size", 4096)?;
    let offset = arguments.number_or("offset", 0)?;
    let load = Load {
        request_bytes,
        depth: arguments.number_or("depth", 1)?,
        queues: arguments.number_or("queues", properties.queues.into())?,
        read_percent: arguments.number_or("read_percent", 100)?,
        duration_ns: arguments.duration("seconds")?.unwrap_or(1_000_000_000),
        offset,
        region: arguments.number_or("region", properties.size_bytes.saturating_sub(offset))?,
        sequential: match arguments.get("order").unwrap_or("random") {
            "random" => false,
            "seq" => true,
            other => return Err(format!("order is seq or random, not {other:?}").into()),
        },
        seed: arguments.number_or("seed", 1)?,
    };
    let outcome = load::run(disk, load)?;
    let (count, ns) = (outcome.all.count(), outcome.ns.max(1));
    let per_second = |n: u64| u128::from(n) * 1_000_000_000 / u128::from(ns);
    json.number("iops", per_second(count))
        .number("bytes_per_s", per_second(count * request_bytes))
        .number("ns", ns)
        .number("count", count)
        .number("errors", outcome.errors);
    latencies(json, "latency_ns", &outcome.all);
    if outcome.reads.count() > 0 && outcome.writes.count() > 0 {
        latencies(json, "read_latency_ns", &outcome.reads);
        latencies(json, "write_latency_ns", &outcome.writes);
    }
    match outcome.errors {
        0 => Ok(()),
        _ => Err("requests failed".into()),
    }
}
