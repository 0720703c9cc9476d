//! Whatever happens to the rules or to the agent: what no rule allows does not pass, and what the
//! rules allow is what they said before or after a change, never something else.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{
    CreatePrefixListRequest, ModifyPrefixListRequest, PrefixListEntry,
    ReplaceInstanceSecurityGroupsRequest, SecurityGroupPermission, WatchRequest,
    security_group_permission::Peer,
};
use hearth_tests::{
    BOOT, Hearth, Netns, as_account, needs_kvm, needs_network,
    net::{
        Body, End, HOST_MAC, HOST4, Lab, OUTSIDE4, Outside, Packet, Wire,
        packet::{self, tcp},
        setting,
    },
    netns::EVERY_FRAME,
    programs,
};

/// Always allowed, never allowed, and what the changes are about.
const ALWAYS: u16 = 22;
const NEVER: u16 = 443;
const CHANGING: u16 = 80;

/// A guest, and the outside that knocks.
struct Scene {
    hearth: Hearth,
    lab: Lab,
    group: String,
    tag: u32,
}

impl Scene {
    async fn new() -> Result<Self> {
        let hearth = Hearth::start_with_namespace().await?;
        let outside = Outside::new(hearth.netns()?)?;
        let network = hearth.network("10.20.0.0/24", |_| {}).await?;
        let group = setting::group(&hearth, &network, "group").await?;
        let always = setting::permission("tcp", Some(ALWAYS), "0.0.0.0/0");
        setting::allow(&hearth, &group, vec![always]).await?;
        let guest = setting::guest(&hearth, &network, std::slice::from_ref(&group), 0).await?;
        let lab = Lab::new(hearth.netns()?, outside, vec![guest])?;
        Ok(Self {
            hearth,
            lab,
            group,
            tag: 0,
        })
    }

    fn tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    /// Whether the outside gets through to a port of the guest's.
    fn reaches(&mut self, port: u16) -> Result<bool> {
        let body = Body::Tcp {
            source: 20_000 + u16::try_from(self.tag() % 40_000)?,
            destination: port,
            flags: tcp::SYN,
        };
        let to = self.lab.guests[0].ipv4.into();
        let syn = Packet::new(OUTSIDE4, to, body, self.tag());
        Ok(self.lab.pass(End::Outside, &syn)?.is_some())
    }

    /// What holds whichever of the changes is in force; gives whether the changing port is open.
    fn holds(&mut self) -> Result<bool> {
        ensure!(self.reaches(ALWAYS)?, "what is always allowed is refused");
        ensure!(!self.reaches(NEVER)?, "what is never allowed passes");
        // And out it may go, and not to the host.
        let own = self.lab.guests[0].ipv4.into();
        for (to, end) in [(OUTSIDE4, Some(End::Outside)), (HOST4, None)] {
            let body = Body::Udp {
                source: 20_000 + u16::try_from(self.tag() % 40_000)?,
                destination: 4000,
            };
            let udp = Packet::new(own, to, body, self.tag());
            let arrival = self.lab.pass(End::Guest(0), &udp)?;
            ensure!(arrival.as_ref().map(|it| it.end) == end, "{arrival:?}");
        }
        self.reaches(CHANGING)
    }

    fn nft(&self, words: &str) -> Result<String> {
        let mut nft = self.hearth.netns()?.command("nft");
        programs::output_of(nft.args(words.split(' ')).stderr(Stdio::null()))
    }

    async fn finish(self) -> Result<()> {
        drop(self.lab);
        self.hearth.finish().await
    }
}

