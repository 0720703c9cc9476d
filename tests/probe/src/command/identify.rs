//! What the machine is.

use super::{Arguments, Command, Failure, Json, Probe, list};
use crate::boot::information::{self, USABLE};
use crate::boot::smbios;
use crate::cpu::clock;
use crate::net::card::read_mac;
use crate::virtio::kind;

pub const COMMANDS: &[Command] = &[
    Command {
        name: "identify",
        keys: &[],
        run: identify,
    },
    Command {
        name: "rescan",
        keys: &[],
        run: rescan,
    },
    Command {
        name: "time",
        keys: &[],
        run: time,
    },
    Command {
        name: "help",
        keys: &[],
        run: help,
    },
];

fn identify(probe: &mut Probe, _: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let mut memory_bytes = 0;
    information::memory_map(|range| {
        if range.kind == USABLE {
            memory_bytes += range.length;
        }
    });
    json.text("boot_protocol", information::protocol())
        .number("memory_bytes", memory_bytes)
        .array("memory_map", |json| {
            information::memory_map(|range| {
                json.element(|json| {
                    json.number("start", range.start)
                        .number("length", range.length)
                        .number("type", range.kind);
                });
            });
        })
        .text("kernel_arguments", information::kernel_arguments())
        .number("acpi_root", information::acpi_root());
    if let Some(system) = smbios::system()? {
        json.object("system", |json| {
            json.text("manufacturer", system.manufacturer)
                .text("product", system.product)
                .text("serial", system.serial)
                .text("asset_tag", system.asset_tag)
                .shown("uuid", system.uuid);
        });
    }
    disks(probe, json)?;
    let cards = probe.of_kind(kind::NETWORK);
    json.array("nics", |json| {
        for (index, found) in cards.iter().enumerate() {
            let mac = read_mac(found.registers());
            json.element(|json| {
                json.number("index", index).shown("mac", mac);
            });
        }
    });
    json.number("random_devices", probe.of_kind(kind::RANDOM).len());
    clock_members(json);
    Ok(())
}

fn disks(probe: &mut Probe, json: &mut Json) -> Result<(), Failure> {
    let count = probe.of_kind(kind::BLOCK).len();
    let mut result = Ok(());
    json.array("disks", |json| {
        for index in 0..count {
            let disk = match probe.disk(index) {
                Ok(disk) => disk,
                Err(failure) => return result = Err(failure),
            };
            let serial = disk.serial();
            let properties = disk.properties();
            json.element(|json| {
                json.number("index", index);
                match &serial {
                    Ok(serial) => json.text("serial", serial),
                    Err(Failure(error)) => json.text("serial_error", error),
                };
                json.number("size_bytes", properties.size_bytes)
                    .number("read_only", properties.read_only)
                    .number("block_bytes", properties.block_bytes)
                    .number("physical_block_bytes", properties.physical_block_bytes)
                    .number("queues", properties.queues)
                    .number("queue_size", properties.queue_size)
                    .number("flush", properties.flush)
                    .number("max_discard_bytes", properties.max_discard_bytes)
                    .number("max_write_zeroes_bytes", properties.max_write_zeroes_bytes);
            });
        }
    });
    result
}

fn clock_members(json: &mut Json) {
    json.optional("tsc_hz", clock::hertz())
        .text("tsc_source", clock::source())
        .number("tsc", clock::ticks())
        .number("uptime_ns", clock::now())
        .number("ready_ns", clock::ready());
}

fn rescan(probe: &mut Probe, _: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let (gone, new) = probe.rescan();
    json.number("gone", gone).number("new", new);
    disks(probe, json)
}

fn time(_: &mut Probe, _: &Arguments, json: &mut Json) -> Result<(), Failure> {
    clock_members(json);
    Ok(())
}

fn help(_: &mut Probe, _: &Arguments, json: &mut Json) -> Result<(), Failure> {
    list(json);
    Ok(())
}
