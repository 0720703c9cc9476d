//! The firewall itself, without anything asynchronous: the policy in force, what it compiles to,
//! and the kernel. One change at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rustix::thread::{MembarrierCommand, membarrier};

use super::{
    Counter, Dropped, FirewallError, Repair,
    claim::{Claim, Maker, Owner},
    compile::{self, Parts},
    conntrack::{self, Scope},
    flows,
    netlink::{
        NetlinkError, Socket,
        batch::Batch,
        compare::{Found, compare},
        read,
    },
    policy::{Change, Policy},
    table::{Command, Family, Table, Tables, diff},
};

/// How many differences a [`Repair`] names.
const NAMED: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Engine {
    owner: Owner,
    /// Held while there are networks.
    claim: Option<Claim>,
    policy: Arc<Policy>,
    parts: Parts,
    /// Opened when it is needed first.
    socket: Option<Socket>,
    /// The generation of the kernel's rules in which our tables were known to be right.
    generation: Option<u32>,
    /// What a change found wrong and repaired on its way.
    untold: Option<Repair>,
    /// Changes so far.
    changes: u64,
    /// By the number of the change: connections that were beginning when it was made have yet to be
    /// looked for there.
    late: Vec<(u64, Scope)>,
}

/// Changes that belong together.
#[derive(Debug)]
pub struct Request {
    pub changes: Vec<Change>,
    /// Connections that are no longer admitted end.
    pub cut: bool,
}

impl Engine {
    /// Without networks; `owner` is said by the tables.
    pub fn new(owner: Owner) -> Self {
        Self {
            owner,
            ..Self::default()
        }
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.policy.clone()
    }

    /// Port of our socket, by which others tell our changes from those of strangers.
    pub fn port(&self) -> Option<u32> {
        self.socket.as_ref().map(Socket::port)
    }

    /// See [`super::Firewall::load`].
    pub fn load(&mut self, policy: Policy) -> Result<Option<Repair>, FirewallError> {
        self.generation = None;
        self.policy = Arc::new(policy);
        self.parts = Parts::default();
        if self.policy.networks.is_empty() {
            // Whoever has no networks needs neither nf_tables nor the right to use them.
            return self.remove_ours().or_else(|error| {
                tracing::debug!("no look at nf_tables: {error}");
                Ok(None)
            });
        }
        self.claim()?;
        let repair = self.synchronise(true)?;
        self.cut_all(repair.as_ref());
        Ok(repair)
    }

    /// Removes what an agent left that was killed with its last network. Tables that are not ours
    /// are another's.
    fn remove_ours(&mut self) -> Result<Option<Repair>, FirewallError> {
        let owner = self.owner.clone();
        let ours = Maker::find(self.socket()?, &owner)? == Maker::Us;
        let repair = if ours { self.synchronise(true)? } else { None };
        self.claim = None;
        Ok(repair)
    }

    /// Sees to it that no other agent has networks here.
    fn claim(&mut self) -> Result<(), FirewallError> {
        if self.claim.is_none() {
            let owner = self.owner.clone();
            let socket = self.socket()?;
            // Says so when the kernel has no nf_tables.
            read::generation(socket)?;
            self.claim = Some(Claim::take(socket, &owner)?);
        }
        Ok(())
    }

    /// Compares the kernel's tables with what is wanted, and repairs them.
    pub fn reconcile(&mut self) -> Result<Option<Repair>, FirewallError> {
        if self.policy.networks.is_empty() {
            return Ok(None);
        }
        let now = read::generation(self.socket()?)?;
        let mut repair = None;
        if self.generation != Some(now) {
            repair = self.synchronise(false)?;
        }
        let repair = Repair::sum(self.untold.take(), repair);
        self.cut_all(repair.as_ref());
        Ok(repair)
    }

