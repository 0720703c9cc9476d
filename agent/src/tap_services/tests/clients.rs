//! Stock clients: curl, busybox's udhcpc.

use std::{fs, os::unix::fs::PermissionsExt};

use super::link::{KEY, Link, MAC, USER_DATA, has, on_a_link};
use crate::instances::metadata_options::MetadataOptions;

const SERVICE: &str = "http://169.254.169.254";
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 60";

/// The status and the body.
async fn curl(link: &Link, words: &[&str]) -> (u16, String) {
    let mut all = vec![
        "-sS",
        "--globoff",
        "--max-time",
        "10",
        "-w",
        "\n%{http_code}",
    ];
    all.extend(words);
    let text = link.must("curl", &all).await;
    let (body, code) = text.rsplit_once('\n').expect("a code");
    (code.parse().expect("a number"), body.to_owned())
}

async fn token(link: &Link, service: &str) -> String {
    let url = format!("{service}/latest/api/token");
    let (code, token) = curl(link, &["-X", "PUT", "-H", TTL, &url]).await;
    assert_eq!(code, 200, "{token}");
    format!("X-aws-ec2-metadata-token: {token}")
}

async fn get(link: &Link, token: &str, path: &str) -> (u16, String) {
    curl(link, &["-H", token, &format!("{SERVICE}/{path}")]).await
}

#[test]
fn the_metadata_service_tells_an_instance_about_itself() {
    on_a_link(async |link| {
        link.configure_ipv4();
        let token = token(link, SERVICE).await;
        let id = link.instance_id.clone();
        let in_mac = format!("latest/meta-data/network/interfaces/macs/{MAC}");
        for (path, expected) in [
            ("latest/", "dynamic\nmeta-data\nuser-data"),
            ("latest/meta-data/instance-id", id.as_str()),
            ("2021-07-15/meta-data/instance-id", &id),
            ("latest/meta-data/ami-id", "img-0123456789abcdef0"),
            ("latest/meta-data/ami-launch-index", "3"),
            ("latest/meta-data/hostname", "ip-10-9-0-5.hearth.internal"),
            (
                "latest/meta-data/local-hostname",
                "ip-10-9-0-5.hearth.internal",
            ),
            ("latest/meta-data/local-ipv4", "10.9.0.5"),
            ("latest/meta-data/public-ipv4", "192.0.2.3"),
            ("latest/meta-data/ipv6", "fd09::5"),
            ("latest/meta-data/mac", MAC),
            ("latest/meta-data/instance-type", "t.micro"),
            ("latest/meta-data/instance-life-cycle", "on-demand"),
            ("latest/meta-data/placement/", "availability-zone\nregion"),
            ("latest/meta-data/placement/availability-zone", "rack-7a"),
            ("latest/meta-data/placement/region", "rack-7"),
            ("latest/meta-data/security-groups", "default\nweb"),
            ("latest/meta-data/reservation-id", "r-0123456789abcdef0"),
            ("latest/meta-data/public-keys/", "0=my key"),
            ("latest/meta-data/public-keys/0/", "openssh-key"),
            ("latest/meta-data/public-keys/0/openssh-key", KEY),
            (
                "latest/meta-data/network/interfaces/macs/",
                &format!("{MAC}/"),
            ),
            (&format!("{in_mac}/device-number"), "0"),
            (&format!("{in_mac}/local-ipv4s"), "10.9.0.5"),
            (&format!("{in_mac}/ipv6s"), "fd09::5"),
            (&format!("{in_mac}/subnet-ipv4-cidr-block"), "10.9.0.0/24"),
            (&format!("{in_mac}/security-group-ids"), "sg-1\nsg-2"),
            (&format!("{in_mac}/public-ipv4s"), "192.0.2.3"),
            ("latest/user-data", USER_DATA),
        ] {
            let (code, body) = get(link, &token, path).await;
            assert_eq!((code, body.as_str()), (200, expected), "{path}");
        }
        for path in [
            "latest/meta-data/nothing",
            "latest/meta-data/spot/instance-action",
            "latest/meta-data/spot/termination-time",
            "latest/meta-data/tags/instance",
            "1999-01-01/meta-data",
            "latest/meta-data/instance-id/x",
        ] {
            assert_eq!(get(link, &token, path).await.0, 404, "{path}");
        }
        let (_, document) = get(link, &token, "latest/dynamic/instance-identity/document").await;
        let document: serde_json::Value = serde_json::from_str(&document).expect("JSON");
        assert_eq!(document["instanceId"], id);
        assert_eq!(document["pendingTime"], "2025-11-25T08:00:00Z");
    });
}

