//! DeletePrefixList.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{get, state_event};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult},
    firewall::{Connections, policy::Change},
    ids::Kind,
    security_groups::{delete::in_use, force},
};

/// DeletePrefixList: of a list that no rule names.
pub async fn delete(context: Arc<Context>, id: String) -> ApiResult<()> {
    Kind::PrefixList.check(&id, "prefix_list_id")?;
    carried_through(async move {
        let _turn = context.turns.take([&id]).await;
        let list = context
            .db
            .write(move |tx| {
                let list = get(tx, &id, "prefix_list_id")?;
                let naming = db::security_groups::rules_naming(tx, &id)?;
                if let Some(first) = naming.first() {
                    let group = first.group_id.clone();
                    let rules = naming
                        .into_iter()
                        .map(|rule| format!("{} of {}", rule.id, rule.group_id));
                    let error = in_use(&id, "prefix list", "rules name it", rules);
                    return Err(error.with("group_id", group));
                }
                db::prefix_lists::remove(tx, &id)?;
                tx.event(state_event(&list, "available", "deleted"));
                Ok::<_, ApiError>(list)
            })
            .await?;
        crash_point("prefix-list.row-deleted");
        let change = Change::RemovePrefixList(list.id.clone());
        force::bring(&context, vec![change], Connections::Keep, move |tx| {
            let mut list = list;
            db::prefix_lists::insert(tx, &mut list)?;
            tx.event(state_event(&list, "deleted", "available"));
            Ok(())
        })
        .await?;
        Ok(())
    })
    .await
}
