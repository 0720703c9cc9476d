//! From the database into force.

use crate::{
    context::Context,
    db::{self, DbResult, Tx},
    error::{ApiError, ApiResult, Reason},
    firewall::{
        Applied, Connections, FirewallError,
        policy::{Change, Policy},
    },
    networks::enforce,
};

/// What happens to the connections of a change, durably: an agent that dies before it has cut them
/// leaves that to the next one.
#[derive(Debug)]
pub enum Cutting {
    /// None has to be.
    Nothing,
    /// Those that are no longer allowed; with the notes of that in the database.
    Noted(Vec<i64>),
}

impl Cutting {
    /// Notes, in the transaction of the change, of which objects connections are to be cut.
    pub fn note<'a>(
        tx: &Tx<'_>,
        connections: Connections,
        objects: impl IntoIterator<Item = &'a String>,
    ) -> DbResult<Self> {
        match connections {
            Connections::Keep => Ok(Self::Nothing),
            Connections::Cut => {
                let notes = objects.into_iter();
                let notes = notes.map(|id| db::pending_cuts::note(tx, id));
                Ok(Self::Noted(notes.collect::<DbResult<_>>()?))
            }
        }
    }
}

/// Brings into force what was committed. When the kernel does not take it, `take_back` undoes the
/// rows, and the call fails with nothing changed.
///
/// The caller has the turn ([`crate::turns`]) of everything that the changes put or remove, since
/// before it wrote the rows: whoever comes next finds rows and rules that agree.
pub async fn bring(
    context: &Context,
    changes: Vec<Change>,
    cutting: Cutting,
    take_back: impl FnOnce(&mut Tx<'_>) -> ApiResult<()> + Send + 'static,
) -> ApiResult<Applied> {
    let (connections, notes) = match cutting {
        Cutting::Nothing => (Connections::Keep, Vec::new()),
        Cutting::Noted(notes) => (Connections::Cut, notes),
    };
    match enforce::apply(context, changes, connections).await {
        Ok(applied) => {
            if !notes.is_empty() {
                let db = context.db.clone();
                // Nobody has to wait for it: at worst the next agent looks once more.
                tokio::spawn(async move {
                    let done = db.write(move |tx| db::pending_cuts::done(tx, &notes));
                    if let Err(error) = done.await {
                        tracing::warn!(%error, "connections were cut, and will be again");
                    }
                });
            }
            Ok(applied)
        }
        Err(error @ FirewallError::Nftables(_)) => {
            tracing::error!(%error, "a change of security groups is taken back");
            let undo = move |tx: &mut Tx<'_>| {
                db::pending_cuts::done(tx, &notes)?;
                take_back(tx)
            };
            context.db.write(undo).await.map_err(|undo| {
                tracing::error!(error = %undo, "taking the change back");
                ApiError::new(
                    Reason::InternalError,
                    "the host did not take the rules, and the change could not be taken back: \
                     the old rules are in force until hearthd starts again; its log has the cause",
                )
            })?;
            Err(ApiError::new(
                Reason::InternalError,
                "the host did not take the rules, so that nothing was changed; hearthd's log has \
                 the cause",
            ))
        }
        Err(error @ FirewallError::Conntrack(_)) => {
            tracing::error!(%error, "the rules are in force; cutting connections");
            Err(ApiError::new(
                Reason::InternalError,
                "the change is made and in force for new connections, but those that it no longer \
                 allows could not be cut; hearthd's log has the cause",
            ))
        }
    }
}

/// Cuts what an agent that died did not come to, once the whole policy is in force.
pub async fn finish_cuts(context: &Context) -> ApiResult<()> {
    let notes = context.db.read(db::pending_cuts::all).await?;
    if notes.is_empty() {
        return Ok(());
    }
    let policy = context.firewall.policy().await;
    let changes = notes
        .iter()
        .filter_map(|(_, id)| same(&policy, id))
        .collect();
    match enforce::apply(context, changes, Connections::Cut).await {
        Ok(applied) => tracing::info!(applied.cut, "connections that were to be cut are"),
        Err(error) => {
            tracing::error!(%error, "connections that were to be cut live on for now");
            return Ok(());
        }
    }
    let notes: Vec<i64> = notes.into_iter().map(|(note, _)| note).collect();
    let done = move |tx: &mut Tx<'_>| db::pending_cuts::done(tx, &notes);
    Ok(context.db.write(done).await?)
}

/// The change that puts an object as it is: it changes nothing, and has its connections looked at.
fn same(policy: &Policy, id: &str) -> Option<Change> {
    let id = id.to_owned();
    if let Some(group) = policy.groups.get(&id) {
        return Some(Change::PutGroup(id, group.clone()));
    }
    if let Some(interface) = policy.interfaces.get(&id) {
        return Some(Change::PutInterface(id, interface.clone()));
    }
    let list = policy.prefix_lists.get(&id)?;
    Some(Change::PutPrefixList(id, list.clone()))
}
