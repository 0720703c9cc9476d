//! Paths, records, temporary files, and what makes a change durable.
//!
//! ```text
//! <root>/lock                     held (flock) while names are changed
//! <root>/layers/<layer>.qcow2     sealed ones are mode 0444
//! <root>/volumes/<id>.json        which layer is the volume's top
//! <root>/snapshots/<id>.json      which layer the snapshot names
//! <root>/tmp/<random>             unfinished files, each flocked by its maker
//! ```
//!
//! A file gets its final name only when its contents are on the disk; the directory is synced
//! after each change of a name.

use crate::crash_point;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::store::lock::{Locked, Mode};
use rustix::fs::{RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Version of the records' format.
const RECORD_VERSION: u32 = 1;

/// Longest record that is read, in bytes; ours have less than 100.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// The folders of a store.
#[derive(Debug)]
pub(crate) struct Layout {
    pub root: PathBuf,
    pub layers: PathBuf,
    pub volumes: PathBuf,
    pub snapshots: PathBuf,
    pub tmp: PathBuf,
}

impl Layout {
    /// Makes what is missing and removes unfinished files of processes that are gone.
    pub fn open(root: &Path) -> Result<Layout> {
        let root = std::path::absolute(root).context(|| format!("{}", root.display()))?;
        let layout = Layout {
            layers: root.join("layers"),
            volumes: root.join("volumes"),
            snapshots: root.join("snapshots"),
            tmp: root.join("tmp"),
            root,
        };
        for dir in [
            &layout.root,
            &layout.layers,
            &layout.volumes,
            &layout.snapshots,
            &layout.tmp,
        ] {
            if !dir.is_dir() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(dir)
                    .context(|| format!("making {}", dir.display()))?;
            }
        }
        layout.remove_unfinished()?;
        Ok(layout)
    }

    pub fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.layers.join(id.file_name())
    }

    /// Waits for, and takes, the lock that every change of names needs.
    pub fn lock_names(&self) -> Result<Locked> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("opening {}", path.display()))?;
        Locked::wait(file, || path.display().to_string())
    }

    /// Removes files in `tmp/` that no living process holds.
    fn remove_unfinished(&self) -> Result<()> {
        let entries = fs::read_dir(&self.tmp).context(|| format!("{}", self.tmp.display()))?;
        for entry in entries {
            let path = entry.context(|| format!("{}", self.tmp.display()))?.path();
            // Whoever is at work on the file has it locked; a file that vanishes was finished.
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if Locked::try_new(file, Mode::Exclusive, String::new).is_ok() {
                match fs::remove_file(&path) {
                    Ok(()) => tracing::info!("removed the unfinished file {}", path.display()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                    Err(error) => {
                        return Err(Error::io(format!("removing {}", path.display()), error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a finished layer file its name. Its contents must be on the disk.
    pub fn publish_layer(&self, file: TempFile, sealed: bool, id: &LayerId) -> Result<()> {
        if sealed {
            seal(&file.file)?;
        }
        file.rename_to(&self.layers, &id.file_name())?;
        crash_point("layer.published");
        Ok(())
    }
}

/// The file name of a record.
pub(crate) fn record_name(id: impl AsRef<str>) -> String {
    format!("{}.json", id.as_ref())
}

/// Makes a layer file read-only for good.
pub(crate) fn seal(file: &File) -> Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o444))
        .and_then(|()| file.sync_all())
        .context(|| "sealing a layer".into())
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| {
            io::Error::new(error.kind(), format!("syncing {}: {error}", dir.display()))
        })
}

/// An unfinished file in `tmp/`; removed when dropped, unless it was given its final name.
#[derive(Debug)]
pub(crate) struct TempFile {
    pub file: Locked,
    path: PathBuf,
    named: bool,
}

impl TempFile {
    pub fn new(layout: &Layout) -> Result<TempFile> {
        loop {
            let path = layout.tmp.join(LayerId::random()?.as_ref());
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .context(|| format!("making {}", path.display()))?;
            let file = Locked::try_new(file, Mode::Shared, || path.display().to_string())?;
            let temp = TempFile {
                file,
                path,
                named: false,
            };
            // Another process's clean-up may have come between making and locking.
            let inode = temp
                .file
                .metadata()
                .context(|| format!("{}", temp.path.display()))?
                .ino();
            match fs::metadata(&temp.path) {
                Ok(found) if found.ino() == inode => return Ok(temp),
                _ => continue,
            }
        }
    }

    /// Gives the file its final name; [`ErrorKind::AlreadyExists`] if the name is taken.
    fn rename_to(mut self, dir: &Path, name: &str) -> Result<()> {
        let to = dir.join(name);
        renameat_with(
            rustix::fs::CWD,
            &self.path,
            rustix::fs::CWD,
            &to,
            RenameFlags::NOREPLACE,
        )
        .map_err(|errno| match errno {
            rustix::io::Errno::EXIST => {
                Error::new(ErrorKind::AlreadyExists, format!("{name} exists already"))
            }
            errno => Error::io(format!("naming {}", to.display()), errno.into()),
        })?;
        self.named = true;
        sync_dir(dir).context(|| "naming a file".into())
    }

    /// The same, but takes the place of a file of that name, and does not make that durable:
    /// [`sync_dir`] has to follow.
    pub fn replace(&mut self, dir: &Path, name: &str) -> Result<()> {
        let to = dir.join(name);
        fs::rename(&self.path, &to).context(|| format!("replacing {}", to.display()))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Contents of `volumes/<id>.json` and `snapshots/<id>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    layer: String,
}

impl Record {
    pub fn new(layer: &LayerId) -> Self {
        Record {
            version: RECORD_VERSION,
            layer: layer.to_string(),
        }
    }

    /// Reads one record; `None` if there is no such file.
    pub fn read(dir: &Path, id: &str) -> Result<Option<Record>> {
        let path = dir.join(format!("{id}.json"));
        let corrupt =
            |what: String| Error::new(ErrorKind::Corrupt, format!("{}: {what}", path.display()));
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("{}", path.display()), error)),
        };
        if length > MAX_RECORD_BYTES {
            return Err(corrupt(format!("{length} bytes long")));
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("{}", path.display()), error)),
        };
        let record: Record =
            serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        if record.version != RECORD_VERSION {
            return Err(corrupt(format!("version {}", record.version)));
        }
        Ok(Some(record))
    }

    /// The layer that the record names.
    pub fn layer_id(&self) -> Result<LayerId> {
        LayerId::parse(&self.layer).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("{:?} is not a layer id", self.layer),
            )
        })
    }

    /// Writes a new record, durably; [`ErrorKind::AlreadyExists`] if there is one.
    pub fn create(&self, layout: &Layout, dir: &Path, id: &str) -> Result<()> {
        self.write_temp(layout)?
            .rename_to(dir, &format!("{id}.json"))?;
        crash_point("record.created");
        Ok(())
    }

    /// Writes the record into a file that has no name yet, and syncs it.
    pub fn write_temp(&self, layout: &Layout) -> Result<TempFile> {
        let temp = TempFile::new(layout)?;
        let mut text = serde_json::to_vec(self)
            .map_err(|error| Error::io("writing a record", io::Error::other(error)))?;
        text.push(b'\n');
        (&*temp.file)
            .write_all(&text)
            .and_then(|()| temp.file.sync_all())
            .context(|| "writing a record".into())?;
        crash_point("record.written");
        Ok(temp)
    }
}

/// The ids of all records in a folder, sorted.
pub(crate) fn record_ids(dir: &Path) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).context(|| format!("{}", dir.display()))? {
        let name = entry.context(|| format!("{}", dir.display()))?.file_name();
        if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
            ids.push(id.to_owned());
        }
    }
    ids.sort_unstable();
    Ok(ids)
}
