//! Describe calls: which objects ([`filter`]), and how many at a time ([`page`]).

pub mod filter;
pub mod page;

use crate::ids::Kind;

/// An object that Describe calls can look for.
pub trait Described {
    /// What it is.
    const KIND: Kind;
    /// Position in the order of creation.
    fn seq(&self) -> i64;
    /// Its id.
    fn id(&self) -> &str;
    /// The account that it belongs to.
    fn owner(&self) -> &str;
    /// Names of filters, beside `tag:KEY` and `tag-key`.
    const FILTERS: &'static [&'static str];
    /// The values of a filter of [`Self::FILTERS`]; an object matches when one of them does.
    fn values(&self, filter: &str) -> Vec<String>;
    /// About how many bytes it takes in an answer, beyond a few hundred.
    fn weight(&self) -> usize;
    /// Whether a listing leaves it out unless it is asked for; its owner sees it always.
    fn hidden(&self) -> bool {
        false
    }
    /// Its tags.
    fn tags(&self) -> &[crate::tags::Tag];
}

/// What tags take in an answer, in bytes.
pub fn tags_weight(tags: &[crate::tags::Tag]) -> usize {
    tags.iter().map(|tag| tag.key.len() + tag.value.len()).sum()
}
