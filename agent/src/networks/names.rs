//! Names of networks, and the domains that their instances are found in.

use rusqlite::Connection;

use crate::{
    db,
    error::{ApiError, ApiResult, Reason},
    ids::shortened,
};

/// Longest name of a network, in characters, and longest description of anything.
const MAX_NAME: usize = 255;

/// Where instances are found when a network says nothing else.
pub const DEFAULT_DOMAIN: &str = "hearth.internal";

/// Longest DNS domain of a network, so that names in it are not longer than 253 bytes
/// (RFC 1035, section 2.3.4).
const MAX_DOMAIN: usize = 128;

/// Checks the name of a network, which may be empty.
pub fn check_name(name: &str, field: &str) -> ApiResult<()> {
    if name.starts_with("net-") {
        return Err(ApiError::invalid(
            field,
            "a name does not begin with `net-`",
        ));
    }
    check_text(name, field)
}

/// Checks a name or a description.
pub fn check_text(text: &str, field: &str) -> ApiResult<()> {
    let count = text.chars().count();
    if count > MAX_NAME {
        return Err(ApiError::invalid(
            field,
            format!("{count} characters are too many; at most {MAX_NAME}"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(ApiError::invalid(field, "no control characters"));
    }
    Ok(())
}

/// Refuses a name that another network of the owner has; `own` is the id of the one that may.
pub fn check_name_free(
    connection: &Connection,
    owner: &str,
    name: &str,
    own: &str,
) -> ApiResult<()> {
    if name.is_empty() {
        return Ok(());
    }
    match db::networks::named(connection, owner, name)? {
        Some(other) if other.id != own => Err(ApiError::field(
            Reason::NetworkNameDuplicate,
            "name",
            format!("the account has a network called {name:?}: {}", other.id),
        )),
        _ => Ok(()),
    }
}

/// The domain that a caller gave, in lower case; the usual one when it is empty.
pub fn domain(text: &str, field: &str) -> ApiResult<String> {
    if text.is_empty() {
        return Ok(DEFAULT_DOMAIN.to_owned());
    }
    let text = text.to_ascii_lowercase();
    if text.len() > MAX_DOMAIN || !text.split('.').all(is_label) {
        return Err(ApiError::invalid(
            field,
            format!(
                "{:?} is not a DNS domain of at most {MAX_DOMAIN} letters, digits, - and .",
                shortened(&text)
            ),
        ));
    }
    Ok(text)
}

/// Whether it can be one part of a host's name (RFC 1123, section 2.1).
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_lower_case_and_well_formed() {
        assert_eq!(domain("", "f").expect("usual"), DEFAULT_DOMAIN);
        assert_eq!(domain("Prod.Example", "f").expect("fine"), "prod.example");
        for bad in [".", "a..b", "-a", "a-.b", "a_b", "ü", &"a.".repeat(70)] {
            assert_eq!(domain(bad, "f").expect_err(bad).fields(), ["f"]);
        }
    }

    #[test]
    fn names_of_networks_do_not_look_like_ids() {
        check_name("prod", "name").expect("fine");
        for bad in ["net-1", "a\nb", &"x".repeat(256)] {
            assert_eq!(check_name(bad, "name").expect_err(bad).fields(), ["name"]);
        }
    }
}
