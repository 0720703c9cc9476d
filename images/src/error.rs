//! The one error type of the crate: a small stable kind for programs, a message for people.

use crate::id::LayerId;
use std::error::Error as StdError;
use std::{fmt, io};

/// What went wrong, for callers that decide by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No volume or snapshot has this id.
    NotFound,
    /// A volume or snapshot with this id is there already.
    AlreadyExists,
    /// The volume is open elsewhere.
    InUse,
    /// An id with a character or length that is not allowed.
    InvalidId,
    /// A size of zero, above the maximum, not a multiple of 512, or smaller than what is there.
    InvalidSize,
    /// Not a disk image, or one with features that are not supported.
    InvalidFormat,
    /// An image or a store file whose contents contradict themselves.
    Corrupt,
    /// A foreign image that names another file (backing file, external data file).
    UnsafeReference,
    /// An image or stream that ends too early.
    Truncated,
    /// The SHA-256 of the input is not the expected one.
    DigestMismatch,
    /// The length of the input is not the expected one.
    LengthMismatch,
    /// Two snapshots that share no layer, where they must.
    Unrelated,
    /// A block behind the end of the disk.
    OutOfRange,
    /// The file system is full.
    NoSpace,
    /// Any other error of the operating system.
    Io,
}

/// An error of the store.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Wraps an error of the operating system; a full disk is told apart.
    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error {
            kind,
            message: context.into(),
            source: Some(Box::new(source)),
        }
    }

    /// Says which layer the error is about.
    pub(crate) fn of_layer(mut self, id: &LayerId) -> Self {
        self.message = format!("layer {id}: {}", self.message);
        self
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    // The message already holds the source's text, so that a caller which prints only the error
    // loses nothing; the source of the source goes on from there.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().and_then(|source| source.source())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
            ErrorKind::InUse => io::ErrorKind::ResourceBusy,
            ErrorKind::NoSpace => io::ErrorKind::StorageFull,
            ErrorKind::InvalidId | ErrorKind::InvalidSize | ErrorKind::OutOfRange => {
                io::ErrorKind::InvalidInput
            }
            ErrorKind::Io => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// Adds what was being done to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::io(context(), source))
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::io(context(), errno.into()))
    }
}
