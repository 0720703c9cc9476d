//! Ids of volumes, snapshots and layers: the only strings that ever become part of a path.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;

/// The longest id, in characters.
const MAX_ID_LEN: usize = 64;

fn check_id(what: &str, id: &str) -> Result<()> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if id.is_empty() || id.len() > MAX_ID_LEN || !id.bytes().all(allowed) {
        return Err(Error::new(
            ErrorKind::InvalidId,
            format!(
                "{what} id {:?} is not 1 to {MAX_ID_LEN} characters of a-z, 0-9 and '-'",
                id.chars().take(MAX_ID_LEN + 1).collect::<String>()
            ),
        ));
    }
    Ok(())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Accepts 1 to 64 characters of `a-z`, `0-9` and `-`; else
            /// [`ErrorKind::InvalidId`].
            pub fn new(id: impl Into<String>) -> Result<Self> {
                let id = id.into();
                check_id($what, &id)?;
                Ok($name(id))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;

            fn from_str(id: &str) -> Result<Self> {
                Self::new(id)
            }
        }
    };
}

id_type! {
    /// Id of a volume, such as `vol-0123456789abcdef0`.
    VolumeId, "volume"
}

id_type! {
    /// Id of a snapshot, such as `snap-0123456789abcdef0`.
    SnapshotId, "snapshot"
}

/// Id of a layer: 32 lower-case hexadecimal digits, drawn at random.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LayerId(String);

impl LayerId {
    const LEN: usize = 32;

    /// A fresh id; 128 random bits, so that two never meet.
    pub fn random() -> Result<Self> {
        let mut bits = [0u8; Self::LEN / 2];
        getrandom::fill(&mut bits).map_err(|error| {
            Error::io(
                "no random numbers for a layer id",
                std::io::Error::other(error),
            )
        })?;
        Ok(LayerId(bits.iter().map(|b| format!("{b:02x}")).collect()))
    }

    /// Accepts exactly what [`LayerId::random`] makes.
    pub fn parse(id: &str) -> Option<Self> {
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        (id.len() == Self::LEN && id.bytes().all(hex)).then(|| LayerId(id.to_owned()))
    }

    /// Accepts `<id>.qcow2` with nothing before or after: the only form of a backing file name
    /// that a layer of a store may carry.
    pub fn parse_file_name(name: &str) -> Option<Self> {
        Self::parse(name.strip_suffix(".qcow2")?)
    }

    /// Name of the layer's file inside `layers/`.
    pub fn file_name(&self) -> String {
        format!("{}.qcow2", self.0)
    }
}

impl AsRef<str> for LayerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_that_could_leave_the_directory_are_refused() {
        for id in [
            "", ".", "..", "a/b", "/", "a\0", "A", "é", "a.json", " a", "a\n",
        ] {
            let error = VolumeId::new(id).expect_err(id);
            assert_eq!(error.kind(), ErrorKind::InvalidId, "{id:?}");
        }
        assert!(VolumeId::new("a".repeat(64)).is_ok());
        assert!(VolumeId::new("a".repeat(65)).is_err());
        assert!(SnapshotId::new("snap-0a").is_ok());
    }

    proptest! {
        #[test]
        fn an_id_is_accepted_exactly_when_each_character_is_allowed(id in "\\PC{0,70}") {
            let expected = (1..=64).contains(&id.len())
                && id.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
            prop_assert_eq!(VolumeId::new(id.clone()).is_ok(), expected);
        }

        #[test]
        fn allowed_ids_are_accepted_unchanged(id in "[a-z0-9-]{1,64}") {
            let volume = VolumeId::new(id.clone()).expect("allowed");
            prop_assert_eq!(volume.as_ref(), id);
        }

        #[test]
        fn a_layer_file_name_never_holds_anything_but_its_id(name in "[./a-f0-9]{0,4}[0-9a-f]{30,34}(\\.qcow2)?[./]?") {
            if let Some(layer) = LayerId::parse_file_name(&name) {
                prop_assert_eq!(layer.file_name(), name.clone());
                prop_assert!(!name.contains('/'));
                prop_assert_eq!(name.len(), 38);
            }
        }
    }

    #[test]
    fn a_random_layer_id_parses_back() {
        let id = LayerId::random().expect("random");
        assert_eq!(LayerId::parse_file_name(&id.file_name()), Some(id));
    }
}
