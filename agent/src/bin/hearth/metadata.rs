//! How an instance may use the metadata service: flags of `hearth run`, and
//! `hearth instance metadata-options`.

use clap::Args;
use hearth_proto::v1::{MetadataOptions, ModifyInstanceMetadataOptionsRequest};

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    output::{self, Output},
};

/// The options; what is not given stays, or has its default.
#[derive(Args)]
#[command(next_help_heading = "Metadata service")]
pub struct MetadataArgs {
    /// `required` answers with a token only (IMDSv2, the default), `optional` also without.
    #[arg(long, value_name = "required|optional")]
    metadata_tokens: Option<String>,
    /// Hops that the answer to a token request may go, 1 to 64 (1); containers behind the guest
    /// need 2.
    #[arg(long, value_name = "HOPS")]
    metadata_hop_limit: Option<u32>,
    /// Whether there is a metadata service at all (enabled).
    #[arg(long, value_name = "enabled|disabled")]
    metadata_endpoint: Option<String>,
    /// Whether it shows the instance's tags (disabled).
    #[arg(long, value_name = "enabled|disabled")]
    metadata_tags: Option<String>,
}

impl MetadataArgs {
    pub fn options(self) -> MetadataOptions {
        MetadataOptions {
            http_tokens: self.metadata_tokens.unwrap_or_default(),
            hop_limit: self.metadata_hop_limit.unwrap_or_default(),
            http_endpoint: self.metadata_endpoint.unwrap_or_default(),
            instance_metadata_tags: self.metadata_tags.unwrap_or_default(),
        }
    }
}

/// Which flag filled which field.
pub const FLAGS: [(&str, &str); 4] = [
    ("metadata_options.http_tokens", "--metadata-tokens"),
    ("metadata_options.hop_limit", "--metadata-hop-limit"),
    ("metadata_options.http_endpoint", "--metadata-endpoint"),
    ("metadata_options.instance_metadata_tags", "--metadata-tags"),
];

#[derive(Args)]
pub struct MetadataOptionsArgs {
    /// The instance's id or `Name`.
    #[arg(value_name = "INSTANCE")]
    id: String,
    #[command(flatten)]
    options: MetadataArgs,
}

/// Changes what is given, and prints what is so now.
pub async fn modify(
    client: &mut Client,
    output: Output,
    args: MetadataOptionsArgs,
) -> Result<(), Failure> {
    let request = ModifyInstanceMetadataOptionsRequest {
        instance_id: client.instance_id(&args.id).await?,
        metadata_options: Some(args.options.options()),
    };
    let answer = client
        .instances
        .modify_instance_metadata_options(request)
        .await
        .map_err(|status| {
            let mut names = flags(FLAGS);
            names.extend(flags([("instance_id", "INSTANCE")]));
            rpc_with_flags(status, &names)
        })?
        .into_inner();
    match output {
        Output::Json => output::json("ModifyInstanceMetadataOptionsResponse", &answer),
        Output::Table => output::line(&words(&answer.metadata_options.unwrap_or_default())),
    }
}

/// The options on one line.
pub fn words(options: &MetadataOptions) -> String {
    format!(
        "{}, tokens {}, hop limit {}, tags {}",
        options.http_endpoint,
        options.http_tokens,
        options.hop_limit,
        options.instance_metadata_tags
    )
}
