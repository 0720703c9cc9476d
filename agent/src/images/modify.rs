//! What may be changed of an image.

use super::{
    check_description, get,
    model::{BootProtocol, Image, ImageState},
};
use crate::{
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::launch::check_kernel_args,
    time::Millis,
};

/// What a caller wants changed; the rest stays.
#[derive(Clone, Debug, Default)]
pub struct ModifyRequest {
    pub image_id: String,
    pub description: Option<String>,
    pub kernel_args: Option<String>,
    pub boot_protocol: Option<BootProtocol>,
}

/// ModifyImageAttribute. Instances that are there already keep what they started with.
pub async fn modify(context: &Context, request: ModifyRequest) -> ApiResult<Image> {
    if let Some(description) = &request.description {
        check_description(description, "description")?;
    }
    if let Some(kernel_args) = &request.kernel_args {
        check_kernel_args(kernel_args, "kernel_args")?;
    }
    change(context, request.image_id.clone(), move |image| Image {
        description: request.description.unwrap_or(image.description),
        kernel_args: request.kernel_args.unwrap_or(image.kernel_args),
        boot_protocol: request.boot_protocol.unwrap_or(image.boot_protocol),
        ..image
    })
    .await
}

/// EnableImageDeprecation, and, without a time, DisableImageDeprecation.
pub async fn deprecate(context: &Context, id: String, time: Option<Millis>) -> ApiResult<Image> {
    if time.is_some_and(|time| time.0 < Millis::now().0) {
        let message = "a time that is not over yet";
        return Err(ApiError::invalid("deprecate_at", message));
    }
    change(context, id, move |image| Image {
        deprecation_time: time,
        ..image
    })
    .await
}

async fn change(
    context: &Context,
    id: String,
    change: impl FnOnce(Image) -> Image + Send + 'static,
) -> ApiResult<Image> {
    Kind::Image.check(&id, "image_id")?;
    context
        .db
        .write(move |tx| {
            let image = get(tx, &id, "image_id")?;
            if image.state != ImageState::Available {
                return Err(ApiError::field(
                    Reason::ImageUnavailable,
                    "image_id",
                    format!("the image {id} is {}", image.state.word()),
                ));
            }
            let after = change(image.clone());
            db::images::update(tx, &image, &after)?;
            Ok(after)
        })
        .await
}
