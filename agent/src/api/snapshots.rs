//! `SnapshotService`.

use std::sync::Arc;

use hearth_images::BLOCK_BYTES;
use hearth_proto::v1::{self, snapshot_service_server::SnapshotService};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    accounts::{Account, Named},
    context::Context,
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, hex},
    instances::Instances,
    sharing,
    snapshots::{
        self, blocks,
        copy::{self, CopyRequest},
        delete,
        model::Snapshot,
        take::{self, Source, TakeRequest, Taken},
    },
    tokens::ClientToken,
};

/// The service.
pub struct SnapshotApi {
    pub context: Arc<Context>,
    pub instances: Arc<Instances>,
}

/// Messages on their way to a caller.
type Answers<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Parts as messages; the daemon's end ends the stream with an error.
fn answers<T: Send + 'static, M: Send + 'static>(
    context: &Context,
    mut parts: blocks::Parts<T>,
    message: impl Fn(T) -> M + Send + 'static,
) -> Answers<M> {
    let (sender, receiver) = mpsc::channel(1);
    let mut shutdown = context.shutdown.clone();
    tokio::spawn(async move {
        loop {
            let part = tokio::select! {
                part = parts.recv() => part,
                () = sender.closed() => return,
                () = shutdown.wait() => {
                    Some(Err(ApiError::new(Reason::Unavailable, "hearthd is ending")))
                }
            };
            let Some(part) = part else { return };
            let last = part.is_err();
            if sender.send(part).await.is_err() || last {
                return;
            }
        }
    });
    let stream = ReceiverStream::new(receiver);
    Box::pin(stream.map(move |part: ApiResult<T>| part.map(&message).map_err(Status::from)))
}

impl SnapshotApi {
    async fn take(&self, request: TakeRequest) -> ApiResult<(Vec<v1::Snapshot>, Vec<String>)> {
        let taken = take::take(self.context.clone(), self.instances.clone(), request).await?;
        let Taken {
            snapshots,
            warnings,
        } = taken;
        Ok((
            snapshots.into_iter().map(convert::snapshot).collect(),
            warnings,
        ))
    }

    async fn usable(&self, account: &Account, named: &[(&str, &str)]) -> ApiResult<()> {
        let named = named
            .iter()
            .map(|(id, field)| Named::usable(Kind::Snapshot, id, *field))
            .collect();
        account.check(&self.context, named).await
    }
}

#[tonic::async_trait]
impl SnapshotService for SnapshotApi {
    type ListSnapshotBlocksStream = Answers<v1::ListSnapshotBlocksResponse>;
    type ListChangedBlocksStream = Answers<v1::ListChangedBlocksResponse>;
    type GetSnapshotBlockStream = Answers<v1::GetSnapshotBlockResponse>;

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::CreateSnapshotResponse>, Status> {
        let account = Account::of(&request)?;
        let owner = account.owner()?;
        let request = request.into_inner();
        let named = Named::own(Kind::Volume, &request.volume_id, "volume_id");
        account.check(&self.context, vec![named]).await?;
        let token = &request.client_token;
        let token = ClientToken::of(&owner, take::CREATE, token, "client_token", &request)?;
        let request = TakeRequest {
            owner,
            source: Source::Volume(request.volume_id),
            description: request.description,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
            stop_first: request.stop_first,
            patience: convert::stop_patience(request.stop_timeout_seconds, "stop_timeout_seconds")?,
        };
        let (mut snapshots, warnings) = self.take(request).await?;
        Ok(Response::new(v1::CreateSnapshotResponse {
            snapshot: snapshots.pop(),
            warnings,
        }))
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>, Status> {
        let account = Account::of(&request)?;
        let owner = account.owner()?;
        let request = request.into_inner();
        let instance = Named::own(Kind::Instance, &request.instance_id, "instance_id");
        let volumes = request.volume_ids.iter().enumerate();
        let named = volumes
            .map(|(index, id)| Named::own(Kind::Volume, id, format!("volume_ids[{index}]")))
            .chain([instance])
            .collect();
        account.check(&self.context, named).await?;
        let token = &request.client_token;
        let token = ClientToken::of(&owner, take::CREATE_MANY, token, "client_token", &request)?;
        let request = TakeRequest {
            owner,
            source: Source::Instance {
                instance_id: request.instance_id,
                volume_ids: request.volume_ids,
                exclude_root: request.exclude_root,
            },
            description: request.description,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
            stop_first: request.stop_first,
            patience: convert::stop_patience(request.stop_timeout_seconds, "stop_timeout_seconds")?,
        };
        let (snapshots, warnings) = self.take(request).await?;
        Ok(Response::new(v1::CreateSnapshotsResponse {
            snapshots,
            warnings,
        }))
    }

    async fn describe_snapshots(
        &self,
        request: Request<v1::DescribeSnapshotsRequest>,
    ) -> Result<Response<v1::DescribeSnapshotsResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeSnapshotsRequest {
            snapshot_ids,
            filters,
            page,
        } = request.into_inner();
        let query =
            super::query::<Snapshot>(account, &snapshot_ids, "snapshot_ids", filters, page)?;
        let page = snapshots::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeSnapshotsResponse {
            snapshots: page.objects.into_iter().map(convert::snapshot).collect(),
            next_token: page.next_token,
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().snapshot_id;
        let named = Named::own(Kind::Snapshot, &id, "snapshot_id");
        account.check(&self.context, vec![named]).await?;
        delete::delete(self.context.clone(), id).await?;
        Ok(Response::new(v1::DeleteSnapshotResponse {}))
    }

    async fn copy_snapshot(
        &self,
        request: Request<v1::CopySnapshotRequest>,
    ) -> Result<Response<v1::CopySnapshotResponse>, Status> {
        let account = Account::of(&request)?;
        let owner = account.owner()?;
        let request = request.into_inner();
        self.usable(
            &account,
            &[(&request.source_snapshot_id, "source_snapshot_id")],
        )
        .await?;
        let token = &request.client_token;
        let token = ClientToken::of(&owner, copy::COPY, token, "client_token", &request)?;
        let request = CopyRequest {
            owner,
            source_id: request.source_snapshot_id,
            description: request.description,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
        };
        let copy = copy::copy(self.context.clone(), self.instances.clone(), request).await?;
        Ok(Response::new(v1::CopySnapshotResponse {
            snapshot: Some(convert::snapshot(copy)),
        }))
    }

    async fn modify_snapshot_attribute(
        &self,
        request: Request<v1::ModifySnapshotAttributeRequest>,
    ) -> Result<Response<v1::ModifySnapshotAttributeResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let field = "create_volume_permission";
        let change = convert::permission_change(request.create_volume_permission, field);
        let named = Named::own(Kind::Snapshot, &request.snapshot_id, "snapshot_id");
        let permissions = sharing::modify(&self.context, &account, named, change).await?;
        Ok(Response::new(v1::ModifySnapshotAttributeResponse {
            create_volume_permission: Some(convert::permissions(permissions)),
        }))
    }

