//! The machine's disks, by serial: what the control socket reaches while the guest runs.
//!
//! A disk has two sides. The guest's is the virtio device in its slot; this one has the volume
//! behind it and a [`BlockControl`], by which the device learns what the host has changed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hearth_images::{Disk, VolumeId};

use crate::control::DiskCredits;
use crate::devices::virtio::block::BlockControl;
use crate::devices::virtio::block::throttle::limits::{DiskLimits, MachineLimits};
use crate::devices::virtio::block::throttle::{DiskThrottle, MachineThrottle};

/// One disk of a machine.
pub struct MachineDisk {
    /// [`DiskConfig::serial`](crate::config::DiskConfig::serial); no two disks share one that is
    /// asked for by it.
    pub serial: String,
    /// The directory of the volume store.
    pub store: PathBuf,
    /// The volume of that store.
    pub volume: VolumeId,
    /// The volume, open for as long as the device is there.
    pub disk: Arc<Disk>,
    /// The device.
    pub device: BlockControl,
    /// What holds it to its limits.
    pub throttle: Arc<DiskThrottle>,
}

impl MachineDisk {
    /// The burst credits now.
    pub fn credits(&self) -> DiskCredits {
        let (operations, bytes) = self.throttle.credits();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        DiskCredits {
            serial: self.serial.clone(),
            operations,
            bytes,
            unix_ms: since_1970.map_or(0, |time| time.as_millis() as i64),
        }
    }
}

/// All disks of a machine. Clones are the same list.
#[derive(Clone)]
pub struct Disks {
    list: Arc<Mutex<Vec<Arc<MachineDisk>>>>,
    throttle: Arc<MachineThrottle>,
}

impl Disks {
    /// None yet; all that come are together held to `limits`.
    pub fn new(limits: &MachineLimits) -> Self {
        Self {
            list: Arc::default(),
            throttle: MachineThrottle::new(limits),
        }
    }

    /// What holds a disk that is about to be entered to `limits`, and to those of the machine.
    pub fn throttle(&self, limits: &DiskLimits) -> Arc<DiskThrottle> {
        self.throttle.add_disk(limits)
    }

    /// The credits of all disks that have some.
    pub fn credits(&self) -> Vec<DiskCredits> {
        let all = self.all();
        let credits = all.iter().map(|disk| disk.credits());
        credits
            .filter(|credits| credits.operations.is_some() || credits.bytes.is_some())
            .collect()
    }

    /// Enters a disk.
    pub fn insert(&self, disk: MachineDisk) {
        self.lock().push(Arc::new(disk));
    }

    /// The disk of this serial, if there is exactly one: serials are not checked to differ, and
    /// a guess could be the wrong disk.
    pub fn get(&self, serial: &str) -> Option<Arc<MachineDisk>> {
        let disks = self.lock();
        let mut found = disks.iter().filter(|disk| disk.serial == serial);
        match (found.next(), found.next()) {
            (Some(disk), None) => Some(Arc::clone(disk)),
            _ => None,
        }
    }

    /// Forgets the disk of this serial, and returns it.
    pub fn remove(&self, serial: &str) -> Option<Arc<MachineDisk>> {
        let mut disks = self.lock();
        let index = disks.iter().position(|disk| disk.serial == serial)?;
        Some(disks.remove(index))
    }

    /// All of them, in the order in which they were entered.
    pub fn all(&self) -> Vec<Arc<MachineDisk>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<MachineDisk>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
