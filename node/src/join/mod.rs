//! Joining a network, and staying in it.
//!
//! ```text
//! conversation   the two drivers of a join stream
//! spread         what an exchange shows of networks; expulsions passed on
//! upkeep         joins that a restart found half-done, rosters read again, certificates renewed
//! ```
//!
//! A join, step by step: dial the inviter, pinned by the ticket; redeem; read expulsions and roster; exchange with the
//! inviter, so that it has our address for whoever joins after us; read the roster again, which now has everybody who
//! could not find us on it. As soon as some of a page are checked, the network's rule grants to them, and the rest is the
//! outbox's, which is bounded, retries with backoff and flies singly: the inviter is the first of its page, and is asked
//! over the connection that it is read from. Of two that join at once, the one whose second reading came later has found
//! the other: both redemptions and both addresses come before either's second reading ends.
//!
//! Invariant: once the certificate is durable, nothing that an operator does is needed any more (`upkeep`).

pub mod conversation;
mod spread;
pub mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::exchange::ExchangeFault;
use handfast_protocol::join::{Errand, JoinFault};
use handfast_protocol::{Address, CloseCode, NetworkId, PeerId, Ticket};
use handfast_trust::networks::Joined;
use handfast_trust::trust_record::TrustState;
use handfast_trust::{Backoff, NetworkRefusal, RetryPolicy};
use rand::rngs::StdRng;
use tokio::sync::Notify;

use self::conversation::{ConversationFault, converse};
use crate::clock::unix_now;
use crate::control::api::{JoinFailure, JoinReply};
use crate::engine::{ContactFault, Engine};
use crate::registry::Link;
use crate::transport::{CloseReason, DialError};

/// How long an inviter is tried that is there and has no room: a fleet that joins at once takes its time.
const POLICY: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(250),
    cap: Duration::from_secs(4),
    deadline: Some(Duration::from_secs(120)),
};
/// How long one is tried that gives no sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Members that are granted to before other tasks get their turn.
const ENLIST_AT_ONCE: usize = 32;
/// Failures that a reply names.
const FAILURES_SHOWN_MAX: usize = 100;

/// Why a join did not come to its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The inviter was not reached.
    #[error("{0}")]
    Unreached(ContactFault),
    /// The conversation with it failed.
    #[error("{0}")]
    Conversation(JoinFault),
    /// What it gave cannot be kept here.
    #[error("{0}")]
    Network(NetworkRefusal),
}

impl From<ConversationFault> for JoinError {
    fn from(fault: ConversationFault) -> JoinError {
        match fault {
            ConversationFault::Join(fault) => JoinError::Conversation(fault),
            ConversationFault::Network(refusal) => JoinError::Network(refusal),
        }
    }
}

impl JoinError {
    /// Whether the same may go well a moment later.
    fn is_passing(&self) -> bool {
        match self {
            JoinError::Unreached(ContactFault::Dial { fault, .. }) => {
                !matches!(fault, DialError::WrongKey { .. } | DialError::Myself)
            }
            JoinError::Unreached(fault) => matches!(fault, ContactFault::TooMany | ContactFault::Exchange(_)),
            JoinError::Conversation(fault) => {
                matches!(fault, JoinFault::Busy(_) | JoinFault::TimedOut | JoinFault::Closed | JoinFault::NotDurable)
            }
            JoinError::Network(_) => false,
        }
    }

    /// Whether it was the inviter that said so, and not the lack of any answer.
    fn is_an_answer(&self) -> bool {
        match self {
            JoinError::Unreached(ContactFault::Dial { fault, .. }) => {
                matches!(fault, DialError::Refused | DialError::Ended(CloseReason::Peer(_)))
            }
            JoinError::Unreached(fault) => {
                matches!(fault, ContactFault::Exchange(fault) if *fault != ExchangeFault::TimedOut)
            }
            JoinError::Conversation(fault) => *fault != JoinFault::TimedOut,
            JoinError::Network(_) => false,
        }
    }
}

