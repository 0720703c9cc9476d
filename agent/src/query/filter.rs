//! Filters: names with values, in which `*` stands for any characters, `?` for one, and a
//! backslash takes the next character as it is. All filters must match; of one filter's values
//! one is enough.

use super::Described;
use crate::{
    error::{ApiError, ApiResult},
    ids::shortened,
};

/// Most values of one filter.
const MAX_VALUES: usize = 200;

/// A filter that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its name.
    pub name: String,
    /// Patterns.
    pub values: Vec<String>,
}

/// Checks the filters of a request for objects of type `T`.
pub fn check<T: Described>(filters: &[Filter]) -> ApiResult<()> {
    for (index, filter) in filters.iter().enumerate() {
        let name = filter.name.as_str();
        let known = T::FILTERS.contains(&name)
            || name == "tag-key"
            || name.strip_prefix("tag:").is_some_and(|key| !key.is_empty());
        if !known {
            return Err(ApiError::invalid(
                format!("filters[{index}].name"),
                format!(
                    "{:?} is not a filter of this call; it knows {}, tag:KEY, tag-key",
                    shortened(name),
                    T::FILTERS.join(", ")
                ),
            ));
        }
        let count = filter.values.len();
        if count == 0 || count > MAX_VALUES {
            return Err(ApiError::invalid(
                format!("filters[{index}].values"),
                format!("a filter has 1 to {MAX_VALUES} values"),
            ));
        }
    }
    Ok(())
}

/// Whether an object matches all filters.
pub fn matches<T: Described>(object: &T, filters: &[Filter]) -> bool {
    filters.iter().all(|filter| {
        let has = |value: &str| filter.values.iter().any(|pattern| glob(pattern, value));
        if let Some(key) = filter.name.strip_prefix("tag:") {
            object
                .tags()
                .iter()
                .any(|tag| tag.key == key && has(&tag.value))
        } else if filter.name == "tag-key" {
            object.tags().iter().any(|tag| has(&tag.key))
        } else {
            object.values(&filter.name).iter().any(|value| has(value))
        }
    })
}

/// Whether `text` matches `pattern`. Takes at most `pattern.len() * text.len()` steps: on a
/// mismatch only the last `*` is tried again, one character further on.
fn glob(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('\\') if p + 1 < pattern.len() => (pattern[p + 1] == text[t]).then_some(2),
            Some(&literal) => (literal == text[t]).then_some(1),
            None => None,
        };
        match (step, retry) {
            (Some(step), _) => {
                p += step;
                t += 1;
            }
            (None, Some((after_star, from))) => {
                retry = Some((after_star, from + 1));
                p = after_star;
                t = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&rest| rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Kind;
    use crate::tags::Tag;

    struct Thing(Vec<Tag>);

    impl Described for Thing {
        const KIND: Kind = Kind::Volume;
        fn id(&self) -> &str {
            "vol-0123456789abcdef0"
        }
        fn owner(&self) -> &str {
            "local"
        }
        const FILTERS: &'static [&'static str] = &["color"];
        fn seq(&self) -> i64 {
            1
        }
        fn values(&self, filter: &str) -> Vec<String> {
            assert_eq!(filter, "color");
            vec!["dark red".to_owned()]
        }
        fn weight(&self) -> usize {
            0
        }
        fn tags(&self) -> &[Tag] {
            &self.0
        }
    }

    fn filter(name: &str, values: &[&str]) -> Filter {
        Filter {
            name: name.to_owned(),
            values: values.iter().map(|&value| value.to_owned()).collect(),
        }
    }

    #[test]
    fn wildcards_stand_for_characters_and_a_backslash_takes_them_literally() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("a*b*c", "a-b-b-c", true),
            ("?b", "ab", true),
            ("?b", "b", false),
            ("run*", "running", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\?*", "a?bc", true),
            ("é?", "éa", true),
            ("**a", "bca", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern:?} {text:?}");
        }
    }

    #[test]
    fn a_pattern_full_of_stars_does_not_take_forever() {
        assert!(!glob(&"*a".repeat(100), &"a".repeat(99)));
        assert!(glob(&"*a".repeat(99), &"a".repeat(5000)));
    }

    #[test]
    fn all_filters_must_match_and_one_value_of_each_is_enough() {
        let thing = Thing(vec![Tag {
            key: "env".to_owned(),
            value: "prod".to_owned(),
        }]);
        assert!(matches(&thing, &[filter("color", &["blue", "*red"])]));
        assert!(matches(
            &thing,
            &[filter("color", &["*red"]), filter("tag:env", &["p*"])]
        ));
        assert!(!matches(
            &thing,
            &[filter("color", &["*red"]), filter("tag:env", &["dev"])]
        ));
        assert!(matches(&thing, &[filter("tag-key", &["e?v"])]));
        assert!(!matches(&thing, &[filter("tag:other", &["*"])]));
    }

    #[test]
    fn an_unknown_filter_is_named() {
        let good = filter("color", &["red"]);
        let error = check::<Thing>(&[good.clone(), filter("size", &["1"])]).expect_err("unknown");
        assert_eq!(error.fields(), ["filters[1].name"]);
        let error = check::<Thing>(&[filter("color", &[])]).expect_err("no values");
        assert_eq!(error.fields(), ["filters[0].values"]);
        check::<Thing>(&[good, filter("tag:x", &["y"])]).expect("known");
    }
}
