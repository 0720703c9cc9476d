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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security_groups::prefix_lists::model::{Entry, Family};

    fn list() -> PrefixList {
        let entry = |block: &str| Entry {
            block: block.parse().expect("block"),
            description: String::new(),
        };
        PrefixList {
            seq: 1,
            id: "pl-1".to_owned(),
            owner: "local".to_owned(),
            name: "list".to_owned(),
            family: Family::Ipv4,
            max_entries: 2,
            version: 7,
            entries: vec![entry("10.0.0.0/8"), entry("192.0.2.0/24")],
            tags: Vec::new(),
            client_token: String::new(),
        }
    }

    fn request(add: &[&str], remove: &[&str]) -> ModifyRequest {
        ModifyRequest {
            id: "pl-1".to_owned(),
            current_version: 0,
            add: add
                .iter()
                .map(|cidr| EntryRequest {
                    cidr: (*cidr).to_owned(),
                    description: "new".to_owned(),
                })
                .collect(),
            remove: remove.iter().map(|&cidr| cidr.to_owned()).collect(),
            name: None,
            connections: Connections::Cut,
        }
    }

    #[test]
    fn entries_are_replaced_in_one_step_within_the_limit() {
        let changed = request(&["10.0.0.0/8", "198.51.100.0/24"], &["192.0.2.0/24"]);
        let after = modified(&list(), &changed).expect("fits");
        let said: Vec<String> = after
            .entries
            .iter()
            .map(|entry| format!("{} {}", entry.block, entry.description))
            .collect();
        assert_eq!(said, ["10.0.0.0/8 new", "198.51.100.0/24 new"]);
        assert_eq!(after.version, 8);
        for (add, remove, field) in [
            (&["198.51.100.0/24"][..], &[][..], "add_entries"),
            (&["10.0.0.0/8"], &["10.0.0.0/8"], "add_entries[0].cidr"),
            (&[], &["198.51.100.0/24"], "remove_cidrs[0]"),
            (&["10.0.0.1/8"], &[], "add_entries[0].cidr"),
        ] {
            let error = modified(&list(), &request(add, remove)).expect_err(field);
            assert_eq!(error.fields(), [field]);
        }
    }

    #[test]
    fn a_list_that_somebody_else_changed_is_left_alone() {
        let stale = ModifyRequest {
            current_version: 6,
            ..request(&[], &["10.0.0.0/8"])
        };
        let error = modified(&list(), &stale).expect_err("stale");
        assert_eq!(error.reason(), Reason::PrefixListVersionMismatch);
    }
}
