//! Hearth's VMM: one process for one micro-VM on `/dev/kvm`.
//!
//! Read in this order: [`config`] (what the process is told), [`process`] (its life),
//! [`machine`] (how the parts are put together), [`control`] (what it may be asked).
//!
//! | module | what lives there |
//! |---|---|
//! | [`boot`] | kernel, initrd, arguments; the Linux and PVH boot protocols |
//! | [`acpi`], [`mptable`] | how the guest learns of CPUs, devices and the power button |
//! | [`smbios`] | who the guest finds that made its machine, and which one it is |
//! | [`memory`], [`bus`] | guest memory; who owns which address |
//! | [`vcpu`] | the threads that run guest code |
//! | [`devices`] | serial port, reset port, virtio |
//! | [`console`] | the serial console's log and viewers |
//! | [`exit`] | how a guest's end is agreed on |
//! | [`software_kvm`] | everything that only hosts without VMX and SVM need |

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod config;
pub mod console;
pub mod control;
pub mod devices;
pub mod exit;
pub mod machine;
pub mod memory;
pub mod mptable;
pub mod process;
pub mod smbios;
pub mod software_kvm;
pub mod vcpu;
