//! Snapshots of volumes that guests work on, and larger ones. What happens inside of one disk,
//! and what a crash leaves, is told in `disk::live`.

use super::super::layout::{Record, TempFile, record_name};
use super::super::lock::{Locked, Mode};
use super::super::{SnapshotInfo, Store, VolumeInfo};
use super::refuse_twice;
use crate::disk::Disk;
use crate::disk::live::{NextTop, Settling};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::layer::create::check_size;
use std::fs::OpenOptions;
use std::time::{Duration, Instant};

/// What [`Store::snapshot_disks`] has done.
#[derive(Clone, Debug)]
pub struct DiskSnapshots {
    /// In the order in which they were asked for.
    pub snapshots: Vec<SnapshotInfo>,
    /// How long requests of the guest had to wait: from before the first disk was held until all
    /// were let go.
    pub pause: Duration,
}

/// A disk, and what it is to be switched to.
struct Live<'a> {
    volume: &'a VolumeId,
    snapshot: &'a SnapshotId,
    disk: &'a Disk,
    /// The top so far, which the snapshot will name.
    layer: LayerId,
    next: NextTop,
    /// The record that will name `next`.
    record: TempFile,
}

/// The moment of the snapshots, when it is over.
struct Moment<'a> {
    switched: Vec<Switched<'a>>,
    /// Whether all were switched.
    outcome: Result<()>,
    pause: Duration,
}

/// What is left of a switch.
struct Switched<'a> {
    snapshot: &'a SnapshotId,
    layer: LayerId,
    settling: Settling<'a>,
}

impl Store {
    /// Takes snapshots of volumes that this process has open for writing, all at one point in
    /// time, while requests go on; they wait for a moment, see [`DiskSnapshots::pause`]. The
    /// cost does not depend on what the volumes hold.
    ///
    /// After an error there is none of the snapshots, and the same ids may be tried again; a
    /// volume may have one layer more then. The disks are usable in any case.
    pub fn snapshot_disks(
        &self,
        wanted: &[(&Disk, &VolumeId, &SnapshotId)],
    ) -> Result<DiskSnapshots> {
        let names: Vec<_> = wanted
            .iter()
            .map(|(_, volume, id)| (*volume, *id))
            .collect();
        refuse_twice(&names)?;
        // One order for all callers, so that two of them never wait for each other.
        let mut wanted = wanted.to_vec();
        wanted.sort_by_key(|(_, volume, _)| *volume);
        for (disk, volume, _) in &wanted {
            disk.check_may_change()?;
            // Most of what is to be written back goes to the disk now, while nobody waits.
            disk.flush()
                .context(|| format!("flushing volume {volume}"))?;
        }

        let names_lock = self.layout.lock_names()?;
        let moment = self.prepare(&wanted).and_then(|live| self.switch(live));
        if !matches!(
            &moment,
            Ok(Moment {
                outcome: Ok(()),
                ..
            })
        ) {
            self.remove_unreachable();
        }
        drop(names_lock);
        let Moment {
            switched,
            outcome,
            pause,
        } = moment?;

        // Also after an error: those that were switched must be sealed.
        let finished: Vec<_> = switched.into_iter().map(Switched::finish).collect();
        outcome?;
        let sealed: Vec<(&SnapshotId, LayerId)> = finished.into_iter().collect::<Result<_>>()?;

        let _names_lock = self.layout.lock_names()?;
        let mut layers = Vec::with_capacity(sealed.len());
        for (_, id) in names {
            self.refuse_existing_snapshot(id)?;
            let of_id = sealed.iter().find(|(snapshot, _)| *snapshot == id);
            layers.extend(of_id.map(|(_, layer)| (id, layer)));
        }
        let snapshots = self.name_snapshots(&layers)?;
        Ok(DiskSnapshots { snapshots, pause })
    }

    /// Makes everything that a switch needs. Names must be locked.
    fn prepare<'a>(
        &self,
        wanted: &[(&'a Disk, &'a VolumeId, &'a SnapshotId)],
    ) -> Result<Vec<Live<'a>>> {
        let mut live = Vec::with_capacity(wanted.len());
        for &(disk, volume, snapshot) in wanted {
            self.refuse_existing_snapshot(snapshot)?;
            let (layer, new_top) = self.prepare_top(volume)?;
            if disk.top_id()? != layer {
                return Err(Error::new(
                    ErrorKind::InvalidId,
                    format!("the disk is not the one of volume {volume}"),
                ));
            }
            live.push(Live {
                volume,
                snapshot,
                disk,
                layer,
                record: Record::new(&new_top).write_temp(&self.layout)?,
                next: NextTop::new(new_top.clone(), self.lock_new_top(&new_top)?)?,
            });
        }
        Ok(live)
    }

    /// The volume's lock is that of its top layer: we have the new one's before a record names
    /// it.
    fn lock_new_top(&self, layer: &LayerId) -> Result<Locked> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.layout.layer_path(layer))
            .context(|| format!("opening layer {layer}"))?;
        Locked::try_new(file, Mode::Exclusive, || format!("layer {layer}"))
    }

    /// The moment of the snapshots. Those volumes of which the record was renamed go on with
    /// their new layer whatever happens to the others.
    fn switch<'a>(&self, live: Vec<Live<'a>>) -> Result<Moment<'a>> {
        let pausing = || "pausing a volume".into();
        let mut settling = Vec::with_capacity(live.len());
        for one in &live {
            settling.push(one.disk.settling().context(pausing)?);
        }
        let mut switched = Vec::with_capacity(live.len());
        let mut outcome = Ok(());

        let start = Instant::now();
        let mut paused = Vec::with_capacity(live.len());
        for one in &settling {
            paused.push(one.pause().context(pausing)?);
        }
        let volumes = &self.layout.volumes;
        for ((mut one, paused), mut settling) in live.into_iter().zip(&mut paused).zip(settling) {
            if outcome.is_ok() {
                outcome = one.record.replace(volumes, &record_name(one.volume));
            }
            if outcome.is_ok() {
                settling.owe(paused.switch(one.next, volumes.clone()));
                switched.push(Switched {
                    snapshot: one.snapshot,
                    layer: one.layer,
                    settling,
                });
            }
        }
        drop(paused);
        Ok(Moment {
            switched,
            outcome,
            pause: start.elapsed(),
        })
    }

    /// Makes a volume larger that this process has open for writing. Requests of the guest wait
    /// for a few syncs. A smaller size is [`ErrorKind::InvalidSize`], the same size does nothing.
    pub fn grow_disk(&self, disk: &Disk, id: &VolumeId, new_size_bytes: u64) -> Result<VolumeInfo> {
        check_size(new_size_bytes)?;
        disk.check_may_change()?;
        let growing = || format!("growing volume {id}");
        disk.flush().context(growing)?;
        let mut settling = disk.settling().context(growing)?;
        settling.finish()?;
        let has = disk.size_bytes();
        if new_size_bytes < has {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!("{new_size_bytes} bytes are less than volume {id} has ({has})"),
            ));
        }
        if new_size_bytes > has {
            settling.pause().context(growing)?.grow(new_size_bytes)?;
        }
        drop(settling);
        self.volume(id)
    }
}

impl<'a> Switched<'a> {
    /// Returns the snapshot and the layer that it may name now.
    fn finish(mut self) -> Result<(&'a SnapshotId, LayerId)> {
        self.settling.finish()?;
        Ok((self.snapshot, self.layer))
    }
}
