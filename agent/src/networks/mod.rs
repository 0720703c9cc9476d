//! Virtual networks: ranges that instances have addresses of, isolated from each other, and how
//! they are reached from outside.
//!
//! - [`model`]: the rows; [`range`], [`names`]: what they may be
//! - [`create`], [`modify`], [`describe`]: networks
//! - [`launch`]: which interfaces a new instance gets; [`plan`]: which addresses they have
//! - [`interfaces`]: changing them, and which one a caller means
//! - [`pools`], [`addresses`]: public addresses, mapped one to one
//! - [`forwards`]: ports of the host that are instances'
//! - [`plug`]: the taps of an instance, from its start to its end
//! - [`policy`], [`enforce`]: what the firewall is told
//! - [`reconcile`]: brings the host's links back in line with the rows
//!
//! What the kernel is asked is in [`crate::links`]. A row is committed before the firewall knows
//! of it, the firewall knows of an interface before there is a tap, and a tap is gone before its
//! row is: nothing is ever reachable that no rule is about.

pub mod addresses;
pub mod create;
pub mod describe;
pub mod enforce;
pub mod forwards;
pub mod interfaces;
pub mod launch;
pub mod model;
pub mod modify;
mod names;
pub mod plan;
pub mod plug;
mod policy;
pub mod pools;
mod range;
pub mod reconcile;

use rusqlite::Connection;
use tokio::sync::Mutex;

use self::{enforce::Enforced, model::Network, plug::Running};
use crate::{
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    links::LinkError,
};

/// What the agent knows of the host's networks beside the database.
#[derive(Default)]
pub struct Networks {
    /// What the firewall was told.
    pub enforced: Enforced,
    /// The services on taps. Held while links of ours come or go, so that what is looked at does
    /// not change meanwhile.
    pub links: Mutex<Running>,
}

/// Looks a network up that a caller named in `field`.
pub fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<Network> {
    db::networks::get(connection, id)?.ok_or_else(|| Kind::Network.missing(id, field))
}

fn dry_run() -> ApiError {
    ApiError::new(
        Reason::DryRunOperation,
        "the request would have worked; it was a dry run",
    )
}

/// The host's network could not be changed: the operator's to put right.
fn link_failed(error: &LinkError) -> ApiError {
    ApiError::new(Reason::Unsupported, error.to_string())
}
