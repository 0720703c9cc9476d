//! From the database into force.

use std::collections::BTreeSet;

use crate::{
    context::Context,
    db::{self, DbResult, Tx},
    error::{ApiError, ApiResult, Reason},
    firewall::{
        Applied, Connections, FirewallError,
        policy::{Change, Interface, Policy},
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
        .flat_map(|(_, id)| renewed(&policy, id))
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

/// Changes that take an object away and put it back as it is: they change nothing, and have all of
/// its connections looked at.
fn renewed(policy: &Policy, id: &str) -> Vec<Change> {
    let id = id.to_owned();
    if let Some(group) = policy.groups.get(&id) {
        let put = Change::PutGroup(id.clone(), group.clone());
        return vec![Change::RemoveGroup(id), put];
    }
    if let Some(list) = policy.prefix_lists.get(&id) {
        let put = Change::PutPrefixList(id.clone(), list.clone());
        return vec![Change::RemovePrefixList(id), put];
    }
    let Some(interface) = policy.interfaces.get(&id) else {
        return Vec::new();
    };
    // Not removed: public addresses and port forwards would go with it.
    let alone = Interface {
        groups: BTreeSet::new(),
        ..interface.clone()
    };
    vec![
        Change::PutInterface(id.clone(), alone),
        Change::PutInterface(id, interface.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::policy::Group;

    #[test]
    fn renewing_changes_nothing_at_all() {
        let mut policy = Policy::default();
        let interface = Interface {
            network: "net-1".to_owned(),
            tap: "hth1".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            ipv4: [10, 0, 0, 4].into(),
            ipv6: None,
            groups: ["sg-1".to_owned()].into(),
        };
        policy.interfaces.insert("eni-1".to_owned(), interface);
        policy.groups.insert("sg-1".to_owned(), Group::default());
        let public = [203, 0, 113, 1].into();
        policy.addresses.insert(public, "eni-1".to_owned());
        policy
            .prefix_lists
            .insert("pl-1".to_owned(), BTreeSet::new());
        for id in ["eni-1", "sg-1", "pl-1", "sg-that-is-gone"] {
            let mut renewed_policy = policy.clone();
            for change in renewed(&policy, id) {
                renewed_policy.apply(change);
            }
            assert_eq!(renewed_policy, policy, "{id}");
        }
    }
}
