//! Commands: one line each on the console, one line of JSON as answer.

mod arguments;
mod disks;
mod identify;
mod machine;
mod misuse;
mod networks;

use alloc::vec::Vec;

pub use self::arguments::{Arguments, Failure, parse_hex};
use crate::cpu::interrupts;
use crate::disk::Disk;
use crate::json::Json;
use crate::net::Stack;
use crate::serial::{self, Reader};
use crate::virtio::{self, Found, kind};

/// What a command's function is: it writes its answer's members, and may fail.
type Run = fn(&mut Probe, &Arguments, &mut Json) -> Result<(), Failure>;

/// A command.
struct Command {
    name: &'static str,
    /// Keys that it knows.
    keys: &'static [&'static str],
    run: Run,
}

const TABLES: [&[Command]; 5] = [
    identify::COMMANDS,
    machine::COMMANDS,
    disks::COMMANDS,
    misuse::COMMANDS,
    networks::COMMANDS,
];

/// An idle probe wakes at least this often, in nanoseconds, should an interrupt be lost.
const IDLE_NS: u64 = 1_000_000_000;

/// What is kept between commands. Devices are opened when they are first used: each register
/// access is an exit to the VMM.
pub struct Probe {
    found: Option<Vec<Found>>,
    disks: Vec<Option<Disk>>,
    nics: Vec<Option<Stack>>,
}

impl Probe {
    /// All devices.
    fn found(&mut self) -> &[Found] {
        self.found.get_or_insert_with(virtio::find)
    }

    /// The devices of a kind, in their order.
    fn of_kind(&mut self, kind: u32) -> Vec<Found> {
        self.found()
            .iter()
            .copied()
            .filter(|found| found.kind == kind)
            .collect()
    }

    /// Looks at the windows again: lets go of disks that are to go, and finds new ones. Disks keep
    /// their order, by window. Returns how many have gone and come.
    fn rescan(&mut self) -> (usize, usize) {
        let before = self.of_kind(kind::BLOCK);
        let mut opened = core::mem::take(&mut self.disks);
        opened.resize_with(before.len(), || None);
        let mut kept = Vec::new();
        let mut gone = 0;
        for (found, disk) in before.iter().zip(opened) {
            if found.is_wanted() {
                kept.push((found.base, disk));
            } else {
                // Dropped, and so reset.
                gone += 1;
            }
        }
        let mut found = virtio::find();
        found.retain(Found::is_wanted);
        self.found = Some(found);
        let after = self.of_kind(kind::BLOCK);
        let new = after.len().saturating_sub(kept.len());
        for found in after {
            let at = kept.iter().position(|(base, _)| *base == found.base);
            self.disks.push(at.and_then(|at| kept.swap_remove(at).1));
        }
        (gone, new)
    }

    fn nth(&mut self, kind: u32, index: usize) -> Result<Found, Failure> {
        self.of_kind(kind)
            .get(index)
            .copied()
            .ok_or_else(|| "there is no such device".into())
    }

    /// A disk, opened.
    fn disk(&mut self, index: usize) -> Result<&mut Disk, Failure> {
        let found = self.nth(kind::BLOCK, index)?;
        if self.disks.len() <= index {
            self.disks.resize_with(index + 1, || None);
        }
        let place = &mut self.disks[index];
        // What was misused or timed out starts anew.
        if place.as_ref().is_some_and(Disk::is_broken) {
            *place = None;
        }
        if place.is_none() {
            *place = Some(Disk::open(found)?);
        }
        place.as_mut().ok_or_else(|| "no disk".into())
    }

    /// Gives a disk up, so that its device can be used in other ways.
    fn close_disk(&mut self, index: usize) -> Result<Found, Failure> {
        let found = self.nth(kind::BLOCK, index)?;
        if let Some(place) = self.disks.get_mut(index) {
            *place = None;
        }
        Ok(found)
    }

    /// As [`Self::close_disk`], with all that the card has had.
    fn close_nic(&mut self, index: usize) -> Result<Found, Failure> {
        let found = self.nth(kind::NETWORK, index)?;
        if let Some(place) = self.nics.get_mut(index) {
            *place = None;
        }
        Ok(found)
    }

    /// A network card with its protocols, opened.
    fn nic(&mut self, index: usize) -> Result<&mut Stack, Failure> {
        let found = self.nth(kind::NETWORK, index)?;
        if self.nics.len() <= index {
            self.nics.resize_with(index + 1, || None);
        }
        let place = &mut self.nics[index];
        if place.is_none() {
            *place = Some(Stack::open(found)?);
            interrupts::enable_virtio_lines();
        }
        place.as_mut().ok_or_else(|| "no network card".into())
    }

    /// Answers ARP, pings and the like, and runs services, while no command runs. Returns how
    /// long nothing needs to be done, in nanoseconds.
    fn poll_networks(&mut self) -> u64 {
        let stacks = self.nics.iter_mut().flatten();
        stacks
            .map(Stack::poll)
            .min()
            .unwrap_or(IDLE_NS)
            .min(IDLE_NS)
    }
}

/// Answers commands for ever.
pub fn serve() -> ! {
    let mut reader = Reader::new();
    let mut probe = Probe {
        found: None,
        disks: Vec::new(),
        nics: Vec::new(),
    };
    loop {
        match reader.poll() {
            Some(line) => answer(&mut probe, &line),
            None => {
                let idle = probe.poll_networks();
                if idle != 0 {
                    interrupts::wait(idle);
                }
            }
        }
    }
}

fn answer(probe: &mut Probe, line: &[u8]) {
    let text = alloc::string::String::from_utf8_lossy(line);
    if text.trim().is_empty() {
        return;
    }
    let mut members = Json::default();
    let (command, result) = match Arguments::parse(&text) {
        Ok(arguments) => {
            let result = run(probe, &arguments, &mut members);
            (arguments.command, result)
        }
        Err(failure) => ("".into(), Err(failure)),
    };
    let mut json = Json::default();
    json.number("ok", result.is_ok()).text("command", &command);
    if let Err(Failure(error)) = &result {
        json.text("error", error);
    }
    json.merge(&members);
    serial::write(json.finish().as_bytes());
}

fn run(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let named = |command: &&Command| command.name == arguments.command;
    let Some(command) = TABLES.iter().flat_map(|table| table.iter()).find(named) else {
        return Err("there is no such command; help lists them".into());
    };
    arguments.only(command.keys)?;
    (command.run)(probe, arguments, json)
}

/// Names of all commands with their keys.
fn list(json: &mut Json) {
    for command in TABLES.iter().flat_map(|table| table.iter()) {
        json.array(command.name, |json| {
            for key in command.keys {
                json.item(key);
            }
        });
    }
}
