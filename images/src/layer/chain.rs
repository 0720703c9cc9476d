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

/// How often a chain is read anew when a layer is missing.
const ATTEMPTS: u32 = 16;

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
    match open_file(layers_dir, &id)? {
        Some(file) => link_of(id, file),
        None => Err(missing_layer(&id)),
    }
}

/// Opens a layer file; `None` if there is none.
fn open_file(layers_dir: &Path, id: &LayerId) -> Result<Option<File>> {
    match File::open(layers_dir.join(id.file_name())) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("opening layer {id}"), error)),
    }
}

fn missing_layer(id: &LayerId) -> Error {
    Error::new(ErrorKind::Corrupt, format!("layer {id} is missing"))
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
///
/// A merge may rename a file over a layer whose parent it then removes. Who has opened the old
/// file looks for that parent in vain, and finds the new file at the next attempt.
pub(crate) fn ancestors(layers_dir: &Path, top: &Link) -> Result<Vec<Link>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match try_ancestors(layers_dir, top)? {
            Ok(links) => return Ok(links),
            Err(_) if attempt < ATTEMPTS => (),
            Err(missing) => return Err(missing_layer(&missing)),
        }
    }
}

/// The ancestors, or the id of one that is missing.
fn try_ancestors(layers_dir: &Path, top: &Link) -> Result<Result<Vec<Link>, LayerId>> {
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
        let Some(file) = open_file(layers_dir, &id)? else {
            return Ok(Err(id));
        };
        let link = link_of(id, file)?;
        next = link.parent.clone();
        links.push(link);
    }
    Ok(Ok(links))
}

/// An imago storage object on the same open file.
pub(crate) fn imago_storage(file: &File) -> Result<imago::file::File> {
    file.try_clone()
        .and_then(imago::file::File::try_from)
        .context(|| "handing a layer to the qcow2 library".into())
}
