//! ModifyPrefixList.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{
    EntryRequest, VERSION_EVENT, block, check_name, entries, get, model::PrefixList, put, too_many,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    events::NewEvent,
    firewall::Connections,
    ids::Kind,
    security_groups::force,
};

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct ModifyRequest {
    pub id: String,
    /// The version that it must have; 0 does not care.
    pub current_version: u64,
    pub add: Vec<EntryRequest>,
    pub remove: Vec<String>,
    pub name: Option<String>,
    pub connections: Connections,
}

/// ModifyPrefixList: all of it or nothing; in force, in all rules that name the list, when it
/// returns.
pub async fn modify(context: Arc<Context>, request: ModifyRequest) -> ApiResult<PrefixList> {
    Kind::PrefixList.check(&request.id, "prefix_list_id")?;
    if request.add.is_empty() && request.remove.is_empty() && request.name.is_none() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            "add_entries",
            "say what to add or remove, or the new name",
        ));
    }
    request.name.as_deref().map(check_name).transpose()?;
    carried_through(async move {
        let _turn = context.turns.take([&request.id]).await;
        let connections = request.connections;
        let (before, after) = context
            .db
            .write(move |tx| {
                let before = get(tx, &request.id, "prefix_list_id")?;
                let after = modified(&before, &request)?;
                db::prefix_lists::update(tx, &after)?;
                tx.event(version_event(&before, &after));
                Ok::<_, ApiError>((before, after))
            })
            .await?;
        crash_point("prefix-list.row-modified");
        let (change, undone) = (put(&after), after.clone());
        force::bring(&context, vec![change], connections, move |tx| {
            db::prefix_lists::update(tx, &before)?;
            tx.event(version_event(&undone, &before));
            Ok(())
        })
        .await?;
        Ok(after)
    })
    .await
}

fn version_event(before: &PrefixList, after: &PrefixList) -> NewEvent {
    NewEvent::state(
        VERSION_EVENT,
        &after.owner,
        &after.id,
        &before.version.to_string(),
        &after.version.to_string(),
    )
}

/// The list after the request. An entry whose block is there already gets the new description.
fn modified(before: &PrefixList, request: &ModifyRequest) -> ApiResult<PrefixList> {
    if request.current_version != 0 && request.current_version != before.version {
        return Err(ApiError::field(
            Reason::PrefixListVersionMismatch,
            "current_version",
            format!("{} has version {} now", before.id, before.version),
        )
        .with("resource_id", &before.id)
        .with("version", before.version.to_string()));
    }
    let mut after = before.clone();
    for (index, cidr) in request.remove.iter().enumerate() {
        let field = format!("remove_cidrs[{index}]");
        let block = block(cidr, before.family, &field)?;
        let place = after.entries.iter().position(|entry| entry.block == block);
        let place = place
            .ok_or_else(|| ApiError::invalid(field, format!("{block} is not in {}", before.id)))?;
        after.entries.remove(place);
    }
    for (index, entry) in entries(&request.add, before.family, "add_entries")?
        .into_iter()
        .enumerate()
    {
        let was = before.entries.iter().any(|old| old.block == entry.block);
        match after
            .entries
            .iter_mut()
            .find(|old| old.block == entry.block)
        {
            Some(old) => *old = entry,
            None if was => {
                return Err(ApiError::field(
                    Reason::InvalidParameterCombination,
                    format!("add_entries[{index}].cidr"),
                    format!("{} is to be removed, too", entry.block),
                ));
            }
            None => after.entries.push(entry),
        }
    }
    if after.entries.len() > before.max_entries as usize {
        let count = after.entries.len();
        return Err(too_many(count, before.max_entries, "add_entries"));
    }
    if let Some(name) = &request.name {
        after.name.clone_from(name);
    }
    after.version += 1;
    Ok(after)
}
