//! One file of a stream: its length and digest, checked on its way to the disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    error::{ApiError, ApiResult, Reason},
    ids::hex,
};

/// A file as the caller declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredFile {
    pub length_bytes: u64,
    /// Hexadecimal; empty when the caller gives none.
    pub sha256: String,
}

/// Checks a declared length.
pub fn check_length(length_bytes: u64, most: u64, field: &str) -> ApiResult<()> {
    if length_bytes == 0 {
        return Err(ApiError::field(
            Reason::MissingParameter,
            field,
            "say how long the file is; it has at least one byte",
        ));
    }
    if length_bytes > most {
        return Err(ApiError::invalid(
            field,
            format!("at most {most} bytes, not {length_bytes}"),
        ));
    }
    Ok(())
}

/// Checks the form of a digest.
pub fn check_sha256(sha256: &str, field: &str) -> ApiResult<()> {
    let hexadecimal = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    if sha256.is_empty() || hexadecimal {
        return Ok(());
    }
    Err(ApiError::invalid(
        field,
        "a SHA-256 has 64 hexadecimal digits",
    ))
}

/// The digest that a file must have, if the caller gave one.
pub fn wanted_sha256(sha256: &str) -> Option<String> {
    (!sha256.is_empty()).then(|| sha256.to_ascii_lowercase())
}

/// A file without a place yet; removed when dropped.
#[derive(Debug)]
pub struct Received {
    path: PathBuf,
    /// Digest of its bytes.
    pub sha256: String,
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "removing");
        }
    }
}

impl Received {
    /// A file that is there already, durable, and from now on this one's to remove.
    pub fn adopt(path: PathBuf) -> io::Result<Self> {
        let mut received = Self {
            path,
            sha256: String::new(),
        };
        let mut hasher = Sha256::new();
        let mut file = File::open(&received.path)?;
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        received.sha256 = hex(&hasher.finalize());
        Ok(received)
    }

    /// Where it lies for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, which is its digest, in `dir`; durable when this returns.
    pub fn keep(self, dir: &Path) -> io::Result<()> {
        let target = dir.join(&self.sha256);
        fs::rename(&self.path, &target)?;
        File::open(dir)?.sync_all()
    }
}

/// Reads a file from `source` to `path`. Durable, and of the declared length and digest, when
/// this returns `Ok`; gone when it does not.
pub fn receive(
    source: &mut dyn Read,
    declared: &DeclaredFile,
    path: PathBuf,
    field: &str,
) -> ApiResult<Received> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApiError::new(
            Reason::InsufficientVolumeCapacity,
            format!("the host's disk has no room for {field}"),
        ),
        _ => ApiError::internal("receiving a file", error),
    };
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    // From here on the file goes when this returns early.
    let mut received = Received {
        path,
        sha256: String::new(),
    };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 256 << 10];
    let mut left = declared.length_bytes;
    while left > 0 {
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = source.read(&mut buffer[..most]).map_err(failed)?;
        if count == 0 {
            return Err(ApiError::field(
                Reason::IncompleteBody,
                field,
                format!("{left} of {} bytes are missing", declared.length_bytes),
            ));
        }
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(failed)?;
        left -= count as u64;
    }
    file.sync_all().map_err(failed)?;
    received.sha256 = hex(&hasher.finalize());
    match wanted_sha256(&declared.sha256) {
        Some(wanted) if wanted != received.sha256 => Err(ApiError::invalid(
            format!("{field}.sha256"),
            format!("the bytes that came have the digest {}", received.sha256),
        )
        .with("kind", "DigestMismatch")),
        _ => Ok(received),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(length_bytes: u64, sha256: &str) -> DeclaredFile {
        DeclaredFile {
            length_bytes,
            sha256: sha256.to_owned(),
        }
    }

    #[test]
    fn a_good_file_is_kept_under_its_digest() {
        let dir = tempfile::tempdir().expect("tempdir");
        // SHA-256 of "abc", FIPS 180-2 appendix B.1.
        let digest = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        let path = dir.path().join("tmp");
        let mut source = &b"abcdef"[..];
        let file = receive(&mut source, &declared(3, digest), path, "header.kernel").expect("good");
        assert_eq!(source, b"def");
        file.keep(dir.path()).expect("keep");
        let kept = fs::read(dir.path().join(digest.to_ascii_lowercase())).expect("kept");
        assert_eq!(kept, b"abc");
    }

    #[test]
    fn a_bad_file_leaves_nothing_and_names_its_field() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (declared, field) in [
            (declared(3, &"0".repeat(64)), "header.kernel.sha256"),
            (declared(4, ""), "header.kernel"),
        ] {
            let path = dir.path().join("tmp");
            let error =
                receive(&mut &b"abc"[..], &declared, path, "header.kernel").expect_err("bad");
            assert_eq!(error.fields(), [field]);
            assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 0);
        }
    }

    #[test]
    fn lengths_and_digests_have_limits() {
        check_length(5, 5, "f").expect("fits");
        assert!(check_length(0, 5, "f").is_err());
        assert!(check_length(6, 5, "f").is_err());
        check_sha256("", "f").expect("none");
        assert!(check_sha256("abc", "f").is_err());
        assert!(check_sha256(&"g".repeat(64), "f").is_err());
    }
}
