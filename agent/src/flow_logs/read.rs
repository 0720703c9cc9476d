//! ReadFlowLog.

use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::watch;

use super::{files::Position, record::Record};
use crate::{
    blocking::blocking,
    context::Context,
    error::{ApiError, ApiResult},
    ids::Kind,
    time::Millis,
};

/// What a caller wants to read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    pub flow_log_id: String,
    /// Empty for all.
    pub interface_id: String,
    /// Only records that end after this.
    pub start: Option<Millis>,
    /// Waits for more at the end.
    pub follow: bool,
}

/// Reads one flow log from front to back.
pub struct Reader {
    context: Arc<Context>,
    request: ReadRequest,
    position: Position,
    written: watch::Receiver<()>,
}

impl Reader {
    /// # Errors
    /// `InvalidFlowLogId.NotFound`, and for ids of the wrong shape.
    pub async fn start(context: Arc<Context>, request: ReadRequest) -> ApiResult<Self> {
        Kind::FlowLog.check(&request.flow_log_id, "flow_log_id")?;
        if !request.interface_id.is_empty() {
            Kind::NetworkInterface.check(&request.interface_id, "network_interface_id")?;
        }
        let written = context.flow_logs.written.subscribe();
        let mut reader = Self {
            context,
            request,
            position: Position::default(),
            written,
        };
        reader.check().await?;
        if let Some(start) = reader.request.start {
            let time = u64::try_from(start.0).unwrap_or_default();
            let (context, id) = (reader.context.clone(), reader.request.flow_log_id.clone());
            let found = blocking("reading records", move || {
                context.flow_logs.files.seek(&id, time)
            });
            reader.position = found.await?.map_err(failed)?;
        }
        Ok(reader)
    }

    /// It is still there.
    async fn check(&self) -> ApiResult<()> {
        let id = self.request.flow_log_id.clone();
        let get = move |connection: &Connection| super::get(connection, &id, "flow_log_id");
        self.context.db.read(get).await.map(drop)
    }

    /// The next records, of one file at most. `None` at the end, unless it is followed.
    ///
    /// # Errors
    /// Also when the flow log is deleted meanwhile.
    pub async fn next(&mut self) -> ApiResult<Option<Vec<Record>>> {
        loop {
            self.written.mark_unchanged();
            let (context, id) = (self.context.clone(), self.request.flow_log_id.clone());
            let mut position = self.position;
            let read = blocking("reading records", move || {
                let records = context.flow_logs.files.read(&id, &mut position);
                records.map(|records| (records, position))
            });
            let (mut records, position) = read.await?.map_err(failed)?;
            self.position = position;
            let is_end = records.is_empty();
            let start = self.request.start.map(|it| it.0.div_euclid(1000));
            let interface = &self.request.interface_id;
            records.retain(|it| {
                start.is_none_or(|start| it.end > start)
                    && (interface.is_empty() || it.interface == *interface)
            });
            if !records.is_empty() {
                return Ok(Some(records));
            }
            if !is_end {
                continue;
            }
            if !self.request.follow {
                return Ok(None);
            }
            // The agent keeps the sender for as long as it runs.
            if self.written.changed().await.is_err() {
                return Ok(None);
            }
            self.check().await?;
        }
    }
}

fn failed(error: std::io::Error) -> ApiError {
    ApiError::internal("reading records", error)
}
