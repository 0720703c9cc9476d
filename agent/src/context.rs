//! What the parts of the agent share.

use hearth_images::Store;

use crate::{
    busy::Busy, config::Settings, db::Db, host::Host, instance_types::Catalogue, shutdown::Shutdown,
};

/// One per daemon.
pub struct Context {
    pub settings: Settings,
    pub db: Db,
    pub store: Store,
    pub host: Host,
    pub types: Catalogue,
    /// Volumes and images that a call is working on.
    pub busy: Busy,
    /// Held while kernel files come or go.
    pub kernels: tokio::sync::Mutex<()>,
    pub shutdown: Shutdown,
}
