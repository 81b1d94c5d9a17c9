//! What this node replies on a join stream.

use handfast_protocol::join::{JoinReply, JoinRequest, NoticePage, RosterEntry, RosterPage};
use handfast_protocol::limits::{NOTICE_PAGE_MAX, ROSTER_PAGE_MAX};
use handfast_protocol::{
    JoinRefusal, Membership, NetworkId, PeerId, SignedAddressRecord, SignedNotice, UnixMillis, VerifiedMembership,
};

use super::members::List;
use super::{NetKey, Networks, is_due};
use crate::record::Revision;
use crate::table::Urgency;

/// Where a member is, as it says itself: its signed address record, from the node's address book.
pub type AddressOf<'a> = &'a dyn Fn(&PeerId) -> Option<SignedAddressRecord>;

impl Networks {
    /// The reply to `peer`, the key that TLS proved, and the revision that must be durable before it is said. Asked
    /// again for the same request it changes nothing. Checks up to two signatures, and signs one for a certificate.
    pub fn reply(
        &self,
        peer: PeerId,
        request: &JoinRequest,
        address_of: AddressOf<'_>,
        now: UnixMillis,
    ) -> (JoinReply, Revision) {
        let reply = match request {
            JoinRequest::Redeem { network, secret } => return self.redeem(peer, *network, secret, now),
            JoinRequest::Renew { membership } => self.renew(peer, membership, now),
            JoinRequest::Roster { membership, after } => self
                .member_now(peer, membership, now)
                .map(|member| (self.roster_page(member.network(), *after, address_of, now), Revision::ZERO)),
            JoinRequest::Expulsions { membership, after } => {
                // Also who is expelled, and whose certificate has ended: that is how it learns of it. The notices that
                // are told are to be durable: the other end will hold them.
                self.proven(peer, membership)
                    .map(|member| (self.notice_page(member.network(), *after), self.store.revision()))
            }
        };
        reply.unwrap_or_else(|refusal| (JoinReply::refused(refusal), Revision::ZERO))
    }

    /// A chain whose signatures hold, of this very key, in a network that we are in.
    fn proven(&self, peer: PeerId, shown: &Membership) -> Result<VerifiedMembership, JoinRefusal> {
        if self.members().here(&shown.network()).is_none() {
            return Err(JoinRefusal::NotHere);
        }
        if shown.member() != peer {
            return Err(JoinRefusal::NotAMember);
        }
        let known = self.member(shown.network(), peer);
        let same = known.as_ref().and_then(|known| known.by(shown.sponsor()));
        if let Some(kept) = same.filter(|kept| kept.membership.membership() == shown) {
            return Ok(kept.membership.clone());
        }
        shown.clone().verify().map_err(|_| JoinRefusal::NotAMember)
    }

    fn member_now(&self, peer: PeerId, shown: &Membership, now: UnixMillis) -> Result<VerifiedMembership, JoinRefusal> {
        let proven = self.proven(peer, shown)?;
        if self.members().is_expelled(&proven.network(), &peer) {
            return Err(JoinRefusal::Expelled);
        }
        if self.members().would_count(&proven, now) { Ok(proven) } else { Err(JoinRefusal::NotAMember) }
    }

    /// A new certificate in place of one that still counts. One that we issued and that is not due yet is given again.
    fn renew(&self, peer: PeerId, shown: &Membership, now: UnixMillis) -> Result<(JoinReply, Revision), JoinRefusal> {
        let proven = self.member_now(peer, shown, now)?;
        let network = proven.network();
        let issuer = if self.authority(&network).is_some() { None } else { Some(self.me()) };
        let known = self.member(network, peer);
        let fresh = known.as_ref().and_then(|known| known.by(issuer)).filter(|kept| {
            let membership = kept.membership.membership();
            kept.membership.role() >= proven.role()
                && self.members().would_count(&kept.membership, now)
                && !kept.expired
                && !is_due(membership, now)
        });
        let certified =
            |membership: &VerifiedMembership| JoinReply::Certified(Box::new(membership.membership().clone()));
        if let Some(kept) = fresh {
            return Ok((certified(&kept.membership), self.store.revision()));
        }
        let made = self.issue(network, peer, proven.role(), now).map_err(|_| JoinRefusal::CannotIssue)?;
        self.learn_verified(std::slice::from_ref(&made), now, Urgency::Critical);
        Ok((certified(&made), self.store.revision()))
    }

    fn roster_page(
        &self,
        network: NetworkId,
        mut after: Option<PeerId>,
        address_of: AddressOf<'_>,
        now: UnixMillis,
    ) -> JoinReply {
        let mut entries = Vec::new();
        loop {
            let (keys, ended) = self.members().page(network, List::Members, after, ROSTER_PAGE_MAX - entries.len());
            after = keys.last().copied().or(after);
            let entry = |peer: &PeerId| {
                let membership = self.proof(network, *peer, now)?;
                Some(RosterEntry { membership, address: address_of(peer) })
            };
            entries.extend(keys.iter().filter_map(entry));
            if ended || entries.len() == ROSTER_PAGE_MAX {
                return JoinReply::Roster(RosterPage { entries, more: !ended });
            }
        }
    }

    fn notice_page(&self, network: NetworkId, after: Option<PeerId>) -> JoinReply {
        let (keys, ended) = self.members().page(network, List::Notices, after, NOTICE_PAGE_MAX);
        let notice = |peer: &PeerId| -> Option<SignedNotice> {
            Some(*self.find(NetKey::Notice(network, *peer))?.notice()?.signed())
        };
        let notices = keys.iter().filter_map(notice).collect();
        JoinReply::Expulsions(NoticePage { notices, more: !ended })
    }
}
