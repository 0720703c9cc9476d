//! `ImageService`.

use std::sync::Arc;

use hearth_proto::v1::{self, image_service_server::ImageService};
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::{
    accounts::{Account, Named},
    context::Context,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    images::{
        self,
        import::{self, ImportRequest},
        model::Image,
    },
    sharing,
    tokens::ClientToken,
    transfer,
};

/// The service.
pub struct ImageApi {
    pub context: Arc<Context>,
}

fn import_request(owner: String, header: v1::ImportImageHeader) -> ApiResult<ImportRequest> {
    let token = ClientToken::of(
        &owner,
        import::IMPORT,
        &header.client_token,
        "header.client_token",
        &header,
    )?;
    let root_format = match &header.root {
        Some(root) => convert::disk_format(root.format, "header.root.format")?,
        None => None,
    };
    let boot_protocol = convert::boot_protocol(header.boot_protocol, "header.boot_protocol")?;
    Ok(ImportRequest {
        owner,
        name: header.name,
        description: header.description,
        architecture: header.architecture,
        kernel_args: header.kernel_args,
        boot_protocol,
        kernel: header.kernel.map(convert::declared),
        initrd: header.initrd.map(convert::declared),
        root: header.root.map(convert::declared),
        root_format,
        tags: convert::tags_in(header.tags),
        client_token: header.client_token,
        token,
    })
}

/// The data of a message after the header.
fn data(message: v1::ImportImageRequest) -> Option<Vec<u8>> {
    match message.message? {
        v1::import_image_request::Message::Data(data) => Some(data),
        v1::import_image_request::Message::Header(_) => None,
    }
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    async fn import_image(
        &self,
        request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Result<Response<v1::ImportImageResponse>, Status> {
        let owner = Account::of(&request)?.owner()?;
        let mut stream = request.into_inner();
        let header = match stream.message().await?.and_then(|message| message.message) {
            Some(v1::import_image_request::Message::Header(header)) => header,
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
        let (feed, body) = transfer::channel(request.declared_bytes());
        let import = import::import(self.context.clone(), request, body);
        let image = super::fed(super::pump(stream, feed, data), import).await?;
        Ok(Response::new(v1::ImportImageResponse {
            image: Some(convert::image(image)),
        }))
    }

    async fn describe_images(
        &self,
        request: Request<v1::DescribeImagesRequest>,
    ) -> Result<Response<v1::DescribeImagesResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeImagesRequest {
            image_ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<Image>(account, &image_ids, "image_ids", filters, page)?;
        let page = images::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeImagesResponse {
            images: page.objects.into_iter().map(convert::image).collect(),
            next_token: page.next_token,
        }))
    }

    async fn deregister_image(
        &self,
        request: Request<v1::DeregisterImageRequest>,
    ) -> Result<Response<v1::DeregisterImageResponse>, Status> {
        let account = Account::of(&request)?;
        let image_id = request.into_inner().image_id;
        let named = Named::own(Kind::Image, &image_id, "image_id");
        account.check(&self.context, vec![named]).await?;
        images::deregister(self.context.clone(), image_id).await?;
        Ok(Response::new(v1::DeregisterImageResponse {}))
    }

    async fn modify_launch_permission(
        &self,
        request: Request<v1::ModifyLaunchPermissionRequest>,
    ) -> Result<Response<v1::ModifyLaunchPermissionResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let change = convert::permission_change(request.launch_permission, "launch_permission");
        let named = Named::own(Kind::Image, &request.image_id, "image_id");
        let permissions = sharing::modify(&self.context, &account, named, change).await?;
        Ok(Response::new(v1::ModifyLaunchPermissionResponse {
            launch_permission: Some(convert::permissions(permissions)),
        }))
    }

    async fn describe_launch_permission(
        &self,
        request: Request<v1::DescribeLaunchPermissionRequest>,
    ) -> Result<Response<v1::DescribeLaunchPermissionResponse>, Status> {
        let account = Account::of(&request)?;
        let image_id = request.into_inner().image_id;
        let named = Named::own(Kind::Image, &image_id, "image_id");
        let permissions = sharing::describe(&self.context, &account, named).await?;
        Ok(Response::new(v1::DescribeLaunchPermissionResponse {
            launch_permission: Some(convert::permissions(permissions)),
        }))
    }
}
