//! ForwardPort: the owner's way to a port of an instance, whatever the security groups say.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{
    ForwardPortInput, ForwardPortOpen, ForwardPortOutput, InstanceState, StopInstancesRequest,
    forward_port_input::Input, forward_port_output::Output,
};
use hearth_tests::{
    Expect, Hearth, as_account, needs_kvm, needs_network,
    networks::{in_network, ipv4_address},
    programs,
};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

/// An open connection.
struct Connection {
    send: Sender<ForwardPortInput>,
    answers: Streaming<ForwardPortOutput>,
}

impl Connection {
    async fn say(&self, input: Input) -> Result<()> {
        let message = ForwardPortInput { input: Some(input) };
        Ok(self.send.send(message).await?)
    }

    /// All that comes until the instance ends it.
    async fn rest(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(message) = self.answers.message().await? {
            match message.output {
                Some(Output::Data(data)) => all.extend(data),
                other => bail!("{other:?} in the middle"),
            }
        }
        Ok(all)
    }
}

async fn open(
    hearth: &Hearth,
    account: &str,
    first: Input,
) -> Result<(
    Sender<ForwardPortInput>,
    Result<Response<Streaming<ForwardPortOutput>>, Status>,
)> {
    let (send, receive) = mpsc::channel(16);
    send.send(ForwardPortInput { input: Some(first) }).await?;
    let request = as_account(account, ReceiverStream::new(receive));
    Ok((send, hearth.instances().forward_port(request).await))
}

fn to(instance_id: &str, port: u32) -> Input {
    Input::Open(ForwardPortOpen {
        instance_id: instance_id.to_owned(),
        port,
        device_index: 0,
    })
}

async fn connect(hearth: &Hearth, instance_id: &str, port: u32) -> Result<Connection> {
    let (send, answers) = open(hearth, "local", to(instance_id, port)).await?;
    let mut answers = answers?.into_inner();
    let first = answers.message().await?.context("nothing came")?;
    ensure!(first.output == Some(Output::Connected(true)), "{first:?}");
    Ok(Connection { send, answers })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_no_rule_opens_is_reached_by_its_owner() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.20.0.0/16", |_| {}).await?;
    let mut probe = hearth.probe(in_network(&network)).await?;
    let interface = probe.guest.interface().await?;
    let address = ipv4_address(&interface, &network);
    probe
        .expect_ok(&format!("tcp_echo port=7 {address}"))
        .await?;

    // Not a packet of the host's own, though.
    let guest: SocketAddr = format!("{}:7", interface.private_ipv4).parse()?;
    let patience = Duration::from_millis(500);
    let direct = hearth
        .netns()?
        .enter(|| Ok(TcpStream::connect_timeout(&guest, patience).is_ok()))?;
    ensure!(!direct, "the groups let it in");

    let id = probe.guest.id.clone();
    let mut connection = connect(&hearth, &id, 7).await?;
    let big: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    for piece in big.chunks(50_000) {
        connection.say(Input::Data(piece.to_vec())).await?;
    }
    connection.say(Input::End(true)).await?;
    let echoed = connection.rest().await?;
    ensure!(echoed == big, "{} bytes came back", echoed.len());

    // The same by the command line, as ssh uses it.
    let mut tunnel = Command::new(programs::built("hearth")?)
        .env("HEARTH_SOCKET", hearth.socket())
        .args(["tunnel", &id, "7", "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = tunnel.stdin.take().context("no pipe")?;
    stdin.write_all(b"hello through the agent")?;
    drop(stdin);
    let output = tunnel.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"hello through the agent");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_reached_says_why() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.20.0.0/16", |_| {}).await?;
    let mut probe = hearth.probe(in_network(&network)).await?;
    let address = ipv4_address(&probe.guest.interface().await?, &network);
    probe.expect_ok(&format!("network {address}")).await?;
    let id = probe.guest.id.clone();

    let failed = |code, reason| Expect {
        code,
        reason,
        field: "",
    };
    let missing = Input::Data(b"too early".to_vec());
    let port = |port| to(&id, port);
    for (account, first, expected) in [
        (
            "local",
            missing,
            Expect::invalid("MissingParameter", "open"),
        ),
        (
            "local",
            port(0),
            Expect::invalid("InvalidParameterValue", "open.port"),
        ),
        (
            "local",
            port(70_000),
            Expect::invalid("InvalidParameterValue", "open.port"),
        ),
        (
            "local",
            to("i-no", 7),
            Expect::invalid("InvalidInstanceID.Malformed", "open.instance_id"),
        ),
        // Somebody else's is not there.
        (
            "other",
            port(7),
            failed(Code::NotFound, "InvalidInstanceID.NotFound"),
        ),
        // The probe answers with a reset.
        (
            "local",
            port(8),
            failed(Code::Unavailable, "ConnectionFailed"),
        ),
    ] {
        let (_send, answer) = open(&hearth, account, first).await?;
        expected.check(answer)?;
    }

    let without = hearth.probe(|request| request.no_network = true).await?;
    let (_send, answer) = open(&hearth, "local", to(&without.guest.id, 7)).await?;
    failed(Code::NotFound, "InvalidNetworkInterfaceID.NotFound").check(answer)?;

    let stop = StopInstancesRequest {
        instance_ids: vec![id.clone()],
        force: true,
        timeout_seconds: 0,
    };
    hearth.instances().stop_instances(stop).await?;
    probe.guest.wait_state(InstanceState::Stopped).await?;
    let (_send, answer) = open(&hearth, "local", to(&id, 7)).await?;
    failed(Code::FailedPrecondition, "IncorrectInstanceState").check(answer)?;
    hearth.finish().await
}
