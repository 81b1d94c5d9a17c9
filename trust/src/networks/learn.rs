//! What is learnt of members and expulsions, from whomever, and what time ends.

use handfast_protocol::{
    Membership, MembershipFault, NetworkId, Notice, NoticeKind, PeerId, SignedCertificate, SignedNotice, UnixMillis,
    VerifiedMembership, VerifiedNotice,
};

use super::members::List;
use super::{Changed, MEMBERS_MAX, NOTICES_MAX, NetKey, NetRecord, NetworkRefusal, Networks};
use crate::record::Revision;
use crate::table::Urgency;

impl Networks {
    /// Takes in what somebody shows of members: its own proof in an exchange, or a page of a roster. What is known is
    /// not checked again; about 80 us for each that is new. Nothing is promised of them, so nobody waits for the disk.
    ///
    /// # Errors
    /// The first [`MembershipFault`]; what came before it is kept.
    pub fn learn<'m>(
        &self,
        shown: impl IntoIterator<Item = &'m Membership>,
        now: UnixMillis,
    ) -> Result<Changed, MembershipFault> {
        let mut sponsors: Vec<SignedCertificate> = Vec::new();
        let (mut news, mut fault) = (Vec::new(), None);
        for membership in shown {
            let network = membership.network();
            if self.members().here(&network).is_none() {
                continue;
            }
            let known = self.member(network, membership.member());
            let same = known.as_ref().and_then(|known| known.by(membership.sponsor()));
            if same.is_some_and(|kept| kept.membership.membership() == membership) {
                continue;
            }
            match membership.clone().verify_among(&mut sponsors) {
                Ok(verified) => news.push(verified),
                Err(found) => {
                    fault = Some(found);
                    break;
                }
            }
        }
        let changed = self.learn_verified(&news, now, Urgency::Lazy);
        fault.map_or(Ok(changed), Err)
    }

    /// Merges memberships that were checked.
    pub(super) fn learn_verified(&self, news: &[VerifiedMembership], now: UnixMillis, urgency: Urgency) -> Changed {
        let mut affected = Vec::new();
        let mut revision = Revision::ZERO;
        for membership in news {
            let (network, member) = (membership.network(), membership.member());
            let at = NetKey::Member(network, member);
            loop {
                let found = self.find(at);
                if found.is_none() && member != self.me() && self.members().known(&network) >= MEMBERS_MAX {
                    break;
                }
                let known = found.as_deref().and_then(NetRecord::member).cloned().unwrap_or_default();
                let Some(next) = known.with(membership, now, |kept| self.is_void(kept)) else {
                    break;
                };
                if let Some(stored) = self.store_if_unchanged(vec![(at, found, NetRecord::Member(next))], urgency) {
                    revision = stored;
                    affected.push(member);
                    break;
                }
            }
        }
        Changed { revision, affected }
    }

    /// Takes in notices of the authorities of our networks, or of those that we have left. About 40 us for each that is
    /// new.
    ///
    /// # Errors
    /// The first [`MembershipFault`]; what came before it is kept.
    pub fn learn_notices(&self, shown: &[SignedNotice]) -> Result<Changed, MembershipFault> {
        let mut changed = Changed { revision: self.store.revision(), affected: Vec::new() };
        for signed in shown {
            let at = NetKey::Notice(signed.notice.network, signed.notice.member);
            if self.find(NetKey::Network(signed.notice.network)).is_none()
                || self.find(at).as_deref().and_then(NetRecord::notice).is_some_and(|known| known.signed() == signed)
            {
                continue;
            }
            self.merge_notice(&signed.verify()?, &mut changed);
        }
        Ok(changed)
    }

    /// Merges a notice that was checked. True when it was news.
    fn merge_notice(&self, notice: &VerifiedNotice, changed: &mut Changed) -> bool {
        let said = *notice.notice();
        let at = NetKey::Notice(said.network, said.member);
        loop {
            let found = self.find(at);
            let known = found.as_deref().and_then(NetRecord::notice);
            if known.is_some_and(|known| known.rank() >= notice.rank()) {
                return false;
            }
            if known.is_none() && self.members().expulsions(&said.network).count >= NOTICES_MAX {
                tracing::error!(network = %said.network, "too many expulsions: one is not kept");
                return false;
            }
            let next = NetRecord::Notice(*notice);
            if let Some(revision) = self.store_if_unchanged(vec![(at, found, next)], Urgency::Critical) {
                changed.revision = revision;
                changed.affected.push(said.member);
                self.issued_by(said.network, said.member, &mut changed.affected);
                return true;
            }
        }
    }

    /// Expels a member: the authority's own act.
    ///
    /// # Errors
    /// [`NetworkRefusal::NotHere`], [`NetworkRefusal::NotTheAuthority`], [`NetworkRefusal::SaidAlready`] and
    /// [`NetworkRefusal::TooMany`].
    pub fn expel(&self, network: NetworkId, member: PeerId, now: UnixMillis) -> Result<Changed, NetworkRefusal> {
        self.give_notice(network, member, NoticeKind::Expel, now)
    }

    /// Readmits a member that was expelled: the authority's own act. Its certificates count again, until they end.
    ///
    /// # Errors
    /// As [`Networks::expel`].
    pub fn readmit(&self, network: NetworkId, member: PeerId, now: UnixMillis) -> Result<Changed, NetworkRefusal> {
        self.give_notice(network, member, NoticeKind::Readmit, now)
    }

    fn give_notice(
        &self,
        network: NetworkId,
        member: PeerId,
        kind: NoticeKind,
        now: UnixMillis,
    ) -> Result<Changed, NetworkRefusal> {
        if self.members().here(&network).is_none() {
            return Err(NetworkRefusal::NotHere);
        }
        let authority = self.authority(&network).ok_or(NetworkRefusal::NotTheAuthority)?;
        let mut changed = Changed { revision: Revision::ZERO, affected: Vec::new() };
        loop {
            if (kind == NoticeKind::Expel) == self.members().is_expelled(&network, &member) {
                return Err(NetworkRefusal::SaidAlready);
            }
            let known = self.find(NetKey::Notice(network, member));
            if known.is_none() && self.members().expulsions(&network).count >= NOTICES_MAX {
                return Err(NetworkRefusal::TooMany);
            }
            // Past the newest of the network, and, for an authority restored from an old copy, at the clock.
            let newest = self.members().newest_notice(&network);
            if newest == u64::MAX {
                return Err(NetworkRefusal::TooMany);
            }
            let number = newest.saturating_add(1).max(now.0);
            let notice = Notice { network, member, number, kind, issued_at: now };
            let notice = notice.sign(&authority).map_err(|_| NetworkRefusal::NotTheAuthority)?;
            if self.merge_notice(&notice, &mut changed) {
                return Ok(changed);
            }
        }
    }

    /// Marks what has come to its end by `now`, so that a clock that goes back does not revive it. Returns whose trust
    /// may have changed.
    pub fn expire(&self, now: UnixMillis) -> Vec<PeerId> {
        let mut affected = Vec::new();
        if self.members().take_ends(now) {
            for (network, _) in self.members().networks() {
                for peer in self.members().all(network, List::Members) {
                    self.mark_end(network, peer, now, &mut affected);
                }
            }
        }
        affected
    }

    /// Records the ends of one member's certificates, where they have come.
    pub(crate) fn note_end(&self, network: NetworkId, peer: PeerId, now: UnixMillis) {
        self.mark_end(network, peer, now, &mut Vec::new());
    }

    fn mark_end(&self, network: NetworkId, peer: PeerId, now: UnixMillis, affected: &mut Vec<PeerId>) {
        let at = NetKey::Member(network, peer);
        loop {
            let found = self.find(at);
            let Some(mut record) = found.as_deref().and_then(NetRecord::member).cloned() else {
                return;
            };
            let mut any = false;
            for kept in record.kept.iter_mut().filter(|kept| !kept.expired) {
                let end = kept.membership.membership().ends_at();
                kept.expired = end <= now;
                any |= kept.expired;
                if !kept.expired {
                    self.members().note_end(end);
                }
            }
            if !any {
                return;
            }
            let changes = vec![(at, found, NetRecord::Member(record))];
            if self.store_if_unchanged(changes, Urgency::Critical).is_some() {
                return affected.push(peer);
            }
        }
    }

    /// Those to whom `sponsor` has issued a certificate. Looks at every member: expulsions are rare.
    fn issued_by(&self, network: NetworkId, sponsor: PeerId, affected: &mut Vec<PeerId>) {
        let mut issued_to = |member: PeerId| {
            if self.member(network, member).is_some_and(|record| record.by(Some(sponsor)).is_some()) {
                affected.push(member);
            }
        };
        self.members().all(network, List::Members).into_iter().for_each(&mut issued_to);
    }
}
