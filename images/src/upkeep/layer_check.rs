//! A look at one layer: its tables, its refcounts, its checksums.
//!
//! No lock is held while a layer that is at rest is looked at, so that checking never keeps a
//! guest from starting. If something is found, the layer is looked at again while nobody can
//! write to it.

use super::report::FindingKind;
use super::sum_file::{self, Difference, SumFile};
use crate::check::{self, CheckReport, Repair};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::layer::CLUSTER_BYTES;
use crate::layer::header::Header;
use crate::store::{Layout, Locked, Mode, seal};
use std::fs::{self, File, OpenOptions};

/// What a look at one layer says.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub problems: Vec<Problem>,
    /// Somebody has it open for writing.
    pub in_use: bool,
    pub sum: Sum,
}

/// What became of a layer's checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sum {
    #[default]
    Missing,
    Verified,
    /// Not looked at.
    Skipped,
}

#[derive(Debug)]
pub(super) struct Problem {
    pub kind: FindingKind,
    pub detail: String,
    pub lost_bytes: u64,
    pub repaired: bool,
}

/// What may be done to a layer, and what is known of it.
pub(super) struct Task<'a> {
    pub layout: &'a Layout,
    pub id: &'a LayerId,
    pub parent: Option<&'a LayerId>,
    pub is_top: bool,
    pub repair: bool,
    pub checksums: bool,
}

impl Look {
    fn problem(&mut self, kind: FindingKind, detail: impl Into<String>) -> &mut Problem {
        self.problems.push(Problem {
            kind,
            detail: detail.into(),
            lost_bytes: 0,
            repaired: false,
        });
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }
}

impl Task<'_> {
    /// Looks at the layer. Fails only if that is not possible or not wanted any more.
    pub fn look(&self, stop: &mut sum_file::Stop<'_>) -> Result<Look> {
        let mut look = Look::default();
        // Contents first, so that a repair never changes what is damaged.
        if self.checksums {
            self.verify(&mut look, stop)?;
        } else {
            look.sum = Sum::Skipped;
        }
        let harmed = !look.problems.is_empty();
        match self.look_at_tables(harmed) {
            Ok(found) => found.into_look(&mut look, self),
            Err(error) if error.kind() == ErrorKind::InUse => look.in_use = true,
            Err(error) => {
                look.problem(FindingKind::Layer, error.to_string());
            }
        }
        Ok(look)
    }

    fn open(&self, write: bool) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(write)
            .open(self.layout.layer_path(self.id))
            .context(|| format!("opening layer {}", self.id))
    }

    fn look_at_tables(&self, harmed: bool) -> Result<Tables> {
        let file = self.open(false)?;
        let before = sum_file::modified(&file.metadata().context(|| "a layer".into())?);
        let was_dirty = Header::read(&file)?.is_dirty();
        if !was_dirty {
            let result = check::check_layer(&file, Repair::No);
            match result {
                Ok(report) if report.is_clean() => return Ok(Tables::clean(report)),
                // A sealed layer does not change, and no guest can have it open for writing.
                result if !self.is_top && (!self.repair || harmed || result.is_err()) => {
                    return result.map(Tables::clean);
                }
                _ => (),
            }
        }
        // Again, with everybody else kept out.
        let repair = self.repair && !harmed;
        let file = self.open(repair)?;
        let mode = if repair || was_dirty {
            Mode::Exclusive
        } else {
            Mode::Shared
        };
        let file = Locked::try_new(file, mode, || format!("layer {}", self.id))?;
        let was_dirty = Header::read(&file)?.is_dirty();
        let report = check::check_layer(&file, Repair::No)?;
        if !repair || (report.is_clean() && !was_dirty) {
            return Ok(Tables { report, was_dirty });
        }
        // The digests are about the file as it was.
        {
            let _names = self.layout.lock_names()?;
            sum_file::remove(self.layout, self.id)?;
        }
        let mut report = check::check_layer(&file, Repair::Refcounts)?;
        report.repaired = true;
        if !self.is_top {
            seal(&file)?;
        }
        tracing::info!("repaired layer {}, last written at {before}", self.id);
        Ok(Tables { report, was_dirty })
    }

    fn verify(&self, look: &mut Look, stop: &mut sum_file::Stop<'_>) -> Result<()> {
        let sum = match SumFile::read(self.layout, self.id) {
            Ok(Some(sum)) => sum,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let detail = error.to_string();
                let problem = look.problem(FindingKind::ChecksumFile, detail);
                if self.repair {
                    let _names = self.layout.lock_names()?;
                    sum_file::remove(self.layout, self.id)?;
                    problem.repaired = true;
                }
                return Ok(());
            }
            Err(error) => {
                look.problem(FindingKind::ChecksumFile, error.to_string());
                return Ok(());
            }
        };
        let Ok(file) = self.open(false) else {
            return Ok(());
        };
        let metadata = file.metadata().context(|| format!("layer {}", self.id))?;
        let holds = |metadata: &fs::Metadata| match sum.modified {
            Some(modified) => modified == sum_file::modified(metadata),
            None => !self.is_top && !sum.is_of_another_file(metadata, self.parent),
        };
        if !holds(&metadata) {
            return Ok(());
        }
        let difference = match sum.compare(&file, stop) {
            Ok(difference) => difference,
            Err(error) if error.kind() == ErrorKind::Stopped => return Err(error),
            Err(error) => {
                look.problem(FindingKind::Layer, error.to_string());
                return Ok(());
            }
        };
        // A volume that was started meanwhile is in use, and not damaged.
        if !holds(&file.metadata().context(|| format!("layer {}", self.id))?) {
            return Ok(());
        }
        look.sum = Sum::Verified;
        if let Some(difference) = difference {
            look.problem(FindingKind::Checksum, difference.to_string());
        }
        Ok(())
    }
}

struct Tables {
    report: CheckReport,
    was_dirty: bool,
}

impl Tables {
    fn clean(report: CheckReport) -> Tables {
        Tables {
            report,
            was_dirty: false,
        }
    }

    fn into_look(self, look: &mut Look, task: &Task<'_>) {
        let report = self.report;
        if self.was_dirty {
            let detail = if task.is_top {
                "the volume was not closed cleanly"
            } else {
                "the layer was not closed cleanly"
            };
            look.problem(FindingKind::NotClosed, detail).repaired = report.repaired;
        }
        if report.unaccounted_clusters > 0 && !self.was_dirty {
            let detail = format!(
                "{} clusters in use have no refcount",
                report.unaccounted_clusters
            );
            look.problem(FindingKind::Layer, detail).repaired = report.repaired;
        }
        if report.leaked_clusters > 0 {
            let detail = format!("{} clusters are not in use", report.leaked_clusters);
            let problem = look.problem(FindingKind::LeakedClusters, detail);
            problem.lost_bytes = report.leaked_clusters * CLUSTER_BYTES;
            problem.repaired = report.repaired;
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Difference::Length { expected, found } => write!(
                f,
                "the file has {found} bytes, and had {expected} when it was sealed"
            ),
            Difference::Chunks {
                offset,
                length,
                count,
            } => write!(
                f,
                "the contents differ from the checksums in {count} chunk{}, the first the \
                 {length} bytes at offset {offset:#x}",
                if *count == 1 { "" } else { "s" }
            ),
        }
    }
}

/// Whether an error is about a layer rather than about the check.
pub(super) fn ends_the_check(error: &Error) -> bool {
    error.kind() == ErrorKind::Stopped
}
