//! What tests of snapshots have in common.

use anyhow::{Context, Result};
use hearth_proto::v1::{
    CreateSnapshotRequest, CreateVolumeRequest, DescribeSnapshotsRequest, DiskFormat,
    GetSnapshotBlockRequest, ImportVolumeHeader, Snapshot,
};

use crate::{Hearth, probe::pattern, volume_stream};

/// Size of a block, in bytes.
pub const BLOCK: usize = 512 << 10;

/// What a disk holds at `offset` where a probe wrote the pattern of this seed.
pub fn pattern_at(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    pattern::fill(seed, offset, &mut bytes);
    bytes
}

impl Hearth {
    /// Imports a volume of so many blocks that hold the pattern of this seed; gives its id.
    pub async fn volume_with(&self, seed: u64, blocks: usize) -> Result<String> {
        let bytes = pattern_at(seed, 0, blocks * BLOCK);
        let header = ImportVolumeHeader {
            format: DiskFormat::Raw.into(),
            length_bytes: bytes.len() as u64,
            ..Default::default()
        };
        let stream = tokio_stream::iter(volume_stream(header, &bytes));
        let answer = self.volumes().import_volume(stream).await?.into_inner();
        Ok(answer.volume.context("no volume")?.volume_id)
    }

    /// Takes a snapshot of a volume.
    pub async fn snapshot_of(&self, volume_id: &str) -> Result<Snapshot> {
        let request = CreateSnapshotRequest {
            volume_id: volume_id.to_owned(),
            ..Default::default()
        };
        let answer = self.snapshots().create_snapshot(request).await?;
        answer.into_inner().snapshot.context("no snapshot")
    }

    /// Makes a volume from a snapshot; gives its id.
    pub async fn volume_from(&self, snapshot_id: &str) -> Result<String> {
        let request = CreateVolumeRequest {
            snapshot_id: snapshot_id.to_owned(),
            ..Default::default()
        };
        let answer = self.volumes().create_volume(request).await?.into_inner();
        Ok(answer.volume.context("no volume")?.volume_id)
    }

    /// All snapshots of the local account.
    pub async fn all_snapshots(&self) -> Result<Vec<Snapshot>> {
        let all = DescribeSnapshotsRequest::default();
        let answer = self.snapshots().describe_snapshots(all).await?;
        Ok(answer.into_inner().snapshots)
    }

    /// The contents of one block of a snapshot, and its SHA-256.
    pub async fn block_of(&self, snapshot_id: &str, index: u64) -> Result<(Vec<u8>, String)> {
        let request = GetSnapshotBlockRequest {
            snapshot_id: snapshot_id.to_owned(),
            block_indexes: vec![index],
        };
        let answer = self.snapshots().get_snapshot_block(request).await?;
        let block = answer.into_inner().message().await?.context("no block")?;
        Ok((block.data, block.sha256))
    }
}
