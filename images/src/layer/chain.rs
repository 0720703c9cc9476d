//! From a layer to its oldest ancestor.
//!
//! No library follows a file name here: the parent's name is read from the header, must have the
//! exact form of a layer file of this store, and is opened by us.

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::layer::CLUSTER_BITS;
use crate::layer::header::{Header, INCOMPATIBLE_DIRTY};
use std::fs::File;
use std::io;
use std::path::Path;

/// The longest chain, in layers.
pub(crate) const MAX_CHAIN_LENGTH: usize = 64;

/// One layer of a chain, its file open for reading.
#[derive(Debug)]
pub(crate) struct Link {
    pub id: LayerId,
    pub file: File,
    pub header: Header,
    pub parent: Option<LayerId>,
}

/// Opens a layer file and judges its header by the rules for our own files.
pub(crate) fn open_link(layers_dir: &Path, id: LayerId) -> Result<Link> {
    let file =
        File::open(layers_dir.join(id.file_name())).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                Error::new(ErrorKind::Corrupt, format!("layer {id} is missing"))
            }
            _ => Error::io(format!("opening layer {id}"), source),
        })?;
    link_of(id, file)
}

/// Judges the header of an open layer file.
pub(crate) fn link_of(id: LayerId, file: File) -> Result<Link> {
    let header = Header::read(&file)?;
    let parent = own_parent(&id, &header)?;
    Ok(Link {
        id,
        file,
        header,
        parent,
    })
}

/// The parent that a layer of ours names.
fn own_parent(id: &LayerId, header: &Header) -> Result<Option<LayerId>> {
    let corrupt = |what: &str| {
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("layer {id}: {what}"),
        ))
    };
    if header.incompatible_features & !INCOMPATIBLE_DIRTY != 0
        || header.version != 3
        || header.encrypted
        || header.data_file
        || header.snapshots != 0
        || header.cluster_bits != CLUSTER_BITS
        || header.refcount_order != 4
    {
        return corrupt("not a layer that this store made");
    }
    let Some(name) = &header.backing_file else {
        return Ok(None);
    };
    if header.backing_format.as_deref() != Some(b"qcow2") {
        return corrupt("the backing file's format is not qcow2");
    }
    match std::str::from_utf8(name)
        .ok()
        .and_then(LayerId::parse_file_name)
    {
        Some(parent) => Ok(Some(parent)),
        None => Err(Error::new(
            ErrorKind::UnsafeReference,
            format!(
                "layer {id} names the backing file {:?}, which is no layer of this store",
                String::from_utf8_lossy(name)
            ),
        )),
    }
}

/// All ancestors of `top`, nearest first, `top` not included.
pub(crate) fn ancestors(layers_dir: &Path, top: &Link) -> Result<Vec<Link>> {
    let mut links: Vec<Link> = Vec::new();
    let mut next = top.parent.clone();
    while let Some(id) = next {
        if id == top.id || links.iter().any(|link| link.id == id) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the chain of layer {} comes back to layer {id}", top.id),
            ));
        }
        if links.len() + 1 >= MAX_CHAIN_LENGTH {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the chain of layer {} has more than {MAX_CHAIN_LENGTH} layers",
                    top.id
                ),
            ));
        }
        let link = open_link(layers_dir, id)?;
        if link.header.is_dirty() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the sealed layer {} was not closed cleanly", link.id),
            ));
        }
        next = link.parent.clone();
        links.push(link);
    }
    Ok(links)
}

/// An imago storage object on the same open file.
pub(crate) fn imago_storage(file: &File) -> Result<imago::file::File> {
    file.try_clone()
        .and_then(imago::file::File::try_from)
        .context(|| "handing a layer to the qcow2 library".into())
}
