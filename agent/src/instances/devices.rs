//! Names of disks: `/dev/vda` to `/dev/vdz`.

use crate::{
    error::{ApiError, ApiResult},
    ids::shortened,
};

/// The root's name, when the image has one.
pub const ROOT: &str = "/dev/vda";

/// Checks a name that a caller gave.
pub fn check(name: &str, field: &str) -> ApiResult<()> {
    match name.strip_prefix("/dev/vd").map(str::as_bytes) {
        Some([b'a'..=b'z']) => Ok(()),
        _ => Err(ApiError::invalid(
            field,
            format!(
                "{:?} is not a device name: /dev/vda to /dev/vdz",
                shortened(name)
            ),
        )),
    }
}

/// The first name that nobody has.
pub fn next_free(taken: &[String], field: &str) -> ApiResult<String> {
    (b'a'..=b'z')
        .map(|letter| format!("/dev/vd{}", char::from(letter)))
        .find(|name| !taken.contains(name))
        .ok_or_else(|| ApiError::invalid(field, "an instance has at most 26 disks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_one_letter_long() {
        for good in ["/dev/vda", "/dev/vdz"] {
            check(good, "device_name").expect("good");
        }
        for bad in [
            "",
            "vda",
            "/dev/vd",
            "/dev/vdaa",
            "/dev/sda",
            "/dev/vd/",
            "/dev/vdA",
        ] {
            let error = check(bad, "device_name").expect_err(bad);
            assert_eq!(error.fields(), ["device_name"]);
        }
    }

    #[test]
    fn the_next_free_letter_fills_gaps_and_ends_at_z() {
        let taken = vec!["/dev/vda".to_owned(), "/dev/vdc".to_owned()];
        assert_eq!(next_free(&taken, "device_name").expect("free"), "/dev/vdb");
        let all: Vec<String> = (b'a'..=b'z')
            .map(|letter| format!("/dev/vd{}", char::from(letter)))
            .collect();
        assert!(next_free(&all, "device_name").is_err());
    }
}
