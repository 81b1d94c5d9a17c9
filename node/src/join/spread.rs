//! What an exchange shows of networks, and how expulsions get around.
//!
//! Invariants: memberships are learnt before the rules judge the exchange that shows them. A change of memberships cuts
//! whom it concerns at once, in whatever way it was learnt. Whoever learns of an expulsion tells a few others: with
//! [`FANOUT`] each, all but one in three thousand hear of it that way (e^-8), and the rest at their next exchange.

use std::sync::Arc;

use handfast_protocol::exchange::{ExchangeFault, Shown};
use handfast_protocol::join::Errand;
use handfast_protocol::{CloseCode, NetworkId, PeerId, RefuseCode, SignedAddressRecord};
use handfast_trust::trust_record::TrustState;
use handfast_trust::{EndReason, Reconciled, peers};
use rand::seq::SliceRandom as _;
use tokio::task::JoinSet;

use super::conversation::converse;
use crate::clock::unix_now;
use crate::driver::Exchanged;
use crate::engine::Engine;
use crate::registry::Link;

/// Whom somebody tells that has heard of an expulsion.
const FANOUT: usize = 8;
/// Exchanges at the same time, where all are to be told.
const TELL_AT_ONCE: usize = 16;

impl Engine {
    /// Takes in what the peer shows of its memberships. Returns the networks of whose expulsions it holds something
    /// else than we do.
    ///
    /// # Errors
    /// A proof whose signature does not hold.
    pub fn learn(self: &Arc<Engine>, shown: &Shown) -> Result<Vec<NetworkId>, ExchangeFault> {
        if shown.networks.is_empty() {
            return Ok(Vec::new());
        }
        let memberships = shown.networks.iter().map(|standing| &standing.membership);
        let changed = self.networks.learn(memberships, unix_now());
        let changed = changed.map_err(|_| ExchangeFault::Peer(RefuseCode::BadStatement))?;
        self.membership_changed(&changed.affected);
        Ok(self.networks.differing(&shown.networks))
    }

    /// Carries out what a change of memberships means: cuts whoever has lost trust by it. Returns how many sessions
    /// ended. Any thread.
    pub fn membership_changed(&self, affected: &[PeerId]) -> u32 {
        let now = unix_now();
        let mut ended = 0;
        let Reconciled { mut fallen, regained } = self.book.reconcile(affected, now);
        // Whoever asks about a peer may have noticed its fall first, and written it down.
        let is_affected = |peer: &PeerId| affected.contains(peer) || affected.contains(&self.book.me());
        let mut left = if affected.is_empty() { Vec::new() } else { self.registry.session_peers() };
        left.retain(|peer| is_affected(peer) && self.book.state(peer, now) != TrustState::Trusted);
        fallen.extend(left);
        for peer in fallen {
            ended += self.registry.cut(&peer, EndReason::Expelled);
            for link in self.registry.links(&peer) {
                link.retire(CloseCode::Done);
            }
        }
        for peer in regained {
            if self.registry.session(&peer).is_none() {
                self.outbox.reconnect(peer);
            }
        }
        ended
    }

    /// Takes an address record that somebody else brought, if its own peer signed it and we have to do with that peer.
    pub fn take_relayed(&self, signed: &SignedAddressRecord, local_too: bool) {
        let peer = signed.record.peer;
        let known = self.peers.read(|table| table.get(&peer).map(|record| record.signed_epoch));
        let now = unix_now();
        if known.is_none() && !peers::has_room(&self.peers) {
            return;
        }
        let known = known.unwrap_or(0);
        if peer == self.book.me() || signed.record.epoch <= known || signed.record.expires_at <= now || !signed.verify()
        {
            return;
        }
        peers::update(&self.peers, peer, |record| {
            record.take_signed(signed, local_too);
        });
        if self.owes(&peer) {
            self.outbox.ring(peer);
        } else if self.book.state(&peer, now) == TrustState::Trusted && self.registry.session(&peer).is_none() {
            self.outbox.reconnect(peer);
        }
    }

    /// Keeps the address book within its bound: nobody whom we have said something to loses an address.
    pub fn trim_addresses(&self) {
        let is_kept = |peer: &PeerId| self.book.record(peer).is_some_and(|record| record.ours.is_some());
        let dropped = peers::trim(&self.peers, peers::PEERS_MAX, is_kept);
        if dropped > 0 {
            tracing::info!(dropped, "the address book was full");
        }
    }

    /// Fetches the expulsions that the peer holds and we lack, over the connection of the exchange that showed it.
    pub async fn catch_up(self: &Arc<Engine>, link: &Arc<Link>, exchanged: &Exchanged) {
        for network in &exchanged.differing {
            // Also one that counts no longer: so whoever was expelled hears that it is readmitted.
            let own = self.networks.member(*network, self.book.me());
            let Some(proof) = own.and_then(|own| Some(own.kept.first()?.membership.membership().clone())) else {
                continue;
            };
            let before = self.networks.members().expulsions(network);
            let errand = Errand::Expulsions(Box::new(proof));
            if let Err(fault) = Box::pin(converse(self, link, errand, None)).await {
                // The next exchange shows the difference again.
                tracing::debug!(peer = %link.peer.short(), %fault, "expulsions were not fetched");
            }
            if self.networks.members().expulsions(network) != before {
                tokio::spawn(Box::pin(self.clone().tell(*network, Some(FANOUT), Some(link.peer))));
            }
        }
    }

    /// Exchanges with members that have a session, so that they see what we hold: with some, or with all.
    pub fn tell(
        self: Arc<Engine>,
        network: NetworkId,
        some: Option<usize>,
        except: Option<PeerId>,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut peers = self.registry.session_peers();
            let is_member = |peer: &PeerId| self.networks.members().networks_of(peer).contains(&network);
            peers.retain(|peer| Some(*peer) != except && is_member(peer));
            peers.shuffle(&mut rand::rng());
            peers.truncate(some.unwrap_or(usize::MAX));
            let mut telling = JoinSet::new();
            for peer in peers {
                if telling.len() >= TELL_AT_ONCE {
                    drop(telling.join_next().await);
                }
                let Some(link) = self.registry.session(&peer) else {
                    continue;
                };
                let engine = self.clone();
                telling.spawn(async move { drop(Box::pin(engine.exchange_over(&link)).await) });
            }
            drop(telling.join_all().await);
        })
    }
}
