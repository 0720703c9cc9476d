//! End-to-end tests of Hearth: a real `hearthd`, real micro-VMs, and gRPC between them and the
//! test. Nothing in here reaches around the API but to judge (files on the disk, `qemu-img`) or
//! to break things (kill).
//!
//! A test that boots a guest reads like this:
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! hearth_tests::needs_kvm!();
//! let hearth = hearth_tests::Hearth::start().await?;
//! let image = hearth.base_image().await?;
//! let guest = hearth.run(&image, |_| {}).await?;
//! let mut console = guest.ready().await?;
//! assert_eq!(console.shell("uname").await?, "Linux");
//! hearth.finish().await
//! # }
//! ```
//!
//! - [`Hearth`] is one agent with a state directory and a socket of its own; dropping it ends
//!   every process it started, whatever state the test left it in.
//! - [`Guest`] is one instance; [`Console`] its serial console.
//! - [`Probe`] is an instance of our own small guest, which boots at once: what needs no Linux is
//!   tested with it.
//! - [`Netns`] is a network namespace for an agent, with taps; [`networks`] makes networks in it,
//!   [`security_groups`] groups, and [`traffic`] sees what they let pass.
//! - [`as_account`] calls as somebody else.
//! - [`root_disk`] makes disks that have their kernel inside.
//! - [`Expect`] checks what an error says; [`store`] judges the files of the volume store.
//!
//! Deadlines are generous, because a guest on emulated KVM takes its time: they end a test that
//! hangs, and say nothing about speed.

mod accounts;
pub mod attachments;
pub mod broken;
mod console;
mod errors;
mod events;
mod exports;
mod guest;
mod guest_image;
mod hearth;
mod imports;
pub mod net;
pub mod netns;
pub mod networks;
pub mod probe;
pub mod processes;
pub mod programs;
pub mod root_disk;
pub mod security_groups;
pub mod snapshots;
pub mod store;
pub mod tiny;
pub mod traffic;

use std::time::{Duration, Instant};

use anyhow::Result;

pub use accounts::as_account;
pub use console::Console;
pub use errors::Expect;
pub use exports::{Exported, receive};
pub use guest::Guest;
pub use guest_image::GuestImage;
pub use hearth::Hearth;
pub use imports::{image_stream, volume_stream};
pub use netns::Netns;
pub use probe::Probe;

/// For a guest's boot with one vCPU, and for anything shorter.
pub const BOOT: Duration = Duration::from_secs(300);

/// For a guest's boot with several vCPUs where KVM is emulated.
pub const SMP_BOOT: Duration = Duration::from_secs(900);

/// Tries until it works, for what comes about by itself. Fails with what it failed with last.
pub async fn eventually<T>(check: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + BOOT;
    loop {
        match check().await {
            Err(_) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

/// Ends a test with success where there is no KVM, and says so.
#[macro_export]
macro_rules! needs_kvm {
    () => {
        if !$crate::programs::kvm() {
            eprintln!("skipped: no /dev/kvm");
            return Ok(());
        }
    };
}
