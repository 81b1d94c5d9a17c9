//! Networks' rules in the book: what they grant, what memberships take away, what an operator undoes.
//!
//! Invariants: the order of a change is networks first, then trust records. `authorise` follows the memberships from the
//! instant that their lock is released; what is written here after that is history, and the list of whom to cut. No lock
//! of one store is taken inside the other's.

use std::sync::Arc;

use handfast_protocol::{NetworkId, PeerId, UnixMillis};

use super::{Book, Bounds, Updated};
use crate::networks::{Networks, Standing};
use crate::rules::{self, Moment, Refusal};
use crate::trust_record::{Rule, Side, TrustRecord, TrustState};

/// What a change of the networks has meant for trust, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Whose trust has fallen, to be cut: nobody of them passes any more since the change itself.
    pub fallen: Vec<PeerId>,
    /// Whose trust is mutual again.
    pub regained: Vec<PeerId>,
}

impl Book {
    /// The networks of this node.
    pub fn networks(&self) -> Option<&Arc<Networks>> {
        self.networks.as_ref()
    }

    /// The rule of `network` grants to a member that has not asked yet. See [`rules::enlist`].
    ///
    /// # Errors
    /// [`Refusal::NotNamed`] where the rule does not name the peer, [`Refusal::NoBudget`], [`Refusal::Myself`].
    pub fn enlist(&self, peer: PeerId, network: NetworkId, now: UnixMillis) -> Result<Updated, Refusal> {
        self.not_myself(&peer)?;
        self.update(peer, now, Bounds::Caps, |record, moment| {
            let named = self.networks_naming(&peer, now).find(|(rule, _)| *rule == Rule::Network(network));
            let (rule, sponsor) = named.ok_or(Refusal::NotNamed)?;
            let decided = rules::enlist(record, rule, sponsor, moment);
            let grants = decided.transition.is_some();
            if grants && !self.has_budget(&rule, sponsor.as_ref(), now) {
                return Err(Refusal::NoBudget);
            }
            Ok(decided)
        })
    }

    /// Writes down what a change of the networks has meant for these peers: see [`Reconciled`].
    pub fn reconcile(&self, peers: &[PeerId], now: UnixMillis) -> Reconciled {
        let mut reconciled = Reconciled::default();
        for peer in self.resting_on(peers) {
            let was_trusted = self.record(&peer).is_some_and(|record| record.told() == TrustState::Trusted);
            self.mark_ends(peer, now);
            match (was_trusted, self.state(&peer, now) == TrustState::Trusted) {
                (true, false) => reconciled.fallen.push(peer),
                (false, true) => reconciled.regained.push(peer),
                _ => {}
            }
        }
        for list in [&mut reconciled.fallen, &mut reconciled.regained] {
            list.sort_unstable();
            list.dedup();
        }
        reconciled
    }

    /// As [`Book::reconcile`] for everybody, at a start: what a dead run had not written of the networks is not known any
    /// more, and what it had not written here is told now.
    pub fn reconcile_all(&self, now: UnixMillis) -> Reconciled {
        self.reconcile(&[self.me()], now)
    }

    /// These peers, or, where this node is among them, everybody with a grant of a network: our own membership carries
    /// what others granted. That walk is rare.
    pub(super) fn resting_on(&self, peers: &[PeerId]) -> Vec<PeerId> {
        if !peers.contains(&self.me()) {
            return peers.to_vec();
        }
        let of_networks = |(peer, record): (PeerId, Arc<TrustRecord>)| record.rests_on_networks().then_some(peer);
        self.store.walk().flatten().filter_map(of_networks).collect()
    }

    /// Takes back every grant that stands, that `rule` made, and that was stored at `since` or later. A dry run changes
    /// nothing. Returns whom it concerns, and what each change did. See [`rules::undo`].
    pub fn undo(
        &self,
        rule: &Rule,
        since: UnixMillis,
        dry_run: bool,
        now: UnixMillis,
    ) -> Vec<(PeerId, Option<Updated>)> {
        let mut undone = Vec::new();
        for (peer, record) in self.store.walk().flatten() {
            if !rules::is_to_be_undone(&record, rule, since) {
                continue;
            }
            if dry_run {
                undone.push((peer, None));
                continue;
            }
            let updated = self.update(peer, now, Bounds::None, |record, moment| {
                let decided = rules::undo(record, rule, since, moment);
                if decided.record.as_ref() == record { Err(Refusal::Unknown) } else { Ok(decided) }
            });
            // In the meantime an operator has decided otherwise: then that stands.
            undone.extend(updated.ok().map(|updated| (peer, Some(updated))));
        }
        undone.sort_unstable_by_key(|(peer, _)| *peer);
        undone
    }

    /// The rules of the networks in which both this node and `peer` are members now, with the sponsor of each.
    pub(super) fn networks_naming(
        &self,
        peer: &PeerId,
        now: UnixMillis,
    ) -> impl Iterator<Item = (Rule, Option<PeerId>)> + use<'_> {
        let (me, peer) = (self.me(), *peer);
        let networks = self.networks.iter().flat_map(move |networks| networks.members().networks_of(&peer));
        networks.filter_map(move |network| {
            let members = self.networks.as_deref()?.members();
            let Standing::Member { sponsor, .. } = members.standing(&network, &peer, now) else {
                return None;
            };
            let enabled = members.here(&network).is_some_and(|record| record.rule);
            (enabled && members.counts(&network, &me, now)).then_some((Rule::Network(network), sponsor))
        })
    }

    pub(super) fn has_budget_of_sponsor(&self, rule: &Rule, sponsor: Option<&PeerId>, now: UnixMillis) -> bool {
        let (Rule::Network(network), Some(sponsor)) = (rule, sponsor) else {
            return true;
        };
        let (standing, _) = self.store.index().rules.count_of_sponsor(*network, *sponsor, now);
        standing < self.policy.grants_per_sponsor
    }

    /// An end of a membership that a decision is about to rest on is recorded first.
    pub(super) fn note_ends_of_memberships(&self, record: &TrustRecord, moment: &Moment<'_>) {
        let Some(networks) = &self.networks else {
            return;
        };
        for (edge, side) in [(&record.ours, Side::Ours), (&record.theirs, Side::Theirs)] {
            let Some(network) = edge.as_ref().and_then(|edge| edge.terms.network) else {
                continue;
            };
            if moment.view().standing(&network, side) == Standing::Ended {
                let subject = if side == Side::Ours { moment.peer } else { self.me() };
                networks.note_end(network, subject, moment.now);
            }
        }
    }
}
