//! One ext2, ext3 or ext4 file system, read with `ext4-view` and with limits.
//!
//! The library trusts a size that the file system claims: it allocates a symbolic link's or the
//! group table's whole claimed length. So what would be large is looked at first, here, and every
//! path is walked component by component. It reads a journal that was not replayed yet.

use super::error::FileError;
use super::read::Window;
use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata};
use std::error::Error as StdError;
use std::io::{self, Write};

/// Offset of the superblock, in bytes.
const SUPERBLOCK: u64 = 1024;

/// Most that is read of one file system, in bytes: ends loops in broken ones.
const MAX_READ: u64 = 4 << 30;

/// Most groups of blocks: those of 128 TiB.
const MAX_GROUPS: u64 = 1 << 20;

/// Largest directory, in bytes, and most names that are listed of one.
const MAX_DIRECTORY: u64 = 16 << 20;
const MAX_NAMES: usize = 10_000;

/// Longest target of a symbolic link, most links that are followed, and most components that a
/// path may come to: as Linux has it.
const MAX_TARGET: u64 = 4095;
const MAX_LINKS: usize = 40;
const MAX_COMPONENTS: usize = 1000;

/// How much of a file is in memory at a time, in bytes.
const PIECE: usize = 256 << 10;

/// An open file system.
pub(super) struct FileSystem {
    ext4: Ext4,
}

/// A file or directory by its real name: no link is in its path.
pub(super) struct Found {
    pub path: String,
    metadata: Metadata,
}

struct Reader {
    window: Window,
    left: u64,
}

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        self.left = self
            .left
            .checked_sub(buffer.len() as u64)
            .ok_or("it makes its reader read without end")?;
        Ok(self.window.read(buffer, start)?)
    }
}

impl FileSystem {
    /// Opens the file system of a partition; `None` if it is another one, or none.
    pub fn open(window: &Window) -> Result<Option<FileSystem>, FileError> {
        let mut superblock = [0; 1024];
        if window.length() < SUPERBLOCK + superblock.len() as u64 {
            return Ok(None);
        }
        window
            .read(&mut superblock, SUPERBLOCK)
            .map_err(FileError::Disk)?;
        if superblock[0x38..0x3a] != [0x53, 0xef] {
            return Ok(None);
        }
        check_superblock(&superblock, window.length())?;
        let reader = Reader {
            window: window.clone(),
            left: MAX_READ,
        };
        let ext4 = Ext4::load(Box::new(reader)).map_err(|error| broken("/", error))?;
        Ok(Some(FileSystem { ext4 }))
    }

    /// Its UUID, as `root=UUID=` has it.
    pub fn uuid(&self) -> String {
        self.ext4.uuid().to_string()
    }

    /// Its label; empty if it has none.
    pub fn label(&self) -> String {
        self.ext4.label().to_str().unwrap_or_default().to_owned()
    }

