//! Looks for a kernel inside of an imported disk, in a process of its own.
//!
//! The disk is a stranger's, and so are its partition table and file systems. Whatever they make
//! their reader do (loop, allocate, crash) happens in a child of the agent that has limits and
//! holds nothing: the agent's own program, started again with [`ARGUMENT`].
//!
//! - [`find`]: the agent's side
//! - [`child`]: the other process

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitCode, ExitStatus, Stdio},
    rc::Rc,
    time::Duration,
};

use hearth_images::{
    SnapshotId, Store,
    rootfs::{self, BootFiles, FileError, RootfsError},
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ApiResult, Reason};

/// The first argument of `hearthd` that makes it a boot finder.
pub const ARGUMENT: &str = "find-boot-files";

/// Processor time, memory and time on the clock that one search may take. Copying 1 GiB out of
/// compressed layers takes seconds.
const CPU_SECONDS: u64 = 60;
const MEMORY_BYTES: u64 = 1 << 30;
const CLOCK: Duration = Duration::from_secs(600);

/// Longest text that a caller is told about a disk, in characters.
const MAX_WORDS: usize = 1500;

/// What the child says on its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Found {
        kernel: String,
        has_initrd: bool,
        kernel_args: String,
        named_by: String,
    },
    /// The disk is at fault.
    Refused { kind: String, words: String },
    /// The host's disk is full.
    NoSpace,
    /// The host is at fault.
    Failed { words: String },
}

/// What was found; kernel and initrd are in the files that were given.
#[derive(Clone, Debug)]
pub struct Found {
    /// What and where, for the log.
    pub words: String,
    /// Whether there is anything in the initrd's file.
    pub has_initrd: bool,
    /// Kernel arguments that mount the root.
    pub kernel_args: String,
}

/// Looks in a snapshot of the store and writes kernel and initrd to two new files, which stay
/// behind also after an error. `field` is what the caller gave the disk in. Blocks.
pub fn find(
    store: &Store,
    snapshot: &SnapshotId,
    kernel: &Path,
    initrd: &Path,
    field: &str,
) -> ApiResult<Found> {
    let failed = |error: io::Error| ApiError::internal("looking for a kernel", error);
    // The program that runs now, also after it was replaced by a newer one.
    let output = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .arg(store.root())
        .arg(snapshot.as_ref())
        .args([kernel, initrd])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        return Err(ended_badly(output.status, field));
    }
    let answer = serde_json::from_slice(&output.stdout)
        .map_err(|error| ApiError::internal("reading what the boot finder said", error))?;
    match answer {
        Answer::Found {
            kernel,
            has_initrd,
            kernel_args,
            named_by,
        } => Ok(Found {
            words: format!("{kernel}, named by {named_by}"),
            has_initrd,
            kernel_args,
        }),
        Answer::Refused { kind, words } => {
            Err(ApiError::invalid(field, presentable(&words)).with("kind", kind))
        }
        Answer::NoSpace => Err(ApiError::new(
            Reason::InsufficientVolumeCapacity,
            "the host's disk has no room for the kernel that was found",
        )),
        Answer::Failed { words } => Err(ApiError::internal("looking for a kernel", words)),
    }
}

fn ended_badly(status: ExitStatus, field: &str) -> ApiError {
    let by = |signal: Signal| status.signal() == Some(signal.as_raw());
    // Its limits, and what Rust does when there is no memory left or the stack ends.
    if by(Signal::XCPU) || by(Signal::ABORT) || by(Signal::SEGV) || by(Signal::BUS) {
        let words = "its file systems are broken in a way that keeps their reader busy for ever";
        return ApiError::invalid(field, words).with("kind", "Broken");
    }
    ApiError::internal("looking for a kernel", format!("the boot finder: {status}"))
}

/// Words that come from a stranger's disk, fit for a message.
fn presentable(words: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let mut text: String = words.chars().take(MAX_WORDS).map(clean).collect();
    if words.chars().nth(MAX_WORDS).is_some() {
        text.push('…');
    }
    text
}

