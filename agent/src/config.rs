//! Settings of the daemon, and where things lie in its state directory.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest path of a Unix socket, without the final NUL (`sockaddr_un`).
const MAX_SOCKET_PATH: usize = 107;

/// What `hearthd` is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Database, volumes, kernels, instances.
    pub state_dir: PathBuf,
    /// Where the API listens.
    pub socket: PathBuf,
    /// The program that runs one guest.
    pub vmm: PathBuf,
    /// The region that instances are told they are in; unset, the host's name.
    pub region: Option<String>,
}

/// Why settings can't be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// A path that no Unix socket can have.
    #[error(
        "{what} is too long: {path:?} has {len} bytes, at most {max} fit; choose a shorter one"
    )]
    PathTooLong {
        /// Which path.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The longest that works.
        max: usize,
    },
    /// The working directory is gone, or the like.
    #[error("cannot make {path:?} absolute: {source}")]
    Absolute {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Settings {
    /// Makes the paths absolute and checks that the socket's name fits.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn checked(self) -> Result<Self, SettingsError> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).map_err(|source| SettingsError::Absolute { path, source })
        };
        let settings = Self {
            state_dir: absolute(self.state_dir)?,
            socket: absolute(self.socket)?,
            vmm: absolute(self.vmm)?,
            region: self.region,
        };
        fits("the socket's path", &settings.socket, MAX_SOCKET_PATH)?;
        Ok(settings)
    }

    /// The SQLite database.
    pub(crate) fn database(&self) -> PathBuf {
        self.state_dir.join("hearth.db")
    }

    /// The volume store of `hearth-images`.
    pub(crate) fn store(&self) -> PathBuf {
        self.state_dir.join("store")
    }

    /// Kernels and initrds, each named by its SHA-256.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.state_dir.join("kernels")
    }

    /// Files of imports that are under way.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.state_dir.join("tmp")
    }

    /// One directory for each instance.
    pub(crate) fn instances(&self) -> PathBuf {
        self.state_dir.join("instances")
    }

    /// The directory of one instance.
    pub(crate) fn run_dir(&self, instance_id: &str) -> PathBuf {
        self.instances().join(instance_id)
    }

    /// Held for as long as a daemon uses the state directory.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.state_dir.join("hearthd.lock")
    }

    /// Records of flow logs.
    pub(crate) fn flow_logs(&self) -> PathBuf {
        self.state_dir.join("flow-logs")
    }

    /// Volume classes that the operator adds.
    pub(crate) fn operator_classes(&self) -> PathBuf {
        self.state_dir.join("volume-classes.json")
    }

    /// Signs the tokens of the metadata service.
    pub(crate) fn metadata_key(&self) -> PathBuf {
        self.state_dir.join("metadata.key")
    }

    /// Instance types that the operator adds.
    pub(crate) fn operator_types(&self) -> PathBuf {
        self.state_dir.join("instance-types.json")
    }
}

fn fits(what: &'static str, path: &Path, max: usize) -> Result<(), SettingsError> {
    let len = path.as_os_str().len();
    if len > max {
        return Err(SettingsError::PathTooLong {
            what,
            path: path.to_owned(),
            len,
            max,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(socket: &str) -> Settings {
        Settings {
            state_dir: "state".into(),
            socket: socket.into(),
            vmm: "hearth-vmm".into(),
            region: None,
        }
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let long = format!("/{}", "a".repeat(107));
        let error = settings(&long).checked().expect_err("too long");
        assert!(error.to_string().contains("the socket's path"), "{error}");
        settings(&long[..107]).checked().expect("fits");
    }

    #[test]
    fn relative_paths_become_absolute() {
        let checked = settings("hearthd.sock").checked().expect("fits");
        assert!(checked.vmm.is_absolute() && checked.socket.is_absolute());
    }
}
