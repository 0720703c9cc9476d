//! `InstanceService.ForwardPort`: the stream around [`crate::forward_port`].

use std::sync::Arc;

use hearth_proto::v1::{
    self, ForwardPortOpen, ForwardPortOutput, forward_port_input::Input,
    forward_port_output::Output,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::{
    accounts::{Account, Named},
    context::Context,
    error::{ApiError, ApiResult, Reason},
    forward_port::{self, Sent},
    ids::Kind,
};

/// Pieces that may wait, in each direction.
const WAITING: usize = 16;

/// What the caller gets.
pub type Answers = ReceiverStream<Result<ForwardPortOutput, Status>>;

/// Opens the connection and answers once it is there.
pub async fn forward_port(
    context: &Arc<Context>,
    request: Request<Streaming<v1::ForwardPortInput>>,
) -> Result<Answers, Status> {
    let account = Account::of(&request)?;
    let mut input = request.into_inner();
    let open = opening(input.message().await?)?;
    Kind::Instance.check(&open.instance_id, "open.instance_id")?;
    account
        .check(
            context,
            vec![Named::own(
                Kind::Instance,
                &open.instance_id,
                "open.instance_id",
            )],
        )
        .await?;
    let port = u16::try_from(open.port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| ApiError::invalid("open.port", "a port is 1 to 65535"))?;
    let stream = forward_port::connect(context, &open.instance_id, open.device_index, port).await?;

    let (sending, sent) = mpsc::channel(WAITING);
    let (receiving, mut received) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = input.message() => message,
                // The guest has closed; a caller that keeps its half open must not keep the call.
                () = sending.closed() => return,
            };
            let piece = match message {
                Ok(Some(message)) => match message.input {
                    Some(Input::Data(data)) => Sent::Data(data),
                    Some(Input::End(true)) => Sent::End,
                    // Whatever else comes is not for the guest.
                    _ => continue,
                },
                Ok(None) | Err(_) => return,
            };
            if sending.send(piece).await.is_err() {
                return;
            }
        }
    });
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut shutdown = context.shutdown.clone();
    tokio::spawn(async move {
        let relay = tokio::spawn(forward_port::relay(stream, sent, receiving));
        let mut next = Some(Output::Connected(true));
        while let Some(output) = next {
            let output = ForwardPortOutput {
                output: Some(output),
            };
            if sender.send(Ok(output)).await.is_err() {
                return;
            }
            next = tokio::select! {
                data = received.recv() => data.map(Output::Data),
                () = sender.closed() => return,
                () = shutdown.wait() => {
                    let ending = ApiError::new(Reason::Unavailable, "hearthd is ending");
                    let _ = sender.send(Err(ending.into())).await;
                    return;
                }
            };
        }
        let broken = match relay.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => ApiError::new(
                Reason::ConnectionFailed,
                format!("the connection to the guest broke: {error}"),
            ),
            Err(error) => ApiError::internal("forwarding a port", error),
        };
        let _ = sender.send(Err(broken.into())).await;
    });
    Ok(ReceiverStream::new(receiver))
}

fn opening(message: Option<v1::ForwardPortInput>) -> ApiResult<ForwardPortOpen> {
    match message.and_then(|message| message.input) {
        Some(Input::Open(open)) => Ok(open),
        _ => Err(ApiError::field(
            Reason::MissingParameter,
            "open",
            "the first message must carry `open`",
        )),
    }
}
