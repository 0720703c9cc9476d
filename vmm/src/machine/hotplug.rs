//! Disks that come and go while the guest runs.
//!
//! Coming: the volume is opened, its device is put into a free slot, and the guest is told
//! ([`HotPlugRegisters`]). Going: the guest is told first, since virtio-mmio knows no removal by
//! surprise; when its driver has reset the device, the volume is flushed and closed, and the slot
//! is free. A guest that does not let go keeps the disk, or, by force, a device without one: every
//! request fails, and the slot is free once the guest lets go of that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;

use super::devices::open_disk;
use super::disks::Disks;
use super::slots::{Going, Occupant, Slot};
use super::{StartError, layout};
use crate::acpi::VirtioMmio;
use crate::acpi::hotplug::HotPlugRegisters;
use crate::bus::BusDevice;
use crate::config::{ConfigError, DiskConfig};
use crate::control::{DiskPhase, DiskStatus};
use crate::devices::virtio::errors::OnError;
use crate::memory::GuestMemory;

/// Why a disk did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum HotPlugError {
    /// The configuration asks for what can't be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Serials are how disks are told apart.
    #[error("there is a disk with the serial {0:?} already")]
    Exists(String),
    /// No disk has this serial.
    #[error("no disk with the serial {0:?}")]
    NoDisk(String),
    /// All slots are taken.
    #[error("all {} places for devices are taken", layout::VIRTIO_GSIS.len())]
    NoSlot,
    /// The volume can't be opened, or the device can't be connected.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The disk stays.
    #[error("the guest did not let go of the disk in time")]
    NotReleased,
    /// The guest has let go of the disk; it may be tried again.
    #[error("what the guest wrote could not be made durable: {0}")]
    Close(hearth_images::Error),
    /// The machine ends.
    #[error("the guest has ended")]
    Ended,
}

/// Plugs and unplugs disks. Clones are the same.
#[derive(Clone)]
pub struct HotPlug(Arc<Inner>);

pub(super) struct Inner {
    pub vm: Arc<VmFd>,
    pub memory: Arc<GuestMemory>,
    pub vcpus: u8,
    pub slots: Vec<Slot>,
    pub registers: Arc<Mutex<HotPlugRegisters>>,
    pub disks: Disks,
    pub on_disk_error: OnError,
    pub wiring: Mutex<Wiring>,
    pub ended: AtomicBool,
}

/// Held while slots are filled and emptied.
#[derive(Default)]
pub(super) struct Wiring {
    /// Slots that were emptied, the last one last: the longest unused one is taken first. Stock
    /// kernels find a disk only in a slot that had none before.
    emptied: Vec<usize>,
}

impl HotPlug {
    pub(super) fn new(inner: Inner) -> Self {
        HotPlug(Arc::new(inner))
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.0.slots
    }

    /// All slots, as the ACPI tables describe them: those of disks and free ones can be plugged.
    pub(super) fn acpi_devices(&self) -> Vec<VirtioMmio> {
        let describe = |slot: &Slot| VirtioMmio {
            base: slot.base,
            size: layout::VIRTIO_MMIO_STRIDE,
            gsi: slot.gsi,
            pluggable: (slot.lock().occupant.as_ref()).is_none_or(|o| o.serial.is_some()),
        };
        self.0.slots.iter().map(describe).collect()
    }

    /// Puts a disk into a free slot and tells the guest.
    pub fn attach(&self, disk: &DiskConfig) -> Result<(), HotPlugError> {
        disk.validate()?;
        let wiring = self.wiring()?;
        if self.find(&disk.serial).is_some() {
            return Err(HotPlugError::Exists(disk.serial.clone()));
        }
        let slot = self.free_slot(&wiring).ok_or(HotPlugError::NoSlot)?;
        let Inner { disks, memory, .. } = &*self.0;
        let block = open_disk(disk, self.0.vcpus, disks, &self.0.on_disk_error)?;
        let serial = Some(disk.serial.clone());
        if let Err(error) = slot.fill(&self.0.vm, memory, Box::new(block), serial) {
            disks.remove(&disk.serial);
            return Err(error.into());
        }
        self.set_present(slot, true);
        tracing::info!(serial = disk.serial, slot = slot.index, "disk attached");
        Ok(())
    }

    /// Asks the guest to let go of a disk and takes it out once it has; not later than after
    /// `patience`. With `force`, the volume is closed at once.
    pub fn detach(
        &self,
        serial: &str,
        force: bool,
        patience: Duration,
    ) -> Result<(), HotPlugError> {
        let slot = self
            .find(serial)
            .ok_or_else(|| HotPlugError::NoDisk(serial.to_owned()))?;
        if force {
            return self.force(slot, serial);
        }
        let deadline = Instant::now() + patience;
        let mut window = slot.lock();
        if let Some(occupant) = is_disk(&mut window.occupant, serial)
            && occupant.going == Going::Stays
        {
            occupant.going = Going::Leaving;
            self.set_present(slot, false);
        }
        loop {
            // Somebody else, waiting for the same, may have been faster.
            let Some(occupant) = is_disk(&mut window.occupant, serial) else {
                return Ok(());
            };
            match occupant.going {
                Going::Leaving if occupant.transport.is_reset() => {
                    occupant.going = Going::Closing;
                    drop(window);
                    return self.finish(slot, serial);
                }
                Going::Stays => return Err(HotPlugError::NotReleased),
                Going::Leaving | Going::Closing | Going::Gone => {}
            }
            let in_time;
            (window, in_time) = slot.wait(window, Some(deadline));
            if self.has_ended() {
                return Err(HotPlugError::Ended);
            }
            if !in_time {
                if let Some(occupant) = is_disk(&mut window.occupant, serial)
                    && occupant.going == Going::Leaving
                {
                    occupant.going = Going::Stays;
                    self.set_present(slot, true);
                    slot.notify();
                }
                return Err(HotPlugError::NotReleased);
            }
        }
    }

