//! `hearth tunnel`: a port of an instance, here. The agent makes the connection, so that it works
//! from wherever the agent's socket is, whatever the security groups say.

use std::net::Ipv4Addr;

use clap::Args;
use hearth_proto::v1::{
    ForwardPortInput, ForwardPortOpen, ForwardPortOutput, forward_port_input::Input,
    forward_port_output::Output,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    output,
};

/// Largest piece, in bytes.
const PIECE: usize = 64 << 10;

/// Forward a TCP port of this machine to one of an instance, through the agent.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  hearth tunnel web 8080:80     localhost:8080 is port 80 of `web`\n  \
                  hearth tunnel web 22 --stdio  for ssh's ProxyCommand"
)]
pub struct TunnelArgs {
    /// The instance's id or `Name`.
    instance: String,
    /// The instance's port, and before it, if it is to be another one, the port here.
    #[arg(value_name = "[LOCAL:]PORT", value_parser = parse_ports)]
    ports: Ports,
    /// Which of the instance's interfaces; 0 is the first.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    device_index: u32,
    /// Carry standard input and output instead of listening.
    #[arg(long)]
    stdio: bool,
}

/// Where from and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: u16,
}

/// Reads `80`, `8080:80`, `0:80`.
fn parse_ports(text: &str) -> Result<Ports, String> {
    let number = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("`{text}` is not a port"))
    };
    let ports = match text.split_once(':') {
        Some((local, remote)) => Ports {
            local: number(local)?,
            remote: number(remote)?,
        },
        None => Ports {
            local: number(text)?,
            remote: number(text)?,
        },
    };
    match ports.remote {
        0 => Err("an instance has no port 0".to_owned()),
        _ => Ok(ports),
    }
}

pub async fn tunnel(client: &mut Client, args: TunnelArgs) -> Result<(), Failure> {
    let target = ForwardPortOpen {
        instance_id: client.instance_id(&args.instance).await?,
        port: args.ports.remote.into(),
        device_index: args.device_index,
    };
    if args.stdio {
        return carry(client, target, tokio::io::stdin(), tokio::io::stdout()).await;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.ports.local))
        .await
        .map_err(|error| {
            Failure::new(format!("port {} here: {error}", args.ports.local))
                .hint(format!("choose another: OTHER:{}", args.ports.remote))
        })?;
    let local = listener
        .local_addr()
        .map_err(|error| Failure::new(error.to_string()))?;
    output::line(&format!(
        "{local} is port {} of {}; end with Ctrl-C.",
        target.port, target.instance_id
    ))?;
    loop {
        let (stream, _) = listener
            .accept()
            .await
            .map_err(|error| Failure::new(format!("listening: {error}")))?;
        let (mut client, target) = (client.clone(), target.clone());
        tokio::spawn(async move {
            let (from, to) = stream.into_split();
            // One connection that fails says so, and the others go on.
            if let Err(failure) = carry(&mut client, target, from, to).await {
                eprintln!("{failure}");
            }
        });
    }
}

/// One connection, to its end: the instance's, or ours.
async fn carry(
    client: &mut Client,
    target: ForwardPortOpen,
    from: impl AsyncRead + Send + Unpin + 'static,
    mut to: impl AsyncWrite + Unpin,
) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::channel(16);
    let send = |input| ForwardPortInput { input: Some(input) };
    sender
        .send(send(Input::Open(target)))
        .await
        .map_err(|_| Failure::new("the connection was closed"))?;
    tokio::spawn(async move {
        let mut from = from;
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let data = buffer[..count].to_vec();
            if sender.send(send(Input::Data(data))).await.is_err() {
                return;
            }
        }
        let _ = sender.send(send(Input::End(true))).await;
        // The stream stays open for what the instance has to say.
        sender.closed().await;
    });
    let failed = |status| {
        rpc_with_flags(
            status,
            &flags([("open.instance_id", "INSTANCE"), ("open.port", "PORT")]),
        )
    };
    let mut stream: Streaming<ForwardPortOutput> = client
        .instances
        .forward_port(ReceiverStream::new(receiver))
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(message) = stream.message().await.map_err(failed)? {
        if let Some(Output::Data(data)) = message.output {
            let written = async {
                to.write_all(&data).await?;
                to.flush().await
            };
            if written.await.is_err() {
                // Nobody reads any more.
                return Ok(());
            }
        }
    }
    let _ = to.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let ports = |local, remote| Ok(Ports { local, remote });
        assert_eq!(parse_ports("80"), ports(80, 80));
        assert_eq!(parse_ports("8080:80"), ports(8080, 80));
        assert_eq!(parse_ports("0:80"), ports(0, 80));
        for wrong in ["", "0", "x", "1:2:3", "8080:0", "70000"] {
            parse_ports(wrong).unwrap_err();
        }
    }
}
