//! Which devices the machine has, and where they are.

use std::sync::{Arc, Mutex, PoisonError};

use hearth_images::{Access, Store, VolumeId};
use kvm_ioctls::VmFd;

use super::disks::{Disks, MachineDisk};
use super::nets::Nets;
use super::power::PowerPorts;
use super::slots::Slot;
use super::{StartError, io_error, kvm_error, layout};
use crate::acpi::hotplug::HotPlugRegisters;
use crate::acpi::pm::PowerManagement;
use crate::bus::Bus;
use crate::config::{DiskConfig, NetConfig, VmConfig};
use crate::console::Console;
use crate::devices::i8042::ResetPort;
use crate::devices::ioapic::{self, IoApic};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::errors::OnError;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::net::tap::Tap;
use crate::devices::virtio::rng::Rng;
use crate::exit::ExitSwitch;
use crate::memory::GuestMemory;

/// Disks first, in their order, so that the guest names them `vda`, `vdb`, ...; then network
/// interfaces, in theirs; then the source of random numbers.
pub(super) fn build_virtio(
    config: &VmConfig,
    memory: &Arc<GuestMemory>,
    vm: &VmFd,
    registry: &Disks,
    registers: &Arc<Mutex<HotPlugRegisters>>,
    on_disk_error: &OnError,
    on_net_error: &OnError,
) -> Result<(Vec<Slot>, Nets), StartError> {
    let mut nets = Nets::new(&config.net_limits);
    let mut devices: Vec<(Box<dyn VirtioDevice>, Option<String>)> = Vec::new();
    for disk in &config.disks {
        let block = open_disk(disk, config.vcpus, registry, on_disk_error)?;
        devices.push((Box::new(block), Some(disk.serial.clone())));
    }
    for net in &config.nets {
        let device = open_net(net, config.vcpus, &mut nets, on_net_error)?;
        devices.push((Box::new(device), None));
    }
    devices.push((Box::new(Rng::new()), None));
    let slots = Slot::all();
    let mut registers = registers.lock().unwrap_or_else(PoisonError::into_inner);
    for ((device, serial), slot) in devices.into_iter().zip(&slots) {
        registers.set_present(slot.index, serial.is_some());
        slot.fill(vm, memory, device, serial)?;
    }
    Ok((slots, nets))
}

/// Opens the volume, and enters the disk into the machine's.
pub(super) fn open_disk(
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
    let throttle = registry.throttle(&disk.limits);
    registry.insert(MachineDisk {
        serial: disk.serial.clone(),
        store: disk.store.clone(),
        volume,
        disk: opened,
        device: block.control(),
        throttle: Arc::clone(&throttle),
    });
    Ok(block.with_throttle(throttle))
}

/// Attaches to the tap, and enters the interface into the machine's.
fn open_net(
    net: &NetConfig,
    vcpus: u8,
    nets: &mut Nets,
    on_error: &OnError,
) -> Result<Net, StartError> {
    let mac = net.mac_address()?;
    let taps = Tap::open(&net.tap, net.pairs(vcpus)).map_err(|source| StartError::Net {
        tap: net.tap.clone(),
        source,
    })?;
    let device =
        Net::new(taps, &net.tap, mac, net.mtu, Arc::clone(on_error)).with_throttle(nets.throttle());
    nets.insert(&net.tap, device.control());
    Ok(device)
}

/// Every interrupt line, as the MP table describes them.
pub(super) fn interrupt_lines(slots: &[Slot]) -> Vec<u32> {
    let fixed = [layout::SERIAL_GSI, layout::ACPI_SCI_GSI];
    fixed
        .into_iter()
        .chain(slots.iter().map(|slot| slot.gsi))
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

/// All disks of the start are there; others may come.
pub(super) fn build_hotplug_registers(
    power: &Mutex<PowerManagement>,
) -> Result<Arc<Mutex<HotPlugRegisters>>, StartError> {
    let power = power.lock().unwrap_or_else(PoisonError::into_inner);
    let registers = HotPlugRegisters::new(power.sci_eventfd()).map_err(io_error("hot plug"))?;
    Ok(Arc::new(Mutex::new(registers)))
}

pub(super) fn port_bus(
    serial: &Arc<Mutex<SerialPort>>,
    power: &Arc<Mutex<PowerManagement>>,
    hotplug: &Arc<Mutex<HotPlugRegisters>>,
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
    bus.insert(
        ports(layout::ACPI_HOTPLUG_PORT, HotPlugRegisters::PORT_COUNT),
        Arc::clone(hotplug) as _,
    );
    bus
}

pub(super) fn mmio_bus(slots: &[Slot], vm: &Arc<VmFd>) -> Bus {
    let mut bus = Bus::default();
    let ioapic = IoApic::new(ioapic::kvm_sink(Arc::clone(vm)));
    let range = layout::IOAPIC..layout::IOAPIC + layout::IOAPIC_SIZE;
    bus.insert(range, Arc::new(Mutex::new(ioapic)));
    for slot in slots {
        let range = slot.base..slot.base + layout::VIRTIO_MMIO_STRIDE;
        bus.insert(range, slot.window());
    }
    bus
}