/// How many repairs were told of, when there are more than `before`.
async fn repairs(hearth: &Hearth, before: usize) -> Result<usize> {
    let request = WatchRequest {
        after_sequence: Some(0),
        resource_ids: Vec::new(),
        types: vec!["firewall.repaired".to_owned()],
    };
    // Rules are the host's, not an account's: only the operator hears of them.
    let request = as_account("*", request);
    let mut stream = hearth.events().watch(request).await?.into_inner();
    let mut count = 0;
    let found = tokio::time::timeout(BOOT, async {
        while let Some(event) = stream.message().await? {
            ensure!(!event.message.is_empty(), "{event:?}");
            count += 1;
            if count > before {
                return Ok(count);
            }
        }
        bail!("the event stream has ended")
    });
    found.await.context("no repair was told of")?
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_somebody_breaks_are_repaired_and_told_of() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut scene = Scene::new().await?;
    ensure!(!scene.holds()?);
    let mut told = 0;
    for harm in [
        "delete table inet hearth",
        "flush table inet hearth",
        "flush chain inet hearth entering",
        "insert rule inet hearth entering accept",
        "delete table arp hearth",
        "flush set inet hearth sources4",
    ] {
        scene.nft(harm).with_context(|| harm.to_owned())?;
        told = repairs(&scene.hearth, told)
            .await
            .with_context(|| harm.to_owned())?;
        ensure!(!scene.holds().with_context(|| harm.to_owned())?, "{harm}");
    }
    // What is not ours is left alone.
    scene.nft("add table inet others")?;
    scene.nft("add chain inet others nothing")?;
    scene.nft("delete table inet hearth")?;
    repairs(&scene.hearth, told).await?;
    ensure!(scene.nft("list tables")?.contains("inet others"));
    ensure!(!scene.holds()?);
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_were_broken_while_the_agent_was_down_are_back_with_it() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut scene = Scene::new().await?;
    scene.hearth.kill_agent()?;
    // A guest's rules are the kernel's, not the agent's.
    ensure!(!scene.holds()?, "while the agent is down");
    for harm in [
        "delete table inet hearth",
        "flush table inet hearth",
        "insert rule inet hearth entering accept",
    ] {
        scene.nft(harm)?;
        scene.hearth.start_agent().await?;
        ensure!(!scene.holds().with_context(|| harm.to_owned())?, "{harm}");
        scene.hearth.kill_agent()?;
        ensure!(!scene.holds().with_context(|| harm.to_owned())?, "{harm}");
    }
    scene.hearth.start_agent().await?;
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn taps_are_down_while_the_rules_are_not_in_force() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut scene = Scene::new().await?;
    let tap = scene.lab.guests[0].interface.tap_name.clone();
    let is_up = |scene: &Scene| -> Result<bool> {
        let link = scene
            .hearth
            .netns()?
            .ip(&format!("-o link show dev {tap}"))?;
        Ok(link.contains(",UP"))
    };
    ensure!(is_up(&scene)?);
    scene.hearth.kill_agent()?;
    scene.nft("flush ruleset")?;
    // Somebody has what an agent with networks needs, so that it can't have rules.
    let socket = scene.hearth.netns()?.enter(|| {
        let name = SocketAddr::from_abstract_name("hearth-networks")?;
        Ok(UnixDatagram::bind_addr(&name)?)
    })?;
    scene.hearth.start_agent().await?;
    ensure!(!is_up(&scene)?, "open, since there are no rules");
    drop(socket);
    // Any change of rules has it look again.
    scene.nft("add table inet others")?;
    hearth_tests::eventually(async || {
        ensure!(is_up(&scene)?, "still down");
        Ok(())
    })
    .await?;
    ensure!(!scene.holds()?);
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_only_looks_like_a_tap_of_ours_gets_nothing_through() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut scene = Scene::new().await?;
    let far = Netns::new()?;
    let name = "hthdeadbeef0001";
    let host = scene.hearth.netns()?;
    let holder = far.holder();
    host.ip(&format!(
        "link add {name} type veth peer name far0 netns {holder}"
    ))?;
    far.sysctl("ipv6.conf.far0.disable_ipv6", "1")?;
    far.ip("link set far0 address 02:00:00:00:77:02 up")?;
    host.ip(&format!("link set {name} address 02:68:74:68:00:01 up"))?;
    host.ip(&format!("addr add 10.77.0.1/24 dev {name}"))?;
    host.ip(&format!(
        "neigh add 10.77.0.2 lladdr 02:00:00:00:77:02 dev {name} nud permanent"
    ))?;
    let wire = Wire::open(&far, "far0", EVERY_FRAME)?;
    let stranger = [10, 77, 0, 2].into();
    let guest = scene.lab.guests[0].ipv4.into();
    let own = scene.lab.guests[0].mac;
    let mut udp = |source, destination| {
        scene.tag += 1;
        let body = Body::Udp {
            source: 4000,
            destination: ALWAYS,
        };
        Packet::new(source, destination, body, scene.tag)
    };
    let from_there = [
        udp(stranger, guest),
        udp(stranger, OUTSIDE4),
        udp(stranger, HOST4),
        udp(stranger, [10, 77, 0, 1].into()),
        // As the guest, by its card's address, too.
        udp(guest, OUTSIDE4),
    ];
    let to_there = [
        (End::Outside, udp(OUTSIDE4, stranger)),
        (End::Host, udp(HOST4, stranger)),
        (End::Guest(0), udp(guest, stranger)),
    ];
    for packet in &from_there {
        for mac in [[2, 0, 0, 0, 0x77, 2], own] {
            for frame in packet.frames(mac, HOST_MAC) {
                wire.send(&frame)?;
            }
        }
    }
    for (from, packet) in &to_there {
        scene.lab.send(*from, std::slice::from_ref(packet))?;
    }
    let arrived = scene.lab.arrived()?;
    ensure!(arrived.is_empty(), "{arrived:#?}");
    while let Some(frame) = wire.receive()? {
        // Our own are shown, too.
        let is_the_hosts = frame.get(6..12) == Some(&HOST_MAC);
        let seen = packet::ip_of(&frame).and_then(Packet::see);
        ensure!(!is_the_hosts || seen.is_none(), "{seen:?}");
    }
    ensure!(!scene.holds()?);
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_during_a_change_leaves_the_old_rules_or_the_new_ones() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut scene = Scene::new().await?;
    let group = scene.group.clone();
    let mut client = scene.hearth.security_groups();
    let changing = vec![setting::permission("tcp", Some(CHANGING), "0.0.0.0/0")];

    let open = client.authorize_security_group(setting::inbound(&group, changing.clone()));
    let step = "security-group.rules-added";
    let done = scene.hearth.crash_at_and_stay_down(step, open).await?;
    ensure!(done.is_err(), "{done:?}");
    after_the_crash(&mut scene, true).await.context(step)?;

    let mut client = scene.hearth.security_groups();
    let close = client.revoke_security_group(setting::no_longer_inbound(&group, changing));
    let step = "security-group.rules-removed";
    let done = scene.hearth.crash_at_and_stay_down(step, close).await?;
    ensure!(done.is_err(), "{done:?}");
    after_the_crash(&mut scene, false).await.context(step)?;

    // By a prefix list.
    let mut client = scene.hearth.security_groups();
    let list = CreatePrefixListRequest {
        name: "list".to_owned(),
        max_entries: 4,
        entries: vec![entry("192.0.2.0/24")],
        ..Default::default()
    };
    let list = client.create_prefix_list(list).await?.into_inner();
    let list = list.prefix_list.context("no list")?.prefix_list_id;
    let by_list = SecurityGroupPermission {
        peer: Some(Peer::PrefixListId(list.clone())),
        ..setting::permission("tcp", Some(CHANGING), "0.0.0.0/0")
    };
    setting::allow(&scene.hearth, &group, vec![by_list]).await?;
    ensure!(!scene.holds()?);
    let outside = format!("{OUTSIDE4}/32");
    for opens in [true, false] {
        let mut request = ModifyPrefixListRequest {
            prefix_list_id: list.clone(),
            ..Default::default()
        };
        if opens {
            request.add_entries.push(entry(&outside));
        } else {
            request.remove_cidrs.push(outside.clone());
        }
        let mut client = scene.hearth.security_groups();
        let modify = client.modify_prefix_list(request);
        let step = "prefix-list.row-modified";
        let done = scene.hearth.crash_at_and_stay_down(step, modify).await?;
        ensure!(done.is_err(), "{done:?}");
        after_the_crash(&mut scene, opens).await.context(step)?;
    }

    // By another group.
    let network = scene.lab.guests[0].interface.network_id.clone();
    let network = hearth_proto::v1::Network {
        network_id: network,
        ..Default::default()
    };
    let other = setting::group(&scene.hearth, &network, "other").await?;
    let both = [ALWAYS, CHANGING].map(|it| setting::permission("tcp", Some(it), "0.0.0.0/0"));
    setting::allow(&scene.hearth, &other, both.to_vec()).await?;
    for (into, opens) in [(&other, true), (&group, false)] {
        let request = ReplaceInstanceSecurityGroupsRequest {
            instance_id: scene.lab.guests[0].instance.clone(),
            security_group_ids: vec![into.clone()],
            keep_connections: false,
        };
        let mut client = scene.hearth.security_groups();
        let replace = client.replace_instance_security_groups(request);
        let step = "interface.groups-replaced";
        let done = scene.hearth.crash_at_and_stay_down(step, replace).await?;
        ensure!(done.is_err(), "{done:?}");
        after_the_crash(&mut scene, opens).await.context(step)?;
    }
    scene.finish().await
}

fn entry(cidr: &str) -> PrefixListEntry {
    PrefixListEntry {
        cidr: cidr.to_owned(),
        description: String::new(),
    }
}

/// While the agent is down the rules are those of before or after; once it is back, what was
/// committed is in force.
async fn after_the_crash(scene: &mut Scene, opens: bool) -> Result<()> {
    scene.holds().context("while the agent is down")?;
    scene.hearth.start_agent().await?;
    let open = scene.holds()?;
    ensure!(open == opens, "the changing port is open: {open}");
    Ok(())
}
