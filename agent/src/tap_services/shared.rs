//! What the services of all taps have in common.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use super::dns::forward::Forwarder;
use crate::{config::Settings, db::Db};

/// The host's resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Bytes of the key that metadata tokens are signed with.
pub const KEY_BYTES: usize = 32;

/// One per agent.
pub struct Shared {
    pub db: Db,
    /// Signs the metadata service's tokens, the same after a restart of the agent.
    pub token_key: [u8; KEY_BYTES],
    /// What instances are told of where they are.
    pub region: String,
    /// Finds names that are not of a network.
    pub forwarder: Forwarder,
}

/// Why the services can't be had.
#[derive(Debug, Error)]
pub enum SharedError {
    /// The file with the key of the metadata service's tokens.
    #[error("{path:?}: {source}")]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Shared {
    /// Reads the key of the metadata service's tokens, or makes it when it was never made.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn open(settings: &Settings, db: Db) -> Result<Arc<Self>, SharedError> {
        let path = settings.metadata_key();
        let token_key = key(&path).map_err(|source| SharedError::Key { path, source })?;
        Ok(Arc::new(Self {
            db,
            token_key,
            region: region(settings.region.as_deref()),
            forwarder: Forwarder::new(RESOLV_CONF.into()),
        }))
    }
}

/// What is at `path`, or a new one that is durable there.
fn key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    match fs::read(path) {
        Ok(bytes) => bytes
            .try_into()
            .map_err(|_| io::Error::other("it is not a key; remove it, and a new one is made")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; KEY_BYTES];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            let new = path.with_extension("new");
            let mut file = File::options()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&key)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            if let Some(dir) = path.parent() {
                File::open(dir)?.sync_all()?;
            }
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

/// The operator's name for the region, or the host's name.
fn region(setting: Option<&str>) -> String {
    let host = rustix::system::uname();
    let name = setting.unwrap_or_else(|| host.nodename().to_str().unwrap_or_default());
    let plain: String = name
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    match plain.trim_matches('-') {
        "" => "hearth".to_owned(),
        plain => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_nobody_elses() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("metadata.key");
        let made = key(&path).expect("made");
        assert_ne!(made, [0; KEY_BYTES]);
        assert_eq!(key(&path).expect("read"), made);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "short").expect("write");
        assert!(key(&path).is_err(), "never replaced by itself");
    }

    #[test]
    fn a_region_is_one_label_whatever_the_host_is_called() {
        assert_eq!(region(Some("Rack7.example.com")), "rack7");
        assert_eq!(region(Some("-_-")), "hearth");
        assert!(!region(None).is_empty());
    }
}
