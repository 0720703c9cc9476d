//! SSH key pairs, by gRPC and by the command line.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CreateKeyPairRequest, DeleteKeyPairRequest, DescribeKeyPairsRequest, Filter,
    ImportKeyPairRequest, KeyPair,
};
use hearth_tests::Hearth;
use tonic_types::StatusExt;

async fn described(hearth: &Hearth, names: &[&str]) -> Result<Vec<KeyPair>, tonic::Status> {
    let request = DescribeKeyPairsRequest {
        key_names: names.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    };
    let answer = hearth.keys().describe_key_pairs(request).await?;
    Ok(answer.into_inner().key_pairs)
}

fn reason(status: Option<tonic::Status>) -> Result<String> {
    let status = status.context("it was not refused")?;
    let info = status.get_details_error_info().context("no ErrorInfo")?;
    Ok(info.reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_pair_is_made_once_listed_and_deleted() -> Result<()> {
    let hearth = Hearth::start().await?;
    let request = CreateKeyPairRequest {
        key_name: "one".to_owned(),
        ..Default::default()
    };
    let made = hearth
        .keys()
        .create_key_pair(request.clone())
        .await?
        .into_inner();
    let key = made.key_pair.context("no key pair")?;
    ensure!(
        key.key_pair_id.starts_with("key-") && key.key_type == "ssh-ed25519",
        "{key:?}"
    );
    ensure!(key.fingerprint.starts_with("SHA256:"), "{key:?}");
    ensure!(
        made.private_key
            .starts_with("-----BEGIN OPENSSH PRIVATE KEY-----")
    );
    let again = hearth.keys().create_key_pair(request).await.err();
    assert_eq!(reason(again)?, "InvalidKeyPair.Duplicate");

    // Its own public key, under another name, has the same fingerprint.
    let request = ImportKeyPairRequest {
        key_name: "two".to_owned(),
        public_key: key.public_key.clone(),
        ..Default::default()
    };
    let imported = hearth.keys().import_key_pair(request).await?.into_inner();
    let imported = imported.key_pair.context("no key pair")?;
    assert_eq!(imported.fingerprint, key.fingerprint);
    let request = ImportKeyPairRequest {
        key_name: "three".to_owned(),
        public_key: "ssh-ed25519 nonsense".to_owned(),
        ..Default::default()
    };
    let refused = hearth.keys().import_key_pair(request).await.err();
    assert_eq!(reason(refused)?, "InvalidKey.Format");

    assert_eq!(described(&hearth, &[]).await?.len(), 2);
    assert_eq!(
        described(&hearth, &["two"]).await?,
        std::slice::from_ref(&imported)
    );
    let missing = described(&hearth, &["nobody"]).await.err();
    assert_eq!(reason(missing)?, "InvalidKeyPair.NotFound");
    let request = DescribeKeyPairsRequest {
        filters: vec![Filter {
            name: "key-name".to_owned(),
            values: vec!["o*".to_owned()],
        }],
        ..Default::default()
    };
    let found = hearth
        .keys()
        .describe_key_pairs(request)
        .await?
        .into_inner()
        .key_pairs;
    assert_eq!(found, std::slice::from_ref(&key));

    let by_id = DeleteKeyPairRequest {
        key_pair_id: key.key_pair_id.clone(),
        ..Default::default()
    };
    hearth.keys().delete_key_pair(by_id.clone()).await?;
    let again = hearth.keys().delete_key_pair(by_id).await.err();
    assert_eq!(reason(again)?, "InvalidKeyPair.NotFound");
    assert_eq!(described(&hearth, &[]).await?, [imported]);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_keeps_the_private_key_to_its_owner() -> Result<()> {
    let hearth = Hearth::start().await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("key");
    let cli = |words: &[&str]| -> Result<(bool, String)> {
        let output = Command::new(hearth_tests::programs::built("hearth")?)
            .arg("--socket")
            .arg(hearth.socket())
            .args(words)
            .output()?;
        let mut text = String::from_utf8(output.stdout)?;
        text.push_str(&String::from_utf8(output.stderr)?);
        Ok((output.status.success(), text))
    };
    let path = file.to_str().context("a path")?;
    let (made, text) = cli(&["key", "create", "mine", "--file", path])?;
    ensure!(made && text.contains("SHA256:"), "{text}");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    ensure!(fs::read_to_string(&file)?.contains("OPENSSH PRIVATE KEY"));
    // Neither a file nor a key is overwritten.
    let (made, text) = cli(&["key", "create", "other", "--file", path])?;
    ensure!(!made && text.contains("--file"), "{text}");
    let second = dir.path().join("second");
    let (made, text) = cli(&[
        "key",
        "create",
        "mine",
        "--file",
        second.to_str().context("path")?,
    ])?;
    ensure!(!made && text.contains("InvalidKeyPair.Duplicate"), "{text}");
    ensure!(!second.exists(), "an empty file is left");
    let (listed, text) = cli(&["key", "list"])?;
    ensure!(listed && text.contains("mine"), "{text}");
    let (deleted, text) = cli(&["key", "delete", "mine"])?;
    ensure!(deleted, "{text}");
    hearth.finish().await
}
