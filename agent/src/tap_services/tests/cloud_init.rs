//! cloud-init's own EC2 datasource. It is looked for where Debian puts it, and in the folder that
//! `HEARTH_CLOUD_INIT` names (the `dist-packages` of an unpacked package).

use std::{fs, process::Command};

use super::link::{KEY, Link, MAC, USER_DATA, on_a_link};
use crate::instances::metadata_options::MetadataOptions;

const PYTHON: &str = "/usr/bin/python3";

fn python_path() -> String {
    std::env::var("HEARTH_CLOUD_INIT").unwrap_or_default()
}

fn is_there() -> bool {
    let there = Command::new(PYTHON)
        .env("PYTHONPATH", python_path())
        .args(["-c", "from cloudinit.sources import DataSourceEc2"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("left out: cloud-init is not installed");
    }
    there
}

async fn crawl(link: &Link, platform: &str) -> serde_json::Value {
    let script = link.dir.path().join("crawl.py");
    fs::write(&script, include_str!("crawl.py")).expect("write");
    let path = format!("PYTHONPATH={}", python_path());
    let dir = link.dir.path().to_str().expect("a path");
    let script = script.to_str().expect("a path");
    let text = link
        .must("env", &[&path, PYTHON, script, platform, dir])
        .await;
    serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON")
}

#[test]
fn cloud_init_finds_all_that_it_looks_for() {
    if !is_there() {
        return;
    }
    on_a_link(async |link| {
        link.configure_ipv4();
        // On a machine that says it is EC2's, it takes tokens.
        let found = crawl(link, "aws").await;
        assert_eq!(found["found"], true, "{found}");
        assert_eq!(found["instance_id"], link.instance_id);
        assert_eq!(found["user_data"], USER_DATA);
        assert_eq!(found["public_keys"][0], KEY, "{found}");
        assert_eq!(
            (&found["zone"], &found["region"]),
            (&"rack-7a".into(), &"rack-7".into())
        );
        let metadata = &found["metadata"];
        assert_eq!(metadata["local-hostname"], "ip-10-9-0-5.hearth.internal");
        let mac = &metadata["network"]["interfaces"]["macs"][MAC];
        assert_eq!(mac["local-ipv4s"], "10.9.0.5", "{mac}");
        assert_eq!(mac["ipv6s"], "fd09::5", "{mac}");

        // On others it knows no tokens.
        assert_eq!(crawl(link, "unknown").await["found"], false);
        let options = MetadataOptions {
            tokens_required: false,
            tags_shown: true,
            ..MetadataOptions::default()
        };
        link.options(options).await;
        let found = crawl(link, "unknown").await;
        assert_eq!(found["found"], true, "{found}");
        assert_eq!(found["metadata"]["tags"]["instance"]["Name"], "Web Server");
    });
}
