//! As many elastic addresses as an account may have.

use anyhow::{Result, ensure};
use hearth_proto::v1::{
    AllocateAddressRequest, CreateAddressPoolRequest, DescribeAddressesRequest,
};
use hearth_tests::{Hearth, needs_network};

/// docs/networks.md, Limits.
const MOST: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_a_hundred_addresses_and_no_more() -> Result<()> {
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let mut client = hearth.networks();
    let request = CreateAddressPoolRequest {
        ipv4_range: "203.0.113.0/24".to_owned(),
        ..Default::default()
    };
    client.create_address_pool(request).await?;
    let calls = (0..MOST).map(|_| {
        let mut client = client.clone();
        async move {
            client
                .allocate_address(AllocateAddressRequest::default())
                .await
        }
    });
    // All at once: no two of them get the same one.
    for answer in all_at_once(calls).await {
        answer?;
    }
    let request = AllocateAddressRequest::default();
    let refused = client.allocate_address(request).await;
    ensure!(
        refused
            .as_ref()
            .is_err_and(|it| it.code() == tonic::Code::ResourceExhausted),
        "{refused:?}"
    );
    let request = DescribeAddressesRequest::default();
    let answer = client.describe_addresses(request).await?.into_inner();
    ensure!(answer.next_token.is_empty(), "not in one page");
    let mut all: Vec<_> = answer.addresses.iter().map(|it| &it.public_ipv4).collect();
    all.sort();
    all.dedup();
    ensure!(all.len() == MOST, "{} addresses", all.len());
    hearth.finish().await
}

async fn all_at_once<T: Send + 'static>(
    calls: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = calls.map(tokio::spawn).collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("a call panicked"));
    }
    answers
}
