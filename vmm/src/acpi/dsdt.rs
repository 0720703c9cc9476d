//! The DSDT: devices that a kernel can't find by itself, in AML.

use acpi_tables::aml::{
    Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    Interrupt, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Return, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink, aml};

use super::hotplug::HotPlugRegisters;
use super::{AcpiError, VirtioMmio, header, pm};
use crate::machine::layout;

/// Names `V000` to `V255`.
const MAX_DEVICES: usize = 256;

/// `Notify` code: check what is below this device (5.6.6).
const BUS_CHECK: u8 = 0;

pub(super) fn build(devices: &[VirtioMmio]) -> Result<Sdt, AcpiError> {
    if devices.len() > MAX_DEVICES {
        return Err(AcpiError::TooManyDevices(devices.len()));
    }
    let mut body = Vec::new();
    soft_off(&mut body);
    let (pluggable, fixed): (Vec<_>, Vec<_>) = devices
        .iter()
        .enumerate()
        .map(|(index, device)| VirtioDevice::new(index, device))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .partition(|device| device.pluggable);
    let serial = SerialPort;
    let slots = Slots(pluggable);
    let mut children: Vec<&dyn Aml> = vec![&serial];
    if !slots.0.is_empty() {
        children.push(&slots);
    }
    children.extend(fixed.iter().map(|device| device as &dyn Aml));
    Scope::new("_SB_".into(), children).to_aml_bytes(&mut body);
    if !slots.0.is_empty() {
        slots_changed(&mut body);
    }

    let mut table = header(*b"DSDT", 2);
    table.append_slice(&body);
    Ok(table)
}

/// `\_S5`: what to write to PM1a_CNT to power off (7.4.2). No other sleep state exists.
fn soft_off(body: &mut Vec<u8>) {
    let sleep_type = pm::SLEEP_TYPE_S5;
    let package = Package::new(vec![&sleep_type, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    Name::new("_S5_".into(), &package).to_aml_bytes(body);
}

/// What the guest does at general-purpose event 0: edge-triggered, so that it is cleared first and
/// what changes meanwhile raises it again.
fn slots_changed(body: &mut Vec<u8>) {
    let container = Path::new("\\_SB_.DISK");
    let notify = Notify::new(&container, &BUS_CHECK);
    let method = Method::new("_E00".into(), 0, false, vec![&notify]);
    Scope::new("_GPE".into(), vec![&method]).to_aml_bytes(body);
}

/// COM1, a 16550A.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let port = layout::SERIAL_PORT;
        let resources: [&dyn Aml; 2] = [
            &IO::new(port, port, 1, 8),
            &Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
        ];
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &aml::ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec())),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The slots for disks: a container (`ACPI0004`), which is what Linux takes a bus check of, and the
/// registers of [`HotPlugRegisters`] that their `_STA` read.
struct Slots(Vec<VirtioDevice>);

impl Aml for Slots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let port = layout::ACPI_HOTPLUG_PORT + HotPlugRegisters::STA as u16;
        let length = HotPlugRegisters::SLOTS as u8;
        let region = OpRegion::new("STAR".into(), OpRegionSpace::SystemIO, &port, &length);
        let mut fields = Vec::new();
        let mut at = 0;
        for slot in &self.0 {
            if slot.index > at {
                fields.push(FieldEntry::Reserved((slot.index - at) * 8));
            }
            fields.push(FieldEntry::Named(slot.status_field(), 8));
            at = slot.index + 1;
        }
        let field = Field::new(
            "STAR".into(),
            FieldAccessType::Byte,
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            fields,
        );
        let hid = Name::new("_HID".into(), &"ACPI0004");
        let uid = Name::new("_UID".into(), &aml::ZERO);
        let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &region, &field];
        children.extend(self.0.iter().map(|slot| slot as &dyn Aml));
        Device::new("DISK".into(), children).to_aml_bytes(sink);
    }
}

/// A virtio-mmio device as Linux's `virtio_mmio` driver looks for it: `LNRO0005`.
struct VirtioDevice {
    index: usize,
    base: u32,
    size: u32,
    gsi: u32,
    pluggable: bool,
}

impl VirtioDevice {
    fn new(index: usize, device: &VirtioMmio) -> Result<Self, AcpiError> {
        let VirtioMmio {
            base,
            size,
            gsi,
            pluggable,
        } = *device;
        let outside = || AcpiError::Device { base, size };
        let end = base.checked_add(size).ok_or_else(outside)?;
        if end > u64::from(u32::MAX) || size == 0 {
            return Err(outside());
        }
        if pluggable && index >= HotPlugRegisters::SLOTS {
            return Err(AcpiError::Slot(index));
        }
        Ok(Self {
            index,
            base: base as u32,
            size: size as u32,
            gsi,
            pluggable,
        })
    }

    /// Name of the byte that `_STA` returns: `S00_`, `S01_`, ...
    fn status_field(&self) -> [u8; 4] {
        let digit = |value: usize| b'0' + (value % 10) as u8;
        [b'S', digit(self.index / 10), digit(self.index), b'_']
    }
}

impl Aml for VirtioDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let resources: [&dyn Aml; 2] = [
            &Memory32Fixed::new(true, self.base, self.size),
            &Interrupt::new(true, true, false, false, self.gsi),
        ];
        let status = Path::new(&String::from_utf8_lossy(&self.status_field()));
        let answer = Return::new(&status);
        let sta = Method::new("_STA".into(), 0, false, vec![&answer]);
        let hid = Name::new("_HID".into(), &"LNRO0005");
        let uid = Name::new("_UID".into(), &self.index);
        let cca = Name::new("_CCA".into(), &aml::ONE);
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec()));
        let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &cca, &crs];
        if self.pluggable {
            children.push(&sta);
        }
        Device::new(format!("V{:03}", self.index).as_str().into(), children).to_aml_bytes(sink);
    }
}
