//! The command that does with a device what no driver should.

use super::{Arguments, Command, Failure, Json, Probe};
use crate::misuse;
use crate::virtio::kind;

pub const COMMANDS: &[Command] = &[Command {
    name: "misuse",
    keys: &[
        "device", "disk", "nic", "queue", "kind", "timeout", "seed", "count",
    ],
    run,
}];

fn run(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let index = |key| arguments.number_or(key, 0).map(|index| index as usize);
    let found = match arguments.get("device").unwrap_or("disk") {
        "disk" => probe.close_disk(index("disk")?)?,
        "nic" => probe.close_nic(index("nic")?)?,
        // Opened anew by each command that uses it.
        "random" => probe.nth(kind::RANDOM, 0)?,
        _ => return Err("device is disk, nic or random".into()),
    };
    let options = misuse::Options {
        timeout_ns: arguments.duration("timeout")?.unwrap_or(200_000_000),
        seed: arguments.number_or("seed", 1)?,
        count: arguments.number_or("count", 1000)?,
    };
    let queue = arguments.number_or("queue", 0)? as u16;
    let outcome = misuse::run(found, queue, arguments.text("kind")?, &options)?;
    json.optional("completed", outcome.completed)
        .optional("status", outcome.status)
        .optional("used_length", outcome.used_length)
        .number("device_status", outcome.device_status)
        .number("needs_reset", outcome.needs_reset);
    Ok(())
}
