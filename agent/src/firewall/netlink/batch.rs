//! One transaction of nf_tables: all of its commands or none, seen by packets at once.

use super::{
    NFTABLES, NetlinkError, Socket,
    attributes::Writer,
    encode::{self, SetHeader},
    nft, owner,
    socket::{ACK, REQUEST, message},
};
use crate::firewall::table::{Command, Element, ElementKey, Family, TABLE};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NLM_F_CREATE`, `NLM_F_APPEND`
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// Elements of one message, in bytes: the list is one attribute, which ends at 64 KiB.
const ELEMENTS: usize = 48 << 10;

/// A transaction that is being put together.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// What each message is about, for errors: from the first message on.
    about: Vec<String>,
    first: u32,
    next: u32,
    sets: u32,
    /// Where the last message begins.
    last: usize,
    commands: usize,
}

impl Batch {
    pub fn new(socket: &mut Socket) -> Self {
        // A range of numbers that nobody else uses: the socket's next ones are jumped over by
        // `commit`.
        let first = socket.next_sequence();
        let mut batch = Self {
            bytes: Vec::new(),
            about: Vec::new(),
            first,
            next: first,
            sets: 0,
            last: 0,
            commands: 0,
        };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// How many objects it changes.
    pub fn commands(&self) -> usize {
        self.commands
    }

    fn frame(&mut self, kind: u16) {
        self.about.push("the transaction".to_owned());
        message(&mut self.bytes, kind, REQUEST, self.next, 0, NFTABLES, &[]);
        self.next = self.next.wrapping_add(1);
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, about: String, attributes: Writer) {
        self.about.push(about);
        self.last = self.bytes.len();
        let kind = NFTABLES << 8 | kind;
        let body = attributes.into_bytes();
        message(
            &mut self.bytes,
            kind,
            REQUEST | flags,
            self.next,
            family.number(),
            0,
            &body,
        );
        self.next = self.next.wrapping_add(1);
    }

    fn of_table() -> Writer {
        let mut writer = Writer::new();
        writer.string(1, TABLE);
        writer
    }

    /// `mark` says whose the table is.
    pub fn add_table(&mut self, family: Family, mark: &str) {
        self.commands += 1;
        let about = format!("table {family:?}");
        let mut writer = Self::of_table();
        writer.bytes(owner::USERDATA, &encode::comment(mark));
        self.push(nft::NEWTABLE, CREATE, family, about, writer);
    }

    pub fn delete_table(&mut self, family: Family) {
        self.commands += 1;
        let about = format!("removing table {family:?}");
        self.push(nft::DELTABLE, 0, family, about, Self::of_table());
    }

    /// Adds commands in order.
    pub fn extend(&mut self, family: Family, commands: &[Command<'_>]) {
        self.commands += commands.len();
        let mut rest = commands;
        while let Some((command, after)) = rest.split_first() {
            rest = after;
            let mut writer = Self::of_table();
            match *command {
                Command::AddElement(set, ..) | Command::DeleteElement(set, ..) => {
                    let adds = matches!(command, Command::AddElement(..));
                    let mut list = Vec::new();
                    let mut run = commands.len() - rest.len() - 1;
                    while let Some((key, element)) =
                        commands.get(run).and_then(|it| same_list(it, set, adds))
                    {
                        let bytes = encode::element(key, element);
                        let mut item = Writer::new();
                        item.bytes(1 | 1 << 15, &bytes);
                        list.extend(item.into_bytes());
                        run += 1;
                        if list.len() > ELEMENTS {
                            break;
                        }
                    }
                    rest = &commands[run..];
                    writer.string(2, set);
                    writer.bytes(3 | 1 << 15, &list);
                    let (kind, flags) = if adds {
                        (nft::NEWSETELEM, CREATE)
                    } else {
                        (nft::DELSETELEM, 0)
                    };
                    self.push(kind, flags, family, format!("elements of {set}"), writer);
                }
                Command::AddChain(name, base) => {
                    writer.string(3, name);
                    if let Some(base) = base {
                        encode::hook(&mut writer, base);
                        writer.u32(5, 1).string(7, base.kind);
                    }
                    self.push(
                        nft::NEWCHAIN,
                        CREATE,
                        family,
                        format!("chain {name}"),
                        writer,
                    );
                }
                Command::AddSet(name, set) => {
                    self.sets += 1;
                    writer.string(2, name);
                    SetHeader::of(set).write(&mut writer, self.sets);
                    self.push(nft::NEWSET, CREATE, family, format!("set {name}"), writer);
                }
                Command::FlushChain(name) => {
                    writer.string(2, name);
                    let about = format!("rules of {name}");
                    self.push(nft::DELRULE, 0, family, about, writer);
                }
                Command::AddRule(chain, rule) => {
                    writer.string(2, chain);
                    writer.nested(4, encode::expressions(&rule.expressions));
                    if !rule.comment.is_empty() {
                        writer.bytes(7, &encode::comment(&rule.comment));
                    }
                    let about = format!("a rule of {chain}");
                    self.push(nft::NEWRULE, CREATE | APPEND, family, about, writer);
                }
                Command::DeleteChain(name) => {
                    writer.string(3, name);
                    let about = format!("removing chain {name}");
                    self.push(nft::DELCHAIN, 0, family, about, writer);
                }
                Command::DeleteSet(name) => {
                    writer.string(2, name);
                    let about = format!("removing set {name}");
                    self.push(nft::DELSET, 0, family, about, writer);
                }
            }
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// [`NetlinkError`]: nothing was done.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let last = self.next.wrapping_sub(1);
        // The kernel confirms the last one; what it refuses it says of each.
        let flags = &mut self.bytes[self.last + 6..self.last + 8];
        let asked = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
        flags.copy_from_slice(&asked.to_ne_bytes());
        self.frame(BATCH_END);
        for _ in 0..self.about.len() {
            socket.next_sequence();
        }
        let about = |sequence: u32| {
            let index = sequence.wrapping_sub(self.first) as usize;
            self.about.get(index).cloned().unwrap_or_default()
        };
        socket.transact(&self.bytes, last, about)
    }
}

fn same_list<'a>(
    command: &Command<'a>,
    set: &str,
    adds: bool,
) -> Option<(&'a ElementKey, &'a Element)> {
    match *command {
        Command::AddElement(of, key, element) if adds && of == set => Some((key, element)),
        Command::DeleteElement(of, key, element) if !adds && of == set => Some((key, element)),
        _ => None,
    }
}
