//! The conversation on a join stream: redeem an invite, read the roster and the expulsions, renew a certificate.
//!
//! Requests and replies, in turn. Two pure machines, [`Joiner`] for the opener and [`JoinHost`] for the responder, are
//! driven like those of the exchange: one input at a time, and the one output that comes back is carried out. They own
//! no time; [`Patience`] says which deadline the driver must watch.
//!
//! Invariants:
//! * ACK: the host sends a reply only in a state that it can reach through "this revision is durable" alone, and after
//!   it has asked for the reply again; the joiner keeps members only when its certificate, and the expulsions, are.
//! * BOUND: a page has at most so many entries, in ascending order of their members and past the page before, so that
//!   a walk ends; a stream carries at most [`JOIN_REQUESTS_MAX`] requests.
//! * TOTAL: whatever bytes come, a machine ends with a code.
//! * A frame that may hold a secret is [`SecretBytes`]: not shown, and zeroed when dropped.
//!
//! Not here: signatures of pages (they take long: whoever keeps them checks them, off the workers), what is granted.

mod host;
mod joiner;

use serde::{Deserialize, Serialize};

use crate::address::SignedAddressRecord;
use crate::codec;
use crate::exchange::Patience;
use crate::expulsion::SignedNotice;
use crate::fault::{JoinRefusal, RefuseCode};
use crate::identity::{NetworkId, PeerId};
use crate::limits::{JOIN_FRAME_BYTES_MAX, JOIN_REQUESTS_MAX, NOTICE_PAGE_MAX, ROSTER_PAGE_MAX};
use crate::membership::Membership;
use crate::stream::Extensions;
use crate::ticket::{InviteSecret, SecretBytes};

pub use host::{JoinHost, JoinHostInput, JoinHostOutput};
pub use joiner::{Brought, Errand, Joiner, JoinerInput, JoinerOutput};

/// What the opener asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JoinRequest {
    /// A certificate for the key that TLS proved.
    Redeem {
        /// The network that the ticket names.
        network: NetworkId,
        /// The secret of the ticket.
        secret: InviteSecret,
    },
    /// A new certificate for one that still holds.
    Renew {
        /// Proof of it.
        membership: Box<Membership>,
    },
    /// The next page of the roster.
    Roster {
        /// Proof that the opener may see it.
        membership: Box<Membership>,
        /// The last member of the page before.
        after: Option<PeerId>,
    },
    /// The next page of the expulsions. Also for who is expelled: that is how it learns of it.
    Expulsions {
        /// Proof that the opener was a member once.
        membership: Box<Membership>,
        /// The last member of the page before.
        after: Option<PeerId>,
    },
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinAsk {
    /// What is asked.
    pub request: JoinRequest,
    /// Reserved for later versions.
    pub extensions: Extensions,
}

/// One member, and where it can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RosterEntry {
    /// Its membership.
    pub membership: Membership,
    /// Its own address record.
    pub address: Option<SignedAddressRecord>,
}

/// A page of members, in ascending order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RosterPage {
    /// The members.
    #[serde(deserialize_with = "codec::bounded_list::<_, _, ROSTER_PAGE_MAX>")]
    pub entries: Vec<RosterEntry>,
    /// Whether another page follows.
    pub more: bool,
}

/// A page of notices, in ascending order of whom they are about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NoticePage {
    /// The notices.
    #[serde(deserialize_with = "codec::bounded_list::<_, _, NOTICE_PAGE_MAX>")]
    pub notices: Vec<SignedNotice>,
    /// Whether another page follows.
    pub more: bool,
}

/// What the host replies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JoinReply {
    /// The certificate that was asked for.
    Certified(Box<Membership>),
    /// A page of the roster.
    Roster(RosterPage),
    /// A page of the expulsions.
    Expulsions(NoticePage),
    /// No, by the number of a [`JoinRefusal`].
    Refused(u32),
    /// Nothing was promised. The same may be asked again after this many milliseconds.
    Busy(u32),
}

impl JoinReply {
    /// A refusal.
    pub fn refused(refusal: JoinRefusal) -> JoinReply {
        JoinReply::Refused(refusal.code())
    }
}

/// One reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The reply.
    pub reply: JoinReply,
    /// Reserved for later versions.
    pub extensions: Extensions,
}

/// Why a join conversation ended early, from this end's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinFault {
    /// The host said no.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// The host has promised nothing; the same may be asked again after this many milliseconds.
    #[error("the other side is busy")]
    Busy(u32),
    /// The peer broke the protocol; the stream is refused with this code.
    #[error("the peer broke the protocol: {0}")]
    Peer(RefuseCode),
    /// The peer did not send a frame in time.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The stream ended before the conversation did.
    #[error("the peer ended the conversation early")]
    Closed,
    /// Our disk did not confirm in time.
    #[error("the disk did not confirm in time")]
    NotDurable,
    /// The driver fed an input that the last output did not ask for.
    #[error("an input that nothing asked for")]
    OutOfTurn,
}

impl JoinFault {
    /// What the peer is told.
    pub fn refuse_code(self) -> RefuseCode {
        match self {
            JoinFault::Peer(code) => code,
            JoinFault::TimedOut => RefuseCode::TimedOut,
            JoinFault::NotDurable | JoinFault::Busy(_) => RefuseCode::Busy,
            JoinFault::Refused(_) | JoinFault::Closed | JoinFault::OutOfTurn => RefuseCode::Unspecified,
        }
    }
}

fn read_frame<T: Serialize + serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, JoinFault> {
    codec::decode(body, JOIN_FRAME_BYTES_MAX).map_err(|_| JoinFault::Peer(RefuseCode::BadFrame))
}

const _: () = assert!(JOIN_REQUESTS_MAX > 1);
