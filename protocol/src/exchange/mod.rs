//! The exchange: one conversation that brings both ends' edges up to date. Offer, Answer, Receipt.
//!
//! Two pure machines, [`Initiator`] and [`Responder`]. A driver feeds one input at a time and carries out the one
//! output that it gets back: send a frame, ask the trust rules, wait for the disk, finish. The machines own no time;
//! [`Patience`] says which deadline the driver must watch, and its passing is an input.
//!
//! Invariants:
//! * ACK: an end says that it holds a statement, and that trust is granted, only in a state that it can reach through
//!   the input "this revision is durable" alone.
//! * A revoke in between wins: after the disk has confirmed, the responder asks the rules again, and answers what they
//!   say then.
//! * TOTAL: whatever bytes come, a machine ends with a code; it never panics and never waits without a deadline.
//!
//! Drive it like this: `start` or `new`, then `handle` with what the last output asked for, until `Finish`.

mod initiator;
mod responder;

use serde::{Deserialize, Serialize};

use crate::address::SignedAddressRecord;
use crate::expulsion::ExpulsionsHeld;
use crate::fault::RefuseCode;
use crate::identity::{Incarnation, PeerId};
use crate::limits::{DURABLE_DEADLINE_MS, EXTENSION_BYTES_MAX, FRAME_BYTES_MAX, FRAME_DEADLINE_MS, STANDINGS_MAX};
use crate::membership::Membership;
use crate::statement::{Held, SignedStatement, Verified};
use crate::stream::{Extension, Extensions};
use crate::{codec, limits};

pub use initiator::{Agreement, Initiator, InitiatorInput, InitiatorOutput};
pub use responder::{AnswerTerms, Responder, ResponderInput, ResponderOutput};

/// The opener's frame: what it says, and what it holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The opener's edge towards the responder, where it has one.
    pub statement: Option<SignedStatement>,
    /// The responder's own edge as the opener holds it: tells the responder what it need not send, and proves to one
    /// that was restored from an old backup what it had said.
    pub yours: Option<SignedStatement>,
    /// The opener's run.
    pub incarnation: Incarnation,
    /// Where the opener can be reached.
    pub address: Option<SignedAddressRecord>,
    /// Its networks ([`networks_shown`]), and what later versions add.
    pub extensions: Extensions,
}

/// One end's place in one network, as it shows it: the proof, and what it holds of the expulsions there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// The proof of membership; signatures are unchecked.
    pub membership: Membership,
    /// Of the network's expulsions.
    pub expulsions: ExpulsionsHeld,
}

/// Tag of the extension of Offer and Answer that holds the [`Standing`]s. Not critical: who does not know networks
/// trusts without them.
pub const NETWORKS_TAG: u16 = 2;

/// At most [`STANDINGS_MAX`] standings, as the extension of an Offer or an Answer; the others are left out.
pub fn networks_shown(standings: &[Standing]) -> Extensions {
    let shown = &standings[..standings.len().min(STANDINGS_MAX)];
    if shown.is_empty() {
        return Extensions::default();
    }
    Extensions::new(vec![Extension {
        tag: NETWORKS_TAG,
        critical: false,
        bytes: codec::encode(&Standings(shown.to_vec())),
    }])
}

#[derive(Serialize, Deserialize)]
struct Standings(#[serde(deserialize_with = "codec::bounded_list::<_, _, STANDINGS_MAX>")] Vec<Standing>);

/// The standings that the peer shows of itself. One of somebody else is refused: a proof is not to be lent.
fn read_networks(extensions: &Extensions, peer: &PeerId) -> Result<Vec<Standing>, ExchangeFault> {
    extensions.require_understood(&[NETWORKS_TAG]).map_err(ExchangeFault::Peer)?;
    let Some(bytes) = extensions.value(NETWORKS_TAG) else {
        return Ok(Vec::new());
    };
    let Standings(standings) =
        codec::decode(bytes, EXTENSION_BYTES_MAX).map_err(|_| ExchangeFault::Peer(RefuseCode::BadFrame))?;
    if standings.iter().any(|standing| standing.membership.member() != *peer) {
        return Err(ExchangeFault::Peer(RefuseCode::BadStatement));
    }
    Ok(standings)
}

/// What the responder makes of an Offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Disposition {
    /// Both grant: the two trust each other.
    Granted,
    /// The grant is noted and waits for the responder's operator.
    Pending,
    /// The responder does not trust the opener; its revoke may come along.
    Refused,
    /// The statement is noted; nothing is to be decided.
    Noted,
    /// Nothing was promised. The same may be asked again after this many milliseconds.
    Busy {
        /// How long to wait.
        retry_after_ms: u32,
    },
}