    /// The disks, in the order of their slots; those without a volume are left out.
    pub fn list(&self) -> Vec<DiskStatus> {
        let status = |slot: &Slot| {
            let window = slot.lock();
            let occupant = window.occupant.as_ref()?;
            let phase = match occupant.going {
                Going::Stays => DiskPhase::Attached,
                Going::Leaving | Going::Closing => DiskPhase::Detaching,
                Going::Gone => return None,
            };
            Some(DiskStatus {
                serial: occupant.serial.clone()?,
                phase,
                driver: !occupant.transport.is_reset(),
            })
        };
        self.0.slots.iter().filter_map(status).collect()
    }

    /// No vCPU runs any more: nothing comes or goes from here on, and all devices stop.
    pub(super) fn stop(&self) {
        let wiring = self.lock_wiring();
        self.0.ended.store(true, Ordering::SeqCst);
        drop(wiring);
        for slot in &self.0.slots {
            slot.stop();
        }
    }

    /// The guest's driver has let go.
    fn finish(&self, slot: &Slot, serial: &str) -> Result<(), HotPlugError> {
        let disk = self.0.disks.get(serial);
        if let Some(Err(error)) = disk.map(|disk| disk.disk.close()) {
            if let Some(occupant) = is_disk(&mut slot.lock().occupant, serial) {
                occupant.going = Going::Leaving;
            }
            slot.notify();
            return Err(HotPlugError::Close(error));
        }
        self.0.disks.remove(serial);
        self.empty(slot);
        tracing::info!(serial, slot = slot.index, "disk detached");
        Ok(())
    }

    /// The volume goes now, the device when the guest lets go of it.
    fn force(&self, slot: &Slot, serial: &str) -> Result<(), HotPlugError> {
        let mut window = slot.lock();
        loop {
            match is_disk(&mut window.occupant, serial) {
                None => return Ok(()),
                Some(occupant) if occupant.going != Going::Closing => {
                    occupant.going = Going::Gone;
                    break;
                }
                // It is about to go anyhow, or to come back to where it can be forced.
                Some(_) => (window, _) = slot.wait(window, None),
            }
        }
        self.set_present(slot, false);
        // From here on nobody finds it, and its serial is free.
        let disk = self.0.disks.remove(serial);
        drop(window);
        slot.notify();
        // What is in flight is finished; later requests fail.
        if let Some(Err(error)) = disk.map(|disk| disk.disk.close()) {
            // It stays open for as long as the device has it, so this has to go, too.
            tracing::error!(serial, %error, "detached by force, and not closed cleanly");
            self.empty(slot);
            return Ok(());
        }
        tracing::info!(serial, slot = slot.index, "disk detached by force");
        let (this, index) = (self.clone(), slot.index);
        let spawned = std::thread::Builder::new()
            .name("unplug".into())
            .spawn(move || this.empty_when_released(index));
        if let Err(error) = spawned {
            tracing::warn!(%error, slot = slot.index, "the slot stays taken");
        }
        Ok(())
    }

    fn empty_when_released(&self, index: usize) {
        let slot = &self.0.slots[index];
        let mut window = slot.lock();
        loop {
            match &window.occupant {
                Some(occupant) if occupant.going == Going::Gone => {
                    if occupant.transport.is_reset() {
                        break;
                    }
                }
                _ => return,
            }
            (window, _) = slot.wait(window, None);
            if self.has_ended() {
                return;
            }
        }
        drop(window);
        self.empty(slot);
    }

    fn empty(&self, slot: &Slot) {
        let mut wiring = self.lock_wiring();
        slot.empty(&self.0.vm);
        wiring.emptied.retain(|index| *index != slot.index);
        wiring.emptied.push(slot.index);
    }

    fn free_slot(&self, wiring: &Wiring) -> Option<&Slot> {
        let used = |slot: &&Slot| wiring.emptied.iter().position(|index| *index == slot.index);
        let free = self.0.slots.iter().filter(|s| s.lock().occupant.is_none());
        free.min_by_key(used)
    }

    /// The slot of a disk that has its volume.
    fn find(&self, serial: &str) -> Option<&Slot> {
        let has = |slot: &&Slot| is_disk(&mut slot.lock().occupant, serial).is_some();
        self.0.slots.iter().find(has)
    }

    fn set_present(&self, slot: &Slot, present: bool) {
        let mut registers = (self.0.registers.lock()).unwrap_or_else(PoisonError::into_inner);
        registers.set_present(slot.index, present);
    }

    fn wiring(&self) -> Result<MutexGuard<'_, Wiring>, HotPlugError> {
        let wiring = self.lock_wiring();
        match self.has_ended() {
            true => Err(HotPlugError::Ended),
            false => Ok(wiring),
        }
    }

    fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::SeqCst)
    }

    fn lock_wiring(&self) -> MutexGuard<'_, Wiring> {
        (self.0.wiring.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk of this serial, if it is this one and has its volume.
fn is_disk<'a>(occupant: &'a mut Option<Occupant>, serial: &str) -> Option<&'a mut Occupant> {
    occupant
        .as_mut()
        .filter(|o| o.serial.as_deref() == Some(serial) && o.going != Going::Gone)
}

impl BusDevice for HotPlugRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        HotPlugRegisters::read(self, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        HotPlugRegisters::write(self, offset, data);
    }
}