/// The child, with the arguments that come after [`ARGUMENT`].
pub fn child(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.collect();
    let [store, snapshot, kernel, initrd] = &arguments[..] else {
        eprintln!("hearthd {ARGUMENT}: for hearthd itself: STORE SNAPSHOT KERNEL INITRD");
        return ExitCode::FAILURE;
    };
    let answer = limit()
        .map_err(|error| Answer::Failed {
            words: format!("limiting the boot finder: {error}"),
        })
        .and_then(|()| {
            let snapshot = snapshot.to_string_lossy();
            search(store.as_ref(), &snapshot, kernel.as_ref(), initrd.as_ref())
        })
        .unwrap_or_else(|answer| answer);
    match serde_json::to_writer(io::stdout(), &answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearthd {ARGUMENT}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn limit() -> io::Result<()> {
    // An agent that was killed starts over; nobody would hear this one. The agent's thread that
    // started it waits for it, so that it does not end before.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    for (resource, most) in [
        (Resource::Cpu, CPU_SECONDS),
        (Resource::As, MEMORY_BYTES),
        (Resource::Core, 0),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most + 1),
        };
        setrlimit(resource, limit)?;
    }
    std::thread::spawn(|| {
        std::thread::sleep(CLOCK);
        eprintln!("hearthd {ARGUMENT}: gave up after {CLOCK:?}");
        std::process::exit(1);
    });
    Ok(())
}

fn search(store: &Path, snapshot: &str, kernel: &Path, initrd: &Path) -> Result<Answer, Answer> {
    let of_store = |error: hearth_images::Error| Answer::Failed {
        words: error.to_string(),
    };
    let snapshot = SnapshotId::new(snapshot).map_err(of_store)?;
    let disk = Store::open(store)
        .and_then(|store| store.open_snapshot(&snapshot))
        .map_err(of_store)?;
    let (mut kernel, mut initrd) = (create(kernel)?, create(initrd)?);
    let found = rootfs::find(Rc::new(disk), &mut kernel, &mut initrd).map_err(refusal)?;
    for file in [&mut kernel, &mut initrd] {
        file.flush().map_err(output)?;
        file.get_ref().sync_all().map_err(output)?;
    }
    let BootFiles {
        kernel,
        initrds,
        kernel_args,
        named_by,
    } = found;
    Ok(Answer::Found {
        kernel,
        has_initrd: !initrds.is_empty(),
        kernel_args,
        named_by,
    })
}

fn create(path: &Path) -> Result<BufWriter<File>, Answer> {
    File::create_new(path).map(BufWriter::new).map_err(output)
}

fn output(error: io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Answer::NoSpace,
        _ => Answer::Failed {
            words: format!("writing what was found: {error}"),
        },
    }
}

fn refusal(error: RootfsError) -> Answer {
    let words = error.to_string();
    let kind = match error {
        RootfsError::Output(error) => return output(error),
        RootfsError::Disk(_) => return Answer::Failed { words },
        RootfsError::NoFileSystem { .. } => "NoFileSystem",
        RootfsError::NoKernel { .. } => "NoKernel",
        RootfsError::Arguments { .. } => "BadKernelArguments",
        RootfsError::File {
            source: FileError::TooLarge { .. },
            ..
        } => "TooLarge",
        _ => "Broken",
    };
    Answer::Refused {
        kind: kind.to_owned(),
        words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_disk_are_short_and_printable() {
        assert_eq!(presentable("a\u{1b}[2Jb\n"), "a?[2Jb?");
        let long = presentable(&"é".repeat(5000));
        assert_eq!(long.chars().count(), MAX_WORDS + 1);
    }

    #[test]
    fn a_search_that_ran_into_its_limits_is_the_disks_fault_and_other_ends_are_ours() {
        let killed = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        for signal in [Signal::XCPU, Signal::ABORT, Signal::SEGV] {
            let error = ended_badly(killed(signal), "header.root");
            assert_eq!(error.fields(), ["header.root"]);
        }
        for status in [killed(Signal::KILL), ExitStatus::from_raw(1 << 8)] {
            let error = ended_badly(status, "header.root");
            assert_eq!(error.reason(), Reason::InternalError);
        }
    }
}
