//! What goes with everything that is made: `--tag` and `--client-token`.

use clap::Args;
use hearth_proto::v1::Tag;

use crate::filters::parse_tag;

#[derive(Args)]
pub struct LabelArgs {
    /// A tag; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub tag: Vec<Tag>,
    /// A call repeated with the same token returns the first call's result.
    #[arg(long, value_name = "TOKEN")]
    pub client_token: Option<String>,
}
