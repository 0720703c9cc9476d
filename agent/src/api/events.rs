//! `EventService`.

use std::sync::Arc;

use hearth_proto::v1::{self, event_service_server::EventService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    accounts::Account,
    context::Context,
    error::{ApiError, Reason},
    events::{Event, Watcher},
};

/// Events that may wait for a slow caller.
const WAITING: usize = 64;

/// The service.
pub struct Events {
    pub context: Arc<Context>,
}

#[tonic::async_trait]
impl EventService for Events {
    type WatchStream = ReceiverStream<Result<v1::Event, Status>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let mut watcher = Watcher::start(self.context.db.clone(), request.after_sequence).await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut shutdown = self.context.shutdown.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = watcher.next() => next,
                    () = sender.closed() => return,
                    () = shutdown.wait() => {
                        let ending = ApiError::new(Reason::Unavailable, "hearthd is ending");
                        let _ = sender.send(Err(ending.into())).await;
                        return;
                    }
                };
                let message = match next {
                    Ok(Some(event)) if account.owns(&event.owner) && wanted(&event, &request) => {
                        Ok(convert::event(event))
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) => return,
                    Err(error) => Err(ApiError::from(error).into()),
                };
                let over = message.is_err();
                if sender.send(message).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn wanted(event: &Event, request: &v1::WatchRequest) -> bool {
    let among = |list: &[String], value: &str| list.is_empty() || list.iter().any(|v| v == value);
    among(&request.resource_ids, &event.resource_id) && among(&request.types, &event.kind)
}
