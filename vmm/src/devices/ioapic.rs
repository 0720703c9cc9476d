//! The I/O APIC (Intel 82093AA), in user space: KVM then only has to emulate local APICs
//! (`KVM_CAP_SPLIT_IRQCHIP`), which takes it a tenth of the time to set up and to take down.
//!
//! It never sees an interrupt itself. Each unmasked redirection entry becomes an MSI route of
//! KVM, and an irqfd on that line then goes straight to the local APIC. All lines are edges (the
//! ACPI tables and the MP table say so); a guest that sets one to level gets edges all the same.

use std::sync::Arc;

use crate::bus::BusDevice;

/// Number of lines.
pub const LINES: usize = 24;

/// Register select (82093AA, 3.1).
const IOREGSEL: u64 = 0x00;
/// Register window.
const IOWIN: u64 = 0x10;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_REDIRECTION: u8 = 0x10;

/// Version 0x11, the number of the last line in bits 16 to 23.
const VERSION: u32 = 0x11 | ((LINES as u32 - 1) << 16);

/// Redirection entry, low half (3.2.4).
const VECTOR: u32 = 0xff;
const DELIVERY_MODE: u32 = 7 << 8;
const LOWEST_PRIORITY: u32 = 1 << 8;
const DESTINATION_MODE: u32 = 1 << 11;
const DELIVERY_STATUS: u32 = 1 << 12;
const REMOTE_IRR: u32 = 1 << 14;
const MASKED: u32 = 1 << 16;

/// Message address and data of an MSI (Intel SDM volume 3, 11.11).
const MSI_ADDRESS: u32 = 0xfee0_0000;
const MSI_DESTINATION_MODE: u32 = 1 << 2;
const MSI_REDIRECTION_HINT: u32 = 1 << 3;
const MSI_ASSERT: u32 = 1 << 14;

/// Where an interrupt line leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRoute {
    /// The line.
    pub gsi: u32,
    /// Message address.
    pub address: u32,
    /// Message data.
    pub data: u32,
}

/// Takes the complete set of routes whenever it changes.
pub type RouteSink = Box<dyn Fn(&[MsiRoute]) + Send>;

/// The I/O APIC's registers.
pub struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; LINES],
    sink: RouteSink,
}

impl IoApic {
    /// All lines masked, as after a reset.
    pub fn new(sink: RouteSink) -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [u64::from(MASKED); LINES],
            sink,
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => self.id,
            REG_VERSION => VERSION,
            _ => match self.entry_index() {
                Some((line, false)) => self.entries[line] as u32,
                Some((line, true)) => (self.entries[line] >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32) {
        if self.select == REG_ID {
            self.id = value & 0x0f00_0000;
            return;
        }
        let Some((line, high)) = self.entry_index() else {
            return;
        };
        let before = self.route(line);
        let old = self.entries[line];
        self.entries[line] = if high {
            (old & 0xffff_ffff) | (u64::from(value) << 32)
        } else {
            let writable = value & !(DELIVERY_STATUS | REMOTE_IRR);
            (old & !0xffff_ffff) | u64::from(writable)
        };
        if self.route(line) != before {
            let routes: Vec<_> = (0..LINES).filter_map(|line| self.route(line)).collect();
            (self.sink)(&routes);
        }
    }

    /// Line and half (`true`: high) of the selected redirection register.
    fn entry_index(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(REG_REDIRECTION)?);
        (index / 2 < LINES).then_some((index / 2, index % 2 == 1))
    }

