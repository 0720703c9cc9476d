//! The event stream, as a test sees it.

use anyhow::{Context, Result, bail};
use hearth_proto::v1::{Event, WatchRequest};

use crate::{BOOT, Hearth};

impl Hearth {
    /// Waits for an event of one object, kept ones first.
    pub async fn event(&self, id: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let request = WatchRequest {
            after_sequence: Some(0),
            resource_ids: vec![id.to_owned()],
            types: Vec::new(),
        };
        let mut stream = self.events().watch(request).await?.into_inner();
        let mut seen = Vec::new();
        let found = tokio::time::timeout(BOOT, async {
            while let Some(event) = stream.message().await? {
                if wanted(&event) {
                    return Ok(event);
                }
                seen.push(event);
            }
            bail!("the event stream has ended")
        })
        .await;
        found
            .context("it never came")
            .and_then(|found| found)
            .with_context(|| format!("events of {id}: {seen:#?}"))
    }
}
