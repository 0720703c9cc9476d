//! Raw: the bytes of the disk, what reads as zeroes as holes.

use super::Piece;
use super::walk::{Run, Walk};
use crate::error::Result;
use crate::layer::CLUSTER_BYTES;
use crate::mapping::ChainMap;

#[derive(Debug)]
pub(super) struct Raw {
    walk: Walk,
    /// Bytes of the disk that were not given out yet.
    left: u64,
}

impl Raw {
    pub fn new(map: ChainMap) -> Self {
        Raw {
            left: map.size(),
            walk: Walk::new(map),
        }
    }

    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        // The disk may end inside of its last cluster.
        let piece = match self.walk.next_run()? {
            None => return Ok(None),
            Some(Run::Zeroes(clusters)) => Piece::Zeroes((clusters * CLUSTER_BYTES).min(self.left)),
            Some(Run::Data(mut data)) => {
                data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                Piece::Data(data)
            }
        };
        self.left -= piece.len();
        Ok(Some(piece))
    }
}
