//! What an instance is told by the services of its interface: DHCP, names, the metadata service.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    ImportKeyPairRequest, MetadataOptions, ModifyInstanceMetadataOptionsRequest, Tag,
};
use hearth_tests::{Hearth, Probe, needs_kvm, needs_network, networks::in_network};
use serde_json::Value;

const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJTFkrkdL4tPGBhZs3W0M9IcmoAWKwn4PCjdrDZ4NgMN me@home";
const SERVICE: &str = "http://169.254.169.254/latest";

async fn token(probe: &mut Probe<'_>) -> Result<String> {
    let answer = probe
        .expect_ok(&format!(
            "http_get method=PUT url={SERVICE}/api/token \
             header=\"X-aws-ec2-metadata-token-ttl-seconds: 600\" timeout=10"
        ))
        .await?;
    ensure!(answer["status"] == 200, "{answer}");
    let token = answer["body"].as_str().context("no token")?;
    Ok(token.to_owned())
}

/// The answer with a token, or without one when it is empty.
async fn get(probe: &mut Probe<'_>, token: &str, path: &str) -> Result<Value> {
    let header = match token {
        "" => String::new(),
        token => format!("header=\"X-aws-ec2-metadata-token: {token}\""),
    };
    probe
        .expect_ok(&format!(
            "http_get url={SERVICE}/{path} timeout=10 {header}"
        ))
        .await
}

async fn modify(hearth: &Hearth, id: &str, options: MetadataOptions) -> Result<MetadataOptions> {
    let request = ModifyInstanceMetadataOptionsRequest {
        instance_id: id.to_owned(),
        metadata_options: Some(options),
    };
    let mut instances = hearth.instances();
    let answer = instances.modify_instance_metadata_options(request).await?;
    let options = answer.into_inner().metadata_options;
    options.context("no options")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_learns_its_address_and_all_about_itself() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut hearth = Hearth::start_with_namespace().await?;
    let network = hearth
        .network("10.20.0.0/16", |request| {
            request.ipv6_range = "auto".to_owned();
            request.mtu = 1400;
        })
        .await?;
    let request = ImportKeyPairRequest {
        key_name: "laptop".to_owned(),
        public_key: PUBLIC_KEY.to_owned(),
        ..Default::default()
    };
    hearth.keys().import_key_pair(request).await?;
    let launch = |name: &'static str| {
        let in_network = in_network(&network);
        move |request: &mut hearth_proto::v1::RunInstancesRequest| {
            in_network(request);
            request.key_name = "laptop".to_owned();
            request.user_data = format!("user data of {name}");
            request.tags.push(Tag {
                key: "Name".to_owned(),
                value: name.to_owned(),
            });
        }
    };
    let (id, token_before) = {
        let mut first = hearth.probe(launch("one")).await?;
        let mut second = hearth.probe(launch("two")).await?;
        let instance = first.guest.describe().await?;
        ensure!(instance.key_name == "laptop", "{instance:?}");
        let interface = first.guest.interface().await?;
        for probe in [&mut first, &mut second] {
            let lease = probe.expect_ok("dhcp timeout=10").await?;
            let interface = probe.guest.interface().await?;
            ensure!(lease["ip"] == interface.private_ipv4, "{lease}");
            ensure!(lease["prefix"] == 16, "{lease}");
            ensure!(lease["gateway"] == network.ipv4_gateway, "{lease}");
            ensure!(lease["dns"][0] == network.ipv4_gateway, "{lease}");
            ensure!(lease["lease_seconds"] == 12 * 60 * 60, "{lease}");
        }

        let refused = get(&mut first, "", "meta-data/instance-id").await?;
        ensure!(refused["status"] == 401, "{refused}");
        let token = token(&mut first).await?;
        for (path, expected) in [
            ("meta-data/instance-id", instance.instance_id.as_str()),
            ("meta-data/local-ipv4", &interface.private_ipv4),
            ("meta-data/ipv6", &interface.private_ipv6),
            ("meta-data/mac", &interface.mac_address),
            ("meta-data/public-keys/", "0=laptop"),
            ("meta-data/public-keys/0/openssh-key", PUBLIC_KEY),
            ("user-data", "user data of one"),
        ] {
            let answer = get(&mut first, &token, path).await?;
            ensure!(
                answer["status"] == 200 && answer["body"] == expected,
                "{path}: {answer}"
            );
        }
        // Who asks is known by the interface; a token is of no use to others.
        let foreign = get(&mut second, &token, "meta-data/instance-id").await?;
        ensure!(foreign["status"] == 401, "{foreign}");

        let id = first.guest.id.clone();
        let options = MetadataOptions {
            http_tokens: "optional".to_owned(),
            instance_metadata_tags: "enabled".to_owned(),
            ..Default::default()
        };
        let options = modify(&hearth, &id, options).await?;
        ensure!(
            options.http_endpoint == "enabled" && options.hop_limit == 1,
            "{options:?}"
        );
        let shown = first.guest.describe().await?.metadata_options;
        ensure!(shown.as_ref() == Some(&options), "{shown:?}");
        let answer = get(&mut first, "", "meta-data/tags/instance/Name").await?;
        ensure!(
            answer["status"] == 200 && answer["body"] == "one",
            "{answer}"
        );
        (id, token)
    };

    // The guests run on, and the services are there again when the agent is.
    hearth.kill_agent()?;
    hearth.start_agent().await?;
    let guest = hearth_tests::Guest::new(&hearth, id.clone());
    let mut probe = Probe::attach(guest).await?;
    // The console shows its earlier answers first.
    probe.send("that_was_before").await?;
    while !probe
        .answer()
        .await?
        .to_string()
        .contains("that_was_before")
    {}
    let answer = get(&mut probe, &token_before, "meta-data/instance-id").await?;
    ensure!(answer["status"] == 200 && answer["body"] == id, "{answer}");
    let off = MetadataOptions {
        http_endpoint: "disabled".to_owned(),
        ..Default::default()
    };
    modify(&hearth, &id, off).await?;
    let answer = get(&mut probe, &token_before, "meta-data/instance-id").await?;
    ensure!(answer["status"] == 403, "{answer}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_options_are_refused_and_name_their_field() -> Result<()> {
    let hearth = Hearth::start().await?;
    let id = "i-0123456789abcdef0";
    let missing = modify(&hearth, id, MetadataOptions::default()).await;
    ensure!(format!("{:?}", missing.err()).contains("there is no instance"));
    let image = hearth.probe_image().await?.to_owned();
    let request = hearth_proto::v1::RunInstancesRequest {
        image_id: image.clone(),
        metadata_options: Some(MetadataOptions {
            hop_limit: 65,
            ..Default::default()
        }),
        ..Default::default()
    };
    let status = hearth.instances().run_instances(request).await.err();
    let status = status.context("it was taken")?;
    ensure!(
        status.message().contains("metadata_options.hop_limit"),
        "{status:?}"
    );
    let request = hearth_proto::v1::RunInstancesRequest {
        image_id: image,
        key_name: "nobody's".to_owned(),
        ..Default::default()
    };
    let status = hearth.instances().run_instances(request).await.err();
    let status = status.context("it was taken")?;
    ensure!(status.message().contains("key_name"), "{status:?}");
    hearth.finish().await
}