    /// Follows `path` from the root of this file system, links included; `None` if nothing is
    /// there.
    pub fn find(&self, path: &str) -> Result<Option<Found>, FileError> {
        let mut rest: Vec<String> = components(path);
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            // What was walked already is short and has no links: looking again is cheap.
            let parent = joined(&done);
            match self.status(&parent)? {
                Some(metadata) if metadata.is_dir() => check_directory(&parent, &metadata)?,
                _ => return Ok(None),
            }
            done.push(name);
            let path = joined(&done);
            let Some(metadata) = self.status(&path)? else {
                return Ok(None);
            };
            if metadata.is_symlink() {
                links += 1;
                let target = self.target(&path, &metadata)?;
                if target.starts_with('/') {
                    done.clear();
                } else {
                    done.pop();
                }
                rest.extend(components(&target));
                if links > MAX_LINKS || rest.len() > MAX_COMPONENTS {
                    return Err(FileError::Broken {
                        path,
                        what: "too many symbolic links".to_owned(),
                    });
                }
            }
        }
        let path = joined(&done);
        match self.status(&path)? {
            Some(metadata) => Ok(Some(Found { path, metadata })),
            None => Ok(None),
        }
    }

    /// A regular file; `None` if nothing is there, or something else.
    pub fn file(&self, path: &str) -> Result<Option<Found>, FileError> {
        let found = self.find(path)?;
        Ok(found.filter(|found| found.metadata.file_type() == FileType::Regular))
    }

    /// Whether a directory is there.
    pub fn is_directory(&self, path: &str) -> Result<bool, FileError> {
        Ok(self
            .find(path)?
            .is_some_and(|found| found.metadata.is_dir()))
    }

    /// The names in a directory, sorted; none if there is no such directory.
    pub fn names(&self, path: &str) -> Result<Vec<String>, FileError> {
        let Some(found) = self.find(path)?.filter(|found| found.metadata.is_dir()) else {
            return Ok(Vec::new());
        };
        check_directory(&found.path, &found.metadata)?;
        let entries = self
            .ext4
            .read_dir(found.path.as_str())
            .map_err(|error| broken(&found.path, error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| broken(&found.path, error))?;
            // A name that is not UTF-8 is none of those that are looked for.
            if let Ok(name) = entry.file_name().as_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
            if names.len() > MAX_NAMES {
                return Err(FileError::TooLarge {
                    path: found.path,
                    unit: "names",
                    most: MAX_NAMES as u64,
                });
            }
        }
        names.sort();
        Ok(names)
    }

    /// A text file of at most `most` bytes; `None` if there is none. What is not UTF-8 in it is
    /// replaced.
    pub fn text(&self, path: &str, most: u64) -> Result<Option<String>, FileError> {
        let Some(found) = self.file(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        self.copy(&found, most, &mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Copies a regular file of at most `most` bytes; gives its length.
    pub fn copy(&self, found: &Found, most: u64, to: &mut dyn Write) -> Result<u64, FileError> {
        let length = found.metadata.len();
        if length > most {
            return Err(FileError::TooLarge {
                path: found.path.clone(),
                unit: "bytes",
                most,
            });
        }
        let mut file = self
            .ext4
            .open(found.path.as_str())
            .map_err(|error| broken(&found.path, error))?;
        let mut piece = vec![0; PIECE];
        let (mut copied, mut filled) = (0, 0);
        // The library gives a block at a time; larger writes are cheaper.
        while copied < length {
            let count = file
                .read_bytes(&mut piece[filled..])
                .map_err(|error| broken(&found.path, error))?;
            if count == 0 {
                break;
            }
            filled += count;
            copied += count as u64;
            if filled == piece.len() || copied >= length {
                to.write_all(&piece[..filled]).map_err(FileError::Output)?;
                filled = 0;
            }
        }
        if copied != length {
            return Err(FileError::Broken {
                path: found.path.clone(),
                what: format!("it ends after {copied} of {length} bytes"),
            });
        }
        Ok(length)
    }

    /// Metadata of a path without links in it; of a link, its own.
    fn status(&self, path: &str) -> Result<Option<Metadata>, FileError> {
        match self.ext4.symlink_metadata(path) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::PathTooLong) => {
                Ok(None)
            }
            Err(error) => Err(broken(path, error)),
        }
    }

    fn target(&self, path: &str, metadata: &Metadata) -> Result<String, FileError> {
        if metadata.len() > MAX_TARGET {
            return Err(FileError::TooLarge {
                path: path.to_owned(),
                unit: "bytes",
                most: MAX_TARGET,
            });
        }
        let target = self
            .ext4
            .read_link(path)
            .map_err(|error| broken(path, error))?;
        target
            .to_str()
            .map(str::to_owned)
            .map_err(|_| FileError::Broken {
                path: path.to_owned(),
                what: "the link's target is not UTF-8".to_owned(),
            })
    }
}

/// Refuses a superblock that would make the library allocate or read without measure; the rest it
/// judges itself. Offsets: Documentation/filesystems/ext4/super.rst.
fn check_superblock(superblock: &[u8; 1024], length: u64) -> Result<(), FileError> {
    let refuse = |what: &str| {
        Err(FileError::Broken {
            path: "/".to_owned(),
            what: what.to_owned(),
        })
    };
    let u16_at = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let log_block_size = u32_at(0x18);
    // 64 KiB is the most that ext4 has.
    if log_block_size > 6 {
        return refuse("its blocks are too large");
    }
    let block_bytes = 1024u64 << log_block_size;
    let blocks = u64::from(u32_at(0x4)) | u64::from(u32_at(0x150)) << 32;
    if blocks
        .checked_mul(block_bytes)
        .is_none_or(|bytes| bytes > length)
    {
        return refuse("it is larger than its partition");
    }
    let blocks_per_group = u64::from(u32_at(0x20));
    if blocks_per_group < 256 || blocks.div_ceil(blocks_per_group) > MAX_GROUPS {
        return refuse("it has too many groups of blocks");
    }
    if u16_at(0xfe) > 1024 {
        return refuse("its group descriptors are too large");
    }
    if !(128..=1024 << log_block_size).contains(&u32::from(u16_at(0x58))) {
        return refuse("its inodes have no possible size");
    }
    Ok(())
}

fn check_directory(path: &str, metadata: &Metadata) -> Result<(), FileError> {
    if metadata.len() > MAX_DIRECTORY {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            unit: "bytes",
            most: MAX_DIRECTORY,
        });
    }
    Ok(())
}

/// A path's components, last first; `.` left out.
fn components(path: &str) -> Vec<String> {
    path.split('/')
        .rev()
        .filter(|name| !name.is_empty() && *name != ".")
        .map(str::to_owned)
        .collect()
}

fn joined(components: &[String]) -> String {
    format!("/{}", components.join("/"))
}

fn broken(path: &str, error: Ext4Error) -> FileError {
    match error {
        Ext4Error::Io(source) => match source.downcast::<io::Error>() {
            Ok(source) if source.kind() != io::ErrorKind::UnexpectedEof => FileError::Disk(*source),
            Ok(source) => FileError::Broken {
                path: path.to_owned(),
                what: source.to_string(),
            },
            Err(source) => FileError::Broken {
                path: path.to_owned(),
                what: source.to_string(),
            },
        },
        error => FileError::Broken {
            path: path.to_owned(),
            what: error.to_string(),
        },
    }
}
