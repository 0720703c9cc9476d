//! What is measured: an agent in a network namespace, a probe that answers on ports, and the
//! outside, another namespace that is one link away.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    AuthorizeSecurityGroupRequest, CreateSecurityGroupRequest, DescribeInstancesRequest,
    DescribeNetworkInterfacesRequest, Direction, InstanceState, Network, NetworkInterface,
    NetworkInterfaceSpecification, PageRequest, ReplaceInstanceSecurityGroupsRequest,
    RevokeSecurityGroupRequest, RunInstancesRequest,
};
use hearth_tests::{Guest, Hearth, Netns, Probe, eventually, netns::LinkEnd};

use super::{
    frames::{FAR_MAC, NEAR_MAC},
    policy::{self, CHANGED, GROUPS, INSTANCES, MEASURED, OPEN_PORT, OTHER, Rule},
};
use crate::launch::ms;

/// The host's end of the link, and the other end.
pub const UPLINK: &str = "up0";
pub const DOWNLINK: &str = "out0";
pub const HOST: &str = "203.0.113.1/24";
pub const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// Ports that the probe answers on, and that are opened and closed: TCP's in turns.
pub const UDP_PORT: u16 = 7002;
const TCP_PORTS: [u16; 2] = [7001, 7003];

/// Of each of them. A connection that was cut occupies the guest for good: nobody may tell it.
const TCP_CONNECTIONS: usize = 64;

/// For the buffers of these connections.
const MEMORY_MIB: u64 = 128;

const RANGE: &str = "10.20.0.0/16";

pub struct World {
    pub hearth: Hearth,
    pub outside: Netns,
    pub network: Network,
    /// Ids of the groups, by number.
    pub groups: Vec<String>,
    /// The measured instance.
    pub target: Target,
    /// A port that it answers on, and that is opened and closed.
    pub tcp_port: u16,
}

/// An instance.
pub struct Target {
    pub instance_id: String,
    pub tap: String,
    pub mac: String,
    pub ipv4: Ipv4Addr,
    pub vmm_pid: u32,
}

/// How long it took to make the full policy, in ms.
#[derive(Default)]
pub struct Filling {
    /// Calls that give a group all of its rules.
    pub authorize: Vec<f64>,
    /// RunInstances.
    pub run: Vec<f64>,
}

impl World {
    /// With one rule, in one of two groups, and one instance in it.
    pub async fn new() -> Result<Self> {
        let hearth = Hearth::start_in(Some(Netns::new()?)).await?;
        let outside = Netns::new()?;
        let host = hearth.netns()?;
        let peer = format!("{PEER}/24");
        host.connect(
            &LinkEnd {
                mac: Some(NEAR_MAC),
                ..LinkEnd::new(UPLINK, HOST)
            },
            &outside,
            &LinkEnd {
                mac: Some(FAR_MAC),
                ..LinkEnd::new(DOWNLINK, &peer)
            },
        )?;
        let gateway = HOST.split('/').next().unwrap_or_default();
        outside.ip(&format!("route add {RANGE} via {gateway}"))?;
        let network = hearth
            .network(RANGE, |request| request.ipv6_range = "auto".to_owned())
            .await?;
        let groups = vec![
            group(&hearth, &network, CHANGED).await?,
            group(&hearth, &network, OTHER).await?,
        ];
        let probe = hearth
            .probe(|request| {
                request.memory_mib = MEMORY_MIB;
                member(request, &network, vec![groups[CHANGED].clone()]);
            })
            .await?;
        let target = serve(probe, &network).await?;
        let world = Self {
            hearth,
            outside,
            network,
            groups,
            target,
            tcp_port: TCP_PORTS[0],
        };
        world.allow(CHANGED, &[policy::first_rule()]).await?;
        Ok(world)
    }

