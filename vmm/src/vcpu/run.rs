//! One turn after another of `KVM_RUN`, and what each exit means.

use std::sync::Arc;

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::control::ExitReason;
use crate::exit::ExitSwitch;
use crate::memory::GuestMemory;
use crate::software_kvm::{self, Platform};

/// What a vCPU needs of its machine.
#[derive(Clone)]
pub struct RunContext {
    /// I/O ports.
    pub ports: Bus,
    /// Memory-mapped devices.
    pub mmio: Bus,
    /// Guest memory, for instructions that the VMM completes.
    pub memory: Arc<GuestMemory>,
    /// Which kind of KVM this is.
    pub platform: Platform,
    /// Where an end is announced.
    pub exit: Arc<ExitSwitch>,
}

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused a call.
    #[error("vCPU {index}: {what}: {source}")]
    Kvm {
        /// Which vCPU.
        index: u8,
        /// Which call.
        what: &'static str,
        /// What the ioctl said.
        source: kvm_ioctls::Error,
    },
    /// No thread could be started.
    #[error("vCPU thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What one turn of `KVM_RUN` came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Run on.
    Continue,
    /// A signal: look whether to stop.
    Interrupted,
    /// The guest's end, announced already.
    End,
}

pub(super) fn turn(vcpu: &mut VcpuFd, index: u8, context: &RunContext) -> Turn {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => context.ports.write(port.into(), data),
        Ok(VcpuExit::IoIn(port, data)) => context.ports.read(port.into(), data),
        Ok(VcpuExit::MmioWrite(address, data)) => context.mmio.write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => context.mmio.read(address, data),
        Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::Intr) => {}
        Ok(VcpuExit::Shutdown) => {
            let message = format!("vCPU {index}: triple fault{}", place(vcpu));
            return end(context, ExitReason::GuestCrash, message);
        }
        Ok(VcpuExit::SystemEvent(kind, _)) => return system_event(context, kind),
        Ok(VcpuExit::InternalError) => return internal_error(vcpu, index, context),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            let message = format!("vCPU {index}: entry refused on CPU {cpu}, reason {reason:#x}");
            return end(context, ExitReason::InternalError, message);
        }
        Ok(other) => {
            let message = format!("vCPU {index}: exit that nothing here answers: {other:?}");
            return end(context, ExitReason::InternalError, message);
        }
        Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
            return Turn::Interrupted;
        }
        Err(error) => {
            let message = format!("vCPU {index}: KVM_RUN: {error}");
            return end(context, ExitReason::InternalError, message);
        }
    }
    Turn::Continue
}

fn end(context: &RunContext, reason: ExitReason, message: String) -> Turn {
    context.exit.announce(reason, message);
    Turn::End
}

/// `KVM_EXIT_SYSTEM_EVENT` (KVM API, 5): 1 shutdown, 2 reset, 3 crash.
fn system_event(context: &RunContext, kind: u32) -> Turn {
    let (reason, what) = match kind {
        1 => (ExitReason::PowerOff, "shutdown"),
        2 => (ExitReason::Reset, "reset"),
        _ => (ExitReason::GuestCrash, "crash"),
    };
    end(context, reason, format!("KVM system event: {what}"))
}

/// An instruction that KVM's emulator lacks. On software KVM we complete it; hardware runs such
/// instructions itself, so that there an emulation failure is the guest's own doing.
fn internal_error(vcpu: &mut VcpuFd, index: u8, context: &RunContext) -> Turn {
    // SAFETY: KVM filled this member of the union, as the exit reason says.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let why = if suberror != KVM_INTERNAL_ERROR_EMULATION {
        format!("KVM internal error {suberror}")
    } else if context.platform == Platform::Software {
        match software_kvm::complete(vcpu, &context.memory) {
            Ok(_) => return Turn::Continue,
            Err(error) => format!("instruction that KVM can't emulate: {error}"),
        }
    } else {
        "instruction that KVM can't emulate".to_string()
    };
    let message = format!("vCPU {index}: {why}{}", place(vcpu));
    end(context, ExitReason::GuestCrash, message)
}

/// Where the vCPU is, for messages.
fn place(vcpu: &VcpuFd) -> String {
    vcpu.get_regs()
        .map_or_else(|_| String::new(), |regs| format!(" at RIP {:#x}", regs.rip))
}
