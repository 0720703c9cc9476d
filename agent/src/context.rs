//! What the parts of the agent share.

use std::sync::Arc;

use hearth_images::Store;

use crate::{
    busy::Busy, config::Settings, db::Db, firewall::Firewall, flow_logs::FlowLogs, host::Host,
    instance_types::Catalogue, networks::Networks, shutdown::Shutdown, tap_services, turns::Turns,
    volumes::classes::Classes,
};

/// One per daemon.
pub struct Context {
    pub settings: Settings,
    pub db: Db,
    pub store: Store,
    pub host: Host,
    pub types: Catalogue,
    pub classes: Arc<Classes>,
    /// Volumes and images that a call is working on.
    pub busy: Busy,
    pub firewall: Firewall,
    pub networks: Networks,
    pub flow_logs: FlowLogs,
    pub tap_services: Arc<tap_services::Shared>,
    /// Who may change what the firewall enforces.
    pub turns: Turns,
    /// Held while kernel files come or go.
    pub kernels: tokio::sync::Mutex<()>,
    /// Asked for after each snapshot: a chain of layers may be too long now.
    pub merge_wanted: tokio::sync::Notify,
    pub shutdown: Shutdown,
}
