//! What `hearth run` says of networks.

use clap::Args;
use hearth_proto::v1::{NetworkInterfaceSpecification, RunInstancesRequest};

use crate::{client::Client, failure::Failure};

/// Interfaces of the new instances.
#[derive(Args)]
pub struct NetworkArgs {
    /// An interface in this network (id or name), then options: `ip=ADDRESS`, `ipv6=ADDRESS`,
    /// `sg=GROUP` (id or name; may be repeated). May be repeated: `--network front --network
    /// back,ip=10.1.0.9,sg=db`. Without it, one in the account's default network, if there is one.
    #[arg(long, value_name = "NETWORK[,OPTION…]", value_parser = parse_network)]
    network: Vec<Wanted>,
    /// Address of the first interface, one of its network's that is free.
    #[arg(long, value_name = "ADDRESS", requires = "network")]
    ip: Option<String>,
    /// A security group (id or name) of the only interface; may be repeated. Its network's group
    /// `default` when nothing is said.
    #[arg(long, value_name = "GROUP")]
    sg: Vec<String>,
    /// No interface, although there is a default network.
    #[arg(long, conflicts_with_all = ["network", "sg"])]
    no_network: bool,
}

/// One `--network`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    network: String,
    ipv4: String,
    ipv6: String,
    groups: Vec<String>,
}

/// Which flag fills which field.
pub const FLAGS: [(&str, &str); 4] = [
    ("network_interfaces[0].private_ipv4", "--ip"),
    ("network_interfaces", "--network"),
    ("security_group_ids", "--sg"),
    ("no_network", "--no-network"),
];

impl NetworkArgs {
    /// Puts them into the request, with ids instead of names.
    pub async fn fill(
        self,
        client: &mut Client,
        request: &mut RunInstancesRequest,
    ) -> Result<(), Failure> {
        request.no_network = self.no_network;
        let mut wanted = self.network;
        if let (Some(first), Some(ip)) = (wanted.first_mut(), self.ip) {
            first.ipv4 = ip;
        }
        match &mut wanted[..] {
            [] => {
                for group in &self.sg {
                    let id = match client.default_network_id().await? {
                        Some(network) => client.security_group_id(group, &network).await?,
                        None => client.security_group_id(group, "").await?,
                    };
                    request.security_group_ids.push(id);
                }
            }
            [only] => only.groups.extend(self.sg),
            _ if !self.sg.is_empty() => {
                return Err(Failure::new("--sg: of which interface?")
                    .hint("say it with each of them: --network NETWORK,sg=GROUP"));
            }
            _ => {}
        }
        for wanted in wanted {
            let network_id = client.given_network_id(Some(&wanted.network)).await?;
            let mut security_group_ids = Vec::new();
            for group in &wanted.groups {
                security_group_ids.push(client.security_group_id(group, &network_id).await?);
            }
            request
                .network_interfaces
                .push(NetworkInterfaceSpecification {
                    network_id,
                    security_group_ids,
                    private_ipv4: wanted.ipv4,
                    private_ipv6: wanted.ipv6,
                    description: String::new(),
                });
        }
        Ok(())
    }
}

impl Client {
    /// The account's default network, if there is one.
    async fn default_network_id(&mut self) -> Result<Option<String>, Failure> {
        let filters = [crate::filters::filter("is-default", "true")];
        let found = self.describe_networks(&[], &filters).await?;
        Ok(found.into_iter().next().map(|it| it.network_id))
    }
}

/// Reads `prod`, `net-…,ip=10.0.0.9,sg=web,sg=db`. The agent judges addresses.
fn parse_network(text: &str) -> Result<Wanted, String> {
    let mut parts = text.split(',');
    let mut wanted = Wanted {
        network: parts.next().unwrap_or_default().to_owned(),
        ..Wanted::default()
    };
    if wanted.network.is_empty() {
        return Err("expected NETWORK[,ip=ADDRESS][,ipv6=ADDRESS][,sg=GROUP…]".to_owned());
    }
    for option in parts {
        match option.split_once('=') {
            Some(("ip", address)) => wanted.ipv4 = address.to_owned(),
            Some(("ipv6", address)) => wanted.ipv6 = address.to_owned(),
            Some(("sg", group)) => wanted.groups.push(group.to_owned()),
            _ => {
                return Err(format!(
                    "`{option}` is none of ip=ADDRESS, ipv6=ADDRESS, sg=GROUP"
                ));
            }
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_options() {
        let wanted = parse_network("prod,ip=10.0.0.9,sg=web,sg=db").unwrap();
        assert_eq!(
            (wanted.network.as_str(), wanted.ipv4.as_str()),
            ("prod", "10.0.0.9")
        );
        assert_eq!(wanted.groups, ["web", "db"]);
        assert_eq!(parse_network("net-1").unwrap().network, "net-1");
        assert!(parse_network("prod,fast").is_err());
        assert!(parse_network(",ip=1").is_err());
    }
}
