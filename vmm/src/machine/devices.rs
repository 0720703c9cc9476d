//! Which devices the machine has, and where they are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_images::{Access, Store, VolumeId};
use kvm_ioctls::{IoEventAddress, VmFd};

use super::disks::{Disks, MachineDisk};
use super::power::PowerPorts;
use super::{StartError, io_error, kvm_error, layout};
use crate::acpi::VirtioMmio;
use crate::acpi::pm::PowerManagement;
use crate::bus::{Bus, BusDevice};
use crate::config::{DiskConfig, NetConfig, VmConfig};
use crate::console::Console;
use crate::devices::i8042::ResetPort;
use crate::devices::ioapic::{self, IoApic};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::errors::OnError;
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::net::tap::Tap;
use crate::devices::virtio::rng::Rng;
use crate::exit::ExitSwitch;
use crate::memory::GuestMemory;

/// A virtio-mmio device and its place.
pub struct VirtioSlot {
    /// Guest-physical start of its registers.
    pub base: u64,
    /// Interrupt line.
    pub gsi: u32,
    transport: Arc<Mutex<MmioTransport>>,
}

impl VirtioSlot {
    fn lock(&self) -> MutexGuard<'_, MmioTransport> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes what is in flight and closes what is behind the device.
    pub fn stop(&self) {
        self.lock().stop();
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        MmioTransport::read(self, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        MmioTransport::write(self, offset, data);
    }
}

/// Disks first, in their order, so that the guest names them `vda`, `vdb`, ...; then network
/// interfaces, in theirs; then the source of random numbers.
pub(super) fn build_virtio(
    config: &VmConfig,
    memory: &Arc<GuestMemory>,
    vm: &VmFd,
    registry: &Disks,
    on_disk_error: &OnError,
    on_net_error: &OnError,
) -> Result<Vec<VirtioSlot>, StartError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &config.disks {
        devices.push(Box::new(open_disk(
            disk,
            config.vcpus,
            registry,
            on_disk_error,
        )?));
    }
    for net in &config.nets {
        devices.push(Box::new(open_net(net, on_net_error)?));
    }
    devices.push(Box::new(Rng::new()));
    devices
        .into_iter()
        .zip(layout::VIRTIO_GSIS)
        .enumerate()
        .map(|(index, (device, gsi))| place(vm, memory, index as u64, gsi, device))
        .collect()
}

/// Opens the volume, and enters the disk into the machine's.
fn open_disk(
    disk: &DiskConfig,
    vcpus: u8,
    registry: &Disks,
    on_error: &OnError,
) -> Result<Block, StartError> {
    let open = || {
        let access = match disk.read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let volume = VolumeId::new(disk.volume.as_str())?;
        let opened = Store::open(&disk.store)?.open_volume(&volume, access)?;
        Ok((volume, Arc::new(opened)))
    };
    let (volume, opened) = open().map_err(|source| StartError::Disk {
        serial: disk.serial.clone(),
        source,
    })?;
    let queues = match disk.queues {
        0 => vcpus.min(4).into(),
        queues => queues,
    };
    let block = Block::new(
        Arc::clone(&opened),
        &disk.serial,
        disk.read_only,
        queues,
        Arc::clone(on_error),
    );
    registry.insert(MachineDisk {
        serial: disk.serial.clone(),
        store: disk.store.clone(),
        volume,
        disk: opened,
        device: block.control(),
    });
    Ok(block)
}

fn open_net(net: &NetConfig, on_error: &OnError) -> Result<Net, StartError> {
    let mac = net.mac_address()?;
    let tap = Tap::open(&net.tap).map_err(|source| StartError::Net {
        tap: net.tap.clone(),
        source,
    })?;
    Ok(Net::new(tap, &net.tap, mac, net.mtu, Arc::clone(on_error)))
}

