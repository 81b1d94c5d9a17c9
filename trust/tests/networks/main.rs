//! Networks: who belongs to one, who redeemed what, and what follows for trust, on a simulated disk.
//!
//! Invariants that the tests name: NOW, REV, ACK, ATOM, BOUND (design, section 5).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where a value is not what it must be")]

#[path = "../common/mod.rs"]
mod common;
mod crash;
mod grants;
mod host;
mod invites;
mod memberships;
mod records;
mod support;
