//! The sets that packets fill.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::{
    NFTABLES, NetlinkError, Socket,
    attributes::{Writer, find},
    nft, read,
};
use crate::firewall::{
    Counter,
    flows::window_of,
    table::{Family, TABLE},
};

/// The windows of which the kernel has sets.
///
/// # Errors
/// [`NetlinkError`].
pub fn windows(socket: &mut Socket, family: Family) -> Result<BTreeSet<u64>, NetlinkError> {
    let mut table = Writer::new();
    table.string(1, TABLE);
    let kind = NFTABLES << 8 | nft::GETSET;
    let sets = match socket.dump(kind, family.number(), &table.into_bytes()) {
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(BTreeSet::new()),
        sets => sets?,
    };
    let ours = sets
        .iter()
        .filter(|set| find(set.attributes(), 1).is_some_and(|it| it.string() == TABLE));
    let names = ours.filter_map(|set| find(set.attributes(), 2));
    Ok(names.filter_map(|name| window_of(name.string())).collect())
}

/// Keys and counts of a set; nothing of one that is not there.
///
/// # Errors
/// [`NetlinkError`].
pub fn read(
    socket: &mut Socket,
    family: Family,
    set: &str,
) -> Result<Vec<(Vec<u8>, Counter)>, NetlinkError> {
    let mut all = Vec::new();
    let read = read::elements(socket, family, set, |key, _, counter| {
        all.push((key.first.clone(), counter));
    });
    match read {
        Ok(_) => Ok(all),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
