//! A set of host clusters, in memory that grows with what is in it, not with what a file claims.

use std::collections::HashMap;

/// Clusters per chunk of the set.
const CHUNK_CLUSTERS: u64 = 512;

/// Chunks that are held at most, about 400 MiB: 128 TiB of 64 KiB clusters, if they are dense.
const MAX_CHUNKS: usize = 4 << 20;

/// A set of host clusters of one file.
#[derive(Debug)]
pub(crate) struct ClusterSet {
    cluster_bits: u32,
    file_clusters: u64,
    chunks: HashMap<u64, [u64; 8]>,
    len: u64,
}

/// Why a cluster was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// It is in the set already.
    Taken,
    /// Its first byte is behind the end of the file.
    OutsideFile,
    /// The set would take too much memory.
    TooMany,
}

impl ClusterSet {
    pub fn new(cluster_bits: u32, file_len: u64) -> Self {
        ClusterSet {
            cluster_bits,
            file_clusters: file_len.div_ceil(1 << cluster_bits),
            chunks: HashMap::new(),
            len: 0,
        }
    }

    /// Enters the cluster at a byte offset.
    pub fn insert_at(&mut self, offset: u64) -> Result<(), InsertError> {
        self.insert(offset >> self.cluster_bits)
    }

    /// Enters a cluster by its number.
    pub fn insert(&mut self, cluster: u64) -> Result<(), InsertError> {
        if cluster >= self.file_clusters {
            return Err(InsertError::OutsideFile);
        }
        let (chunk, word, bit) = position(cluster);
        if self.chunks.len() >= MAX_CHUNKS && !self.chunks.contains_key(&chunk) {
            return Err(InsertError::TooMany);
        }
        let words = self.chunks.entry(chunk).or_default();
        if words[word] & bit != 0 {
            return Err(InsertError::Taken);
        }
        words[word] |= bit;
        self.len += 1;
        Ok(())
    }

    pub fn contains(&self, cluster: u64) -> bool {
        let (chunk, word, bit) = position(cluster);
        self.chunks
            .get(&chunk)
            .is_some_and(|words| words[word] & bit != 0)
    }

    /// Number of clusters in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Number of clusters in the set with `first <= cluster < end`.
    pub fn count(&self, first: u64, end: u64) -> u64 {
        (first..end)
            .filter(|cluster| self.contains(*cluster))
            .count() as u64
    }

    /// One behind the last cluster of the file.
    pub fn file_clusters(&self) -> u64 {
        self.file_clusters
    }

    /// Enters a cluster that makes the file longer.
    pub fn grow_to(&mut self, clusters: u64) {
        self.file_clusters = self.file_clusters.max(clusters);
    }
}

fn position(cluster: u64) -> (u64, usize, u64) {
    let in_chunk = cluster % CHUNK_CLUSTERS;
    (
        cluster / CHUNK_CLUSTERS,
        (in_chunk / 64) as usize,
        1 << (in_chunk % 64),
    )
}
