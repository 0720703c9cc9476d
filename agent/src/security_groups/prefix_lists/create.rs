//! CreatePrefixList.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{
    EntryRequest, MAX_ENTRIES, check_name, entries, get,
    model::{Family, PrefixList},
    put, state_event, too_many,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    firewall::Connections,
    ids::{Kind, shortened},
    security_groups::force,
    tags::{self, Tag},
    tokens::{self, ClientToken},
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreatePrefixList";

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The account that will own the list.
    pub owner: String,
    pub name: String,
    /// `IPv4`, `IPv6`, or empty for IPv4.
    pub family: String,
    /// 0: as many as there are entries.
    pub max_entries: u32,
    pub entries: Vec<EntryRequest>,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// CreatePrefixList.
pub async fn create(context: Arc<Context>, request: CreateRequest) -> ApiResult<PrefixList> {
    check_name(&request.name)?;
    let family = family(&request.family)?;
    let entries = entries(&request.entries, family, "entries")?;
    let max_entries = max_entries(&request, entries.len())?;
    tags::check(&request.tags, "tags")?;
    carried_through(async move {
        let id = Kind::PrefixList.new_id()?;
        let _turn = context.turns.take([&id]).await;
        let list = PrefixList {
            seq: 0,
            id,
            owner: request.owner,
            name: request.name,
            family,
            max_entries,
            version: 1,
            entries,
            tags: request.tags,
            client_token: request.client_token,
        };
        let token = request.token;
        let (list, new) = context
            .db
            .write(move |tx| insert(tx, list, token.as_ref()))
            .await?;
        if !new {
            return Ok(list);
        }
        crash_point("prefix-list.row-created");
        let (change, undone) = (put(&list), list.clone());
        force::bring(&context, vec![change], Connections::Keep, move |tx| {
            tokens::forget(tx, &undone.owner, CREATE, &undone.client_token)?;
            db::prefix_lists::remove(tx, &undone.id)?;
            tx.event(state_event(&undone, "available", "deleted"));
            Ok(())
        })
        .await?;
        Ok(list)
    })
    .await
}

fn insert(
    tx: &mut db::Tx<'_>,
    mut list: PrefixList,
    token: Option<&ClientToken>,
) -> ApiResult<(PrefixList, bool)> {
    if let Some(token) = token
        && let Some(ids) = token.earlier(tx)?
    {
        let id = ids.first().map(String::as_str).unwrap_or_default();
        return Ok((get(tx, id, "client_token")?, false));
    }
    db::prefix_lists::insert(tx, &mut list)?;
    if let Some(token) = token {
        token.keep(tx, std::slice::from_ref(&list.id))?;
    }
    tx.event(state_event(&list, "", "available"));
    Ok((list, true))
}

fn family(text: &str) -> ApiResult<Family> {
    match text {
        "" => Ok(Family::Ipv4),
        text => Family::ALL
            .iter()
            .copied()
            .find(|family| family.word().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                ApiError::invalid(
                    "address_family",
                    format!("{:?} is neither IPv4 nor IPv6", shortened(text)),
                )
            }),
    }
}

fn max_entries(request: &CreateRequest, entries: usize) -> ApiResult<u32> {
    match request.max_entries {
        0 if entries == 0 => Err(ApiError::field(
            Reason::MissingParameter,
            "max_entries",
            "say how many entries a list that begins empty may get",
        )),
        0 => u32::try_from(entries).map_err(|_| too_many(entries, MAX_ENTRIES, "entries")),
        most @ 1..=MAX_ENTRIES if entries <= most as usize => Ok(most),
        most @ 1..=MAX_ENTRIES => Err(too_many(entries, most, "entries")),
        _ => Err(ApiError::invalid(
            "max_entries",
            format!("1 to {MAX_ENTRIES}"),
        )),
    }
}
