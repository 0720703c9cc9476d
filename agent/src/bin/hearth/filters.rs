//! `--filter NAME=VALUE[,VALUE…]` and `--tag KEY=VALUE`.

use hearth_proto::v1::{Filter, Tag};

/// A filter with one value.
pub fn filter(name: &str, value: &str) -> Filter {
    Filter {
        name: name.to_owned(),
        values: vec![value.to_owned()],
    }
}

/// Reads `NAME=VALUE[,VALUE…]`.
pub fn parse_filter(text: &str) -> Result<Filter, String> {
    let (name, values) = text.split_once('=').ok_or("expected NAME=VALUE[,VALUE…]")?;
    if name.is_empty() {
        return Err("the filter has no name; expected NAME=VALUE[,VALUE…]".to_owned());
    }
    Ok(Filter {
        name: name.to_owned(),
        values: values.split(',').map(str::to_owned).collect(),
    })
}

/// Reads `KEY=VALUE` or `KEY`.
pub fn parse_tag(text: &str) -> Result<Tag, String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("the tag has no key; expected KEY=VALUE".to_owned());
    }
    Ok(Tag {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

/// The value of the tag `Name`, or nothing.
pub fn name_of(tags: &[Tag]) -> &str {
    tags.iter()
        .find(|tag| tag.key == "Name")
        .map_or("", |tag| tag.value.as_str())
}