    async fn describe_snapshot_attribute(
        &self,
        request: Request<v1::DescribeSnapshotAttributeRequest>,
    ) -> Result<Response<v1::DescribeSnapshotAttributeResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().snapshot_id;
        let named = Named::own(Kind::Snapshot, &id, "snapshot_id");
        let permissions = sharing::describe(&self.context, &account, named).await?;
        Ok(Response::new(v1::DescribeSnapshotAttributeResponse {
            create_volume_permission: Some(convert::permissions(permissions)),
        }))
    }

    async fn list_snapshot_blocks(
        &self,
        request: Request<v1::ListSnapshotBlocksRequest>,
    ) -> Result<Response<Self::ListSnapshotBlocksStream>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        self.usable(&account, &[(&request.snapshot_id, "snapshot_id")])
            .await?;
        let start = request.starting_block_index;
        let parts = blocks::list(&self.context, request.snapshot_id, start).await?;
        Ok(Response::new(answers(&self.context, parts, |part| {
            v1::ListSnapshotBlocksResponse {
                size_bytes: part.size_bytes,
                block_size_bytes: BLOCK_BYTES,
                block_indexes: part.blocks,
            }
        })))
    }

    async fn list_changed_blocks(
        &self,
        request: Request<v1::ListChangedBlocksRequest>,
    ) -> Result<Response<Self::ListChangedBlocksStream>, Status> {
        let account = Account::of(&request)?;
        let v1::ListChangedBlocksRequest {
            first_snapshot_id: first,
            second_snapshot_id: second,
            starting_block_index: start,
        } = request.into_inner();
        let named = [
            (first.as_str(), "first_snapshot_id"),
            (second.as_str(), "second_snapshot_id"),
        ];
        self.usable(&account, &named).await?;
        let parts = blocks::changed(&self.context, first, second, start).await?;
        Ok(Response::new(answers(&self.context, parts, |part| {
            let changed = part.blocks.into_iter().map(|block| v1::ChangedBlock {
                block_index: block.index,
                in_first: block.in_first,
                in_second: block.in_second,
            });
            v1::ListChangedBlocksResponse {
                size_bytes: part.size_bytes,
                block_size_bytes: BLOCK_BYTES,
                blocks: changed.collect(),
            }
        })))
    }

    async fn get_snapshot_block(
        &self,
        request: Request<v1::GetSnapshotBlockRequest>,
    ) -> Result<Response<Self::GetSnapshotBlockStream>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        self.usable(&account, &[(&request.snapshot_id, "snapshot_id")])
            .await?;
        let parts = blocks::read(&self.context, request.snapshot_id, request.block_indexes).await?;
        Ok(Response::new(answers(&self.context, parts, |block| {
            v1::GetSnapshotBlockResponse {
                block_index: block.index,
                sha256: hex(&block.sha256),
                data: block.data,
            }
        })))
    }
}
