//! A vCPU's thread, and how it is stopped.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::run::{RunContext, Turn, VcpuError, turn};
use crate::control::ExitReason;

/// The signal that makes `KVM_RUN` return.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Lets the kick signal interrupt system calls instead of ending the process. Once, before any
/// vCPU runs.
pub fn install_kick_handler() -> std::io::Result<()> {
    register_signal_handler(kick_signal(), ignore)
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
}

/// A vCPU that runs.
pub struct VcpuThread {
    handle: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl VcpuThread {
    /// Starts to run `vcpu`.
    pub fn start(vcpu: VcpuFd, index: u8, context: RunContext) -> Result<Self, VcpuError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let handle = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || run(vcpu, index, &context, &stopped))?;
        Ok(Self { handle, stop })
    }

    /// Stops the vCPU and waits for its thread. A kick can arrive between the thread's look at
    /// the flag and its next `KVM_RUN`, so it is repeated until the thread has ended.
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        while !self.handle.is_finished() {
            // SAFETY: the thread has not been joined, so that its id is valid; the signal's
            // handler does nothing.
            unsafe { libc::pthread_kill(self.handle.as_pthread_t(), kick_signal()) };
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.handle.join().is_err() {
            tracing::error!("a vCPU thread panicked");
        }
    }
}

fn run(mut vcpu: VcpuFd, index: u8, context: &RunContext, stop: &AtomicBool) {
    let guard = PanicGuard(context);
    while !stop.load(Ordering::SeqCst) {
        if turn(&mut vcpu, index, context) == Turn::End {
            break;
        }
    }
    drop(guard);
}

/// Ends the whole guest when a vCPU's thread panics: a guest that lacks a CPU only looks alive.
struct PanicGuard<'a>(&'a RunContext);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .exit
                .announce(ExitReason::InternalError, "a vCPU thread panicked");
        }
    }
}
