//! `hearth completion SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{Cli, failure::Failure, output};

/// Print the completion script of a shell.
#[derive(Args)]
#[command(after_help = "For example: hearth completion bash > /etc/bash_completion.d/hearth")]
pub struct CompletionArgs {
    /// The shell: bash, zsh, fish, …
    #[arg(value_enum)]
    shell: Shell,
}

pub fn completion(args: CompletionArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hearth", &mut script);
    output::bytes(&script)
}
