//! The trust rules as a specification: what moves an edge, who may pass, what strangers may cost, what survives a
//! restart. Everything runs through the [`Book`](handfast_trust::Book) on a simulated disk whose drainer is stepped by hand; time is an argument.
#![allow(clippy::unwrap_used, reason = "a test ends where a value is not what it must be")]

mod answers;
mod authorise;
mod caps;
#[path = "../common/mod.rs"]
mod common;
mod decisions;
mod expiry;
mod killed;
mod operator;
mod permutations;
mod records;
mod sessions;
mod states;
mod support;
mod walk;
