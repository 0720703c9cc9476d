//! The DSDT: devices that a kernel can't find by itself, in AML.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};

use super::{AcpiError, VirtioMmio, header, pm};
use crate::machine::layout;

/// Names `V000` to `V255`.
const MAX_DEVICES: usize = 256;

pub(super) fn build(devices: &[VirtioMmio]) -> Result<Sdt, AcpiError> {
    if devices.len() > MAX_DEVICES {
        return Err(AcpiError::TooManyDevices(devices.len()));
    }
    let mut body = Vec::new();
    soft_off(&mut body);
    let serial = SerialPort;
    let virtio = devices
        .iter()
        .enumerate()
        .map(|(index, device)| VirtioDevice::new(index, device))
        .collect::<Result<Vec<_>, _>>()?;
    let mut children: Vec<&dyn Aml> = vec![&serial];
    children.extend(virtio.iter().map(|device| device as &dyn Aml));
    Scope::new("_SB_".into(), children).to_aml_bytes(&mut body);

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

/// COM1, a 16550A.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
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

/// A virtio-mmio device as Linux's `virtio_mmio` driver looks for it: `LNRO0005`.
struct VirtioDevice {
    index: usize,
    base: u32,
    size: u32,
    gsi: u32,
}

impl VirtioDevice {
    fn new(index: usize, device: &VirtioMmio) -> Result<Self, AcpiError> {
        let VirtioMmio { base, size, gsi } = *device;
        let outside = || AcpiError::Device { base, size };
        let end = base.checked_add(size).ok_or_else(outside)?;
        if end > u64::from(u32::MAX) || size == 0 {
            return Err(outside());
        }
        Ok(Self {
            index,
            base: base as u32,
            size: size as u32,
            gsi,
        })
    }
}

impl Aml for VirtioDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let resources: [&dyn Aml; 2] = [
            &Memory32Fixed::new(true, self.base, self.size),
            &Interrupt::new(true, true, false, false, self.gsi),
        ];
        Device::new(
            format!("V{:03}", self.index).as_str().into(),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &self.index),
                &Name::new("_CCA".into(), &aml::ONE),
                &Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec())),
            ],
        )
        .to_aml_bytes(sink);
    }
}
