//! The services of `hearth.v1`: each handler turns the wire's types into the agent's, calls one
//! function, and turns the result back. Nothing is decided here.

mod convert;
pub mod events;
pub mod images;
pub mod instances;
pub mod volumes;

use hearth_proto::v1;

use crate::{
    error::ApiResult,
    ids::Kind,
    query::{Described, filter::Filter, page::Query},
};

/// What the three Describe calls have in common.
fn query<T: Described>(
    kind: Kind,
    ids: &[String],
    ids_field: &str,
    filters: Vec<v1::Filter>,
    page: Option<v1::PageRequest>,
) -> ApiResult<Query> {
    let ids = kind.check_optional_list(ids, ids_field)?;
    let filters = filters
        .into_iter()
        .map(|f| Filter {
            name: f.name,
            values: f.values,
        })
        .collect();
    let page = page.unwrap_or_default();
    Query::new::<T>(ids, filters, page.max_results, &page.next_token)
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