    /// Ends the connections that wrong rules let in.
    fn cut_all(&mut self, repair: Option<&Repair>) {
        if repair.is_none() {
            return;
        }
        let everything = Scope::everything(&self.policy);
        for result in self.cut(&[everything]) {
            match result {
                Ok(0) => {}
                Ok(cut) => tracing::warn!("{cut} connections that no rule allows end"),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    /// Makes the changes of all requests in one transaction. The answer has one entry for each: of
    /// connections that were cut. If one of them [`Self::keeps`] connections, none cuts any.
    pub fn apply(
        &mut self,
        requests: &[Request],
    ) -> Result<Vec<Result<u64, FirewallError>>, FirewallError> {
        // What is kept now must not be taken for what an earlier change took away.
        if !self.late.is_empty() && requests.iter().any(|it| self.keeps(it)) {
            wait_for_packets();
            self.cut_late(self.changes);
        }
        let mut units = BTreeSet::new();
        let mut undo = Vec::new();
        let mut scopes = Vec::new();
        let was_empty = self.policy.networks.is_empty();
        let policy = Arc::make_mut(&mut self.policy);
        for request in requests {
            let mut scope = Scope::default();
            for change in &request.changes {
                units.extend(compile::affected(policy, change));
                // Who gets the address next must not get the connections, too.
                if request.cut || matches!(change, Change::RemoveInterface(_)) {
                    scope.add(policy, change);
                }
                undo.push(policy.inverse(change));
                policy.apply(change.clone());
                units.extend(compile::affected(policy, change));
            }
            scopes.push(scope);
        }
        let step = self.parts.step(&self.policy, &units);
        let is_empty = self.policy.networks.is_empty();
        let done = if was_empty && is_empty {
            self.parts.take(step);
            Ok(())
        } else if was_empty != is_empty {
            self.claim().and_then(|()| {
                let replaced = self.parts.take(step);
                let done = self.synchronise(false).map(drop);
                if done.is_err() {
                    self.parts.restore(replaced);
                }
                Ok(done?)
            })
        } else {
            self.commit(step).map_err(FirewallError::from)
        };
        if (done.is_ok() && is_empty) || (done.is_err() && was_empty) {
            self.claim = None;
        }
        if let Err(error) = done {
            let policy = Arc::make_mut(&mut self.policy);
            for change in undo.into_iter().rev().flatten() {
                policy.apply(change);
            }
            return Err(error);
        }
        let counts = self.cut(&scopes);
        self.changes += 1;
        scopes.retain(|it| !it.is_empty());
        let scopes = scopes.into_iter().map(|it| (self.changes, it));
        self.late.extend(scopes);
        Ok(counts)
    }

    /// Whether there may be connections that a request takes the rules away from, and keeps.
    pub fn keeps(&self, request: &Request) -> bool {
        let mut scope = Scope::default();
        if !request.cut {
            for change in &request.changes {
                scope.add(&self.policy, change);
            }
        }
        !scope.is_empty()
    }

    /// The number of the last change, if connections that were beginning then have yet to be looked
    /// for.
    pub fn late(&self) -> Option<u64> {
        self.late.last().map(|it| it.0)
    }

    /// Ends connections that began by the rules of before, up to a change: after
    /// [`wait_for_packets`].
    pub fn cut_late(&mut self, change: u64) {
        let late = self.late.extract_if(.., |it| it.0 <= change);
        let scopes: Vec<Scope> = late.map(|it| it.1).collect();
        for result in self.cut(&scopes) {
            match result {
                Ok(0) => {}
                Ok(cut) => tracing::debug!("{cut} connections that began during a change end"),
                Err(error) => tracing::warn!("connections that began during a change: {error}"),
            }
        }
    }

    /// Ends connections in each of `scopes`; says how many.
    pub fn cut(&mut self, scopes: &[Scope]) -> Vec<Result<u64, FirewallError>> {
        let refs: Vec<&Scope> = scopes.iter().collect();
        let policy = self.policy.clone();
        let counts = if scopes.iter().all(Scope::is_empty) {
            Ok(vec![0; scopes.len()])
        } else {
            self.socket()
                .and_then(|socket| conntrack::cut(socket, &policy, &refs))
        };
        match counts {
            Ok(counts) => counts.into_iter().map(Ok).collect(),
            Err(error) => scopes
                .iter()
                .map(|scope| match scope.is_empty() {
                    true => Ok(0),
                    false => Err(FirewallError::Conntrack(error.to_string())),
                })
                .collect(),
        }
    }

    pub(super) fn socket(&mut self) -> Result<&mut Socket, NetlinkError> {
        if self.socket.is_none() {
            self.socket = Some(Socket::open(0)?);
        }
        // It was just put there.
        self.socket.as_mut().ok_or(NetlinkError::Missing)
    }

    /// Takes a step from what is in force.
    fn commit(&mut self, step: compile::Step) -> Result<(), NetlinkError> {
        let before = self.generation;
        let socket = self.socket()?;
        let mut batch = Batch::new(socket);
        for family in Family::ALL {
            batch.extend(family, &diff(step.old.get(family), step.new.get(family)));
        }
        if batch.commands() == 0 {
            self.parts.take(step);
            return Ok(());
        }
        let done = batch.commit(socket);
        match done {
            Ok(()) => {
                let now = read::generation(socket)?;
                // If it is not the next one, somebody else changed something, too.
                self.generation = before
                    .map(|before| before.wrapping_add(1))
                    .filter(|next| *next == now);
                self.parts.take(step);
                Ok(())
            }
            // The tables are not what they were made: start from what is there.
            Err(error) => {
                tracing::warn!("rules are looked at again: {error}");
                let repair = self.synchronise(false)?;
                self.untold = Repair::sum(self.untold.take(), repair);
                let replaced = self.parts.take(step);
                let done = self.synchronise(false).map(drop);
                if done.is_err() {
                    self.parts.restore(replaced);
                }
                done
            }
        }
    }

    /// Makes the kernel's tables what is wanted, whatever they are. With `load`, what is wanted is
    /// compiled from the policy, and elements stay where they are found.
    fn synchronise(&mut self, load: bool) -> Result<Option<Repair>, NetlinkError> {
        let read = self.socket().and_then(|socket| {
            let generation = read::generation(socket)?;
            let inet = read::table(socket, Family::Inet)?;
            Ok((generation, [inet, read::table(socket, Family::Arp)?]))
        });
        if load {
            let mut places = BTreeMap::new();
            if let Ok((_, [Some(inet), _])) = &read {
                let policy = Arc::make_mut(&mut self.policy);
                if !policy.networks.is_empty() {
                    flows::adopt(&mut policy.windows, inet.sets.keys());
                }
                places = compile::places_found(policy, &inet.elements);
            }
            self.parts = Parts::of(&self.policy, &places);
        }
        let (generation, raw) = read?;
        let wanted = self.parts.tables();
        let [inet, arp] = raw;
        let found = [
            inet.map(|raw| compare(raw, &wanted.inet)),
            arp.map(|raw| compare(raw, &wanted.arp)),
        ];
        let Some(socket) = self.socket.as_mut() else {
            return Err(NetlinkError::Missing);
        };
        if wanted == Tables::default() && found.iter().all(Option::is_none) {
            self.generation = Some(generation);
            return Ok(None);
        }
        let mark = self.owner.mark();
        let mut repair = Repair::default();
        let mut batch = Batch::new(socket);
        for (family, found) in Family::ALL.into_iter().zip(&found) {
            let wanted = wanted.get(family);
            repair_table(
                &mut batch,
                family,
                found.as_ref(),
                wanted,
                &mark,
                &mut repair,
            );
        }
        if batch.commands() == 0 {
            self.generation = Some(generation);
            return Ok(None);
        }
        let mut done = batch.commit(socket);
        if let Err(error) = &done
            && found.iter().any(Option::is_some)
        {
            tracing::warn!("our tables are made anew: {error}");
            let mut batch = Batch::new(socket);
            for (family, found) in Family::ALL.into_iter().zip(&found) {
                rebuild(
                    &mut batch,
                    family,
                    found.is_some(),
                    wanted.get(family),
                    &mark,
                );
            }
            done = batch.commit(socket);
        }
        done?;
        // Whether somebody came between shows the next time.
        self.generation =
            Some(read::generation(socket)?).filter(|now| *now == generation.wrapping_add(1));
        Ok(Some(repair))
    }

    /// See [`super::Firewall::counters`].
    pub fn counters(
        &mut self,
        groups: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Counter>, FirewallError> {
        let mut sets = Vec::new();
        let all = self.policy.groups.keys();
        for group in all.filter(|it| groups.is_empty() || groups.contains(*it)) {
            sets.extend(self.parts.counting_sets(group).map(str::to_owned));
        }
        let mut counters = BTreeMap::<String, Counter>::new();
        for set in sets {
            self.read_counters(&set, |rule, counter| {
                let sum = counters.entry(rule.to_owned()).or_default();
                sum.packets += counter.packets;
                sum.bytes += counter.bytes;
            })?;
        }
        Ok(counters)
    }

    /// See [`super::Firewall::dropped`].
    pub fn dropped(&mut self) -> Result<BTreeMap<String, Dropped>, FirewallError> {
        let mut dropped = BTreeMap::<String, Dropped>::new();
        if self.policy.networks.is_empty() {
            return Ok(dropped);
        }
        type Part = fn(&mut Dropped) -> &mut Counter;
        let parts: [(&str, Part); 4] = [
            ("spoofed", |it| &mut it.spoofed),
            ("refused-out", |it| &mut it.egress),
            ("refused-in", |it| &mut it.ingress),
            ("refused-host", |it| &mut it.host),
        ];
        for (set, part) in parts {
            self.read_counters(set, |interface, counter| {
                *part(dropped.entry(interface.to_owned()).or_default()) = counter;
            })?;
        }
        Ok(dropped)
    }

    fn read_counters(
        &mut self,
        set: &str,
        mut each: impl FnMut(&str, Counter),
    ) -> Result<(), FirewallError> {
        let socket = self.socket()?;
        Ok(read::counters(socket, set, |_, comment, counter| {
            each(comment, counter);
        })?)
    }
}

/// A packet that was under way while the rules changed passed by the old ones, and its connection
/// may not have been in the list yet. Once each processor is done with what it had begun (RCU; tens
/// of milliseconds), it is. Kernels with nohz_full processors don't offer this wait; there it
/// returns at once.
pub fn wait_for_packets() {
    let _ = membarrier(MembarrierCommand::Global);
}

fn repair_table(
    batch: &mut Batch,
    family: Family,
    found: Option<&Found>,
    wanted: &Table,
    mark: &str,
    repair: &mut Repair,
) {
    match found {
        Some(_) if wanted.is_empty() => {
            repair.differs("tables of networks that are no more".to_owned());
            batch.delete_table(family);
        }
        Some(found) => {
            if let Some(reason) = &found.beyond_repair {
                repair.differs(reason.clone());
                return rebuild(batch, family, true, wanted, mark);
            }
            let commands = diff(&found.table, wanted);
            for command in &commands {
                repair.differs(describe(command));
            }
            batch.extend(family, &commands);
        }
        None if wanted.is_empty() => {}
        None => {
            repair.differs("the table was not there".to_owned());
            rebuild(batch, family, false, wanted, mark);
        }
    }
}

fn rebuild(batch: &mut Batch, family: Family, is_there: bool, wanted: &Table, mark: &str) {
    if is_there {
        batch.delete_table(family);
    }
    if !wanted.is_empty() {
        batch.add_table(family, mark);
        batch.extend(family, &diff(&Table::default(), wanted));
    }
}

fn describe(command: &Command<'_>) -> String {
    match command {
        Command::AddChain(name, _) => format!("chain {name} was missing"),
        Command::AddSet(name, _) => format!("set {name} was missing"),
        Command::FlushChain(name) | Command::AddRule(name, _) => {
            format!("chain {name} had other rules")
        }
        Command::DeleteElement(set, ..) => format!("set {set} had an element too many"),
        Command::AddElement(set, ..) => format!("set {set} lacked an element"),
        Command::DeleteChain(name) => format!("chain {name} was too many"),
        Command::DeleteSet(name) => format!("set {name} was too many"),
    }
}

impl Repair {
    fn sum(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(mut sum), Some(other)) => {
                sum.differences += other.differences;
                sum.named.extend(other.named);
                sum.named.truncate(NAMED);
                Some(sum)
            }
            (one, other) => one.or(other),
        }
    }

    fn differs(&mut self, how: String) {
        self.differences += 1;
        if self.named.len() < NAMED && !self.named.contains(&how) {
            self.named.push(how);
        }
    }
}