    fn route(&self, line: usize) -> Option<MsiRoute> {
        let (low, high) = (self.entries[line] as u32, (self.entries[line] >> 32) as u32);
        if low & MASKED != 0 {
            return None;
        }
        let mut address = MSI_ADDRESS | ((high >> 24) << 12);
        if low & DESTINATION_MODE != 0 {
            address |= MSI_DESTINATION_MODE;
        }
        if low & DELIVERY_MODE == LOWEST_PRIORITY {
            address |= MSI_REDIRECTION_HINT;
        }
        Some(MsiRoute {
            gsi: line as u32,
            address,
            data: (low & (VECTOR | DELIVERY_MODE)) | MSI_ASSERT,
        })
    }
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        let width = data.len().min(4);
        data[..width].copy_from_slice(&value.to_le_bytes()[..width]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0u8; 4];
        let width = data.len().min(4);
        bytes[..width].copy_from_slice(&data[..width]);
        let value = u32::from_le_bytes(bytes);
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => self.write_register(value),
            _ => {}
        }
    }
}

/// Sends the routes to KVM.
pub fn kvm_sink(vm: Arc<kvm_ioctls::VmFd>) -> RouteSink {
    Box::new(move |routes| {
        let entries: Vec<_> = routes.iter().map(kvm_entry).collect();
        let table = kvm_bindings::KvmIrqRouting::from_entries(&entries);
        let outcome = table.map(|table| vm.set_gsi_routing(&table));
        if !matches!(outcome, Ok(Ok(()))) {
            tracing::error!(?outcome, "interrupt routes");
        }
    })
}

fn kvm_entry(route: &MsiRoute) -> kvm_bindings::kvm_irq_routing_entry {
    let mut entry = kvm_bindings::kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: kvm_bindings::KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_bindings::kvm_irq_routing_msi {
        address_lo: route.address,
        address_hi: 0,
        data: route.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn ioapic() -> (IoApic, Arc<Mutex<Vec<Vec<MsiRoute>>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let sink = move |routes: &[MsiRoute]| sink.lock().unwrap().push(routes.to_vec());
        (IoApic::new(Box::new(sink)), seen)
    }

    fn write(ioapic: &mut IoApic, register: u8, value: u32) {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn it_says_that_it_has_24_lines_all_masked() {
        let (mut ioapic, _) = ioapic();
        assert_eq!(read(&mut ioapic, REG_VERSION) >> 16, 23);
        assert_eq!(read(&mut ioapic, 0x10 + 2 * 23), MASKED);
        assert_eq!(read(&mut ioapic, 0x10 + 2 * 24), 0);
    }

    #[test]
    fn an_unmasked_line_becomes_a_route_to_its_cpu_and_vector() {
        let (mut ioapic, seen) = ioapic();
        write(&mut ioapic, 0x10 + 2 * 5 + 1, 3 << 24);
        assert!(seen.lock().unwrap().is_empty());
        write(&mut ioapic, 0x10 + 2 * 5, 0x31);
        let route = MsiRoute {
            gsi: 5,
            address: 0xfee0_3000,
            data: 0x4031,
        };
        assert_eq!(seen.lock().unwrap().last().unwrap(), &[route]);
        write(&mut ioapic, 0x10 + 2 * 5, 0x31 | MASKED);
        assert!(seen.lock().unwrap().last().unwrap().is_empty());
    }

    #[test]
    fn logical_lowest_priority_delivery_is_passed_on() {
        let (mut ioapic, seen) = ioapic();
        write(&mut ioapic, 0x10, 0x40 | LOWEST_PRIORITY | DESTINATION_MODE);
        let route = seen.lock().unwrap().last().unwrap()[0];
        assert_eq!(
            route.address & 0xf,
            MSI_REDIRECTION_HINT | MSI_DESTINATION_MODE
        );
        assert_eq!(route.data, 0x4140);
    }

    #[test]
    fn writes_that_change_no_route_are_not_passed_on() {
        let (mut ioapic, seen) = ioapic();
        write(&mut ioapic, 0x12, MASKED | 0x55);
        write(&mut ioapic, REG_ID, 7 << 24);
        write(&mut ioapic, 0xff, 1);
        assert!(seen.lock().unwrap().is_empty());
        assert_eq!(read(&mut ioapic, REG_ID), 7 << 24);
    }
}
