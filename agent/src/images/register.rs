//! RegisterImage: an image of snapshots that are there.
//!
//! The kernel is that of another image, or is found inside the root.

use std::{collections::HashSet, sync::Arc};

use hearth_images::crash_point;

use super::{
    check_description, check_name, check_name_free, create,
    found::{Found, found_in_root},
    get,
    model::{BootProtocol, Image, ImageDisk, ImageState},
    snapshot_id, undo,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{
        devices::{self, ROOT},
        launch::check_kernel_args,
    },
    snapshots,
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
};

/// Name of the operation for client tokens.
pub const REGISTER: &str = "RegisterImage";

/// The field of the root's snapshot.
const ROOT_FIELD: &str = "root_snapshot_id";

/// What a caller wants registered.
#[derive(Clone, Debug)]
pub struct RegisterRequest {
    /// The account that will own the image.
    pub owner: String,
    pub name: String,
    pub description: String,
    pub root_snapshot_id: String,
    /// Disks besides the root.
    pub disks: Vec<DiskOf>,
    /// Whose kernel, initrd, kernel arguments and boot protocol it has; found in the root when
    /// empty.
    pub kernel_image_id: String,
    /// None if empty.
    pub kernel_args: String,
    pub boot_protocol: BootProtocol,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// A disk besides the root.
#[derive(Clone, Debug)]
pub struct DiskOf {
    pub device_name: String,
    pub snapshot_id: String,
    pub delete_on_termination: bool,
}

impl RegisterRequest {
    fn check(&self) -> ApiResult<()> {
        check_name(&self.name, "name")?;
        check_description(&self.description, "description")?;
        check_kernel_args(&self.kernel_args, "kernel_args")?;
        tags::check(&self.tags, "tags")?;
        Kind::Snapshot.check(&self.root_snapshot_id, ROOT_FIELD)?;
        if !self.kernel_image_id.is_empty() {
            Kind::Image.check(&self.kernel_image_id, "kernel_image_id")?;
        }
        let mut seen = HashSet::from([ROOT]);
        for (index, disk) in self.disks.iter().enumerate() {
            let field = format!("block_devices[{index}]");
            let name_field = format!("{field}.device_name");
            devices::check(&disk.device_name, &name_field)?;
            if !seen.insert(&disk.device_name) {
                let message = format!("{} is there twice", disk.device_name);
                return Err(ApiError::invalid(name_field, message));
            }
            Kind::Snapshot.check(&disk.snapshot_id, &format!("{field}.snapshot_id"))?;
        }
        Ok(())
    }

    fn insert(&self, tx: &mut db::Tx<'_>, id: &str) -> ApiResult<(Image, bool)> {
        if let Some(token) = &self.token
            && let Some(ids) = token.earlier(tx)?
        {
            let id = ids.first().map(String::as_str).unwrap_or_default();
            return Ok((get(tx, id, "client_token")?, false));
        }
        check_name_free(tx, &self.owner, &self.name, "name")?;
        let root = snapshots::get_completed(tx, &self.root_snapshot_id, ROOT_FIELD)?;
        let mut disks = vec![ImageDisk {
            device: ROOT.to_owned(),
            snapshot_id: root.id,
            size_bytes: root.size_bytes,
            delete_on_termination: true,
        }];
        for (index, disk) in self.disks.iter().enumerate() {
            let field = format!("block_devices[{index}].snapshot_id");
            let snapshot = snapshots::get_completed(tx, &disk.snapshot_id, &field)?;
            disks.push(ImageDisk {
                device: disk.device_name.clone(),
                snapshot_id: snapshot.id,
                size_bytes: snapshot.size_bytes,
                delete_on_termination: disk.delete_on_termination,
            });
        }
        let mut image = Image {
            seq: 0,
            id: id.to_owned(),
            owner: self.owner.clone(),
            name: self.name.clone(),
            description: self.description.clone(),
            state: ImageState::Pending,
            architecture: "x86_64".to_owned(),
            kernel: String::new(),
            initrd: None,
            kernel_args: self.kernel_args.clone(),
            boot_protocol: self.boot_protocol,
            has_root: true,
            root_size_bytes: root.size_bytes,
            create_time: Millis::now(),
            tags: self.tags.clone(),
            client_token: self.client_token.clone(),
            disks,
            source_instance_id: None,
            deprecation_time: None,
        };
        if !self.kernel_image_id.is_empty() {
            let other = get(tx, &self.kernel_image_id, "kernel_image_id")?;
            if other.state != ImageState::Available {
                return Err(ApiError::field(
                    Reason::ImageUnavailable,
                    "kernel_image_id",
                    format!("the image {} is {}", other.id, other.state.word()),
                ));
            }
            image.kernel = other.kernel;
            image.initrd = other.initrd;
            if self.kernel_args.is_empty() {
                image.kernel_args = other.kernel_args;
            }
            if self.boot_protocol == BootProtocol::Auto {
                image.boot_protocol = other.boot_protocol;
            }
        }
        db::images::insert(tx, &mut image)?;
        if let Some(token) = &self.token {
            token.keep(tx, std::slice::from_ref(&image.id))?;
        }
        Ok((image, true))
    }
}

/// RegisterImage.
pub async fn register(context: Arc<Context>, request: RegisterRequest) -> ApiResult<Image> {
    request.check()?;
    carried_through(async move {
        let id = Kind::Image.new_id()?;
        let _busy = context.busy.mark(&id);
        let (row, new_id) = (request.clone(), id);
        let (pending, new) = context.db.write(move |tx| row.insert(tx, &new_id)).await?;
        if !new {
            return Ok(pending);
        }
        crash_point("image.row-registering");
        let result = if request.kernel_image_id.is_empty() {
            find_kernel(&context, pending.clone(), &request.root_snapshot_id).await
        } else {
            create::finish(&context, pending.clone()).await
        };
        if result.is_err() {
            undo(&context, pending).await?;
        }
        result
    })
    .await
}

async fn find_kernel(context: &Context, pending: Image, root: &str) -> ApiResult<Image> {
    let (store, tmp) = (context.store.clone(), context.settings.tmp());
    let (id, args, root) = (
        pending.id.clone(),
        pending.kernel_args.clone(),
        snapshot_id(root)?,
    );
    let found = blocking("looking for a kernel", move || {
        found_in_root(&store, &root, &tmp, &id, &args, ROOT_FIELD)
    });
    let Found {
        kernel,
        initrd,
        kernel_args,
    } = found.await??;
    let named = Image {
        kernel_args,
        ..pending.clone()
    };
    super::import::finish(context, pending, named, kernel, initrd).await
}
