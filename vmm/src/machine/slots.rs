//! The places for virtio-mmio devices: a window of registers and an interrupt line each.
//!
//! All of them are on the memory bus from the start. What is in them may change while the guest
//! runs ([`super::hotplug`]); an empty one reads as a device of type 0.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_ioctls::{IoEventAddress, VmFd};

use super::{StartError, io_error, kvm_error, layout};
use crate::bus::BusDevice;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, read_empty};
use crate::memory::GuestMemory;

/// One place.
pub(super) struct Slot {
    /// Which, from 0.
    pub index: usize,
    /// Guest-physical start of its registers.
    pub base: u64,
    /// Interrupt line.
    pub gsi: u32,
    window: Arc<Mutex<Window>>,
    changed: Arc<Condvar>,
}

/// What the guest reaches in a slot.
pub(super) struct Window {
    pub occupant: Option<Occupant>,
    changed: Arc<Condvar>,
}

/// A device in a slot.
pub(super) struct Occupant {
    pub transport: MmioTransport,
    /// Of a disk; other devices have none, and never leave.
    pub serial: Option<String>,
    pub going: Going,
}

/// Whether a disk stays.
///
/// ```text
///            detach           the driver lets go
///   Stays ──────────► Leaving ──────────► Closing ──► (empty)
///     ▲                 │ │                  │ the volume can't be closed: Leaving
///     └─────────────────┘ │ by force: the volume is closed at once
///       not in time       ▼
///                       Gone ──► (empty), when the driver lets go
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Going {
    /// It stays.
    Stays,
    /// The guest has been asked to let go of it.
    Leaving,
    /// The guest has let go of it; what it wrote is being made durable.
    Closing,
    /// Its volume is closed, and the guest still has the device: all its requests fail.
    Gone,
}

impl Slot {
    /// All slots of a machine, empty.
    pub fn all() -> Vec<Slot> {
        let slot = |(index, gsi): (usize, u32)| {
            let changed = Arc::new(Condvar::new());
            Slot {
                index,
                base: layout::VIRTIO_MMIO + index as u64 * layout::VIRTIO_MMIO_STRIDE,
                gsi,
                window: Arc::new(Mutex::new(Window {
                    occupant: None,
                    changed: Arc::clone(&changed),
                })),
                changed,
            }
        };
        layout::VIRTIO_GSIS
            .into_iter()
            .enumerate()
            .map(slot)
            .collect()
    }

    /// What is in it.
    pub fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the memory bus.
    pub fn window(&self) -> Arc<Mutex<dyn BusDevice>> {
        Arc::clone(&self.window) as _
    }

    /// Waits until something happens in the slot, or until `deadline` (for ever without one).
    /// False: it is past the deadline. May also return early.
    pub fn wait<'a>(
        &self,
        window: MutexGuard<'a, Window>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, Window>, bool) {
        let Some(deadline) = deadline else {
            let woken = self.changed.wait(window);
            return (woken.unwrap_or_else(PoisonError::into_inner), true);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let woken = self.changed.wait_timeout(window, left);
        let (window, _) = woken.unwrap_or_else(PoisonError::into_inner);
        (window, !left.is_zero())
    }

    /// Wakes those who wait.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Puts a device into the slot, which is empty, and connects its doorbells and interrupt to
    /// KVM. After an error the slot is as it was.
    pub fn fill(
        &self,
        vm: &VmFd,
        memory: &Arc<GuestMemory>,
        device: Box<dyn VirtioDevice>,
        serial: Option<String>,
    ) -> Result<(), StartError> {
        let transport =
            MmioTransport::new(Arc::clone(memory), device).map_err(io_error("virtio"))?;
        if let Err(error) = self.connect(vm, &transport) {
            self.disconnect(vm, &transport);
            return Err(error);
        }
        self.lock().occupant = Some(Occupant {
            transport,
            serial,
            going: Going::Stays,
        });
        Ok(())
    }

    /// Takes the device out and its connections apart. What is behind it has been closed before.
    pub fn empty(&self, vm: &VmFd) {
        let occupant = self.lock().occupant.take();
        if let Some(mut occupant) = occupant {
            self.disconnect(vm, &occupant.transport);
            occupant.transport.stop();
        }
        self.notify();
    }

    /// Finishes what is in flight and closes what is behind the device.
    pub fn stop(&self) {
        if let Some(occupant) = &mut self.lock().occupant {
            occupant.transport.stop();
        }
        self.notify();
    }

    fn connect(&self, vm: &VmFd, transport: &MmioTransport) -> Result<(), StartError> {
        let doorbell = IoEventAddress::Mmio(self.base + QUEUE_NOTIFY);
        for (queue, event) in transport.queue_eventfds() {
            vm.register_ioevent(event, &doorbell, queue)
                .map_err(kvm_error("KVM_IOEVENTFD"))?;
        }
        vm.register_irqfd(transport.irq_eventfd(), self.gsi)
            .map_err(kvm_error("KVM_IRQFD"))
    }

    /// Also takes apart what is only half connected: KVM refuses what isn't there.
    fn disconnect(&self, vm: &VmFd, transport: &MmioTransport) {
        let doorbell = IoEventAddress::Mmio(self.base + QUEUE_NOTIFY);
        let _ = vm.unregister_irqfd(transport.irq_eventfd(), self.gsi);
        for (queue, event) in transport.queue_eventfds() {
            let _ = vm.unregister_ioevent(event, &doorbell, queue);
        }
    }
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match &mut self.occupant {
            Some(occupant) => occupant.transport.read(offset, data),
            None => read_empty(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(occupant) = &mut self.occupant {
            occupant.transport.write(offset, data);
            if occupant.going != Going::Stays && occupant.transport.is_reset() {
                self.changed.notify_all();
            }
        }
    }
}
