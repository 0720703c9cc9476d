//! CreateFlowLogs.

use std::sync::Arc;

use rusqlite::Connection;

use super::{
    TURN, enforce,
    model::{FlowLog, TrafficType},
};
use crate::{
    blocking::carried_through,
    context::Context,
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, MAX_IDS, shortened},
    networks::enforce::Failure,
    tags::{self, Tag},
    time::Millis,
    tokens::{self, ClientToken},
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreateFlowLogs";

/// Most flow logs of an account.
const MAX_FLOW_LOGS: usize = 200;

/// Seconds, as in EC2, and a shorter one for those who watch.
const INTERVALS: [u32; 3] = [10, 60, 600];
const DEFAULT_INTERVAL: u32 = 600;

/// What a caller wants made.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The account that will own what is made.
    pub owner: String,
    pub resource_ids: Vec<String>,
    pub traffic: TrafficType,
    /// Seconds; 0 for the default.
    pub interval: u32,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// What kind of resource an id is of.
pub fn resource_kind(id: &str) -> Option<Kind> {
    let kinds = [Kind::NetworkInterface, Kind::Network];
    kinds.into_iter().find(|kind| kind.matches(id))
}

/// Makes flow logs, all or none.
pub async fn create(context: Arc<Context>, request: CreateRequest) -> ApiResult<Vec<FlowLog>> {
    let interval = match request.interval {
        0 => DEFAULT_INTERVAL,
        interval if INTERVALS.contains(&interval) => interval,
        _ => {
            return Err(ApiError::invalid(
                "max_aggregation_interval",
                "10, 60 or 600 seconds",
            ));
        }
    };
    tags::check(&request.tags, "tags")?;
    let ids = check_resources(&request.resource_ids)?;
    let mut logs = Vec::new();
    for resource_id in ids {
        logs.push(FlowLog {
            seq: 0,
            id: Kind::FlowLog.new_id()?,
            owner: request.owner.clone(),
            resource_id,
            traffic: request.traffic,
            interval,
            create_time: Millis::now(),
            tags: request.tags.clone(),
            client_token: request.client_token.clone(),
        });
    }
    carried_through(async move {
        let _turn = context.turns.take([TURN]).await;
        let token = request.token.clone();
        let insert = move |tx: &mut Tx<'_>| insert(tx, logs, token.as_ref());
        let logs = match context.db.write(insert).await? {
            Made::Earlier(logs) => return Ok(logs),
            Made::New(logs) => logs,
        };
        match enforce::try_turn(&context).await {
            Ok(()) => {}
            Err(Failure::InForce(error)) => tracing::warn!(%error, "counting flows"),
            Err(Failure::NotInForce(error)) => {
                undo(&context, request, logs).await?;
                return Err(error);
            }
        }
        context.flow_logs.changed.notify_one();
        Ok(logs)
    })
    .await
}

fn check_resources(ids: &[String]) -> ApiResult<Vec<String>> {
    if ids.is_empty() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            "resource_ids",
            "name at least one interface or network",
        ));
    }
    if ids.len() > MAX_IDS {
        return Err(ApiError::invalid(
            "resource_ids",
            format!("at most {MAX_IDS} in one call"),
        ));
    }
    let mut unique: Vec<String> = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        if resource_kind(id).is_none() {
            return Err(ApiError::invalid(
                format!("resource_ids[{index}]"),
                format!(
                    "{:?} is not the id of an interface (eni-…) or a network (net-…)",
                    shortened(id)
                ),
            ));
        }
        if !unique.contains(id) {
            unique.push(id.clone());
        }
    }
    Ok(unique)
}

enum Made {
    New(Vec<FlowLog>),
    Earlier(Vec<FlowLog>),
}

fn insert(tx: &mut Tx<'_>, mut logs: Vec<FlowLog>, token: Option<&ClientToken>) -> ApiResult<Made> {
    if let Some(token) = token
        && let Some(ids) = token.earlier(tx)?
    {
        let logs = ids.iter().map(|id| super::get(tx, id, "client_token"));
        return Ok(Made::Earlier(logs.collect::<ApiResult<_>>()?));
    }
    for (index, log) in logs.iter_mut().enumerate() {
        let field = format!("resource_ids[{index}]");
        check_is_there(tx, log, &field)?;
        let others = db::flow_logs::of(tx, &log.resource_id, &log.resource_id)?;
        if let Some(other) = others.iter().find(|it| it.traffic == log.traffic) {
            return Err(ApiError::field(
                Reason::FlowLogAlreadyExists,
                field,
                format!("{} is its flow log of this traffic type", other.id),
            )
            .with("resource_id", &other.id));
        }
        if db::flow_logs::count(tx, &log.owner)? >= MAX_FLOW_LOGS {
            return Err(ApiError::new(
                Reason::FlowLogsLimitExceeded,
                format!("an account has at most {MAX_FLOW_LOGS} flow logs"),
            ));
        }
        db::flow_logs::insert(tx, log)?;
    }
    if let Some(token) = token {
        let ids: Vec<String> = logs.iter().map(|it| it.id.clone()).collect();
        token.keep(tx, &ids)?;
    }
    Ok(Made::New(logs))
}

/// Also whose it is: a flow log is its resource's owner's.
fn check_is_there(connection: &Connection, log: &FlowLog, field: &str) -> ApiResult<()> {
    let Some(kind) = resource_kind(&log.resource_id) else {
        return Err(ApiError::internal(
            "looking at a resource",
            &log.resource_id,
        ));
    };
    match db::permissions::owner(connection, kind, &log.resource_id)? {
        Some(owner) if owner == log.owner => Ok(()),
        _ => Err(kind.missing(&log.resource_id, field)),
    }
}

/// Takes flow logs back that could not be put in force.
async fn undo(context: &Context, request: CreateRequest, logs: Vec<FlowLog>) -> ApiResult<()> {
    let undo = move |tx: &mut Tx<'_>| {
        tokens::forget(tx, &request.owner, CREATE, &request.client_token)?;
        for log in &logs {
            db::flow_logs::remove(tx, &log.id)?;
        }
        Ok::<_, ApiError>(())
    };
    context.db.write(undo).await
}