impl Engine {
    /// Redeems a ticket and hands every member to the outbox. Asking again with the same ticket changes nothing that
    /// is done already. Returns when the certificate and the roster are here.
    ///
    /// # Errors
    /// As [`JoinError`] says; what may pass is tried again for [`POLICY`]'s time, and silence for [`SILENCE_MAX`].
    pub async fn join(self: &Arc<Engine>, ticket: &Ticket, mut rng: StdRng) -> Result<NetworkId, JoinError> {
        let mut backoff = Backoff::new(POLICY);
        let mut heard = self.clock.now();
        loop {
            let error = match self.join_once(ticket).await {
                Ok(()) => return Ok(ticket.network),
                Err(error) => error,
            };
            let now = self.clock.now();
            if error.is_an_answer() {
                heard = now;
            }
            let goes_on = error.is_passing() && now.since(heard) < SILENCE_MAX;
            let Some(at) = backoff.failed(now, &mut rng).filter(|_| goes_on) else {
                return Err(error);
            };
            tracing::debug!(%error, "the join is tried again");
            tokio::time::sleep(at.since(self.clock.now())).await;
        }
    }

    async fn join_once(self: &Arc<Engine>, ticket: &Ticket) -> Result<(), JoinError> {
        let Ticket { network, name, inviter, addresses, secret, .. } = ticket;
        if self.book.state(inviter, unix_now()) == TrustState::Blocked {
            return Err(JoinError::Unreached(ContactFault::NotAllowed));
        }
        let link = self.link_to(*inviter, addresses).await.map_err(JoinError::Unreached)?;
        let joined = Joined { name: name.clone(), inviter: *inviter, addresses: addresses.clone() };
        let errand = Errand::Redeem { network: *network, secret: secret.clone() };
        let outcome = async {
            converse(self, &link, errand, Some(&joined)).await?;
            self.meet(*network, &link).await
        };
        let outcome = outcome.await;
        // Who does not answer over this connection, also a session, may have started anew: the next try dials.
        let is_dead = matches!(outcome, Err(JoinError::Conversation(JoinFault::TimedOut | JoinFault::Closed)));
        if outcome.is_err() && (is_dead || !link.is_session()) {
            link.retire(CloseCode::Done);
        }
        outcome
    }

    /// Goes on with a join that has its certificate.
    ///
    /// # Errors
    /// As [`Engine::join`], tried once.
    pub async fn resume_join(
        self: &Arc<Engine>,
        network: NetworkId,
        inviter: PeerId,
        addresses: &[Address],
    ) -> Result<(), JoinError> {
        let link = self.link_to(inviter, addresses).await.map_err(JoinError::Unreached)?;
        self.read_roster(network, &link).await?;
        self.meet(network, &link).await
    }

    /// The rest of a join, over a connection with a member whose membership is known.
    async fn meet(self: &Arc<Engine>, network: NetworkId, link: &Arc<Link>) -> Result<(), JoinError> {
        // The outbox is about to, or has, since its membership was read; where its rule has no budget left, the peer is
        // asked all the same, and finds our address. What fails here is the outbox's to try again.
        let asked = Notify::new();
        let asking = async {
            let result = Box::pin(self.contact(link.peer, true)).await;
            tracing::debug!(peer = %link.peer.short(), ?result, "the inviter was asked");
            asked.notify_one();
        };
        let reading = async {
            // Who has answered has our address: the rest of the exchange is no reason to wait.
            tokio::select! {
                () = asked.notified() => {}
                () = self.is_trusted(link.peer) => {}
            }
            self.read_roster(network, link).await
        };
        let ((), read) = tokio::join!(asking, reading);
        if !link.is_session() {
            link.retire(CloseCode::Done);
        }
        read?;
        self.enlist_members(network).await;
        self.networks.roster_is_read(network).map_err(JoinError::Network)?;
        Ok(())
    }

    /// Waits until the two trust each other.
    async fn is_trusted(&self, peer: PeerId) {
        loop {
            let seen = self.events.newest();
            if self.book.state(&peer, unix_now()) == TrustState::Trusted {
                return;
            }
            self.events.wait_past(seen).await;
        }
    }

