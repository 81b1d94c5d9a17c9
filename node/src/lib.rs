//! The handfast node: QUIC, sessions, outbox, control API and command line around the trust and record core.
//! The only crate that reads clocks and opens sockets.

#![allow(rustdoc::private_intra_doc_links, reason = "module headers name the limits that they keep, private or not")]

pub mod admission;
pub mod authority_file;
pub mod bare_node;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control;
pub mod data_dir;
pub mod dial_budget;
pub mod driver;
pub mod engine;
pub mod entropy;
pub mod events;
mod faults;
pub mod identity_file;
pub mod initialise;
pub mod join;
pub mod links;
pub mod log_limit;
pub mod names;
pub mod node;
pub mod operations;
pub mod outbox;
pub mod output;
mod reachable;
pub mod registry;
mod resolve;
pub mod service;
pub mod stores;
pub mod storm;
pub mod transport;
pub mod views;
