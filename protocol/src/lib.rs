//! What two handfast nodes say to each other, and nothing else: identities, signed statements, one canonical
//! encoding, and the exchange as two pure state machines.
//!
//! Invariants of the crate: no I/O, no clock, no randomness, no threads, no async. Everything that bytes from a
//! stranger can reach is bounded by [`limits`] and returns an error instead of panicking (TOTAL).
//!
//! Not here: what a statement *means* for trust (crate `handfast-trust`), and who moves the bytes (crate `handfast`).
#![warn(missing_docs)]

pub mod address;
pub mod codec;
pub mod exchange;
pub mod fault;
pub mod identity;
pub mod limits;
pub mod statement;
pub mod stream;
pub mod text;

pub use address::{Address, AddressRecord, SignedAddressRecord};
pub use fault::{CloseCode, RefuseCode};
pub use identity::{Incarnation, NetworkId, PeerId, SecretKey};
pub use statement::{Digest, Held, Kind, Rank, Scope, SignedStatement, Statement, Terms, UnixMillis, Verified};
pub use text::{Note, ServiceName};
