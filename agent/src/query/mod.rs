//! Describe calls: which objects ([`filter`]), and how many at a time ([`page`]).

pub mod filter;
pub mod page;

/// An object that Describe calls can look for.
pub trait Described {
    /// Position in the order of creation.
    fn seq(&self) -> i64;
    /// Names of filters, beside `tag:KEY` and `tag-key`.
    const FILTERS: &'static [&'static str];
    /// The values of a filter of [`Self::FILTERS`]; an object matches when one of them does.
    fn values(&self, filter: &str) -> Vec<String>;
    /// Its tags.
    fn tags(&self) -> &[crate::tags::Tag];
}
