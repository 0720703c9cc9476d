//! Changes while packets stream: each packet's fate is that of before or of after, never anything
//! else, it changes once, and when the call has returned it is that of after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CreatePrefixListRequest, ModifyPrefixListRequest, PrefixListEntry,
    ReplaceInstanceSecurityGroupsRequest, SecurityGroupPermission, security_group_permission::Peer,
};
use hearth_tests::{
    Hearth, needs_kvm, needs_network,
    net::{Body, End, Lab, OUTSIDE4, Outside, Packet, setting},
};
use tonic::Status;

const TARGET: usize = 0;
const NEIGHBOUR: usize = 1;
const PORT: u16 = 5000;
/// Packets before the call, and after it.
const PACKETS: usize = 24;
/// Between two packets of the stream.
const PAUSE: Duration = Duration::from_micros(300);

struct Stream {
    lab: Lab,
    tag: u32,
    /// A datagram that was let in once, and all that follow it.
    open: Option<Packet>,
}

impl Stream {
    fn tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    fn datagram(&mut self, from: std::net::IpAddr) -> Packet {
        let tag = self.tag();
        let body = Body::Udp {
            source: 20_000 + u16::try_from(tag % 40_000).unwrap_or_default(),
            destination: PORT,
        };
        let to = self.lab.guests[TARGET].ipv4.into();
        Packet::new(from, to, body, tag)
    }

    /// One packet from each side; gives their numbers. The guest's may be under way yet.
    fn send(&mut self) -> Result<[u32; 2]> {
        let outside = self.datagram(OUTSIDE4);
        let neighbour = self.lab.guests[NEIGHBOUR].ipv4.into();
        let neighbour = self.datagram(neighbour);
        let tags = [outside.tag, neighbour.tag];
        self.lab.send(End::Outside, &[outside])?;
        self.lab.send(End::Guest(NEIGHBOUR), &[neighbour])?;
        Ok(tags)
    }

