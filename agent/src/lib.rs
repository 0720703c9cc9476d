//! Hearth's agent: the daemon `hearthd`, which serves the `hearth.v1` API on one host.
//!
//! Who calls whom, from the outside in:
//!
//! - [`server`]: the socket, the services, the shutdown.
//! - `api`: one thin handler per call: wire types in, wire types out, nothing else.
//! - `instances`, `volumes`, `snapshots`, `images`, `console`: what the calls mean.
//! - `upkeep`: the store as a whole: checks, checksums, usage, exports.
//! - `reconcile`: brings the host back in line with the database, at start and on a timer.
//! - `merging`: keeps the chains of layers below volumes short.
//! - `networks`: virtual networks, addresses in them and of them; `links`: taps, routes.
//! - `tap_services`: DHCP, router advertisements, names and metadata for guests.
//! - `keys`: SSH key pairs.
//! - `security_groups`: who may talk to an instance, and to whom it may talk.
//! - `firewall`: security groups and all else that nftables enforces.
//! - `flow_logs`: who talked to whom, from the firewall's counts.
//! - `turns`: the order in which the firewall learns what was committed.
//! - `db`: the one truth about what is wanted; each change is a row before it is a deed.
//! - `events`: every change, in order, for those who watch.
//! - [`boot_finder`]: a kernel from inside of a disk, in a process of its own.
//! - `query`: filters and pages of Describe calls.
//! - `host`, `instance_types`: what the host has, and the shapes it is cut into.
//! - `error`: what goes wrong, and the only place that turns it into a gRPC status.

pub mod boot_finder;
pub mod config;
#[doc(hidden)]
pub mod firewall;
pub mod server;

mod accounts;
mod api;
mod blocking;
mod busy;
mod console;
mod context;
mod db;
mod error;
mod events;
mod flow_logs;
mod forward_port;
mod host;
mod ids;
mod images;
mod instance_types;
mod instances;
mod keys;
mod links;
mod merging;
mod networks;
mod query;
mod reconcile;
mod security_groups;
mod sharing;
mod shutdown;
mod snapshots;
mod tags;
mod tap_services;
mod time;
mod tokens;
mod transfer;
mod turns;
mod upkeep;
mod volumes;