/// Connects a device's doorbells and interrupt to KVM.
fn place(
    vm: &VmFd,
    memory: &Arc<GuestMemory>,
    index: u64,
    gsi: u32,
    device: Box<dyn VirtioDevice>,
) -> Result<VirtioSlot, StartError> {
    let base = layout::VIRTIO_MMIO + index * layout::VIRTIO_MMIO_STRIDE;
    let transport = MmioTransport::new(Arc::clone(memory), device).map_err(io_error("virtio"))?;
    let doorbell = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
    for (queue, event) in transport.queue_eventfds() {
        vm.register_ioevent(event, &doorbell, queue)
            .map_err(kvm_error("KVM_IOEVENTFD"))?;
    }
    vm.register_irqfd(transport.irq_eventfd(), gsi)
        .map_err(kvm_error("KVM_IRQFD"))?;
    Ok(VirtioSlot {
        base,
        gsi,
        transport: Arc::new(Mutex::new(transport)),
    })
}

/// The devices, as the ACPI tables describe them.
pub(super) fn acpi_devices(virtio: &[VirtioSlot]) -> Vec<VirtioMmio> {
    let describe = |slot: &VirtioSlot| VirtioMmio {
        base: slot.base,
        size: layout::VIRTIO_MMIO_STRIDE,
        gsi: slot.gsi,
    };
    virtio.iter().map(describe).collect()
}

/// Every interrupt line in use, as the MP table describes them.
pub(super) fn interrupt_lines(virtio: &[VirtioSlot]) -> Vec<u32> {
    let fixed = [layout::SERIAL_GSI, layout::ACPI_SCI_GSI];
    fixed
        .into_iter()
        .chain(virtio.iter().map(|slot| slot.gsi))
        .collect()
}

pub(super) fn build_serial(
    vm: &VmFd,
    console: &Arc<Console>,
) -> Result<Arc<Mutex<SerialPort>>, StartError> {
    let serial = SerialPort::new(console).map_err(io_error("serial port"))?;
    vm.register_irqfd(serial.irq_eventfd(), layout::SERIAL_GSI)
        .map_err(kvm_error("KVM_IRQFD"))?;
    Ok(Arc::new(Mutex::new(serial)))
}

pub(super) fn build_power(vm: &VmFd) -> Result<Arc<Mutex<PowerManagement>>, StartError> {
    let power = PowerManagement::new().map_err(io_error("power management"))?;
    vm.register_irqfd(power.sci_eventfd(), layout::ACPI_SCI_GSI)
        .map_err(kvm_error("KVM_IRQFD"))?;
    Ok(Arc::new(Mutex::new(power)))
}

pub(super) fn port_bus(
    serial: &Arc<Mutex<SerialPort>>,
    power: &Arc<Mutex<PowerManagement>>,
    exit: &Arc<ExitSwitch>,
) -> Bus {
    let mut bus = Bus::default();
    let ports = |first: u16, count: u64| u64::from(first)..u64::from(first) + count;
    bus.insert(ports(layout::SERIAL_PORT, 8), Arc::clone(serial) as _);
    let reset = ResetPort::new(Arc::clone(exit));
    bus.insert(
        ports(layout::I8042_COMMAND_PORT, 1),
        Arc::new(Mutex::new(reset)),
    );
    let power = PowerPorts {
        power: Arc::clone(power),
        exit: Arc::clone(exit),
    };
    bus.insert(
        ports(layout::ACPI_PM_PORT, PowerManagement::PORT_COUNT),
        Arc::new(Mutex::new(power)),
    );
    bus
}

pub(super) fn mmio_bus(virtio: &[VirtioSlot], vm: &Arc<VmFd>) -> Bus {
    let mut bus = Bus::default();
    let ioapic = IoApic::new(ioapic::kvm_sink(Arc::clone(vm)));
    let range = layout::IOAPIC..layout::IOAPIC + layout::IOAPIC_SIZE;
    bus.insert(range, Arc::new(Mutex::new(ioapic)));
    for slot in virtio {
        let range = slot.base..slot.base + layout::VIRTIO_MMIO_STRIDE;
        bus.insert(range, Arc::clone(&slot.transport) as _);
    }
    bus
}