    /// Streams while `call` is made, which changes what passes to `passes`.
    async fn during(
        &mut self,
        passes: bool,
        call: impl Future<Output = Result<(), Status>> + Send + 'static,
    ) -> Result<usize> {
        let mut before = Vec::new();
        for _ in 0..PACKETS {
            before.extend(self.send()?);
        }
        self.lab.guests[NEIGHBOUR].sent()?;
        let call = tokio::spawn(call);
        let mut between = Vec::new();
        let mut followers = Vec::new();
        while !call.is_finished() {
            between.push(self.send()?);
            if let Some(mut packet) = self.open.clone() {
                packet.tag = self.tag();
                followers.push(packet.tag);
                self.lab.send(End::Outside, &[packet])?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        call.await??;
        let mut after = Vec::new();
        for _ in 0..PACKETS {
            after.extend(self.send()?);
        }
        let last = self.open.clone();
        let last = last.map(|mut packet| {
            packet.tag = self.tag();
            packet
        });
        if let Some(packet) = &last {
            self.lab.send(End::Outside, std::slice::from_ref(packet))?;
        }
        let sure = if passes { &after } else { &before };
        let wanted: Vec<_> = sure.iter().map(|it| (End::Guest(TARGET), *it)).collect();
        let arrived = self.lab.arrived_with(&wanted)?;
        let has = |tag: &u32| arrived.iter().any(|it| it.packet.tag == *tag);
        for tag in &before {
            ensure!(has(tag) != passes, "before the call: {tag} of {before:?}");
        }
        for tag in &after {
            ensure!(has(tag) == passes, "after the call: {tag} of {after:?}");
        }
        // Of one sender the fate changes once.
        for side in 0..2 {
            let fates: Vec<_> = between.iter().map(|it| has(&it[side])).collect();
            let changes = fates.windows(2).filter(|it| it[0] != it[1]).count();
            ensure!(changes <= 1, "it went to and fro: {fates:?}");
            let first = fates.first().copied().unwrap_or(!passes);
            ensure!(changes == 0 || first != passes, "the wrong way: {fates:?}");
        }
        let fates: Vec<_> = followers.iter().map(has).collect();
        let changes = fates.windows(2).filter(|it| it[0] != it[1]).count();
        ensure!(changes <= 1, "a connection came back: {fates:?}");
        // A connection that was open is cut before the call returns, and a packet like its own
        // passes again when the rules say so.
        if let Some(packet) = last {
            ensure!(has(&packet.tag) == passes, "a connection of before");
        } else if passes {
            let packet = self.datagram(OUTSIDE4);
            self.lab.passes(End::Outside, &packet, End::Guest(TARGET))?;
            self.open = Some(packet);
        }
        Ok(between.len())
    }
}

fn entry() -> PrefixListEntry {
    PrefixListEntry {
        cidr: "0.0.0.0/0".to_owned(),
        description: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_flight_is_old_or_new_and_new_when_the_call_returns() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let outside = Outside::new(hearth.netns()?)?;
    let network = hearth.network("10.20.0.0/24", |_| {}).await?;
    let closed = setting::group(&hearth, &network, "closed").await?;
    let open = setting::group(&hearth, &network, "open").await?;
    let all = setting::permission("udp", Some(PORT), "0.0.0.0/0");
    setting::allow(&hearth, &open, vec![all.clone()]).await?;
    let guests = vec![
        setting::guest(&hearth, &network, std::slice::from_ref(&closed), TARGET).await?,
        setting::guest(&hearth, &network, std::slice::from_ref(&closed), NEIGHBOUR).await?,
    ];
    let instance = guests[TARGET].instance.clone();
    let mut stream = Stream {
        lab: Lab::new(hearth.netns()?, outside, guests)?,
        tag: 0,
        open: None,
    };
    let list = prefix_list(&hearth, &closed, &all).await?;
    let mut between = 0;
    for round in 0..3 {
        let said = || format!("round {round}");
        // A rule.
        let mut client = hearth.security_groups();
        let request = setting::inbound(&closed, vec![all.clone()]);
        let call = async move { client.authorize_security_group(request).await.map(|_| ()) };
        between += stream.during(true, call).await.with_context(said)?;
        let mut client = hearth.security_groups();
        let request = setting::no_longer_inbound(&closed, vec![all.clone()]);
        let call = async move { client.revoke_security_group(request).await.map(|_| ()) };
        between += stream.during(false, call).await.with_context(said)?;
        // The groups of an instance.
        for (group, passes) in [(&open, true), (&closed, false)] {
            let request = ReplaceInstanceSecurityGroupsRequest {
                instance_id: instance.clone(),
                security_group_ids: vec![group.clone()],
                keep_connections: false,
            };
            let mut client = hearth.security_groups();
            let call = async move {
                let answer = client.replace_instance_security_groups(request).await;
                answer.map(|_| ())
            };
            between += stream.during(passes, call).await.with_context(said)?;
        }
        // A prefix list.
        for passes in [true, false] {
            let mut request = ModifyPrefixListRequest {
                prefix_list_id: list.clone(),
                ..Default::default()
            };
            if passes {
                request.add_entries.push(entry());
            } else {
                request.remove_cidrs.push(entry().cidr);
            }
            let mut client = hearth.security_groups();
            let call = async move { client.modify_prefix_list(request).await.map(|_| ()) };
            between += stream.during(passes, call).await.with_context(said)?;
        }
    }
    eprintln!("{between} pairs of packets while 18 changes were made");
    drop(stream);
    hearth.finish().await
}

/// A list that nobody is in, and a rule that names it.
async fn prefix_list(
    hearth: &Hearth,
    group: &str,
    like: &SecurityGroupPermission,
) -> Result<String> {
    let request = CreatePrefixListRequest {
        name: "list".to_owned(),
        max_entries: 3,
        entries: vec![PrefixListEntry {
            cidr: "192.0.2.0/24".to_owned(),
            description: String::new(),
        }],
        ..Default::default()
    };
    let mut client = hearth.security_groups();
    let answer = client.create_prefix_list(request).await?.into_inner();
    let id = answer.prefix_list.context("no list")?.prefix_list_id;
    let by_list = SecurityGroupPermission {
        peer: Some(Peer::PrefixListId(id.clone())),
        ..like.clone()
    };
    setting::allow(hearth, group, vec![by_list]).await?;
    Ok(id)
}