    /// Reads expulsions and roster from the peer of `link`.
    async fn read_roster(self: &Arc<Engine>, network: NetworkId, link: &Link) -> Result<(), JoinError> {
        let proof = self.networks.proof(network, self.book.me(), unix_now());
        let proof = proof.ok_or(JoinError::Network(NetworkRefusal::NotHere))?;
        Ok(converse(self, link, Errand::Resume(Box::new(proof)), None).await?)
    }

    /// Lets the network's rule grant to every member that nothing has been said to. Who finds no budget now is taken up
    /// when the roster is read again.
    async fn enlist_members(self: &Arc<Engine>, network: NetworkId) {
        let roster = self.networks.roster(network, unix_now());
        for members in roster.chunks(ENLIST_AT_ONCE) {
            members.iter().for_each(|peer| self.enlist(network, *peer));
            tokio::task::yield_now().await;
        }
    }

    /// Lets the network's rule grant to a member that nothing has been said to, and leaves the rest to the outbox.
    fn enlist(&self, network: NetworkId, peer: PeerId) {
        // Refused to this node itself, and where there is no budget.
        if let Ok(updated) = self.book.enlist(peer, network, unix_now())
            && updated.transition.is_some()
        {
            self.settle(peer, &updated);
        }
    }

    /// How far a join has come: with whom trust is mutual, with whom not yet, and why.
    pub fn join_progress(&self, network: NetworkId) -> Option<JoinReply> {
        let now = unix_now();
        let name = self.networks.members().here(&network)?.name.as_str().to_owned();
        let mut reply =
            JoinReply { network: network.to_string(), name, members: 0, trusted: 0, under_way: 0, failed: Vec::new() };
        for peer in self.networks.roster(network, now).into_iter().filter(|peer| *peer != self.book.me()) {
            reply.members += 1;
            if self.book.state(&peer, now) == TrustState::Trusted {
                reply.trusted += 1;
                continue;
            }
            match self.why_not_yet(&peer) {
                None => reply.under_way += 1,
                Some(why) if reply.failed.len() < FAILURES_SHOWN_MAX => {
                    reply.failed.push(JoinFailure { peer_id: peer.to_string(), short: peer.short(), why });
                }
                Some(_) => {}
            }
        }
        Some(reply)
    }

    /// Why a member is not trusted; `None` while it is tried for the first time.
    fn why_not_yet(&self, peer: &PeerId) -> Option<String> {
        let now = unix_now();
        let Some(record) = self.book.record(peer) else {
            return Some("the rule's budget is used up; it is tried again later".to_owned());
        };
        match self.book.state_of(peer, &record, now) {
            state @ (TrustState::Revoked | TrustState::Refused | TrustState::Blocked) => {
                Some(format!("its state is {state}"))
            }
            TrustState::Pending => Some("this node's rule has not granted: its budget is used up".to_owned()),
            _ => match self.last_fault(peer) {
                Some(fault) => Some(format!("not reached: {fault}")),
                None if record.is_delivered() => Some("it has our grant and has not returned it".to_owned()),
                None => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inviter_that_says_anything_is_there() {
        let at = ([192, 0, 2, 1], 4433).into();
        let dial = |fault| JoinError::Unreached(ContactFault::Dial { at, fault });
        let answers = [
            dial(DialError::Refused),
            JoinError::Unreached(ContactFault::Exchange(ExchangeFault::Closed)),
            JoinError::Conversation(JoinFault::Busy(100)),
            JoinError::Conversation(JoinFault::Closed),
        ];
        assert!(answers.iter().all(|error| error.is_an_answer() && error.is_passing()));
        let silence = [dial(DialError::TimedOut), JoinError::Conversation(JoinFault::TimedOut)];
        assert!(silence.iter().all(|error| !error.is_an_answer() && error.is_passing()));
        assert!(!dial(DialError::Myself).is_passing());
    }
}
