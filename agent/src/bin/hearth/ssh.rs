//! `hearth ssh`: the `ssh` of this machine, with a tunnel to the instance as its connection. No
//! address, no open port and no rule of a security group is needed.

use std::{ffi::OsString, os::unix::process::CommandExt, path::Path, process::Command};

use clap::Args;

use crate::{client::Client, failure::Failure};

/// Log in to an instance with SSH, through the agent.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  hearth ssh web\n  hearth ssh web -i ~/.ssh/lab -- uname -a\n  \
                  hearth ssh web -l debian --ssh-option ForwardAgent=yes"
)]
pub struct SshArgs {
    /// The instance's id or `Name`.
    instance: String,
    /// User in the guest.
    #[arg(long, short = 'l', value_name = "USER", default_value = "root")]
    user: String,
    /// File of the private key; without it, ssh's own choice.
    #[arg(long, short, value_name = "FILE")]
    identity: Option<OsString>,
    /// Port of the guest's SSH server.
    #[arg(long, short, value_name = "PORT", default_value_t = 22)]
    port: u16,
    /// Further option for ssh, as for its -o.
    #[arg(long, value_name = "KEY=VALUE")]
    ssh_option: Vec<String>,
    /// What to run in the guest instead of a shell.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Becomes `ssh`; comes back only when that fails.
pub async fn ssh(
    client: &mut Client,
    socket: &Path,
    account: &str,
    args: SshArgs,
) -> Result<(), Failure> {
    let instance_id = client.instance_id(&args.instance).await?;
    let hearth = std::env::current_exe()
        .map_err(|error| Failure::new(format!("where this program is: {error}")))?;
    let words = [
        &*hearth.to_string_lossy(),
        "--socket",
        &socket.to_string_lossy(),
        "--account",
        account,
        "tunnel",
        &instance_id,
        &args.port.to_string(),
        "--stdio",
    ]
    .map(quoted)
    .join(" ");
    let mut command = Command::new("ssh");
    command
        .arg("-o")
        .arg(format!("ProxyCommand={words}"))
        // An instance is known by its id, and a new one is believed once, as a new host is.
        .args(["-o", &format!("HostKeyAlias={instance_id}")])
        .args(["-o", "CheckHostIP=no"]);
    for option in &args.ssh_option {
        command.args(["-o", option]);
    }
    // The first value that ssh sees counts: the caller's before ours.
    command.args(["-o", "StrictHostKeyChecking=accept-new"]);
    if let Some(identity) = &args.identity {
        command
            .arg("-i")
            .arg(identity)
            .args(["-o", "IdentitiesOnly=yes"]);
    }
    command.args(["-l", &args.user, "--"]).arg(&instance_id);
    command.args(&args.command);
    let error = command.exec();
    Err(Failure::new(format!("ssh: {error}")).hint("install openssh-client"))
}

/// A word for the shell that runs ssh's ProxyCommand, where `%` has a meaning of its own.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('%', "%%").replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell_and_for_ssh() {
        assert_eq!(quoted("/run/a b/it's 100%"), r"'/run/a b/it'\''s 100%%'");
    }
}
