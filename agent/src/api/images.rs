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
        copy::{self, CopyRequest},
        create::{self, CreateRequest, DiskChange},
        import::{self, ImportRequest},
        model::Image,
        modify::{self, ModifyRequest},
        register::{self, DiskOf, RegisterRequest},
    },
    instances::Instances,
    sharing,
    tokens::ClientToken,
    transfer,
};

/// The service.
pub struct ImageApi {
    pub context: Arc<Context>,
    pub instances: Arc<Instances>,
}

fn create_request(owner: String, request: v1::CreateImageRequest) -> ApiResult<CreateRequest> {
    let token = ClientToken::of(
        &owner,
        create::CREATE,
        &request.client_token,
        "client_token",
        &request,
    )?;
    let patience = convert::stop_patience(request.stop_timeout_seconds, "stop_timeout_seconds")?;
    let disks = request.block_devices.into_iter().map(|device| DiskChange {
        device_name: device.device_name,
        no_device: device.no_device,
        delete_on_termination: device.delete_on_termination,
    });
    Ok(CreateRequest {
        owner,
        instance_id: request.instance_id,
        name: request.name,
        description: request.description,
        no_reboot: request.no_reboot,
        patience,
        disks: disks.collect(),
        tags: convert::tags_in(request.tags),
        client_token: request.client_token,
        token,
    })
}

fn register_request(
    owner: String,
    request: v1::RegisterImageRequest,
) -> ApiResult<RegisterRequest> {
    let token = ClientToken::of(
        &owner,
        register::REGISTER,
        &request.client_token,
        "client_token",
        &request,
    )?;
    let disks = request.block_devices.into_iter().map(|device| DiskOf {
        device_name: device.device_name,
        snapshot_id: device.snapshot_id,
        delete_on_termination: device.delete_on_termination,
    });
    Ok(RegisterRequest {
        owner,
        name: request.name,
        description: request.description,
        root_snapshot_id: request.root_snapshot_id,
        disks: disks.collect(),
        kernel_image_id: request.kernel_image_id,
        kernel_args: request.kernel_args,
        boot_protocol: convert::boot_protocol(request.boot_protocol, "boot_protocol")?,
        tags: convert::tags_in(request.tags),
        client_token: request.client_token,
        token,
    })
}

fn copy_request(owner: String, request: v1::CopyImageRequest) -> ApiResult<CopyRequest> {
    let token = ClientToken::of(
        &owner,
        copy::COPY,
        &request.client_token,
        "client_token",
        &request,
    )?;
    Ok(CopyRequest {
        owner,
        source_image_id: request.source_image_id,
        name: request.name,
        description: request.description,
        tags: convert::tags_in(request.tags),
        client_token: request.client_token,
        token,
    })
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
            include_deprecated,
        } = request.into_inner();
        let query = super::query::<Image>(account, &image_ids, "image_ids", filters, page)?;
        let query = query.including_hidden(include_deprecated);
        let page = images::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeImagesResponse {
            images: page.objects.into_iter().map(convert::image).collect(),
            next_token: page.next_token,
        }))
    }

    async fn create_image(
        &self,
        request: Request<v1::CreateImageRequest>,
    ) -> Result<Response<v1::CreateImageResponse>, Status> {
        let account = Account::of(&request)?;
        let request = create_request(account.owner()?, request.into_inner())?;
        let named = Named::own(Kind::Instance, &request.instance_id, "instance_id");
        account.check(&self.context, vec![named]).await?;
        let (context, instances) = (self.context.clone(), self.instances.clone());
        let image = create::create(context, instances, request).await?;
        Ok(Response::new(v1::CreateImageResponse {
            image: Some(convert::image(image)),
        }))
    }

    async fn register_image(
        &self,
        request: Request<v1::RegisterImageRequest>,
    ) -> Result<Response<v1::RegisterImageResponse>, Status> {
        let account = Account::of(&request)?;
        let request = register_request(account.owner()?, request.into_inner())?;
        let own = |id: &str, field: &str| Named::own(Kind::Snapshot, id, field);
        let mut named = vec![
            own(&request.root_snapshot_id, "root_snapshot_id"),
            Named::usable(Kind::Image, &request.kernel_image_id, "kernel_image_id"),
        ];
        for (index, disk) in request.disks.iter().enumerate() {
            let field = format!("block_devices[{index}].snapshot_id");
            named.push(own(&disk.snapshot_id, &field));
        }
        account.check(&self.context, named).await?;
        let image = register::register(self.context.clone(), request).await?;
        Ok(Response::new(v1::RegisterImageResponse {
            image: Some(convert::image(image)),
        }))
    }

    async fn copy_image(
        &self,
        request: Request<v1::CopyImageRequest>,
    ) -> Result<Response<v1::CopyImageResponse>, Status> {
        let account = Account::of(&request)?;
        let request = copy_request(account.owner()?, request.into_inner())?;
        let named = Named::usable(Kind::Image, &request.source_image_id, "source_image_id");
        account.check(&self.context, vec![named]).await?;
        let (context, instances) = (self.context.clone(), self.instances.clone());
        let image = copy::copy(context, instances, request).await?;
        Ok(Response::new(v1::CopyImageResponse {
            image: Some(convert::image(image)),
        }))
    }

    async fn modify_image_attribute(
        &self,
        request: Request<v1::ModifyImageAttributeRequest>,
    ) -> Result<Response<v1::ModifyImageAttributeResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::Image, &request.image_id, "image_id");
        account.check(&self.context, vec![named]).await?;
        let request = ModifyRequest {
            image_id: request.image_id,
            description: request.description,
            kernel_args: request.kernel_args,
            boot_protocol: request
                .boot_protocol
                .map(|protocol| convert::boot_protocol(protocol, "boot_protocol"))
                .transpose()?,
        };
        let image = modify::modify(&self.context, request).await?;
        Ok(Response::new(v1::ModifyImageAttributeResponse {
            image: Some(convert::image(image)),
        }))
    }

    async fn enable_image_deprecation(
        &self,
        request: Request<v1::EnableImageDeprecationRequest>,
    ) -> Result<Response<v1::EnableImageDeprecationResponse>, Status> {
        const FIELD: &str = "deprecate_at";
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::Image, &request.image_id, "image_id");
        account.check(&self.context, vec![named]).await?;
        let time = request
            .deprecate_at
            .ok_or_else(|| ApiError::field(Reason::MissingParameter, FIELD, "say from when on"))?;
        let time = convert::time_in(&time, FIELD)?;
        let image = modify::deprecate(&self.context, request.image_id, Some(time)).await?;
        Ok(Response::new(v1::EnableImageDeprecationResponse {
            image: Some(convert::image(image)),
        }))
    }

    async fn disable_image_deprecation(
        &self,
        request: Request<v1::DisableImageDeprecationRequest>,
    ) -> Result<Response<v1::DisableImageDeprecationResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::Image, &request.image_id, "image_id");
        account.check(&self.context, vec![named]).await?;
        let image = modify::deprecate(&self.context, request.image_id, None).await?;
        Ok(Response::new(v1::DisableImageDeprecationResponse {
            image: Some(convert::image(image)),
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
