//! ImportImage: kernel, initrd and root, one after the other in one stream. Without a kernel it
//! is looked for inside the root.
//!
//! The row comes first, as `pending`; the files after it; whatever goes wrong takes the row back.
//! A row that is still pending when the agent starts belonged to an import that was cut off.

use std::sync::Arc;

use hearth_images::{DiskFormat, ErrorKind, ImportOptions, ImportSource, crash_point};

use super::{
    check_description, check_name, check_name_free,
    file::{self, DeclaredFile, Received},
    found::found_in_root,
    get, kernel,
    model::{BootProtocol, Image, ImageState},
    snapshot_id, undo,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::launch::check_kernel_args,
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
    transfer::Body,
};

/// Name of the operation for client tokens.
pub const IMPORT: &str = "ImportImage";

/// Largest kernel and largest initrd, in bytes.
const MAX_BOOT_FILE: u64 = 512 << 20;

/// What a caller says about an image.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// The account that will own what is made.
    pub owner: String,
    pub name: String,
    pub description: String,
    pub architecture: String,
    pub kernel_args: String,
    pub boot_protocol: BootProtocol,
    pub kernel: Option<DeclaredFile>,
    pub initrd: Option<DeclaredFile>,
    pub root: Option<DeclaredFile>,
    pub root_format: Option<DiskFormat>,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// What the stream held.
struct Files {
    kernel: Received,
    initrd: Option<Received>,
    kernel_args: String,
    /// Size of the root volume, in bytes; 0 when there is none.
    root_size_bytes: u64,
}

impl ImportRequest {
    /// Checks all that needs neither database nor files.
    pub fn check(&self) -> ApiResult<()> {
        check_name(&self.name, "header.name")?;
        check_description(&self.description, "header.description")?;
        if !matches!(self.architecture.as_str(), "" | "x86_64") {
            return Err(ApiError::invalid(
                "header.architecture",
                "only x86_64 runs here",
            ));
        }
        check_kernel_args(&self.kernel_args, "header.kernel_args")?;
        tags::check(&self.tags, "header.tags")?;
        match &self.kernel {
            Some(kernel) => check_file(kernel, MAX_BOOT_FILE, "header.kernel")?,
            None if self.root.is_none() => {
                return Err(ApiError::field(
                    Reason::MissingParameter,
                    "header.kernel",
                    "an image has a kernel, or a root to find one in",
                ));
            }
            None if self.initrd.is_some() => {
                return Err(ApiError::field(
                    Reason::InvalidParameterCombination,
                    "header.initrd",
                    "an initrd comes with its kernel; without a kernel, both are looked for in \
                     the root",
                ));
            }
            None => {}
        }
        if let Some(initrd) = &self.initrd {
            check_file(initrd, MAX_BOOT_FILE, "header.initrd")?;
        }
        if let Some(root) = &self.root {
            check_file(root, hearth_images::MAX_DISK_BYTES, "header.root")?;
        }
        Ok(())
    }

    /// Length of the whole stream after the header, in bytes. No overflow after
    /// [`Self::check`].
    pub fn declared_bytes(&self) -> u64 {
        [&self.kernel, &self.initrd, &self.root]
            .into_iter()
            .flatten()
            .fold(0, |sum: u64, file| sum.saturating_add(file.length_bytes))
    }
}

fn check_file(declared: &DeclaredFile, most: u64, field: &str) -> ApiResult<()> {
    file::check_length(
        declared.length_bytes,
        most,
        &format!("{field}.length_bytes"),
    )?;
    file::check_sha256(&declared.sha256, &format!("{field}.sha256"))
}

