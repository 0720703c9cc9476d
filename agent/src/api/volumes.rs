//! `VolumeService`.

use std::sync::Arc;

use hearth_proto::v1::{self, volume_service_server::VolumeService};
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::{
    accounts::{Account, Named},
    context::Context,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    tokens::ClientToken,
    transfer,
    volumes::{
        self, CreateRequest,
        attach::{self, AttachRequest},
        import::{self, ImportRequest},
        model::Volume,
    },
};

/// The service.
pub struct VolumeApi {
    pub context: Arc<Context>,
}

fn import_request(owner: String, header: v1::ImportVolumeHeader) -> ApiResult<ImportRequest> {
    let token = ClientToken::of(
        &owner,
        import::IMPORT,
        &header.client_token,
        "header.client_token",
        &header,
    )?;
    Ok(ImportRequest {
        owner,
        format: convert::disk_format(header.format, "header.format")?,
        length_bytes: header.length_bytes,
        sha256: header.sha256,
        size_gib: header.size_gib,
        tags: convert::tags_in(header.tags),
        client_token: header.client_token,
        token,
    })
}

/// The data of a message after the header.
fn data(message: v1::ImportVolumeRequest) -> Option<Vec<u8>> {
    match message.message? {
        v1::import_volume_request::Message::Data(data) => Some(data),
        v1::import_volume_request::Message::Header(_) => None,
    }
}

#[tonic::async_trait]
impl VolumeService for VolumeApi {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        let account = Account::of(&request)?;
        let owner = account.owner()?;
        let request = request.into_inner();
        let image = Named::usable(Kind::Image, &request.image_id, "image_id");
        let snapshot = Named::usable(Kind::Snapshot, &request.snapshot_id, "snapshot_id");
        account.check(&self.context, vec![image, snapshot]).await?;
        let token = ClientToken::of(
            &owner,
            volumes::CREATE,
            &request.client_token,
            "client_token",
            &request,
        )?;
        let request = CreateRequest {
            owner,
            size_gib: request.size_gib,
            image_id: request.image_id,
            snapshot_id: request.snapshot_id,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
        };
        let volume = volumes::create(self.context.clone(), request).await?;
        Ok(Response::new(v1::CreateVolumeResponse {
            volume: Some(convert::volume(volume)),
        }))
    }

    async fn import_volume(
        &self,
        request: Request<Streaming<v1::ImportVolumeRequest>>,
    ) -> Result<Response<v1::ImportVolumeResponse>, Status> {
        let owner = Account::of(&request)?.owner()?;
        let mut stream = request.into_inner();
        let header = match stream.message().await?.and_then(|message| message.message) {
            Some(v1::import_volume_request::Message::Header(header)) => header,
            _ => {
                return Err(ApiError::field(
                    Reason::MissingParameter,
                    "header",
                    "the first message must be the header",
                )
                .into());
            }
        };
        let request = import_request(owner, header)?;
        request.check()?;
        let (feed, body) = transfer::channel(request.length_bytes);
        let import = import::import(self.context.clone(), request, body);
        let volume = super::fed(super::pump(stream, feed, data), import).await?;
        Ok(Response::new(v1::ImportVolumeResponse {
            volume: Some(convert::volume(volume)),
        }))
    }

    async fn describe_volumes(
        &self,
        request: Request<v1::DescribeVolumesRequest>,
    ) -> Result<Response<v1::DescribeVolumesResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeVolumesRequest {
            volume_ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<Volume>(account, &volume_ids, "volume_ids", filters, page)?;
        let page = volumes::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeVolumesResponse {
            volumes: page.objects.into_iter().map(convert::volume).collect(),
            next_token: page.next_token,
        }))
    }

    async fn grow_volume(
        &self,
        request: Request<v1::GrowVolumeRequest>,
    ) -> Result<Response<v1::GrowVolumeResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::GrowVolumeRequest {
            volume_id,
            size_gib,
        } = request.into_inner();
        let named = Named::own(Kind::Volume, &volume_id, "volume_id");
        account.check(&self.context, vec![named]).await?;
        let volume = volumes::grow(self.context.clone(), volume_id, size_gib).await?;
        Ok(Response::new(v1::GrowVolumeResponse {
            volume: Some(convert::volume(volume)),
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let account = Account::of(&request)?;
        let volume_id = request.into_inner().volume_id;
        let named = Named::own(Kind::Volume, &volume_id, "volume_id");
        account.check(&self.context, vec![named]).await?;
        volumes::delete(self.context.clone(), volume_id).await?;
        Ok(Response::new(v1::DeleteVolumeResponse {}))
    }

    async fn attach_volume(
        &self,
        request: Request<v1::AttachVolumeRequest>,
    ) -> Result<Response<v1::AttachVolumeResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = vec![
            Named::own(Kind::Volume, &request.volume_id, "volume_id"),
            Named::own(Kind::Instance, &request.instance_id, "instance_id"),
        ];
        account.check(&self.context, named).await?;
        let request = AttachRequest {
            volume_id: request.volume_id,
            instance_id: request.instance_id,
            device_name: request.device_name,
            delete_on_termination: request.delete_on_termination,
            read_only: request.read_only,
        };
        let volume = attach::attach(self.context.clone(), request).await?;
        Ok(Response::new(v1::AttachVolumeResponse {
            volume: Some(convert::volume(volume)),
        }))
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Result<Response<v1::DetachVolumeResponse>, Status> {
        let account = Account::of(&request)?;
        let volume_id = request.into_inner().volume_id;
        let named = Named::own(Kind::Volume, &volume_id, "volume_id");
        account.check(&self.context, vec![named]).await?;
        let volume = attach::detach(self.context.clone(), volume_id).await?;
        Ok(Response::new(v1::DetachVolumeResponse {
            volume: Some(convert::volume(volume)),
        }))
    }
}
