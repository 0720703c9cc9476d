//! From the database into force.

use crate::{
    context::Context,
    db::Tx,
    error::{ApiError, ApiResult, Reason},
    firewall::{Applied, Connections, FirewallError, policy::Change},
    networks::enforce,
};

/// Brings into force what was committed. When the kernel does not take it, `take_back` undoes the
/// rows, and the call fails with nothing changed.
///
/// The caller has the turn ([`crate::turns`]) of everything that the changes put or remove, since
/// before it wrote the rows: whoever comes next finds rows and rules that agree.
pub async fn bring(
    context: &Context,
    changes: Vec<Change>,
    connections: Connections,
    take_back: impl FnOnce(&mut Tx<'_>) -> ApiResult<()> + Send + 'static,
) -> ApiResult<Applied> {
    match enforce::apply(context, changes, connections).await {
        Ok(applied) => Ok(applied),
        Err(error @ FirewallError::Nftables(_)) => {
            tracing::error!(%error, "a change of security groups is taken back");
            context.db.write(take_back).await.map_err(|undo| {
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
