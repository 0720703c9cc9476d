//! Puts one micro-VM together, runs it, takes it apart.
//!
//! ```text
//! VmConfig --build()--> Machine --start()--> RunningMachine --stop()--> (nothing is left)
//! ```
//!
//! The order of the steps in [`Machine::build`] is chosen for speed: memory is given to KVM before
//! any interrupt controller exists ([`memory::register`] has the figures).

mod arguments;
mod devices;
pub mod disks;
pub mod hotplug;
pub mod layout;
pub mod nets;
mod power;
mod slots;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::acpi::pm::PowerManagement;
use crate::acpi::{self, AcpiConfig, AcpiError};
use crate::boot::{self, BootError, Entry};
use crate::config::{ConfigError, VmConfig};
use crate::console::Console;
use crate::devices::ioapic;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::errors::OnError;
use crate::devices::virtio::net::tap::TapError;
use crate::exit::ExitSwitch;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::mptable::{self, MpTableError};
use crate::smbios;
use crate::software_kvm::{self, Platform};
use crate::vcpu::{self, RunContext, VcpuError, VcpuThread};

use disks::Disks;
use hotplug::{HotPlug, Inner};
use nets::Nets;

/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration asks for what can't be.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// KVM is not there or refused a call.
    #[error("{what}: {source}")]
    Kvm {
        /// Which call.
        what: &'static str,
        /// What the ioctl said.
        source: kvm_ioctls::Error,
    },
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd, arguments.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// vCPUs.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] vcpu::cpuid::CpuidError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// MP table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// SMBIOS structures.
    #[error("SMBIOS: {0}")]
    Smbios(#[source] vm_memory::GuestMemoryError),
    /// A disk.
    #[error("disk {serial}: {source}")]
    Disk {
        /// Its serial.
        serial: String,
        /// What the volume store said.
        source: hearth_images::Error,
    },
    /// A network interface.
    #[error("tap {tap}: {source}")]
    Net {
        /// Its tap.
        tap: String,
        /// Why it can't be used.
        source: TapError,
    },
    /// The system refused something small: an eventfd, a thread.
    #[error("{what}: {source}")]
    Io {
        /// What for.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

pub(crate) fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StartError {
    move |source| StartError::Kvm { what, source }
}

pub(crate) fn io_error(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Io { what, source }
}

/// What the machine is connected to outside.
pub struct Outside {
    /// Where the serial console goes.
    pub console: Arc<Console>,
    /// Where an end is announced.
    pub exit: Arc<ExitSwitch>,
    /// Told of disk errors and of misuse of disk queues.
    pub on_disk_error: OnError,
    /// Told of lost taps and of misuse of network queues.
    pub on_net_error: OnError,
}

/// A micro-VM whose vCPUs have not run yet.
pub struct Machine {
    // Dropped after the vCPUs: they use what it owns.
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    context: RunContext,
    hotplug: HotPlug,
    disks: Disks,
    nets: Nets,
    serial: Arc<Mutex<SerialPort>>,
    power: Arc<Mutex<PowerManagement>>,
}

impl Machine {
    /// Builds everything that `config` asks for.
    pub fn build(config: &VmConfig, outside: Outside) -> Result<Self, StartError> {
        config.validate()?;
        let platform = software_kvm::detect(config.platform);
        let kvm = Kvm::new().map_err(kvm_error("/dev/kvm"))?;
        let vm = Arc::new(kvm.create_vm().map_err(kvm_error("KVM_CREATE_VM"))?);
        let memory = memory::allocate(config.memory_bytes)?;
        memory::register(&vm, &memory)?;
        create_interrupt_controllers(&vm)?;

        let disks = Disks::new(&config.disk_limits);
        let power = devices::build_power(&vm)?;
        let registers = devices::build_hotplug_registers(&power)?;
        let (slots, nets) = devices::build_virtio(
            config,
            &memory,
            &vm,
            &disks,
            &registers,
            &outside.on_disk_error,
            &outside.on_net_error,
        )?;
        let serial = devices::build_serial(&vm, &outside.console)?;
        let hotplug = HotPlug::new(Inner {
            vm: Arc::clone(&vm),
            memory: Arc::clone(&memory),
            vcpus: config.vcpus,
            slots,
            registers: Arc::clone(&registers),
            disks: disks.clone(),
            on_disk_error: outside.on_disk_error,
            wiring: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let entry = load_guest(config, platform, &memory, &hotplug)?;
        let vcpus = create_vcpus(&kvm, &vm, config.vcpus, platform, &memory, &entry)?;

        let context = RunContext {
            ports: devices::port_bus(&serial, &power, &registers, &outside.exit),
            mmio: devices::mmio_bus(hotplug.slots(), &vm),
            memory,
            platform,
            exit: outside.exit,
        };
        Ok(Self {
            vm,
            vcpus,
            context,
            hotplug,
            disks,
            nets,
            serial,
            power,
        })
    }

    /// Runs the guest's first instruction.
    pub fn start(self) -> Result<RunningMachine, StartError> {
        vcpu::install_kick_handler().map_err(io_error("signal handler"))?;
        let mut threads = Vec::with_capacity(self.vcpus.len());
        for (index, fd) in self.vcpus.into_iter().enumerate() {
            threads.push(VcpuThread::start(fd, index as u8, self.context.clone())?);
        }
        Ok(RunningMachine {
            threads,
            hotplug: self.hotplug,
            disks: self.disks,
            nets: self.nets,
            serial: self.serial,
            power: self.power,
            _vm: self.vm,
        })
    }
}

/// A micro-VM that runs.
pub struct RunningMachine {
    threads: Vec<VcpuThread>,
    hotplug: HotPlug,
    disks: Disks,
    nets: Nets,
    serial: Arc<Mutex<SerialPort>>,
    power: Arc<Mutex<PowerManagement>>,
    _vm: Arc<VmFd>,
}

impl RunningMachine {
    /// The serial line, to type on.
    pub fn serial(&self) -> Arc<Mutex<SerialPort>> {
        Arc::clone(&self.serial)
    }

    /// The disks, by serial.
    pub fn disks(&self) -> Disks {
        self.disks.clone()
    }

    /// The network interfaces.
    pub fn nets(&self) -> Nets {
        self.nets.clone()
    }

    /// What plugs and unplugs disks.
    pub fn hotplug(&self) -> HotPlug {
        self.hotplug.clone()
    }

    /// The power button.
    pub fn power(&self) -> Arc<Mutex<PowerManagement>> {
        Arc::clone(&self.power)
    }

    /// Stops the vCPUs, then the devices: what is in flight is finished, disks are flushed and
    /// closed.
    pub fn stop(self) {
        for thread in self.threads {
            thread.stop();
        }
        self.hotplug.stop();
    }
}

/// Local APICs in the kernel, the I/O APIC in this process (`devices::ioapic` says why), no PIC and
/// no PIT: guests have kvm-clock, and the TSC deadline of their local APICs.
fn create_interrupt_controllers(vm: &VmFd) -> Result<(), StartError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = ioapic::LINES as u64;
    vm.enable_cap(&split)
        .map_err(kvm_error("KVM_CAP_SPLIT_IRQCHIP"))
}

/// Writes firmware tables, kernel, initrd and arguments into guest memory.
fn load_guest(
    config: &VmConfig,
    platform: Platform,
    memory: &GuestMemory,
    hotplug: &HotPlug,
) -> Result<Entry, StartError> {
    let tables = AcpiConfig {
        vcpus: config.vcpus,
        devices: &hotplug.acpi_devices(),
        has_pic: false,
    };
    let rsdp = acpi::write_tables(memory, &tables)?;
    mptable::write(
        memory,
        config.vcpus,
        &devices::interrupt_lines(hotplug.slots()),
    )?;
    if let Some(system) = &config.system {
        smbios::write(memory, system).map_err(StartError::Smbios)?;
    }
    let arguments = arguments::complete(&config.boot.kernel_args, platform, hotplug.slots());
    let entry = boot::load(
        memory,
        config.memory_bytes,
        &config.boot,
        &arguments,
        Some(rsdp),
    )?;
    Ok(entry)
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    count: u8,
    platform: Platform,
    memory: &GuestMemory,
    entry: &Entry,
) -> Result<Vec<VcpuFd>, StartError> {
    let failed = |index, what| {
        move |source| VcpuError::Kvm {
            index,
            what,
            source,
        }
    };
    let mut vcpus = Vec::with_capacity(count.into());
    for index in 0..count {
        let fd = vm
            .create_vcpu(index.into())
            .map_err(failed(index, "KVM_CREATE_VCPU"))?;
        let cpuid = vcpu::cpuid::build(kvm, index, count, platform)?;
        fd.set_cpuid2(&cpuid)
            .map_err(failed(index, "KVM_SET_CPUID2"))?;
        vcpu::msrs::set_boot_msrs(&fd);
        // The others wait for the boot vCPU's start-up interrupt in the state KVM gave them.
        if index == 0 {
            let mut sregs = fd.get_sregs().map_err(failed(index, "KVM_GET_SREGS"))?;
            let regs = boot::write_boot_tables(memory, entry, &mut sregs)?;
            fd.set_sregs(&sregs)
                .map_err(failed(index, "KVM_SET_SREGS"))?;
            fd.set_regs(&regs).map_err(failed(index, "KVM_SET_REGS"))?;
        }
        vcpus.push(fd);
    }
    Ok(vcpus)
}
