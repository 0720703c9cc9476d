//! Security groups: who may talk to an instance, and to whom it may talk, as in EC2.
//!
//! - [`model`]: groups, rules, and the normal form of what a rule allows
//! - [`permission`]: what a caller writes as a rule
//! - [`create`], [`delete`], [`authorize`], [`revoke`]: groups and their rules
//! - [`membership`]: which interface is in which group
//! - [`prefix_lists`]: named lists of blocks
//! - [`explain`]: which rules let a packet pass
//! - [`policy`]: what the firewall is told of them; [`force`]: how it comes into force
//!
//! Each change is a transaction of the database, then one of the firewall, both within one turn of
//! the objects that change ([`crate::turns`]). A call returns when the change is in force. A crash
//! between the two leaves the old rules in force until the next agent loads the new ones.

pub mod authorize;
pub mod create;
pub mod default_group;
pub mod delete;
pub mod explain;
mod force;
pub mod membership;
pub mod model;
pub mod permission;
pub mod policy;
pub mod prefix_lists;
pub mod revoke;
#[cfg(test)]
mod tests;

use rusqlite::Connection;

use self::model::{Direction, Rule, SecurityGroup};
use crate::{
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    events::NewEvent,
    ids::Kind,
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    tags::Tag,
};

/// Most rules of a group in each direction; a prefix list counts as its `max_entries`.
pub const MAX_RULES: u64 = 60;

/// Most groups of an interface.
pub const MAX_GROUPS_OF_INTERFACE: usize = 5;

/// The name of the group that every network has.
pub const DEFAULT: &str = "default";

/// Longest name and description, in characters.
const MAX_TEXT: usize = 255;

const STATE_EVENT: &str = "security-group.state";
const RULES_EVENT: &str = "security-group.rules";

/// DescribeSecurityGroups.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<SecurityGroup>> {
    context
        .db
        .read(move |connection| {
            query.page(
                connection,
                "security_group_ids",
                get,
                db::security_groups::after,
            )
        })
        .await
}

/// DescribeSecurityGroupRules.
pub async fn describe_rules(context: &Context, query: Query) -> ApiResult<Page<Rule>> {
    context
        .db
        .read(move |connection| {
            let after = db::security_groups::rules_after;
            query.page(connection, "rule_ids", get_rule, after)
        })
        .await
}

/// Looks a group up that a caller named in `field`.
pub fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<SecurityGroup> {
    db::security_groups::get(connection, id)?.ok_or_else(|| Kind::SecurityGroup.missing(id, field))
}

fn get_rule(connection: &Connection, id: &str, field: &str) -> ApiResult<Rule> {
    db::security_groups::get_rule(connection, id)?
        .ok_or_else(|| Kind::SecurityGroupRule.missing(id, field))
}

fn check_text(text: &str, field: &str) -> ApiResult<()> {
    let count = text.chars().count();
    if count > MAX_TEXT {
        return Err(ApiError::invalid(
            field,
            format!("{count} characters are too many; at most {MAX_TEXT}"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(ApiError::invalid(field, "no control characters"));
    }
    Ok(())
}

fn dry_run() -> ApiError {
    ApiError::new(
        Reason::DryRunOperation,
        "the request would have worked; it was a dry run",
    )
}

/// Tells of a group's birth or end.
fn state_event(group: &SecurityGroup, previous: &str, state: &str) -> NewEvent {
    NewEvent::state(STATE_EVENT, &group.owner, &group.id, previous, state)
}

/// Tells that rules came or went; `change` is `authorized` or `revoked`.
fn rules_event(owner: &str, group_id: &str, change: &str, rules: &[Rule]) -> NewEvent {
    let said: Vec<String> = rules
        .iter()
        .map(|rule| {
            let Rule {
                id,
                direction,
                permission,
                ..
            } = rule;
            format!("{id} ({} {permission})", direction.word())
        })
        .collect();
    NewEvent::state(RULES_EVENT, owner, group_id, "", change).because("", &said.join(", "))
}

/// How many rules of a group look one way, prefix lists with all that they may hold.
fn weight(connection: &Connection, rules: &[Rule], direction: Direction) -> ApiResult<u64> {
    rules
        .iter()
        .filter(|rule| rule.direction == direction)
        .map(|rule| match &rule.permission.peer {
            model::Peer::PrefixList(id) => {
                let list = db::prefix_lists::get(connection, id)?;
                Ok(list.map_or(1, |list| list.max_entries.into()))
            }
            _ => Ok(1),
        })
        .sum()
}

impl Described for SecurityGroup {
    const KIND: Kind = Kind::SecurityGroup;
    const FILTERS: &'static [&'static str] = &["group-id", "group-name", "network-id", "owner-id"];

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
            "group-id" => self.id.clone(),
            "group-name" => self.name.clone(),
            "network-id" => self.network_id.clone(),
            "owner-id" => self.owner.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        let rules: usize = self.rules.iter().map(Described::weight).sum();
        tags_weight(&self.tags) + self.name.len() + self.description.len() + rules
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

impl Described for Rule {
    const KIND: Kind = Kind::SecurityGroupRule;
    const FILTERS: &'static [&'static str] = &["rule-id", "group-id", "direction", "protocol"];

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
        match filter {
            "rule-id" => vec![self.id.clone()],
            "group-id" => vec![self.group_id.clone()],
            "direction" => vec![self.direction.word().to_owned()],
            "protocol" => {
                let traffic = self.permission.traffic;
                // `tcp` is found as 6, too.
                let number = traffic.protocol().map(|number| number.to_string());
                number.into_iter().chain([traffic.word()]).collect()
            }
            _ => Vec::new(),
        }
    }

    fn weight(&self) -> usize {
        256 + self.description.len()
    }

    fn tags(&self) -> &[Tag] {
        &[]
    }
}
