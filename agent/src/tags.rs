//! Tags: labels that an owner puts on an object.

use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ApiResult, Reason};

/// Most tags of one object.
const MAX_TAGS: usize = 50;

/// A label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// 1 to 128 characters; no two tags of an object have the same.
    pub key: String,
    /// At most 256 characters.
    pub value: String,
}

/// Checks the tags in the request's field `field`.
pub fn check(tags: &[Tag], field: &str) -> ApiResult<()> {
    if tags.len() > MAX_TAGS {
        return Err(ApiError::field(
            Reason::TagLimitExceeded,
            field,
            format!(
                "{} tags are too many; an object has at most {MAX_TAGS}",
                tags.len()
            ),
        ));
    }
    for (index, tag) in tags.iter().enumerate() {
        let key_field = format!("{field}[{index}].key");
        if !(1..=128).contains(&tag.key.chars().count()) {
            return Err(ApiError::invalid(
                key_field,
                "a key has 1 to 128 characters",
            ));
        }
        if tag.key.chars().any(char::is_control) {
            return Err(ApiError::invalid(
                key_field,
                "a key has no control characters",
            ));
        }
        if tags[..index].iter().any(|other| other.key == tag.key) {
            return Err(ApiError::invalid(
                key_field,
                format!("{:?} is there twice", tag.key),
            ));
        }
        if tag.value.chars().count() > 256 {
            let value_field = format!("{field}[{index}].value");
            return Err(ApiError::invalid(
                value_field,
                "a value has at most 256 characters",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: &str) -> Tag {
        Tag {
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn limits_of_tags_name_the_tag_at_fault() {
        assert!(check(&[tag("Name", "web"), tag("env", "")], "tags").is_ok());
        let twice = check(&[tag("a", "1"), tag("a", "2")], "tags").expect_err("twice");
        assert_eq!(twice.fields(), ["tags[1].key"]);
        let long = check(&[tag("a", &"x".repeat(257))], "header.tags").expect_err("long");
        assert_eq!(long.fields(), ["header.tags[0].value"]);
        let many: Vec<_> = (0..51).map(|n| tag(&n.to_string(), "")).collect();
        assert_eq!(
            check(&many, "tags").expect_err("many").reason(),
            Reason::TagLimitExceeded
        );
        assert!(check(&[tag("", "x")], "tags").is_err());
    }
}
