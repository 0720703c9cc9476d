//! Who calls, and what may be seen and changed.
//!
//! The Unix socket belongs to the host's administrator, who may act as any account: the call's
//! metadata `hearth-account` names it, `local` when there is none, `*` for all of them at once.
//! Every object belongs to one account for good. Somebody else's object answers as if it were
//! not there; one that is shared with the caller can be used, and answers
//! `UnauthorizedOperation` when it would be changed.

use std::fmt;

use rusqlite::Connection;
use tonic::Request;

use crate::{
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, shortened},
};

/// The call's metadata that names the account.
pub const METADATA: &str = "hearth-account";

/// The account of a call that names none.
pub const DEFAULT: &str = "local";

/// The administrator's name for all accounts at once.
const ALL: &str = "*";

/// The owner of what all accounts may use alike: pools of addresses.
pub const EVERYBODY: &str = "*";

/// Most characters of an account's name.
const MAX_NAME: usize = 64;

/// Whose eyes and hands a call has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account(String);

/// What a call wants with an object that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Change it, or see all of it: the owner's.
    Own,
    /// Make something from it: the owner's, and of those with whom it is shared.
    Use,
}

/// An id in a request.
#[derive(Clone, Debug)]
pub struct Named {
    pub kind: Kind,
    pub id: String,
    /// The request's field, for errors.
    pub field: String,
    pub access: Access,
}

impl Named {
    /// An object of the caller's own.
    pub fn own(kind: Kind, id: &str, field: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            field: field.into(),
            access: Access::Own,
        }
    }

    /// An object of the caller's own, or shared with it.
    pub fn usable(kind: Kind, id: &str, field: impl Into<String>) -> Self {
        Self {
            access: Access::Use,
            ..Self::own(kind, id, field)
        }
    }
}

impl Account {
    /// Reads the account of a call.
    ///
    /// # Errors
    /// `InvalidParameterValue` for what is no name.
    pub fn of<T>(request: &Request<T>) -> ApiResult<Self> {
        match request.metadata().get(METADATA) {
            None => Ok(Self(DEFAULT.to_owned())),
            Some(name) => {
                let name = name.to_str().unwrap_or("not ASCII");
                if name != ALL {
                    check_name(name, METADATA)?;
                }
                Ok(Self(name.to_owned()))
            }
        }
    }

    /// Whether it is the administrator over all accounts.
    pub fn is_all(&self) -> bool {
        self.0 == ALL
    }

    /// Whether what belongs to `owner` is this account's.
    pub fn owns(&self, owner: &str) -> bool {
        self.is_all() || self.0 == owner || owner == EVERYBODY
    }

    /// Who will own what the call makes.
    ///
    /// # Errors
    /// `InvalidParameterValue` for all accounts at once.
    pub fn owner(&self) -> ApiResult<String> {
        if self.is_all() {
            return Err(ApiError::invalid(
                METADATA,
                "name the one account that shall own what is made",
            ));
        }
        Ok(self.0.clone())
    }

    /// Checks that the call may do what it wants with what it names. An id that nobody has, or
    /// that is malformed, is left to the call itself, which can say more.
    ///
    /// Owners never change and ids are never used again, so that this needs not be in the
    /// call's own transaction.
    pub async fn check(&self, context: &Context, named: Vec<Named>) -> ApiResult<()> {
        if self.is_all() {
            return Ok(());
        }
        let account = self.clone();
        context
            .db
            .read(move |connection| {
                named
                    .iter()
                    .filter(|named| named.kind.matches(&named.id))
                    .try_for_each(|named| account.check_one(connection, named))
            })
            .await
    }

    fn check_one(&self, connection: &Connection, named: &Named) -> ApiResult<()> {
        match db::permissions::owner(connection, named.kind, &named.id)? {
            None => Ok(()),
            Some(owner) if self.owns(&owner) => Ok(()),
            Some(_) if !db::permissions::is_shared(connection, &named.id, &self.0)? => {
                Err(named.kind.missing(&named.id, &named.field))
            }
            Some(_) if named.access == Access::Use => Ok(()),
            Some(owner) => Err(ApiError::field(
                Reason::UnauthorizedOperation,
                &named.field,
                format!(
                    "{} is shared with you, and belongs to the account {owner}: only that may do this",
                    named.id
                ),
            )
            .with("resource_id", &named.id)),
        }
    }
}

impl AsRef<str> for Account {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks the name of an account that a caller gave.
pub fn check_name(name: &str, field: &str) -> ApiResult<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(allowed)
        && !name.starts_with('-')
    {
        return Ok(());
    }
    Err(ApiError::invalid(
        field,
        format!(
            "{:?} is not the name of an account: 1 to {MAX_NAME} of a-z, 0-9 and -, no - first",
            shortened(name)
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calling_as(name: &str) -> ApiResult<Account> {
        let mut request = Request::new(());
        request
            .metadata_mut()
            .insert(METADATA, name.parse().expect("metadata"));
        Account::of(&request)
    }

    #[test]
    fn a_call_without_a_name_is_of_the_local_account() {
        let account = Account::of(&Request::new(())).expect("default");
        assert_eq!(account.as_ref(), "local");
        assert!(account.owns("local") && !account.owns("other"));
    }

    #[test]
    fn the_administrator_over_all_sees_everything_and_owns_nothing_new() {
        let all = calling_as("*").expect("all");
        assert!(all.owns("local") && all.owns("other"));
        assert_eq!(all.owner().expect_err("nobody's").fields(), [METADATA]);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["", "A", "a b", "-a", "a/b", &"x".repeat(65)] {
            let error = calling_as(bad).expect_err(bad);
            assert_eq!(error.fields(), [METADATA]);
        }
        assert_eq!(calling_as("team-7").expect("fine").as_ref(), "team-7");
    }
}
