//! Flow logs: who talked to whom through an interface, how much, and whether it was let through.
//!
//! The kernel counts ([`crate::firewall::flows`]). At the end of each interval the counts of all
//! interfaces are retired at once ([`collect`]); they are written to the files of the flow logs
//! that want them ([`files`], as lines: [`record`]), and only then given up. Who is killed in
//! between finds them in the kernel again, and what was written is not written twice.
//!
//! - [`create`], [`delete`]: the rows, and what the firewall is told of them ([`enforce`])
//! - [`model`]: a row; [`read`]: records for callers

mod collect;
mod create;
mod delete;
mod enforce;
mod files;
pub mod model;
pub mod read;
pub mod record;

use std::path::PathBuf;

use rusqlite::Connection;
use tokio::sync::{Notify, watch};

pub use collect::run;
pub use create::{CREATE, CreateRequest, create};
pub use delete::delete;
pub use enforce::{of_interface, wanted, windows};

use self::{files::Files, model::FlowLog};
use crate::{
    context::Context,
    db,
    error::ApiResult,
    ids::Kind,
    query::page::{Page, Query},
};

/// Whose turn it is to change windows or flow logs ([`crate::turns`]).
const TURN: &str = "flow-logs";

/// What the agent knows of flow logs beside the database.
pub struct FlowLogs {
    files: Files,
    /// The flow logs are others now: the interval may be another.
    changed: Notify,
    /// Told whenever there are new records, or a flow log is gone.
    written: watch::Sender<()>,
}

impl FlowLogs {
    /// With its files in `dir`, which is made when it is needed.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            files: Files::new(dir, files::BOUNDS),
            changed: Notify::new(),
            written: watch::channel(()).0,
        }
    }
}

/// DescribeFlowLogs.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<FlowLog>> {
    context
        .db
        .read(move |connection| query.page(connection, "flow_log_ids", get, db::flow_logs::after))
        .await
}

/// Looks one up that a caller named in `field`.
fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<FlowLog> {
    db::flow_logs::get(connection, id)?.ok_or_else(|| Kind::FlowLog.missing(id, field))
}