/// Reads the image's files from `body`.
pub async fn import(context: Arc<Context>, request: ImportRequest, body: Body) -> ApiResult<Image> {
    request.check()?;
    carried_through(async move {
        let id = Kind::Image.new_id()?;
        let _busy = context.busy.mark(&id);
        let row = request.clone();
        let (pending, new) = context.db.write(move |tx| insert(tx, &id, &row)).await?;
        if !new {
            return Ok(pending);
        }
        crash_point("image.row-pending");
        let result = match receive_all(&context, &pending, request, body).await {
            Ok(files) => {
                let named = Image {
                    kernel_args: files.kernel_args,
                    root_size_bytes: files.root_size_bytes,
                    ..pending.clone()
                };
                finish(&context, pending.clone(), named, files.kernel, files.initrd).await
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            undo(&context, pending).await?;
        }
        result
    })
    .await
}

fn insert(tx: &mut db::Tx<'_>, id: &str, request: &ImportRequest) -> ApiResult<(Image, bool)> {
    if let Some(ids) = request
        .token
        .as_ref()
        .map(|token| token.earlier(tx))
        .transpose()?
        .flatten()
    {
        let id = ids.first().map(String::as_str).unwrap_or_default();
        return Ok((get(tx, id, "header.client_token")?, false));
    }
    check_name_free(tx, &request.owner, &request.name, "header.name")?;
    let mut image = Image {
        seq: 0,
        id: id.to_owned(),
        owner: request.owner.clone(),
        name: request.name.clone(),
        description: request.description.clone(),
        state: ImageState::Pending,
        architecture: "x86_64".to_owned(),
        kernel: String::new(),
        initrd: None,
        kernel_args: request.kernel_args.clone(),
        boot_protocol: request.boot_protocol,
        has_root: request.root.is_some(),
        root_size_bytes: 0,
        create_time: Millis::now(),
        tags: request.tags.clone(),
        client_token: request.client_token.clone(),
        disks: Vec::new(),
        source_instance_id: None,
        deprecation_time: None,
    };
    db::images::insert(tx, &mut image)?;
    if let Some(token) = &request.token {
        token.keep(tx, std::slice::from_ref(&image.id))?;
    }
    Ok((image, true))
}

async fn receive_all(
    context: &Context,
    image: &Image,
    request: ImportRequest,
    body: Body,
) -> ApiResult<Files> {
    let (store, tmp, id) = (
        context.store.clone(),
        context.settings.tmp(),
        image.id.clone(),
    );
    blocking("importing an image", move || {
        let mut body = body;
        match receive(&store, &tmp, &id, &request, &mut body) {
            Ok(files) => body.finish().map(|()| files),
            Err(error) => Err(body.or_incomplete(error)),
        }
    })
    .await?
}

fn receive(
    store: &hearth_images::Store,
    tmp: &std::path::Path,
    id: &str,
    request: &ImportRequest,
    body: &mut Body,
) -> ApiResult<Files> {
    let kernel = request
        .kernel
        .as_ref()
        .map(|kernel| {
            let path = tmp.join(format!("{id}.kernel"));
            file::receive(body, kernel, path, "header.kernel")
        })
        .transpose()?;
    if let Some(kernel) = &kernel {
        check_kernel(kernel, "header.kernel", "the file")?;
    }
    let initrd = request
        .initrd
        .as_ref()
        .map(|initrd| {
            let path = tmp.join(format!("{id}.initrd"));
            file::receive(body, initrd, path, "header.initrd")
        })
        .transpose()?;
    let mut root_size_bytes = 0;
    if let Some(root) = &request.root {
        let options = ImportOptions {
            format: request.root_format,
            length_bytes: Some(root.length_bytes),
            sha256: file::wanted_sha256(&root.sha256),
            grow_to_bytes: None,
        };
        let mut bytes = std::io::Read::take(body, root.length_bytes);
        let source = ImportSource::Stream(&mut bytes);
        let info = store
            .import_snapshot(&snapshot_id(id)?, source, options)
            .map_err(|error| root_error(&error))?;
        crash_point("image.root-imported");
        root_size_bytes = info.size_bytes;
    }
    let (kernel, initrd, kernel_args) = match kernel {
        Some(kernel) => (kernel, initrd, request.kernel_args.clone()),
        None => {
            let (root, args) = (snapshot_id(id)?, &request.kernel_args);
            let found = found_in_root(store, &root, tmp, id, args, "header.root")?;
            (found.kernel, found.initrd, found.kernel_args)
        }
    };
    Ok(Files {
        kernel,
        initrd,
        kernel_args,
        root_size_bytes,
    })
}

pub(super) fn check_kernel(kernel: &Received, field: &str, what: &str) -> ApiResult<()> {
    kernel::check(kernel.path())
        .map_err(|error| ApiError::internal("looking at a kernel", error))?
        .map_err(|kernel::NotAKernel(problem)| {
            ApiError::invalid(field, format!("{what} {problem}")).with("kind", "NotAKernel")
        })
}

fn root_error(error: &hearth_images::Error) -> ApiError {
    let field = match error.kind() {
        ErrorKind::DigestMismatch => "header.root.sha256",
        ErrorKind::LengthMismatch => "header.root.length_bytes",
        _ => "header.root",
    };
    ApiError::from_store(error, field, "importing an image")
}

/// The files get their names, and the image becomes available; `named` is the pending image with
/// what is known of it now.
pub(super) async fn finish(
    context: &Context,
    pending: Image,
    named: Image,
    kernel: Received,
    initrd: Option<Received>,
) -> ApiResult<Image> {
    let _held = context.kernels.lock().await;
    let named = Image {
        kernel: kernel.sha256.clone(),
        initrd: initrd.as_ref().map(|initrd| initrd.sha256.clone()),
        ..named
    };
    // The row knows the files before they have their names, so that none is ever without owner.
    let row = named.clone();
    context
        .db
        .write(move |tx| db::images::update(tx, &pending, &row))
        .await?;
    crash_point("image.row-with-files");
    let dir = context.settings.kernels();
    blocking("keeping an image's files", move || {
        kernel.keep(&dir)?;
        initrd.map_or(Ok(()), |initrd| initrd.keep(&dir))
    })
    .await?
    .map_err(|error| ApiError::internal("keeping an image's files", error))?;
    crash_point("image.files-kept");
    let available = Image {
        state: ImageState::Available,
        ..named.clone()
    };
    let row = available.clone();
    context
        .db
        .write(move |tx| db::images::update(tx, &named, &row))
        .await?;
    crash_point("image.row-available");
    Ok(available)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ImportRequest {
        ImportRequest {
            owner: "local".to_owned(),
            name: "debian 12 (x86)".to_owned(),
            description: String::new(),
            architecture: String::new(),
            kernel_args: "console=ttyS0".to_owned(),
            boot_protocol: BootProtocol::Auto,
            kernel: Some(DeclaredFile {
                length_bytes: 1,
                sha256: String::new(),
            }),
            initrd: None,
            root: None,
            root_format: None,
            tags: Vec::new(),
            client_token: String::new(),
            token: None,
        }
    }

    #[test]
    fn a_bad_header_names_its_field() {
        request().check().expect("good");
        let file = |length_bytes, sha256: &str| {
            Some(DeclaredFile {
                length_bytes,
                sha256: sha256.to_owned(),
            })
        };
        // A kernel may be in the root.
        let found = ImportRequest {
            kernel: None,
            root: file(1, ""),
            ..request()
        };
        found.check().expect("good");
        let cases: [(&str, ImportRequest); 10] = [
            (
                "header.initrd",
                ImportRequest {
                    initrd: file(1, ""),
                    ..found
                },
            ),
            (
                "header.name",
                ImportRequest {
                    name: "a/b/c".to_owned(),
                    ..request()
                },
            ),
            (
                "header.name",
                ImportRequest {
                    name: "ab".to_owned(),
                    ..request()
                },
            ),
            (
                "header.architecture",
                ImportRequest {
                    architecture: "arm64".to_owned(),
                    ..request()
                },
            ),
            (
                "header.kernel_args",
                ImportRequest {
                    kernel_args: "a\nb".to_owned(),
                    ..request()
                },
            ),
            (
                "header.kernel",
                ImportRequest {
                    kernel: None,
                    ..request()
                },
            ),
            (
                "header.kernel.length_bytes",
                ImportRequest {
                    kernel: file(0, ""),
                    ..request()
                },
            ),
            (
                "header.kernel.length_bytes",
                ImportRequest {
                    kernel: file(u64::MAX, ""),
                    ..request()
                },
            ),
            (
                "header.initrd.sha256",
                ImportRequest {
                    initrd: file(1, "xyz"),
                    ..request()
                },
            ),
            (
                "header.root.length_bytes",
                ImportRequest {
                    root: file(0, ""),
                    ..request()
                },
            ),
        ];
        for (field, request) in cases {
            assert_eq!(request.check().expect_err(field).fields(), [field]);
        }
    }
}