#[test]
fn what_an_instance_may_not_ask_is_refused_as_ec2_does() {
    on_a_link(async |link| {
        link.configure_ipv4();
        let url = |path: &str| format!("{SERVICE}/{path}");
        let id = url("latest/meta-data/instance-id");
        let api = url("latest/api/token");
        let forwarded = "X-Forwarded-For: 192.0.2.1";
        let long = "X-aws-ec2-metadata-token-ttl-seconds: 21601";
        for (expected, words) in [
            (401, vec![id.as_str()]),
            (401, vec!["-H", "X-aws-ec2-metadata-token: nonsense", &id]),
            (400, vec!["-X", "PUT", &api]),
            (400, vec!["-X", "PUT", "-H", long, &api]),
            (403, vec!["-X", "PUT", "-H", TTL, "-H", forwarded, &api]),
            (405, vec!["-X", "POST", &id]),
            (405, vec!["-X", "DELETE", &id]),
            (405, vec!["-X", "PUT", "-H", TTL, &id]),
        ] {
            assert_eq!(curl(link, &words).await.0, expected, "{words:?}");
        }
        let token = token(link, SERVICE).await;
        // Another run of the agent takes the token, too.
        link.services.take().expect("services").stop().await;
        link.start();
        assert_eq!(curl(link, &["-I", "-H", &token, &id]).await.0, 200);

        let optional = MetadataOptions {
            tokens_required: false,
            tags_shown: true,
            ..MetadataOptions::default()
        };
        link.options(optional).await;
        assert_eq!(curl(link, &[&id]).await.0, 200);
        let tags = url("latest/meta-data/tags/instance/");
        assert_eq!(curl(link, &[&tags]).await, (200, "Name\nteam".to_owned()));
        let tag = url("latest/meta-data/tags/instance/team");
        assert_eq!(curl(link, &[&tag]).await, (200, "blue sky".to_owned()));
        let bad = "X-aws-ec2-metadata-token: nonsense";
        assert_eq!(curl(link, &["-H", bad, &id]).await.0, 401);

        let off = MetadataOptions {
            enabled: false,
            ..MetadataOptions::default()
        };
        link.options(off).await;
        assert_eq!(curl(link, &["-H", &token, &id]).await.0, 403);
        assert_eq!(curl(link, &["-X", "PUT", "-H", TTL, &api]).await.0, 403);
    });
}

#[test]
fn the_metadata_service_answers_on_ipv6() {
    on_a_link(async |link| {
        link.configure_ipv6();
        let service = "http://[fd00:ec2::254]";
        let token = token(link, service).await;
        let url = format!("{service}/latest/meta-data/local-ipv4");
        assert_eq!(
            curl(link, &["-H", &token, &url]).await,
            (200, "10.9.0.5".to_owned())
        );
    });
}

#[test]
fn busyboxs_dhcp_client_gets_its_address_and_all_around_it() {
    if !has("busybox") {
        return;
    }
    on_a_link(async |link| {
        let script = link.dir.path().join("script");
        let told = link.dir.path().join("told");
        fs::write(
            &script,
            format!("#!/bin/sh\n[ $1 != bound ] || env >{}\n", told.display()),
        )
        .expect("write");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
        link.ip("link set eth0 up");
        let script = script.to_str().expect("a path");
        let words = [
            "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "5", "-T", "1", "-s", script,
        ];
        let options = [
            "-O",
            "mtu",
            "-O",
            "search",
            "-O",
            "staticroutes",
            "-O",
            "hostname",
        ];
        link.must("busybox", &[&words[..], &options].concat()).await;
        let told = fs::read_to_string(told).expect("bound");
        let has = |line: &str| assert!(told.lines().any(|it| it == line), "{line}: {told}");
        has("ip=10.9.0.5");
        has("subnet=255.255.255.0");
        has("router=10.9.0.1");
        has("dns=10.9.0.1");
        has("serverid=10.9.0.1");
        has("lease=43200");
        has("mtu=1400");
        has("domain=hearth.internal");
        has("search=hearth.internal");
        has("hostname=ip-10-9-0-5");
        has("staticroutes=0.0.0.0/0 10.9.0.1 169.254.169.254/32 10.9.0.1");
        // Another address is refused, and the right one comes after it.
        let wrong = [&words[..], &["-r", "10.9.0.77"]].concat();
        let (_, log) = link
            .guest("sh", &["-c", &format!("busybox {} 2>&1", wrong.join(" "))])
            .await;
        assert!(log.contains("lease of 10.9.0.5 obtained"), "{log}");
    });
}

#[test]
fn the_answer_with_a_token_goes_no_farther_than_the_hop_limit() {
    on_a_link(async |link| {
        link.configure_ipv4();
        let options = MetadataOptions {
            hop_limit: 3,
            ..MetadataOptions::default()
        };
        link.options(options).await;
        // Data only: a connection is made and ended with the usual hop limit.
        let count = "table inet seen { counter near {}; counter far {};
            chain input { type filter hook input priority 0;
                ip saddr 169.254.169.254 ip ttl 3 tcp flags & psh == psh counter name near;
                ip saddr 169.254.169.254 ip ttl > 3 tcp flags & psh == psh counter name far; }; }";
        link.must("nft", &[count]).await;
        let seen = async |counter: &str| {
            let text = link
                .must("nft", &["list", "counter", "inet", "seen", counter])
                .await;
            !text.contains("packets 0 ")
        };
        let token = token(link, SERVICE).await;
        assert!(seen("near").await && !seen("far").await);
        let (code, _) = get(link, &token, "latest/meta-data/instance-id").await;
        assert_eq!(code, 200);
        assert!(seen("far").await, "what needs a token may go as far as any");
    });
}
