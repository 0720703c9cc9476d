//! Blocks of snapshots: listed, compared, read.

use anyhow::{Result, ensure};
use hearth_proto::v1::{
    ChangedBlock, GetSnapshotBlockRequest, ListChangedBlocksRequest, ListSnapshotBlocksRequest,
};
use hearth_tests::{
    Expect, Hearth, needs_kvm,
    snapshots::{BLOCK, pattern_at},
};

use crate::{volumes_of, with_disks};

async fn changes(hearth: &Hearth, first: &str, second: &str) -> Result<Vec<ChangedBlock>> {
    let request = ListChangedBlocksRequest {
        first_snapshot_id: first.to_owned(),
        second_snapshot_id: second.to_owned(),
        starting_block_index: 0,
    };
    let answer = hearth.snapshots().list_changed_blocks(request).await?;
    let (mut parts, mut all) = (answer.into_inner(), Vec::new());
    while let Some(part) = parts.message().await? {
        ensure!(part.block_size_bytes == BLOCK as u64, "{part:?}");
        all.extend(part.blocks);
    }
    Ok(all)
}

async fn blocks(hearth: &Hearth, snapshot_id: &str, from: u64) -> Result<Vec<u64>> {
    let request = ListSnapshotBlocksRequest {
        snapshot_id: snapshot_id.to_owned(),
        starting_block_index: from,
    };
    let answer = hearth.snapshots().list_snapshot_blocks(request).await?;
    let (mut parts, mut all) = (answer.into_inner(), Vec::new());
    while let Some(part) = parts.message().await? {
        ensure!(part.size_bytes == 1 << 30, "{part:?}");
        all.extend(part.block_indexes);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_listed_compared_and_read() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(with_disks(1)).await?;
    let volume = volumes_of(&probe).await?.remove(0);
    let empty = hearth.snapshot_of(&volume).await?.snapshot_id;
    ensure!(blocks(&hearth, &empty, 0).await?.is_empty());
    // Blocks 1 to 3, and 100.
    let first = "write offset=512k length=1536k pattern=1";
    probe.expect_ok(first).await?;
    probe
        .expect_ok("write offset=50M length=512 pattern=2")
        .await?;
    probe.expect_ok("flush").await?;
    let before = hearth.snapshot_of(&volume).await?.snapshot_id;
    ensure!(blocks(&hearth, &before, 0).await? == [1, 2, 3, 100]);
    ensure!(blocks(&hearth, &before, 3).await? == [3, 100]);

    probe
        .expect_ok("write offset=1M length=4k pattern=3")
        .await?;
    probe
        .expect_ok("write offset=200M length=4k pattern=4")
        .await?;
    probe.expect_ok("flush").await?;
    let after = hearth.snapshot_of(&volume).await?.snapshot_id;
    let changed = |block_index, in_first| ChangedBlock {
        block_index,
        in_first,
        in_second: true,
    };
    let wanted = [changed(2, true), changed(400, false)];
    ensure!(changes(&hearth, &before, &after).await? == wanted);
    ensure!(changes(&hearth, &after, &after).await?.is_empty());
    let mut block = pattern_at(1, 1 << 20, BLOCK);
    block[..4096].copy_from_slice(&pattern_at(3, 1 << 20, 4096));
    ensure!(hearth.block_of(&after, 2).await?.0 == block);
    ensure!(hearth.block_of(&after, 5).await?.0 == vec![0; BLOCK]);

    let other = hearth.volume_with(1, 1).await?;
    let unrelated = hearth.snapshot_of(&other).await?.snapshot_id;
    // Of another volume: what is in one of them only, and the first block of both.
    let found = changes(&hearth, &before, &unrelated).await?;
    let found: Vec<_> = found
        .iter()
        .map(|block| (block.block_index, block.in_first, block.in_second))
        .collect();
    let gone = |index| (index, true, false);
    let wanted = [(0, false, true), gone(1), gone(2), gone(3), gone(100)];
    ensure!(found == wanted, "{found:?}");
    let mut client = hearth.snapshots();
    for (block_indexes, reason, field) in [
        (vec![], "MissingParameter", "block_indexes"),
        (vec![0; 1001], "InvalidParameterValue", "block_indexes"),
        (vec![0, 2048], "InvalidParameterValue", "block_indexes[1]"),
        (vec![u64::MAX], "InvalidParameterValue", "block_indexes[0]"),
    ] {
        let request = GetSnapshotBlockRequest {
            snapshot_id: before.clone(),
            block_indexes,
        };
        Expect::invalid(reason, field).check(client.get_snapshot_block(request).await)?;
    }
    hearth.finish().await
}
