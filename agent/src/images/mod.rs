//! Images: what instances are made from.
//!
//! - [`create`]: an image of an instance
//! - [`register`]: an image of snapshots
//! - [`copy`]: another image of the same disks
//! - [`modify`]: what may be changed later
//! - [`import`]: an image from files that a caller sends
//! - [`found`]: the kernel inside of an image's root
//! - [`kernel`]: is it a kernel at all?
//! - [`file`]: one file of the stream, checked on its way to the disk

pub mod copy;
pub mod create;
pub mod file;
pub mod found;
pub mod import;
pub mod kernel;
pub mod model;
pub mod modify;
pub mod register;

use std::{collections::HashSet, fs, io, sync::Arc};

use hearth_images::{ErrorKind, crash_point};
use rusqlite::Connection;

use self::model::{Image, ImageState};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, shortened},
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    snapshots::{
        model::{Snapshot, SnapshotState},
        snapshot_id,
    },
    tags::Tag,
    time::Millis,
    tokens,
};

/// Longest description, in characters.
const MAX_DESCRIPTION: usize = 255;

/// DescribeImages.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<Image>> {
    context
        .db
        .read(move |connection| query.page(connection, "image_ids", get, db::images::after))
        .await
}

/// DeregisterImage.
pub async fn deregister(context: Arc<Context>, id: String) -> ApiResult<()> {
    Kind::Image.check(&id, "image_id")?;
    carried_through(async move {
        let deregistered = context
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
                let after = Image {
                    state: ImageState::Deregistered,
                    ..image.clone()
                };
                db::images::update(tx, &image, &after)?;
                Ok(after)
            })
            .await?;
        crash_point("image.row-deregistered");
        // What fails here is tried again by reconciliation.
        if let Err(error) = finish_deregistering(&context, &deregistered).await {
            tracing::warn!(image = deregistered.id, %error, "cleaning up after an image");
        }
        if let Err(error) = remove_unused_kernels(&context).await {
            tracing::warn!(%error, "removing kernels that nobody needs");
        }
        Ok(())
    })
    .await
}

/// Removes what a deregistered image has in the store, then its row; does nothing while a
/// volume is being made from it.
pub async fn finish_deregistering(context: &Context, image: &Image) -> ApiResult<()> {
    let id = image.id.clone();
    if context
        .db
        .read(move |c| db::volumes::being_made_from(c, &id))
        .await?
    {
        return Ok(());
    }
    remove_contents(context, image).await?;
    crash_point("image.root-removed");
    let image = image.clone();
    context
        .db
        .write(move |tx| db::images::remove(tx, &image))
        .await?;
    crash_point("image.row-removed");
    Ok(())
}

/// Removes from the store what is an image's own: a root that came with an import. Snapshots
/// live on without their images. Fine when it is not there.
async fn remove_contents(context: &Context, image: &Image) -> ApiResult<()> {
    const DOING: &str = "removing an image's root";
    let (store, id) = (context.store.clone(), snapshot_id(&image.id)?);
    match blocking(DOING, move || store.delete_snapshot(&id)).await? {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(ApiError::from_store(&error, "", DOING))
        }
        _ => Ok(()),
    }
}

/// Takes back an image that could not be made: store, row and client token. Kernel files that
/// nobody needs go with the next reconciliation, and so do snapshots that were taken for it.
pub async fn undo(context: &Context, image: Image) -> ApiResult<()> {
    remove_contents(context, &image).await?;
    let made_of_instance = image.source_instance_id.is_some();
    context
        .db
        .write(move |tx| {
            for operation in [
                import::IMPORT,
                create::CREATE,
                register::REGISTER,
                copy::COPY,
            ] {
                tokens::forget_of(tx, &image.owner, operation, &image.client_token, &image.id)?;
            }
            db::images::remove(tx, &image)?;
            if made_of_instance {
                for disk in &image.disks {
                    discard_snapshot(tx, &disk.snapshot_id)?;
                }
            }
            Ok::<_, ApiError>(())
        })
        .await
}

/// Has a snapshot deleted that was taken for an image that will not be.
fn discard_snapshot(tx: &mut db::Tx<'_>, id: &str) -> ApiResult<()> {
    match db::snapshots::get(tx, id)? {
        Some(snapshot) if snapshot.state == SnapshotState::Completed => {
            let after = Snapshot {
                state: SnapshotState::Deleting,
                ..snapshot.clone()
            };
            Ok(db::snapshots::update(tx, &snapshot, &after)?)
        }
        // One that is pending is taken back on its own.
        _ => Ok(()),
    }
}

/// Checks the form of a name.
fn check_name(name: &str, field: &str) -> ApiResult<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-()[] ".contains(c);
    if (3..=128).contains(&name.chars().count()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(ApiError::field(
        Reason::ImageNameMalformed,
        field,
        format!(
            "{:?} is not a name: 3 to 128 letters, digits and . _ - ( ) [ ] space",
            shortened(name)
        ),
    ))
}

/// Checks that no image of the owner has a name.
fn check_name_free(connection: &Connection, owner: &str, name: &str, field: &str) -> ApiResult<()> {
    match db::images::by_name(connection, owner, name)? {
        None => Ok(()),
        Some(other) => Err(ApiError::field(
            Reason::ImageNameDuplicate,
            field,
            format!("{other} has the name {name:?} already"),
        )),
    }
}

/// Checks the length of a description.
fn check_description(description: &str, field: &str) -> ApiResult<()> {
    if description.chars().count() > MAX_DESCRIPTION {
        return Err(ApiError::invalid(
            field,
            format!("at most {MAX_DESCRIPTION} characters"),
        ));
    }
    Ok(())
}

/// Removes kernel files that neither an image nor an instance needs.
pub async fn remove_unused_kernels(context: &Context) -> ApiResult<()> {
    // No import brings a kernel in between the question who needs which and the removal.
    let _held = context.kernels.lock().await;
    let needed: HashSet<String> = context
        .db
        .read(|connection| {
            let mut needed = db::images::kernel_files(connection)?;
            needed.extend(db::instances::kernel_files(connection)?);
            Ok::<_, db::DbError>(needed)
        })
        .await?
        .into_iter()
        .collect();
    let dir = context.settings.kernels();
    blocking("removing kernels", move || -> io::Result<()> {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry
                .file_name()
                .to_str()
                .is_none_or(|name| !needed.contains(name))
            {
                tracing::info!(file = %entry.path().display(), "nobody needs it");
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    })
    .await?
    .map_err(|error| ApiError::internal("removing kernels", error))
}

fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<Image> {
    db::images::get(connection, id)?.ok_or_else(|| Kind::Image.missing(id, field))
}

impl Described for Image {
    const KIND: Kind = Kind::Image;
    const FILTERS: &'static [&'static str] =
        &["image-id", "name", "state", "architecture", "owner-id"];

    fn seq(&self) -> i64 {
        self.seq
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> &str {
        &self.owner
    }

    fn values(&self, filter: &str) -> Vec<String> {
        vec![match filter {
            "image-id" => self.id.clone(),
            "name" => self.name.clone(),
            "state" => self.state.word().to_owned(),
            "architecture" => self.architecture.clone(),
            "owner-id" => self.owner.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        tags_weight(&self.tags) + self.description.len() + self.kernel_args.len()
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }

    fn hidden(&self) -> bool {
        self.deprecation_time
            .is_some_and(|time| time <= Millis::now())
    }
}
