//! The services of `hearth.v1`: each handler turns the wire's types into the agent's, calls one
//! function, and turns the result back. Nothing is decided here.

mod convert;
mod convert_network;
mod convert_security_group;
mod convert_volume;
pub mod events;
pub mod flow_logs;
mod forward_port;
pub mod images;
pub mod instances;
pub mod key_pairs;
pub mod networks;
pub mod security_groups;
pub mod snapshots;
pub mod store;
pub mod volumes;

use hearth_proto::v1;
use tonic::{Code, Status, Streaming};

use crate::{
    accounts::Account,
    error::{ApiError, ApiResult, Reason},
    query::{Described, filter::Filter, page::Query},
    transfer::Feed,
};

/// What the three Describe calls have in common.
fn query<T: Described>(
    account: Account,
    ids: &[String],
    ids_field: &str,
    filters: Vec<v1::Filter>,
    page: Option<v1::PageRequest>,
) -> ApiResult<Query> {
    let ids = T::KIND.check_optional_list(ids, ids_field)?;
    let filters = filters
        .into_iter()
        .map(|f| Filter {
            name: f.name,
            values: f.values,
        })
        .collect();
    let page = page.unwrap_or_default();
    Query::new::<T>(account, ids, filters, page.max_results, &page.next_token)
}

/// Runs an import and the pump that feeds it side by side; the import's result counts, unless
/// the pump knows why it failed. The import ends by itself once the pump is gone.
async fn fed<T>(
    pump: impl Future<Output = ApiResult<()>>,
    import: impl Future<Output = ApiResult<T>>,
) -> ApiResult<T> {
    let (mut pump, mut import) = (std::pin::pin!(pump), std::pin::pin!(import));
    tokio::select! {
        biased;
        done = &mut import => done,
        pumped = &mut pump => {
            let done = import.await;
            match (pumped, done) {
                (Err(why), Err(_)) => Err(why),
                (_, done) => done,
            }
        }
    }
}

/// Passes the data of a stream on until it ends; what is cut off is not ended. `data` takes it
/// out of a message.
async fn pump<M>(
    mut stream: Streaming<M>,
    feed: Feed,
    data: fn(M) -> Option<Vec<u8>>,
) -> ApiResult<()> {
    while let Some(message) = stream.message().await.map_err(broken_off)? {
        let Some(data) = data(message) else {
            return Err(ApiError::invalid(
                "data",
                "after the header comes only data",
            ));
        };
        if !feed.data(data).await? {
            return Ok(());
        }
    }
    feed.end().await;
    Ok(())
}

fn broken_off(status: Status) -> ApiError {
    match status.code() {
        // A message above the limit.
        Code::OutOfRange => ApiError::invalid("data", status.message()),
        _ => ApiError::field(
            Reason::IncompleteBody,
            "data",
            format!("the stream broke off: {}", status.message()),
        ),
    }
}
