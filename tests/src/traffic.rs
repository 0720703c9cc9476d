//! A network with probes in security groups, and the host as somebody from outside.
//!
//! What is expected to pass is sent once and waited for, so that a change that is in force late is
//! found. That something does not pass is seen by what was sent after it and has passed.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    ExplainTrafficRequest, ExplainTrafficResponse, Network, NetworkInterface,
    NetworkInterfaceSpecification, RunInstancesRequest, SecurityGroup,
    security_group_permission::Peer,
};

use crate::{
    Hearth, Probe,
    networks::{ipv4_address, ipv6_address},
    security_groups::{block, udp},
};

/// Ends what waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// The port by which the host sees that a guest has taken all that was sent before.
pub const CONTROL: u16 = 7;

/// A network with IPv6, and a group that lets the host reach [`CONTROL`] of its members.
pub struct World {
    /// An agent in a namespace of its own.
    pub hearth: Hearth,
    /// With IPv4 and IPv6.
    pub network: Network,
    /// Lets the host reach [`CONTROL`].
    pub control: SecurityGroup,
}

impl World {
    /// Starts the agent and makes both.
    pub async fn new() -> Result<Self> {
        let hearth = Hearth::start_with_namespace().await?;
        let network = hearth
            .network("10.20.0.0/16", |it| it.ipv6_range = "auto".to_owned())
            .await?;
        let control = hearth.group(&network, "control").await?;
        let host = block(&format!("{}/32", network.ipv4_gateway));
        hearth.allow(&control, &[udp(CONTROL, host)]).await?;
        Ok(Self {
            hearth,
            network,
            control,
        })
    }

    /// The host's address in the network, alone.
    pub fn host(&self) -> Peer {
        block(&format!("{}/32", self.network.ipv4_gateway))
    }

    /// A probe in these groups, which echoes UDP at these ports.
    pub async fn member(&self, groups: &[&SecurityGroup], udp_ports: &[u16]) -> Result<Member<'_>> {
        let interface = NetworkInterfaceSpecification {
            network_id: self.network.network_id.clone(),
            security_group_ids: groups
                .iter()
                .map(|group| group.security_group_id.clone())
                .collect(),
            ..Default::default()
        };
        let ask = |request: &mut RunInstancesRequest| request.network_interfaces.push(interface);
        let mut probe = self.hearth.probe(ask).await?;
        let interface = probe.guest.interface().await?;
        for address in [
            ipv6_address(&interface),
            ipv4_address(&interface, &self.network),
        ] {
            probe.expect_ok(&format!("network {address}")).await?;
        }
        for port in udp_ports {
            probe.expect_ok(&format!("udp_echo port={port}")).await?;
        }
        Ok(Member { probe, interface })
    }
}

/// A probe and its interface.
pub struct Member<'a> {
    /// It runs.
    pub probe: Probe<'a>,
    /// Its only one.
    pub interface: NetworkInterface,
}

impl Member<'_> {
    /// Its instance's id.
    pub fn id(&self) -> &str {
        &self.interface.instance_id
    }

    /// One of its ports, by IPv4.
    pub fn at(&self, port: u16) -> Result<SocketAddr> {
        let address: IpAddr = self.interface.private_ipv4.parse()?;
        Ok(SocketAddr::new(address, port))
    }

    /// One of its ports, by IPv6.
    pub fn ipv6_at(&self, port: u16) -> Result<SocketAddr> {
        let address: IpAddr = self.interface.private_ipv6.parse()?;
        Ok(SocketAddr::new(address, port))
    }

    /// A datagram of the host, and its echo.
    pub fn opened(&self, world: &World, port: u16) -> Result<()> {
        let socket = world.socket(self.at(port)?)?;
        let echoed = echo(&socket);
        echoed.with_context(|| format!("port {port} is not open"))
    }

    /// A datagram of the host does not arrive.
    pub fn closed(&self, world: &World, port: u16) -> Result<()> {
        let socket = world.socket(self.at(port)?)?;
        match socket.send(b"let me in") {
            // The host's own packet does not leave.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(()),
            sent => sent?,
        };
        self.settled(world)?;
        socket.set_nonblocking(true)?;
        match socket.recv(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            answer => anyhow::bail!("port {port} is open: {answer:?}"),
        }
    }

    /// The guest has taken all that the host sent before. A second round makes sure of what it
    /// took in the same turn.
    pub fn settled(&self, world: &World) -> Result<()> {
        let socket = world.socket(self.at(CONTROL)?)?;
        echo(&socket)?;
        echo(&socket).context("the control port is not open")
    }

    /// A connection of the host to a port that echoes.
    pub fn connect(&self, world: &World, port: u16) -> Result<TcpStream> {
        let address = self.at(port)?;
        let connected = || Ok(TcpStream::connect_timeout(&address, PATIENCE)?);
        let stream = world.hearth.netns()?.enter(connected)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends a datagram to another; it is echoed.
    pub async fn reaches(&mut self, to: SocketAddr) -> Result<()> {
        let sent = format!("udp_send to={to} text=x replies=1 timeout=30");
        let answer = self.probe.expect_ok(&sent).await?;
        ensure!(answer["replies"][0]["data"] == "x", "{answer}");
        Ok(())
    }

    /// Sends a datagram to another, and hears nothing.
    pub async fn does_not_reach(&mut self, to: SocketAddr) -> Result<()> {
        let sent = format!("udp_send to={to} text=x replies=1 timeout=0.5");
        self.probe.expect_error(&sent).await?;
        Ok(())
    }
}

impl World {
    fn socket(&self, to: SocketAddr) -> Result<UdpSocket> {
        let gateway: IpAddr = self.network.ipv4_gateway.parse()?;
        let bound = || Ok(UdpSocket::bind((gateway, 0))?);
        let socket = self.hearth.netns()?.enter(bound)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        Ok(socket)
    }

    /// ExplainTraffic.
    pub async fn explain(&self, request: ExplainTrafficRequest) -> Result<ExplainTrafficResponse> {
        let mut client = self.hearth.security_groups();
        Ok(client.explain_traffic(request).await?.into_inner())
    }
}

fn echo(socket: &UdpSocket) -> Result<()> {
    socket.send(b"echo")?;
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer)?;
    ensure!(&buffer[..length] == b"echo");
    Ok(())
}

/// The connection is alive.
pub fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"alive")?;
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer)?;
    ensure!(&buffer == b"alive");
    Ok(())
}

/// Nothing passes on the connection any more.
pub fn is_cut(world: &World, member: &Member<'_>, stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"alive")?;
    member.settled(world)?;
    stream.set_nonblocking(true)?;
    match stream.read(&mut [0; 5]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        answer => anyhow::bail!("the connection is not cut: {answer:?}"),
    }
}
