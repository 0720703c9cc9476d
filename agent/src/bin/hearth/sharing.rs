//! `share` and `unshare` of snapshots and images.

use clap::Args;
use hearth_proto::v1::{PermissionChange, Permissions};

use crate::{failure::Failure, output};

#[derive(Args)]
#[group(required = true, multiple = true)]
pub struct WithArgs {
    /// An account; may be repeated.
    #[arg(long = "with", value_name = "ACCOUNT")]
    accounts: Vec<String>,
    /// Everybody.
    #[arg(long)]
    public: bool,
}

impl WithArgs {
    /// The change that lets these use an object, or no longer.
    pub fn change(self, may: bool) -> PermissionChange {
        let mut change = PermissionChange {
            public: self.public.then_some(may),
            ..Default::default()
        };
        if may {
            change.add_accounts = self.accounts;
        } else {
            change.remove_accounts = self.accounts;
        }
        change
    }
}

/// Prints who may use an object now.
pub fn print(permissions: Option<Permissions>) -> Result<(), Failure> {
    let permissions = permissions.unwrap_or_default();
    let accounts = match permissions.accounts.is_empty() {
        true => "-".to_owned(),
        false => permissions.accounts.join("\n"),
    };
    let public = if permissions.public { "yes" } else { "no" };
    output::fields(vec![
        ("Shared with", accounts),
        ("Public", public.to_owned()),
    ])
}