    /// Makes the rest of the full policy around what is there.
    pub async fn fill(&mut self) -> Result<Filling> {
        let mut filling = Filling::default();
        self.tcp_port = TCP_PORTS[1];
        for number in self.groups.len()..GROUPS {
            self.groups
                .push(group(&self.hearth, &self.network, number).await?);
        }
        for number in 0..GROUPS {
            let rules = policy::rules(number);
            filling.authorize.push(self.allow(number, &rules).await?);
        }
        self.join(&policy::groups_of(MEASURED)).await?;
        for number in (0..INSTANCES).filter(|number| *number != MEASURED) {
            let mut request = self.probe_in(&policy::groups_of(number));
            request.image_id = self.hearth.probe_image().await?.to_owned();
            // Told apart later by this.
            request.network_interfaces[0].description = number.to_string();
            let start = Instant::now();
            self.hearth.instances().run_instances(request).await?;
            filling.run.push(ms(start));
        }
        eventually(async || {
            let request = DescribeInstancesRequest {
                page: Some(PageRequest {
                    max_results: 1000,
                    ..Default::default()
                }),
                ..Default::default()
            };
            let answer = self.hearth.instances().describe_instances(request).await?;
            let (running, others): (Vec<_>, Vec<_>) = answer
                .into_inner()
                .instances
                .into_iter()
                .partition(|it| it.state() == InstanceState::Running);
            let why = others.first().map(|it| &it.state_reason);
            ensure!(
                running.len() == INSTANCES,
                "{} instances run; of one that does not: {why:?}",
                running.len()
            );
            Ok(())
        })
        .await?;
        Ok(filling)
    }

    /// What a probe in these groups is asked for with.
    pub fn probe_in(&self, groups: &[usize]) -> RunInstancesRequest {
        let mut request = RunInstancesRequest {
            memory_mib: crate::machine::MEMORY_MIB,
            ..Default::default()
        };
        let ids = groups.iter().map(|group| self.groups[*group].clone());
        member(&mut request, &self.network, ids.collect());
        request
    }

    /// Lets the outside in; gives the time of the call in ms.
    pub async fn allow(&self, group: usize, rules: &[Rule]) -> Result<f64> {
        let request = AuthorizeSecurityGroupRequest {
            security_group_id: self.groups[group].clone(),
            direction: Direction::Ingress.into(),
            permissions: rules.iter().map(|it| it.permission(&self.groups)).collect(),
            ..Default::default()
        };
        let mut client = self.hearth.security_groups();
        let start = Instant::now();
        client.authorize_security_group(request).await?;
        Ok(ms(start))
    }

    /// Takes that back; gives the time of the call in ms, and how many connections were cut.
    pub async fn revoke(&self, group: usize, rule: &Rule) -> Result<(f64, u64)> {
        let request = RevokeSecurityGroupRequest {
            security_group_id: self.groups[group].clone(),
            direction: Direction::Ingress.into(),
            permissions: vec![rule.permission(&self.groups)],
            ..Default::default()
        };
        let mut client = self.hearth.security_groups();
        let start = Instant::now();
        let answer = client.revoke_security_group(request).await?.into_inner();
        Ok((ms(start), answer.connections_cut))
    }

    /// Puts the measured instance into these groups; gives the time of the call in ms.
    pub async fn join(&self, groups: &[usize]) -> Result<f64> {
        let ids = groups.iter().map(|group| self.groups[*group].clone());
        let request = ReplaceInstanceSecurityGroupsRequest {
            instance_id: self.target.instance_id.clone(),
            security_group_ids: ids.collect(),
            ..Default::default()
        };
        let mut client = self.hearth.security_groups();
        let start = Instant::now();
        client.replace_instance_security_groups(request).await?;
        Ok(ms(start))
    }

