//! How an instance may use the metadata service.

use hearth_proto::v1;
use serde::{Deserialize, Serialize};

use super::state::InstanceState;
use crate::{
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, shortened},
};

/// Most hops that the answer to a token request may go.
const MAX_HOP_LIMIT: u32 = 64;

/// As it is kept; what is not in the row has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetadataOptions {
    /// Whether a request needs a token (IMDSv2).
    pub tokens_required: bool,
    /// Hops that the answer to a token request may go.
    pub hop_limit: u8,
    /// Whether the service answers at all.
    pub enabled: bool,
    /// Whether tags are shown.
    pub tags_shown: bool,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        Self {
            tokens_required: true,
            hop_limit: 1,
            enabled: true,
            tags_shown: false,
        }
    }
}

impl MetadataOptions {
    /// With what a caller wants to have changed; what is empty stays. `field` is the request's.
    pub fn changed(self, wanted: &v1::MetadataOptions, field: &str) -> ApiResult<Self> {
        let hop_limit = match wanted.hop_limit {
            0 => self.hop_limit,
            hops @ 1..=MAX_HOP_LIMIT => hops as u8,
            _ => {
                return Err(ApiError::invalid(
                    format!("{field}.hop_limit"),
                    format!("1 to {MAX_HOP_LIMIT} hops"),
                ));
            }
        };
        let one_of = |value: &str, name: &str, [yes, no]: [&str; 2], now: bool| match value {
            "" => Ok(now),
            word if word == yes => Ok(true),
            word if word == no => Ok(false),
            other => Err(ApiError::invalid(
                format!("{field}.{name}"),
                format!("{:?} is neither {yes} nor {no}", shortened(other)),
            )),
        };
        Ok(Self {
            tokens_required: one_of(
                &wanted.http_tokens,
                "http_tokens",
                ["required", "optional"],
                self.tokens_required,
            )?,
            hop_limit,
            enabled: one_of(
                &wanted.http_endpoint,
                "http_endpoint",
                ["enabled", "disabled"],
                self.enabled,
            )?,
            tags_shown: one_of(
                &wanted.instance_metadata_tags,
                "instance_metadata_tags",
                ["enabled", "disabled"],
                self.tags_shown,
            )?,
        })
    }
}

/// Changes the options of an instance that is not terminated; the metadata service reads them for
/// each request.
///
/// # Errors
/// `InvalidInstanceID.NotFound`, `IncorrectInstanceState`, `InvalidParameterValue`.
pub async fn modify(
    context: &Context,
    id: String,
    wanted: v1::MetadataOptions,
) -> ApiResult<MetadataOptions> {
    Kind::Instance.check(&id, "instance_id")?;
    context
        .db
        .write(move |tx| {
            let instance = db::instances::get(tx, &id)?
                .ok_or_else(|| Kind::Instance.missing(&id, "instance_id"))?;
            if matches!(
                instance.state,
                InstanceState::ShuttingDown | InstanceState::Terminated
            ) {
                let word = instance.state.word();
                return Err(ApiError::field(
                    Reason::IncorrectInstanceState,
                    "instance_id",
                    format!("{id} is {word}"),
                )
                .with("state", word));
            }
            let options = instance
                .metadata_options
                .changed(&wanted, "metadata_options")?;
            db::instances::set_metadata_options(tx, &id, &options)?;
            Ok(options)
        })
        .await
}

impl From<&MetadataOptions> for v1::MetadataOptions {
    fn from(options: &MetadataOptions) -> Self {
        let switch = |on| if on { "enabled" } else { "disabled" }.to_owned();
        Self {
            http_tokens: if options.tokens_required {
                "required"
            } else {
                "optional"
            }
            .to_owned(),
            hop_limit: options.hop_limit.into(),
            http_endpoint: switch(options.enabled),
            instance_metadata_tags: switch(options.tags_shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_and_nonsense_names_its_field() {
        let wanted = v1::MetadataOptions {
            http_tokens: "optional".to_owned(),
            hop_limit: 64,
            ..Default::default()
        };
        let options = MetadataOptions::default()
            .changed(&wanted, "metadata_options")
            .expect("fine");
        assert!(!options.tokens_required && options.enabled && !options.tags_shown);
        let again = options
            .clone()
            .changed(&v1::MetadataOptions::default(), "metadata_options");
        assert_eq!(again.expect("fine"), options);
        let shown = v1::MetadataOptions::from(&options);
        assert_eq!(
            options.clone().changed(&shown, "x").expect("its own words"),
            options
        );
        for (field, bad) in [
            (
                "metadata_options.hop_limit",
                v1::MetadataOptions {
                    hop_limit: 65,
                    ..Default::default()
                },
            ),
            (
                "metadata_options.http_tokens",
                v1::MetadataOptions {
                    http_tokens: "Required".to_owned(),
                    ..Default::default()
                },
            ),
            (
                "metadata_options.http_endpoint",
                v1::MetadataOptions {
                    http_endpoint: "on".to_owned(),
                    ..Default::default()
                },
            ),
            (
                "metadata_options.instance_metadata_tags",
                v1::MetadataOptions {
                    instance_metadata_tags: "x".to_owned(),
                    ..Default::default()
                },
            ),
        ] {
            let error = MetadataOptions::default()
                .changed(&bad, "metadata_options")
                .expect_err(field);
            assert_eq!(error.fields(), [field]);
        }
    }

    #[test]
    fn a_row_of_an_older_hearth_has_the_defaults() {
        let options: MetadataOptions = serde_json::from_str("{}").expect("read");
        assert_eq!(options, MetadataOptions::default());
    }
}