/// The responder's frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What became of the Offer.
    pub disposition: Disposition,
    /// The opener's statement that the responder has made durable.
    pub holds: Option<Held>,
    /// The responder's own edge, where it is newer than what the opener holds.
    pub statement: Option<SignedStatement>,
    /// The opener's own edge as the responder holds it, where it is newer than what was offered.
    pub yours: Option<SignedStatement>,
    /// The responder's run.
    pub incarnation: Incarnation,
    /// Where the responder can be reached; only for peers that hold its grant.
    pub address: Option<SignedAddressRecord>,
    /// Its networks ([`networks_shown`]), and what later versions add.
    pub extensions: Extensions,
}

/// The opener's last frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// The responder's statement that the opener has made durable.
    pub holds: Option<Held>,
    /// Reserved for later versions.
    pub extensions: Extensions,
}

/// The two ends of an exchange, from the view of one, and what it already knows for certain.
#[derive(Clone, Debug)]
pub struct Parties {
    /// This end.
    pub me: PeerId,
    /// The key that TLS proved at the other end.
    pub peer: PeerId,
    /// Our edge, as stored: a statement shown to us that is the same needs no second signature check.
    pub ours: Option<Verified>,
    /// Their edge, as stored.
    pub theirs: Option<Verified>,
}

/// What the other end showed, with the signatures of both edges checked. Goes to the trust rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The peer's statement about us.
    pub theirs: Option<Verified>,
    /// A statement of our own that the peer holds.
    pub ours: Option<Verified>,
    /// Which statement of ours the peer says that it has made durable. Only answers say so.
    pub holds: Option<Held>,
    /// The peer's run.
    pub incarnation: Incarnation,
    /// Where the peer can be reached, by its own word.
    pub address: Option<SignedAddressRecord>,
    /// Its networks. Only here the signatures are unchecked: they cost more than those of the edges, and are mostly
    /// known.
    pub networks: Vec<Standing>,
}

/// Why an exchange ended early, from this end's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeFault {
    /// The peer broke the protocol; the stream is refused with this code.
    #[error("the peer broke the protocol: {0}")]
    Peer(RefuseCode),
    /// The peer did not send a frame in time.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The stream ended before the exchange did.
    #[error("the peer ended the exchange early")]
    Closed,
    /// Our disk did not confirm in time; nothing was promised.
    #[error("the disk did not confirm in time")]
    NotDurable,
    /// The driver fed an input that the last output did not ask for.
    #[error("an input that nothing asked for")]
    OutOfTurn,
}

impl ExchangeFault {
    /// What the peer is told.
    pub fn refuse_code(self) -> RefuseCode {
        match self {
            ExchangeFault::Peer(code) => code,
            ExchangeFault::TimedOut => RefuseCode::TimedOut,
            ExchangeFault::NotDurable => RefuseCode::Busy,
            ExchangeFault::Closed | ExchangeFault::OutOfTurn => RefuseCode::Unspecified,
        }
    }
}

/// Which deadline runs in a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Until the peer's next frame.
    Frame,
    /// Until our disk has confirmed.
    Disk,
    /// None: the next input comes from this end, at once.
    Own,
}

impl Patience {
    /// The deadline in milliseconds.
    pub fn limit_ms(self) -> Option<u64> {
        match self {
            Patience::Frame => Some(FRAME_DEADLINE_MS),
            Patience::Disk => Some(DURABLE_DEADLINE_MS),
            Patience::Own => None,
        }
    }
}

fn read_frame<T: Serialize + serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ExchangeFault> {
    codec::decode(body, FRAME_BYTES_MAX).map_err(|_| ExchangeFault::Peer(RefuseCode::BadFrame))
}

impl Parties {
    /// Checks both statements that a frame may carry.
    fn verify(
        &self,
        theirs: Option<SignedStatement>,
        ours: Option<SignedStatement>,
    ) -> Result<(Option<Verified>, Option<Verified>), ExchangeFault> {
        let bad = |_| ExchangeFault::Peer(RefuseCode::BadStatement);
        let theirs = theirs.map(|s| s.verify(&self.peer, &self.me, self.theirs.as_ref())).transpose().map_err(bad)?;
        let ours = ours.map(|s| s.verify(&self.me, &self.peer, self.ours.as_ref())).transpose().map_err(bad)?;
        Ok((theirs, ours))
    }

    /// A peer cannot move us to another peer's address record.
    fn own_address(&self, address: Option<SignedAddressRecord>) -> Result<Option<SignedAddressRecord>, ExchangeFault> {
        match address {
            Some(record) if record.record.peer != self.peer => Err(ExchangeFault::Peer(RefuseCode::BadStatement)),
            other => Ok(other),
        }
    }
}

const _: () = assert!(limits::BUSY_RETRY_AFTER_MS <= u32::MAX as u64);
