//! The runs of a disk, from its start to its end.

use super::{MAX_PIECE_BYTES, MAX_ZEROES};
use crate::error::Result;
use crate::layer::CLUSTER_BYTES;
use crate::mapping::{ChainMap, SPAN_CLUSTERS, Target};

/// Clusters of one piece of data.
const MAX_DATA_CLUSTERS: usize = MAX_PIECE_BYTES / CLUSTER_BYTES as usize;

/// Clusters that are alike, one after the other.
pub(super) enum Run {
    /// So many clusters that read as zeroes.
    Zeroes(u64),
    /// Clusters with data, read whole; what lies behind the end of the disk is zero.
    Data(Vec<u8>),
}

/// Walks a disk in order.
#[derive(Debug)]
pub(super) struct Walk {
    map: ChainMap,
    /// Next cluster of the disk.
    next: u64,
    end: u64,
    /// The span of `next`, once it is needed.
    span: Option<(u64, Option<Vec<Target>>)>,
}

impl Walk {
    pub fn new(map: ChainMap) -> Self {
        Walk {
            end: map.size().div_ceil(CLUSTER_BYTES),
            map,
            next: 0,
            span: None,
        }
    }

    pub fn map(&self) -> &ChainMap {
        &self.map
    }

    /// The next run; `None` at the end of the disk.
    pub fn next_run(&mut self) -> Result<Option<Run>> {
        let mut zeroes = 0;
        while self.next < self.end && zeroes < MAX_ZEROES / CLUSTER_BYTES {
            let span = self.next / SPAN_CLUSTERS;
            if self.span.as_ref().is_none_or(|(at, _)| *at != span) {
                self.span = Some((span, self.map.resolve(span)?));
            }
            let in_span = (self.next % SPAN_CLUSTERS) as usize;
            let targets = self.span.as_ref().and_then(|(_, span)| span.as_deref());
            let Some(rest) = targets.and_then(|targets| targets.get(in_span..)) else {
                let left = ((span + 1) * SPAN_CLUSTERS).min(self.end) - self.next;
                let some = left.min(MAX_ZEROES / CLUSTER_BYTES - zeroes);
                zeroes += some;
                self.next += some;
                continue;
            };
            let is_data = |target: &&Target| **target != Target::Zeroes;
            if zeroes == 0 && rest.first().as_ref().is_some_and(is_data) {
                let run = rest.iter().take(MAX_DATA_CLUSTERS).take_while(is_data);
                let clusters: Vec<Target> = run.copied().collect();
                let mut data = vec![0; clusters.len() * CLUSTER_BYTES as usize];
                let buffers = data.chunks_mut(CLUSTER_BYTES as usize);
                for (target, buffer) in clusters.iter().zip(buffers) {
                    self.map.read_cluster(*target, buffer)?;
                }
                self.next += clusters.len() as u64;
                return Ok(Some(Run::Data(data)));
            }
            let some = rest
                .iter()
                .take((MAX_ZEROES / CLUSTER_BYTES - zeroes) as usize)
                .take_while(|target| !is_data(target))
                .count() as u64;
            if some == 0 {
                break;
            }
            zeroes += some;
            self.next += some;
        }
        Ok((zeroes > 0).then_some(Run::Zeroes(zeroes)))
    }
}
