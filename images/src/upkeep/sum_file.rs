//! `layers/<layer>.sum`: digests of one layer's file.

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::store::{Layout, TempFile};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

const VERSION: u32 = 1;

/// Ending of the file's name.
const SUFFIX: &str = ".sum";

/// Smallest chunk, in bytes: how exactly damage is located.
const MIN_CHUNK_BYTES: u64 = 4 << 20;

/// Chunks at most; larger layers have larger chunks. Keeps a file below about 1 MiB.
const MAX_CHUNKS: u64 = 16 << 10;

/// Longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// Digests of a layer's file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SumFile {
    version: u32,
    /// Length of the layer's file in bytes.
    pub length: u64,
    /// Inode of the layer's file, and the parent that it named: a file that differs in both is
    /// another one, made by merging, and these digests are not about it.
    inode: u64,
    parent: Option<String>,
    /// For a layer that may be written to again: when it was last, in ns since 1970. The digests
    /// hold for as long as this does. For a sealed layer there is none: they hold for good.
    pub modified: Option<i128>,
    /// SHA-256 of the whole file, in hexadecimal, as `sha256sum` prints it.
    pub sha256: String,
    chunk_bytes: u64,
    /// SHA-256 of each chunk, in hexadecimal.
    chunks: Vec<String>,
}

/// Where a file differs from its digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Length {
        expected: u64,
        found: u64,
    },
    /// Offset and length of the first chunk that differs, and how many do.
    Chunks {
        offset: u64,
        length: u64,
        count: u64,
    },
}

/// Called between reads; ends the work with [`ErrorKind::Stopped`] when it returns `true`.
pub(super) type Stop<'a> = dyn FnMut(u64) -> bool + 'a;

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// When a file was last written, in ns since 1970.
pub(super) fn modified(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// The layer whose digests a file of this name keeps.
pub(super) fn layer_of(name: &str) -> Option<LayerId> {
    LayerId::parse(name.strip_suffix(SUFFIX)?)
}

pub(super) fn file_name(id: &LayerId) -> String {
    format!("{id}{SUFFIX}")
}

fn path(layout: &Layout, id: &LayerId) -> PathBuf {
    layout.layers.join(file_name(id))
}

impl SumFile {
    /// Reads a whole layer. `modified` is set by the caller.
    pub fn of(file: &File, parent: Option<&LayerId>, stop: &mut Stop<'_>) -> Result<SumFile> {
        let metadata = file.metadata().context(|| "a layer's length".into())?;
        let length = metadata.len();
        let chunk_bytes = MIN_CHUNK_BYTES.max(length.div_ceil(MAX_CHUNKS).next_power_of_two());
        let mut whole = Sha256::new();
        let mut chunks = Vec::new();
        read_chunks(
            file,
            length,
            chunk_bytes,
            stop,
            Some(&mut whole),
            |digest| {
                chunks.push(digest);
            },
        )?;
        Ok(SumFile {
            version: VERSION,
            length,
            inode: metadata.ino(),
            parent: parent.map(LayerId::to_string),
            modified: None,
            sha256: hex(whole.finalize()),
            chunk_bytes,
            chunks,
        })
    }

    /// Compares a layer's file. Reads it once, all of it.
    pub fn compare(&self, file: &File, stop: &mut Stop<'_>) -> Result<Option<Difference>> {
        let found = file.metadata().context(|| "a layer's length".into())?.len();
        if found != self.length {
            return Ok(Some(Difference::Length {
                expected: self.length,
                found,
            }));
        }
        let mut expected = self.chunks.iter();
        let (mut at, mut first, mut count) = (0, 0, 0);
        read_chunks(file, self.length, self.chunk_bytes, stop, None, |digest| {
            if expected.next() != Some(&digest) {
                if count == 0 {
                    first = at;
                }
                count += 1;
            }
            at += self.chunk_bytes;
        })?;
        Ok((count > 0).then(|| Difference::Chunks {
            offset: first,
            length: self.chunk_bytes.min(self.length - first),
            count,
        }))
    }

    /// These digests are about another file, which a merge has replaced.
    pub fn is_of_another_file(&self, file: &Metadata, parent: Option<&LayerId>) -> bool {
        file.ino() != self.inode && parent.map(LayerId::to_string) != self.parent
    }

    /// Reads the digests of a layer; `None` if there are none. [`ErrorKind::Corrupt`] if the
    /// file is not one of ours.
    pub fn read(layout: &Layout, id: &LayerId) -> Result<Option<SumFile>> {
        let path = path(layout, id);
        let context = || format!("{}", path.display());
        let corrupt = |what: String| {
            let message = format!("{}: {what}", path.display());
            Error::new(ErrorKind::Corrupt, message)
        };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(corrupt(format!("{} bytes long", metadata.len())));
            }
            Ok(_) => (),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(context),
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(context),
        };
        let sum: SumFile =
            serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        if sum.version != VERSION
            || sum.chunk_bytes < MIN_CHUNK_BYTES
            || sum.length.div_ceil(sum.chunk_bytes) != sum.chunks.len() as u64
        {
            return Err(corrupt("contradicts itself".into()));
        }
        Ok(Some(sum))
    }

    /// Writes the digests of a layer. Names must be locked.
    pub fn write(&self, layout: &Layout, id: &LayerId) -> Result<()> {
        let mut temp = TempFile::new(layout)?;
        let mut text = serde_json::to_vec(self)
            .map_err(|error| Error::io("writing checksums", io::Error::other(error)))?;
        text.push(b'\n');
        (&*temp.file)
            .write_all(&text)
            .and_then(|()| temp.file.sync_all())
            .context(|| "writing checksums".into())?;
        // No sync of the folder: digests that a crash takes are made anew.
        temp.replace(&layout.layers, &file_name(id))
    }
}

/// Removes the digests of a layer, if there are any.
pub(super) fn remove(layout: &Layout, id: &LayerId) -> Result<()> {
    match fs::remove_file(path(layout, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("removing the checksums of layer {id}"))
        }
        _ => Ok(()),
    }
}

fn read_chunks(
    file: &File,
    length: u64,
    chunk_bytes: u64,
    stop: &mut Stop<'_>,
    mut whole: Option<&mut Sha256>,
    mut each: impl FnMut(String),
) -> Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < length {
        let end = (at + chunk_bytes).min(length);
        let mut digest = Sha256::new();
        while at < end {
            let some = &mut buffer[..READ_BYTES.min((end - at) as usize)];
            file.read_exact_at(some, at)
                .context(|| format!("reading a layer at {at:#x}"))?;
            digest.update(&*some);
            if let Some(whole) = &mut whole {
                whole.update(&*some);
            }
            at += some.len() as u64;
            if stop(some.len() as u64) {
                return Err(Error::new(ErrorKind::Stopped, "stopped"));
            }
        }
        each(hex(digest.finalize()));
    }
    Ok(())
}
