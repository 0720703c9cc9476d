//! EC2's start of everything: a new instance in a new group refuses whatever comes, and may send
//! whatever it likes; the default group lets its own members in and nobody else.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use hearth_tests::{
    Hearth, needs_kvm, needs_network,
    net::{
        Body, End, HOST4, HOST6, Lab, OUTSIDE4, OUTSIDE6, Outside, Packet,
        packet::{protocol, tcp},
        setting,
    },
};

/// One of everything that opens a connection.
fn openers(source: IpAddr, destination: IpAddr, tag: &mut u32) -> Vec<Packet> {
    let mut bodies = Vec::new();
    for port in [22, 53, 80, 443, 8775, 40_000] {
        *tag += 1;
        let own = 20_000 + u16::try_from(*tag % 40_000).unwrap_or_default();
        bodies.push(Body::Tcp {
            source: own,
            destination: port,
            flags: tcp::SYN,
        });
        bodies.push(Body::Udp {
            source: own,
            destination: port,
        });
    }
    let kind = if source.is_ipv4() { 8 } else { 128 };
    bodies.push(Body::Icmp {
        kind,
        code: 0,
        id: u16::try_from(*tag % 60_000).unwrap_or_default(),
    });
    bodies.push(Body::Other(protocol::GRE));
    bodies.push(Body::Other(protocol::PRIVATE));
    let packets = bodies.into_iter().map(|body| {
        *tag += 1;
        Packet::new(source, destination, body, *tag)
    });
    packets.collect()
}

/// All of them arrive there, or none anywhere.
fn all_or_none(lab: &mut Lab, from: End, packets: &[Packet], to: Option<End>) -> Result<()> {
    lab.send(from, packets)?;
    let wanted = to
        .into_iter()
        .flat_map(|to| packets.iter().map(move |it| (to, it.tag)));
    let wanted: Vec<_> = wanted.collect();
    let arrived = lab.arrived_with(&wanted)?;
    let mut seen: Vec<_> = arrived.iter().map(|it| (it.end, it.packet.tag)).collect();
    seen.sort();
    let mut wanted = wanted;
    wanted.sort();
    ensure!(
        seen == wanted,
        "from {from:?} to {:?}: {arrived:#?}",
        packets.first().map(|it| it.destination)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_refuses_everything_inbound_and_may_send_anything() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let outside = Outside::new(hearth.netns()?)?;
    let network = hearth.network("10.20.0.0/24", |it| {
        it.ipv6_range = "fd12:3456:789a:1::/64".to_owned();
        it.nat = Some(false);
    });
    let network = network.await?;
    let fresh = setting::group(&hearth, &network, "fresh").await?;
    let open = setting::group(&hearth, &network, "open").await?;
    let everything = ["0.0.0.0/0", "::/0"].map(|it| setting::permission("-1", None, it));
    setting::allow(&hearth, &open, everything.to_vec()).await?;
    let new = setting::guest(&hearth, &network, &[fresh], 0).await?;
    let neighbour = setting::guest(&hearth, &network, &[open], 1).await?;
    let members = [
        setting::guest(&hearth, &network, &[], 2).await?,
        setting::guest(&hearth, &network, &[], 3).await?,
    ];
    let [one, other] = members;
    let ends = vec![new, neighbour, one, other];
    let mut lab = Lab::new(hearth.netns()?, outside, ends)?;
    let mut tag = 0;
    for (ipv6, host, outside) in [(false, HOST4, OUTSIDE4), (true, HOST6, OUTSIDE6)] {
        let at = |lab: &Lab, guest: usize| lab.guests[guest].address(ipv6).context("no address");
        let own = at(&lab, 0)?;
        let gateway: IpAddr = match ipv6 {
            false => network.ipv4_gateway.parse()?,
            true => network.ipv6_gateway.parse()?,
        };
        for (from, source) in [
            (End::Guest(1), at(&lab, 1)?),
            (End::Guest(2), at(&lab, 2)?),
            (End::Outside, outside),
            (End::Host, host),
            (End::Host, gateway),
        ] {
            let packets = openers(source, own, &mut tag);
            all_or_none(&mut lab, from, &packets, None)?;
        }
        for (to, destination) in [(End::Guest(1), at(&lab, 1)?), (End::Outside, outside)] {
            let packets = openers(own, destination, &mut tag);
            all_or_none(&mut lab, End::Guest(0), &packets, Some(to))?;
        }
        // It was not opened for whom it has spoken to, either: only their answers come.
        let syn = openers(own, outside, &mut tag).remove(0);
        let seen = lab.passes(End::Guest(0), &syn, End::Outside)?;
        tag += 1;
        lab.passes(End::Outside, &seen.answer(tag), End::Guest(0))?;
        let mut back = openers(outside, own, &mut tag);
        // A protocol without ports has one connection between two addresses, which is open.
        back.retain(|it| !matches!(it.body, Body::Other(_)));
        all_or_none(&mut lab, End::Outside, &back, None)?;

        // The default group.
        let [one, other] = [at(&lab, 2)?, at(&lab, 3)?];
        let packets = openers(one, other, &mut tag);
        all_or_none(&mut lab, End::Guest(2), &packets, Some(End::Guest(3)))?;
        for (from, source) in [(End::Guest(1), at(&lab, 1)?), (End::Outside, outside)] {
            let packets = openers(source, other, &mut tag);
            all_or_none(&mut lab, from, &packets, None)?;
        }
    }
    drop(lab);
    hearth.finish().await
}