    /// The interfaces of the full policy, in the order of their numbers.
    pub async fn interfaces(&self) -> Result<Vec<NetworkInterface>> {
        let (mut all, mut next_token) = (Vec::new(), String::new());
        loop {
            let request = DescribeNetworkInterfacesRequest {
                page: Some(PageRequest {
                    max_results: 1000,
                    next_token,
                }),
                ..Default::default()
            };
            let mut client = self.hearth.networks();
            let page = client.describe_network_interfaces(request).await?;
            let page = page.into_inner();
            all.extend(page.network_interfaces);
            next_token = page.next_token;
            if next_token.is_empty() {
                break;
            }
        }
        all.sort_by_key(|it| it.description.parse().unwrap_or(MEASURED));
        ensure!(all.len() == INSTANCES, "{} interfaces", all.len());
        ensure!(all[MEASURED].instance_id == self.target.instance_id);
        Ok(all)
    }

    /// Restarts the agent, after `meanwhile`; gives the ms from its start to its first answer.
    pub async fn restart(&mut self, meanwhile: impl FnOnce(&Netns) -> Result<()>) -> Result<f64> {
        self.hearth.stop_agent()?;
        meanwhile(self.hearth.netns()?)?;
        let start = Instant::now();
        self.hearth.start_agent().await?;
        Ok(ms(start))
    }
}

async fn group(hearth: &Hearth, network: &Network, number: usize) -> Result<String> {
    let request = CreateSecurityGroupRequest {
        name: format!("group {number}"),
        network_id: network.network_id.clone(),
        ..Default::default()
    };
    let answer = hearth
        .security_groups()
        .create_security_group(request)
        .await?;
    let group = answer.into_inner().security_group;
    Ok(group.context("the answer has no group")?.security_group_id)
}

fn member(request: &mut RunInstancesRequest, network: &Network, groups: Vec<String>) {
    request
        .network_interfaces
        .push(NetworkInterfaceSpecification {
            network_id: network.network_id.clone(),
            security_group_ids: groups,
            ..Default::default()
        });
}

/// Has the probe answer on its ports.
async fn serve(mut probe: Probe<'_>, network: &Network) -> Result<Target> {
    let interface = probe.guest.interface().await?;
    let address = hearth_tests::networks::ipv4_address(&interface, network);
    probe
        .expect_ok(&format!("udp_echo port={UDP_PORT} {address}"))
        .await?;
    probe
        .expect_ok(&format!("udp_echo port={OPEN_PORT}"))
        .await?;
    for port in TCP_PORTS {
        probe
            .expect_ok(&format!(
                "tcp_echo port={port} connections={TCP_CONNECTIONS}"
            ))
            .await?;
    }
    let instance = probe.guest.describe().await?;
    Ok(Target {
        instance_id: instance.instance_id,
        tap: interface.tap_name,
        mac: interface.mac_address,
        ipv4: interface.private_ipv4.parse()?,
        vmm_pid: instance.vmm_pid,
    })
}

/// Its VMM does nothing until this is dropped: frames for it wait at the tap, and those for which
/// there is no room are thrown away there, so that the guest's own speed plays no part.
pub struct Halted(u32);

impl Halted {
    pub fn new(target: &Target) -> Result<Self> {
        signal(target.vmm_pid, rustix::process::Signal::STOP)?;
        // Until it has.
        std::thread::sleep(Duration::from_millis(2));
        Ok(Self(target.vmm_pid))
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // It may have ended.
        let _ = signal(self.0, rustix::process::Signal::CONT);
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.context("no process")?, signal)?;
    Ok(())
}

impl World {
    /// Launches a probe in these groups and waits for its first line; gives that time in ms.
    pub async fn launch(&self, groups: &[usize]) -> Result<f64> {
        let wanted = self.probe_in(groups);
        let start = Instant::now();
        let probe = self
            .hearth
            .probe(|request| request.network_interfaces = wanted.network_interfaces)
            .await?;
        let took = ms(start);
        let gone: Guest<'_> = probe.guest;
        gone.terminate().await?;
        Ok(took)
    }
}
