//! The comment of our tables, which says who made them.

use rustix::io::Errno;

use super::{
    NFTABLES, NetlinkError, Socket,
    attributes::{Writer, find},
    nft,
    read::said,
};
use crate::firewall::table::{Family, TABLE};

/// `NFTA_TABLE_USERDATA`
pub const USERDATA: u16 = 6;

/// The comment of our table in `family`, empty if it has none; `None` if there is no table.
///
/// # Errors
/// [`NetlinkError`].
pub fn mark(socket: &mut Socket, family: Family) -> Result<Option<String>, NetlinkError> {
    let mut name = Writer::new();
    name.string(1, TABLE);
    let kind = NFTABLES << 8 | nft::GETTABLE;
    let table = match socket.ask(kind, 0, family.number(), &name.into_bytes()) {
        Ok(table) => table,
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let comment = table.and_then(|it| {
        let data = find(it.attributes(), USERDATA)?;
        Some(said(data.value).to_owned())
    });
    Ok(Some(comment.unwrap_or_default()))
}
