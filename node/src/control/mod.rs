//! The control API: HTTP/1.1 and JSON over the Unix socket in the data directory.

pub mod api;
pub mod client;
pub mod heartbeat;
pub mod metrics;
pub mod once;
pub mod server;
pub mod socket;
