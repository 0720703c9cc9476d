//! Who may use an object besides its owner: snapshots and images.

use rusqlite::Connection;

use crate::{
    accounts::{self, Account, Named},
    context::Context,
    db::{
        self,
        permissions::{self, EVERYONE},
    },
    error::{ApiError, ApiResult, Reason},
};

/// Most accounts that one call adds or removes, and most that an object is shared with.
const MAX_ACCOUNTS: usize = 100;

/// Who may use an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Sorted.
    pub accounts: Vec<String>,
    pub public: bool,
}

/// What a caller wants changed; the rest stays.
#[derive(Clone, Debug)]
pub struct Change {
    pub add: Vec<String>,
    pub remove: Vec<String>,
    pub public: Option<bool>,
    /// The request's field, for errors.
    pub field: &'static str,
}

impl Change {
    fn check(&self) -> ApiResult<()> {
        if self.add.is_empty() && self.remove.is_empty() && self.public.is_none() {
            return Err(ApiError::field(
                Reason::MissingParameter,
                self.field,
                "say which accounts to add or remove, or whether it is public",
            ));
        }
        for (names, list) in [
            (&self.add, "add_accounts"),
            (&self.remove, "remove_accounts"),
        ] {
            if names.len() > MAX_ACCOUNTS {
                return Err(ApiError::invalid(
                    format!("{}.{list}", self.field),
                    format!("at most {MAX_ACCOUNTS} accounts in one call"),
                ));
            }
            for (index, name) in names.iter().enumerate() {
                accounts::check_name(name, &format!("{}.{list}[{index}]", self.field))?;
            }
        }
        match self.add.iter().position(|name| self.remove.contains(name)) {
            None => Ok(()),
            Some(index) => Err(ApiError::field(
                Reason::InvalidParameterCombination,
                format!("{}.add_accounts[{index}]", self.field),
                format!("{} is to be removed, too", self.add[index]),
            )),
        }
    }
}

/// Changes who may use an object; what they made from it before lives on.
pub async fn modify(
    context: &Context,
    account: &Account,
    object: Named,
    change: Change,
) -> ApiResult<Permissions> {
    object.kind.check(&object.id, &object.field)?;
    change.check()?;
    account.check(context, vec![object.clone()]).await?;
    context
        .db
        .write(move |tx| {
            let owner = owner(tx, &object)?;
            for name in change.add.iter().filter(|name| **name != owner) {
                permissions::grant(tx, &object.id, name)?;
            }
            for name in &change.remove {
                permissions::revoke(tx, &object.id, name)?;
            }
            match change.public {
                Some(true) => permissions::grant(tx, &object.id, EVERYONE)?,
                Some(false) => permissions::revoke(tx, &object.id, EVERYONE)?,
                None => {}
            }
            let after = of(tx, &object.id)?;
            if after.accounts.len() > MAX_ACCOUNTS {
                return Err(ApiError::invalid(
                    format!("{}.add_accounts", change.field),
                    format!("an object is shared with at most {MAX_ACCOUNTS} accounts"),
                ));
            }
            Ok(after)
        })
        .await
}

/// Who may use an object; only its owner may know.
pub async fn describe(
    context: &Context,
    account: &Account,
    object: Named,
) -> ApiResult<Permissions> {
    object.kind.check(&object.id, &object.field)?;
    account.check(context, vec![object.clone()]).await?;
    context
        .db
        .read(move |connection| {
            owner(connection, &object)?;
            Ok(of(connection, &object.id)?)
        })
        .await
}

fn owner(connection: &Connection, object: &Named) -> ApiResult<String> {
    permissions::owner(connection, object.kind, &object.id)?
        .ok_or_else(|| object.kind.missing(&object.id, &object.field))
}

fn of(connection: &Connection, id: &str) -> Result<Permissions, db::DbError> {
    let mut accounts = permissions::of(connection, id)?;
    let all = accounts.len();
    accounts.retain(|account| account != EVERYONE);
    Ok(Permissions {
        public: accounts.len() < all,
        accounts,
    })
}
