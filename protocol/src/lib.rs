//! What two handfast nodes say to each other, and nothing else: identities, signed statements, one canonical
//! encoding, and two conversations as pure state machines: the exchange, and the join.
//!
//! Invariants of the crate: no I/O, no clock, no randomness, no threads, no async. Everything that bytes from a
//! stranger can reach is bounded by [`limits`] and returns an error instead of panicking (TOTAL).
//!
//! Not here: what a statement *means* for trust (crate `handfast-trust`), and who moves the bytes (crate `handfast`).
#![warn(missing_docs)]

pub mod address;
pub mod codec;
pub mod exchange;
pub mod expulsion;
pub mod fault;
pub mod identity;
pub mod join;
pub mod limits;
pub mod membership;
pub mod statement;
pub mod stream;
pub mod text;
pub mod ticket;

pub use address::{Address, AddressRecord, SignedAddressRecord};
pub use exchange::Standing;
pub use expulsion::{ExpulsionsHeld, Notice, NoticeKind, SignedNotice, VerifiedNotice};
pub use fault::{CloseCode, JoinRefusal, RefuseCode};
pub use identity::{Incarnation, NetworkId, PeerId, SecretKey};
pub use membership::{Certificate, Membership, MembershipFault, Role, SignedCertificate, VerifiedMembership};
pub use statement::{Digest, Held, Kind, Rank, Scope, SignedStatement, Statement, Terms, UnixMillis, Verified};
pub use text::{NetworkName, Note, ServiceName};
pub use ticket::{InviteId, InviteSecret, Ticket};
