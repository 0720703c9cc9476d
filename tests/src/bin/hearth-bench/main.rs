//! `hearth-bench`: Hearth beside `qemu-system-x86_64 -M microvm`, in the same run.
//!
//! What is measured is in [`SECTIONS`]: each a file, which makes one or more tables.

mod api;
mod console;
mod disk;
mod host_file;
mod launch;
mod machine;
mod many;
mod memory;
mod net;
mod peers;
mod security_groups;
mod serial_file;
mod snapshots;
mod table;
mod throttle;
mod vmm;

use std::{
    env, fs,
    path::{Path, PathBuf},
    pin::Pin,
};

use anyhow::{Context, Result, ensure};
use clap::{
    Parser,
    builder::{PossibleValuesParser, TypedValueParser},
};
use hearth_tests::{Hearth, probe, programs};
use serde::Serialize;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::table::Section;

/// Everything that is measured, in the order of the tables.
const SECTIONS: &[(&str, Measure)] = &[
    ("vmm", |bench| Box::pin(vmm::measure(bench))),
    ("launch", |bench| Box::pin(launch::measure(bench))),
    ("disk", |bench| Box::pin(disk::measure(bench))),
    ("net", |bench| Box::pin(net::measure(bench))),
    ("security-groups", |bench| {
        Box::pin(security_groups::measure(bench))
    }),
    ("net-linux", |bench| Box::pin(net::linux::measure(bench))),
    ("snapshots", |bench| Box::pin(snapshots::measure(bench))),
    ("throttle", |bench| Box::pin(throttle::measure(bench))),
    ("many", |bench| Box::pin(many::measure(bench))),
    ("api", |bench| Box::pin(api::measure(bench))),
];

type Measure = for<'b> fn(&'b Bench) -> Pin<Box<dyn Future<Output = Result<Vec<Section>>> + 'b>>;

/// Measures Hearth beside QEMU's microvm, prints tables, and writes them to bench.json in cargo's
/// target directory.
#[derive(Parser)]
#[command(name = "hearth-bench")]
struct Arguments {
    /// Starts of each VMM in the first table
    #[arg(default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,

    /// Only these, such as disk,api
    #[arg(long, value_delimiter = ',', value_parser = names())]
    only: Vec<String>,
}

fn names() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(SECTIONS.iter().map(|(name, _)| *name)).map(|name| name)
}

/// What the sections share.
pub struct Bench {
    folder: TempDir,
    /// See [`Arguments`].
    pub rounds: usize,
    hearth: OnceCell<Hearth>,
}

#[derive(Serialize)]
struct Report {
    kvm: &'static str,
    kernel: String,
    cpus: usize,
    sections: Vec<Section>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(programs::kvm(), "no /dev/kvm that we may write to");
    let bench = Bench {
        folder: tempfile::Builder::new().prefix("hearth-bench.").tempdir()?,
        rounds: arguments.rounds.into(),
        hearth: OnceCell::new(),
    };
    let mut report = Report {
        kvm: kind_of_kvm(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        cpus: std::thread::available_parallelism()?.get(),
        sections: Vec::new(),
    };
    println!(
        "{} CPUs, {} KVM, Linux {}; guests have 1 vCPU",
        report.cpus, report.kvm, report.kernel
    );
    for (name, measure) in SECTIONS {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            for section in measure(&bench).await? {
                section.print();
                report.sections.push(section);
            }
        }
    }
    drop(bench);

    let path = target_folder()?.join("bench.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

impl Bench {
    /// For files, which go with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The agent that all sections share, started when it is first asked for.
    pub async fn hearth(&self) -> Result<&Hearth> {
        self.hearth.get_or_try_init(Hearth::start).await
    }

    /// The probe as a file, for machines without an agent.
    pub fn probe_kernel(&self) -> Result<PathBuf> {
        let path = self.folder().join("probe");
        if !path.exists() {
            fs::write(&path, probe::kernel()?)?;
        }
        Ok(path)
    }
}

fn kind_of_kvm() -> &'static str {
    let loaded = |name| PathBuf::from("/sys/module").join(name).exists();
    match (loaded("kvm_intel"), loaded("kvm_amd"), loaded("kvm_pvm")) {
        (true, _, _) => "Intel",
        (_, true, _) => "AMD",
        (_, _, true) => "software",
        _ => "unknown",
    }
}

/// `target`, from `target/release/hearth-bench`.
fn target_folder() -> Result<PathBuf> {
    let me = env::current_exe()?;
    Ok(me
        .ancestors()
        .nth(2)
        .context("this program is not in target/release")?
        .to_owned())
}
