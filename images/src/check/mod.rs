//! Walks the tables of a layer and compares its refcounts.
//!
//! After a crash the L1 and L2 tables are the truth about what is used; the refcounts follow from
//! them (qcow2 specification, "dirty bit"). A layer of ours has no internal snapshots, so that
//! every used cluster has exactly one owner and a refcount of 1. Whatever has two owners, or lies
//! outside of the file, is damage: it is reported and never "repaired".

mod clusters;
mod refcounts;
pub(crate) mod tables;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::layer::header::{Header, file_len, write_dirty_bit};
pub(crate) use clusters::ClusterSet;
use std::fs::File;

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    No,
    /// Refcounts: leaked clusters are freed, missing refcounts of used clusters are written.
    Refcounts,
}

/// What a check found, in clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Clusters that something refers to.
    pub used_clusters: u64,
    /// Clusters with a refcount that nothing refers to: lost space, no danger.
    pub leaked_clusters: u64,
    /// Used clusters without a refcount: they would be given out a second time.
    pub unaccounted_clusters: u64,
    /// Whether the refcounts were written anew.
    pub repaired: bool,
}

impl CheckReport {
    /// Nothing was found, or what was found is repaired.
    pub fn is_clean(&self) -> bool {
        self.repaired || (self.leaked_clusters == 0 && self.unaccounted_clusters == 0)
    }
}

/// Checks one layer of ours. For a repair the file must be locked and open for writing.
///
/// [`ErrorKind::Corrupt`] if the tables contradict themselves; nothing is changed then.
pub(crate) fn check_layer(file: &File, repair: Repair) -> Result<CheckReport> {
    let header = Header::read(file)?;
    let file_len = file_len(file)?;

    let mut used = ClusterSet::new(header.cluster_bits, file_len);
    tables::collect_own_layer(file, &header, file_len, &mut used)?;

    let refcount_table = refcounts::read_table(file, &header, &mut used)?;
    let mut report = refcounts::compare(file, &header, &refcount_table, &used)?;
    if repair == Repair::Refcounts {
        if report.leaked_clusters + report.unaccounted_clusters > 0 {
            refcounts::rewrite(file, &header, refcount_table, &mut used)?;
            file.sync_data()
                .context(|| "syncing repaired refcounts".into())?;
            // Read back: a repair that does not lead to a clean layer is no repair.
            let table = refcounts::read_table(
                file,
                &header,
                &mut ClusterSet::new(header.cluster_bits, file_len),
            )?;
            let after = refcounts::compare(file, &header, &table, &used)?;
            if !after.is_clean() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the refcounts are wrong after they were rebuilt",
                ));
            }
            report.repaired = true;
        }
        if header.is_dirty() {
            write_dirty_bit(file, false).context(|| "marking a layer as clean".into())?;
        }
    }
    Ok(report)
}

/// A look at the refcount table only, for each opening of a layer of ours for writing: every part
/// of the file has a refcount block. (The qcow2 library runs out of stack if one is missing.)
pub(crate) fn check_refcount_coverage(file: &File, header: &Header) -> Result<()> {
    let mut blocks = ClusterSet::new(header.cluster_bits, file_len(file)?);
    let table = refcounts::read_table(file, header, &mut blocks)?;
    refcounts::check_coverage(header, &table, &blocks)
}
