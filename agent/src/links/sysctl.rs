//! Files below `/proc/sys/net`, which shows the network namespace of who reads it.

use std::{fs, io, path::Path};

use super::{LinkError, LinkResult};

const ROOT: &str = "/proc/sys/net";

/// What a file holds, without the line's end.
pub fn read(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new(ROOT).join(name))?
        .trim_end()
        .to_owned())
}

/// Writes a value if it is another one; true when it was.
pub fn set(name: &str, value: &str) -> LinkResult<bool> {
    let doing = || format!("setting {ROOT}/{name} to {value}");
    if read(name).map_err(|error| LinkError::io(doing(), error))? == value {
        return Ok(false);
    }
    fs::write(Path::new(ROOT).join(name), value).map_err(|error| LinkError::io(doing(), error))?;
    Ok(true)
}

/// Whether this kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").exists()
}
