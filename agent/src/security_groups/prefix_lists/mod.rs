//! Prefix lists: named lists of blocks that rules can name. What changes in a list changes in all
//! rules that name it, at once.

mod create;
mod delete;
pub mod model;
mod modify;

use std::collections::BTreeSet;

use ipnet::IpNet;
use rusqlite::Connection;

use self::model::{Entry, Family, PrefixList};
pub use self::{
    create::{CREATE, CreateRequest, create},
    delete::delete,
    modify::{ModifyRequest, modify},
};
use super::{
    check_text,
    permission::{ipv4_block, ipv6_block},
};
use crate::{
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    events::NewEvent,
    firewall::policy::Change,
    ids::Kind,
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    tags::Tag,
};

/// Most entries that a list may be made for.
const MAX_ENTRIES: u32 = 1_000;

const STATE_EVENT: &str = "prefix-list.state";
const VERSION_EVENT: &str = "prefix-list.version";

/// An entry as it came.
#[derive(Clone, Debug)]
pub struct EntryRequest {
    pub cidr: String,
    pub description: String,
}

/// DescribePrefixLists.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<PrefixList>> {
    context
        .db
        .read(move |c| query.page(c, "prefix_list_ids", get, db::prefix_lists::after))
        .await
}

/// What the firewall knows of a list.
pub fn blocks(list: &PrefixList) -> BTreeSet<IpNet> {
    list.entries.iter().map(|entry| entry.block).collect()
}

fn put(list: &PrefixList) -> Change {
    Change::PutPrefixList(list.id.clone(), blocks(list))
}

fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<PrefixList> {
    db::prefix_lists::get(connection, id)?.ok_or_else(|| Kind::PrefixList.missing(id, field))
}

fn state_event(list: &PrefixList, previous: &str, state: &str) -> NewEvent {
    NewEvent::state(STATE_EVENT, &list.owner, &list.id, previous, state)
}

fn check_name(name: &str) -> ApiResult<()> {
    if name.is_empty() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            "name",
            "a prefix list has a name",
        ));
    }
    check_text(name, "name")?;
    if name.starts_with("pl-") || name.trim() != name {
        return Err(ApiError::invalid(
            "name",
            "not beginning with `pl-`, and no space at its begin or end",
        ));
    }
    Ok(())
}

fn block(text: &str, family: Family, field: &str) -> ApiResult<IpNet> {
    Ok(match family {
        Family::Ipv4 => ipv4_block(text, field)?.into(),
        Family::Ipv6 => ipv6_block(text, field)?.into(),
    })
}

/// Reads entries of the request's field `field`; no block may be there twice.
fn entries(requests: &[EntryRequest], family: Family, field: &str) -> ApiResult<Vec<Entry>> {
    if requests.len() > MAX_ENTRIES as usize {
        return Err(too_many(requests.len(), MAX_ENTRIES, field));
    }
    let mut seen = BTreeSet::new();
    let mut entries = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let cidr_field = format!("{field}.cidr");
        let block = block(&request.cidr, family, &cidr_field)?;
        if !seen.insert(block) {
            return Err(ApiError::invalid(
                cidr_field,
                format!("{block} is there twice"),
            ));
        }
        check_text(&request.description, &format!("{field}.description"))?;
        entries.push(Entry {
            block,
            description: request.description.clone(),
        });
    }
    Ok(entries)
}

fn too_many(count: usize, most: u32, field: &str) -> ApiError {
    ApiError::invalid(
        field,
        format!("{count} entries are too many; the list holds at most {most}"),
    )
}

impl Described for PrefixList {
    const KIND: Kind = Kind::PrefixList;
    const FILTERS: &'static [&'static str] = &["prefix-list-id", "name", "owner-id"];

    fn seq(&self) -> i64 {
        self.seq
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> &str {
        &self.owner
    }

    fn values(&self, filter: &str) -> Vec<String> {
        vec![match filter {
            "prefix-list-id" => self.id.clone(),
            "name" => self.name.clone(),
            "owner-id" => self.owner.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        let entries: usize = self
            .entries
            .iter()
            .map(|entry| 64 + entry.description.len())
            .sum();
        tags_weight(&self.tags) + self.name.len() + entries
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}
