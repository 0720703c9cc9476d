//! The kernel that an image's own root boots with.

use std::path::Path;

use hearth_images::SnapshotId;

use super::{file::Received, import::check_kernel};
use crate::{
    boot_finder,
    error::{ApiError, ApiResult},
};

/// What boots an image.
pub struct Found {
    pub kernel: Received,
    pub initrd: Option<Received>,
    pub kernel_args: String,
}

/// Looks inside the root of an image, which is in the store already as `root`. `kernel_args` are
/// the caller's, none if empty; `field` is what named the root. Blocks.
pub fn found_in_root(
    store: &hearth_images::Store,
    root: &SnapshotId,
    tmp: &Path,
    image_id: &str,
    kernel_args: &str,
    field: &str,
) -> ApiResult<Found> {
    let (kernel, initrd) = (
        tmp.join(format!("{image_id}.kernel")),
        tmp.join(format!("{image_id}.initrd")),
    );
    let found = boot_finder::find(store, root, &kernel, &initrd, field);
    // Whatever is in them now is ours to remove.
    let adopt = |path: std::path::PathBuf| match Received::adopt(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ApiError::internal("looking at what was found", error)),
    };
    let (kernel, initrd) = (adopt(kernel)?, adopt(initrd)?);
    let found = found?;
    let kernel = kernel
        .ok_or_else(|| ApiError::internal("looking for a kernel", "it was found and is gone"))?;
    check_kernel(&kernel, field, &format!("{}:", found.words))?;
    tracing::info!(image = image_id, kernel = found.words, "found in its root");
    Ok(Found {
        kernel,
        initrd: initrd.filter(|_| found.has_initrd),
        kernel_args: chosen_arguments(kernel_args, &found.kernel_args),
    })
}

/// The caller's arguments replace those found; a root that they do not name is the one found.
fn chosen_arguments(given: &str, found: &str) -> String {
    let given = given.trim();
    if given.is_empty() {
        return found.to_owned();
    }
    let is_root = |word: &&str| word.starts_with("root=");
    match found.split(' ').find(is_root) {
        Some(root) if !given.split(' ').any(|word| is_root(&word)) => format!("{root} {given}"),
        _ => given.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_arguments_replace_those_found_but_for_a_root_that_they_lack() {
        let found = "root=PARTUUID=1 ro quiet";
        for (given, wanted) in [
            ("", found),
            ("  ", found),
            ("rw", "root=PARTUUID=1 rw"),
            ("root=/dev/vdb rw", "root=/dev/vdb rw"),
        ] {
            assert_eq!(chosen_arguments(given, found), wanted);
        }
        assert_eq!(chosen_arguments("a", "b"), "a");
    }
}
