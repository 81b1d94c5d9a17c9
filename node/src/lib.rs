//! The handfast node: QUIC, sessions, outbox, control API and command line around the trust and record core.
//! The only crate that reads clocks and opens sockets.

pub mod clock;
pub mod config;
pub mod control;
pub mod data_dir;
pub mod identity_file;
pub mod transport;
