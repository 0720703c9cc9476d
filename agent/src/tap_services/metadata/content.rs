//! What the instance is told: the folders `meta-data` and `dynamic`.

use serde_json::json;

use super::tree::Node;
use crate::{
    db::tap_services::{Facts, InterfaceFacts},
    tap_services::names,
    time::Millis,
};

/// What `services/domain` and `services/partition` say; EC2 says `amazonaws.com` and `aws`.
const SERVICES_DOMAIN: &str = "hearth.internal";
const PARTITION: &str = "hearth";

/// The zone of a region: there is one, as there is one host.
fn zone(region: &str) -> String {
    format!("{region}a")
}

/// The host name that an interface gives.
fn host_name(interface: &InterfaceFacts) -> String {
    let label = names::of_address(interface.ipv4);
    match interface.network.dns_domain.as_str() {
        "" => label,
        domain => format!("{label}.{domain}"),
    }
}

fn lines<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().collect::<Vec<_>>().join("\n")
}

/// `latest/meta-data`. The first interface is the primary one, whichever asks.
pub fn meta_data(facts: &Facts, region: &str) -> Node {
    let instance = &facts.instance;
    let mut tree = Node::folder()
        .leaf("ami-id", &instance.image_id)
        .leaf("ami-launch-index", instance.launch.index.to_string())
        .leaf("ami-manifest-path", "(unknown)")
        .branch("block-device-mapping", block_devices(facts))
        .leaf("instance-action", "none")
        .leaf("instance-id", &instance.id)
        .leaf("instance-life-cycle", "on-demand")
        .leaf("instance-type", &instance.instance_type)
        .branch(
            "placement",
            Node::folder()
                .leaf("availability-zone", zone(region))
                .leaf("region", region),
        )
        .branch("public-keys", public_keys(facts))
        .leaf("reservation-id", &instance.launch.reservation_id)
        .branch(
            "services",
            Node::folder()
                .leaf("domain", SERVICES_DOMAIN)
                .leaf("partition", PARTITION),
        );
    if let Some(primary) = facts.interfaces.first() {
        let groups = primary.groups.iter().map(|(_, name)| name.as_str());
        tree = tree
            .leaf("hostname", host_name(primary))
            .leaf("local-hostname", host_name(primary))
            .leaf("local-ipv4", primary.ipv4.to_string())
            .optional("ipv6", primary.ipv6.map(|address| address.to_string()))
            .optional("public-ipv4", primary.public_ipv4.clone())
            .leaf("mac", &primary.mac)
            .leaf("security-groups", lines(groups));
    }
    let macs = facts.interfaces.iter().fold(Node::folder(), |macs, it| {
        macs.branch(&it.mac, interface(it))
    });
    let interfaces = Node::folder().branch("macs", macs);
    tree = tree.branch("network", Node::folder().branch("interfaces", interfaces));
    if instance.metadata_options.tags_shown {
        let tags = instance
            .tags
            .iter()
            .fold(Node::folder(), |tags, tag| tags.leaf(&tag.key, &tag.value));
        tree = tree.branch("tags", Node::folder().branch("instance", tags));
    }
    tree
}

/// `ami` and `root` are the root's name, `ebs1`, ... those of the others.
fn block_devices(facts: &Facts) -> Node {
    let short = |device: &str| device.trim_start_matches("/dev/").to_owned();
    let mut devices: Vec<&str> = facts
        .volumes
        .iter()
        .filter_map(|volume| Some(volume.attachment.as_ref()?.device.as_str()))
        .collect();
    devices.sort_unstable();
    let mut tree = Node::folder();
    let mut others = 0;
    for device in devices {
        if Some(device) == facts.instance.root_device.as_deref() {
            tree = tree.leaf("ami", short(device)).leaf("root", device);
        } else {
            others += 1;
            tree = tree.leaf(&format!("ebs{others}"), short(device));
        }
    }
    tree
}

fn public_keys(facts: &Facts) -> Node {
    let launch = &facts.instance.launch;
    if launch.public_key.is_empty() {
        return Node::folder();
    }
    let key = Node::folder().leaf("openssh-key", &launch.public_key);
    Node::folder().shown_as("0", format!("0={}", launch.key_name), key)
}

/// `network/interfaces/macs/MAC`.
fn interface(it: &InterfaceFacts) -> Node {
    let names = it.groups.iter().map(|(_, name)| name.as_str());
    let ids = it.groups.iter().map(|(id, _)| id.as_str());
    let network = &it.network;
    let local = it.ipv4.to_string();
    let mut tree = Node::folder()
        .leaf("device-number", it.device_index.to_string())
        .leaf("interface-id", &it.id)
        .leaf("local-hostname", host_name(it))
        .leaf("local-ipv4s", &local)
        .leaf("mac", &it.mac)
        .leaf("owner-id", &it.owner)
        .leaf("security-group-ids", lines(ids))
        .leaf("security-groups", lines(names))
        // A network has one subnet, which is the whole of it.
        .leaf("subnet-id", &network.id)
        .leaf("subnet-ipv4-cidr-block", &network.ipv4_range)
        .leaf("vpc-id", &network.id)
        .leaf("vpc-ipv4-cidr-block", &network.ipv4_range)
        .leaf("vpc-ipv4-cidr-blocks", &network.ipv4_range);
    if let (Some(address), Some(range)) = (it.ipv6, &network.ipv6_range) {
        tree = tree
            .leaf("ipv6s", address.to_string())
            .leaf("subnet-ipv6-cidr-blocks", range)
            .leaf("vpc-ipv6-cidr-blocks", range);
    }
    if let Some(public) = &it.public_ipv4 {
        let associations = Node::folder().leaf(public, &local);
        tree = tree
            .leaf("public-ipv4s", public)
            .branch("ipv4-associations", associations);
    }
    tree
}

/// `latest/dynamic`.
pub fn dynamic(facts: &Facts, region: &str) -> Node {
    let document = Node::folder().leaf("document", document(facts, region));
    Node::folder().branch("instance-identity", document)
}

/// EC2's instance identity document, without its signatures.
fn document(facts: &Facts, region: &str) -> String {
    let instance = &facts.instance;
    let document = json!({
        "accountId": instance.owner,
        "architecture": "x86_64",
        "availabilityZone": zone(region),
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": instance.image_id,
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "kernelId": null,
        "pendingTime": rfc3339(instance.launch_time),
        "privateIp": facts.interfaces.first().map(|it| it.ipv4.to_string()),
        "ramdiskId": null,
        "region": region,
        "version": "2017-09-30",
    });
    format!("{document:#}")
}

/// Such as `2026-11-25T08:00:00Z`.
fn rfc3339(time: Millis) -> String {
    let seconds = time.0.div_euclid(1000);
    let timestamp = prost_types::Timestamp { seconds, nanos: 0 };
    timestamp.to_string()
}
