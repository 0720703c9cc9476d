//! DescribeUsage.

use std::collections::{BTreeMap, HashMap};

use hearth_images::{Blocks, Owner};

use crate::{
    accounts::Account,
    blocking::blocking,
    context::Context,
    db,
    error::{ApiError, ApiResult},
    ids::{Kind, MAX_IDS},
};

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct UsageRequest {
    /// Whose objects it is about.
    pub account: Account,
    pub ids: Vec<String>,
    pub totals_only: bool,
}

/// What one object takes.
#[derive(Clone, Debug)]
pub struct Object {
    pub id: String,
    /// Empty for what belongs to nobody, which reconciliation removes.
    pub owner: String,
    pub blocks: Blocks,
}

/// What everything takes.
#[derive(Clone, Debug)]
pub struct UsageView {
    pub objects: Vec<Object>,
    pub accounts: BTreeMap<String, Blocks>,
    pub total_bytes: u64,
    pub unused_bytes: u64,
}

/// DescribeUsage.
pub async fn describe(context: &Context, request: UsageRequest) -> ApiResult<UsageView> {
    if request.ids.len() > MAX_IDS {
        return Err(ApiError::invalid(
            "resource_ids",
            format!("{} ids; at most {MAX_IDS}", request.ids.len()),
        ));
    }
    for (index, id) in request.ids.iter().enumerate() {
        kind_of(id, &format!("resource_ids[{index}]"))?;
    }
    let store = context.store.clone();
    let usage = blocking("looking at the store", move || store.usage())
        .await?
        .map_err(|error| ApiError::from_store(&error, "", "looking at the store"))?;
    let owners = context.db.read(db::permissions::owners).await?;

    let owner_of = |id: &str| owners.get(id).cloned().unwrap_or_default();
    let mut by_account: HashMap<String, Vec<&Owner>> = HashMap::new();
    let mut by_id: BTreeMap<&str, &Owner> = BTreeMap::new();
    for owner in usage.owners() {
        let id = id_of(owner);
        if !request.account.owns(&owner_of(id)) {
            continue;
        }
        by_account.entry(owner_of(id)).or_default().push(owner);
        by_id.insert(id, owner);
    }
    let wanted: Vec<&Owner> = match (&request.ids[..], request.totals_only) {
        (_, true) => Vec::new(),
        ([], false) => by_id.values().copied().collect(),
        (ids, false) => ids
            .iter()
            .enumerate()
            .map(|(index, id)| {
                let field = format!("resource_ids[{index}]");
                let missing = || Ok(kind_of(id, &field)?.missing(id, &field));
                match by_id.get(id.as_str()) {
                    Some(owner) => Ok(*owner),
                    None => Err(missing().unwrap_or_else(|error| error)),
                }
            })
            .collect::<ApiResult<_>>()?,
    };
    Ok(UsageView {
        objects: wanted
            .into_iter()
            .map(|owner| Object {
                id: id_of(owner).to_owned(),
                owner: owner_of(id_of(owner)),
                blocks: usage.of([owner]),
            })
            .collect(),
        accounts: by_account
            .into_iter()
            .filter(|(account, _)| !account.is_empty())
            .map(|(account, owned)| (account, usage.of(owned)))
            .collect(),
        total_bytes: usage.total_bytes(),
        unused_bytes: usage.unreached_bytes(),
    })
}

/// The id of what keeps a layer alive, as the API knows it.
pub fn id_of(owner: &Owner) -> &str {
    match owner {
        Owner::Volume(id) => id.as_ref(),
        Owner::Snapshot(id) => id.as_ref(),
    }
}

fn kind_of(id: &str, field: &str) -> ApiResult<Kind> {
    for kind in [Kind::Volume, Kind::Snapshot, Kind::Image] {
        if kind.matches(id) {
            return Ok(kind);
        }
    }
    Err(ApiError::invalid(
        field,
        format!("{id:?} is not the id of a volume, a snapshot or an image"),
    ))
}
