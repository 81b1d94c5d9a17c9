//! Invites of this node: made, taken back, redeemed.
//!
//! Redemption, step by step, and what a crash leaves after each: the invite, the redemption of this key and its member
//! record are looked up; a certificate is signed outside the lock; inside it, if all three are still the same, all
//! three are stored as one change (crash before it is durable: nothing happened, and the key may ask again; a use is
//! taken with the redemption or not at all, since a batch is one frame); the reply leaves once that is durable (crash
//! before: the key asks again, and its redemption is found). So the same key always gets the same certificate, uses are
//! counted once, and of two keys that redeem the last use at the same moment one finds the invite changed.
//!
//! Only [`InviteId`]s are stored, from which the secret does not follow.

use std::sync::Arc;

use handfast_protocol::join::JoinReply;
use handfast_protocol::limits::INVITE_USES_MAX;
use handfast_protocol::{InviteId, InviteSecret, JoinRefusal, NetworkId, PeerId, Role, UnixMillis};

use super::{INVITES_MAX, InviteRecord, NetKey, NetRecord, NetworkRefusal, Networks, RedemptionRecord};
use crate::record::Revision;
use crate::table::Urgency;

/// How long an invite is kept after its end, at least: 30 days.
pub const ENDED_KEPT_MS: u64 = 30 * 24 * 3_600_000;

/// What an operator wants an invite to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Into which network.
    pub network: NetworkId,
    /// What the redeemers become. Only the authority makes sponsors.
    pub role: Role,
    /// How many keys may redeem it.
    pub uses: u32,
    /// From when on.
    pub valid_from: UnixMillis,
    /// Until when.
    pub expires_at: UnixMillis,
}

impl Networks {
    /// Makes an invite with this secret, which the caller drew, and which is not kept.
    ///
    /// # Errors
    /// [`NetworkRefusal::NotHere`], [`NetworkRefusal::CannotIssue`], [`NetworkRefusal::BadInvite`] and
    /// [`NetworkRefusal::TooMany`].
    pub fn invite(
        &self,
        wanted: Invitation,
        secret: &InviteSecret,
        now: UnixMillis,
    ) -> Result<(InviteId, Revision), NetworkRefusal> {
        let Invitation { network, role, uses, valid_from, expires_at } = wanted;
        if self.members().here(&network).is_none() {
            return Err(NetworkRefusal::NotHere);
        }
        if uses == 0 || uses > INVITE_USES_MAX || expires_at <= valid_from {
            return Err(NetworkRefusal::BadInvite);
        }
        if self.members().invites() >= INVITES_MAX {
            self.forget_ended(now);
        }
        if self.members().invites() >= INVITES_MAX {
            return Err(NetworkRefusal::TooMany);
        }
        let may_issue = role == Role::Member && self.sponsorship(network, now).is_some();
        if !may_issue && self.authority(&network).is_none() {
            return Err(NetworkRefusal::CannotIssue);
        }
        let id = secret.id();
        let network = *network.as_bytes();
        let (used, revoked, made_at) = (0, false, now);
        let record = InviteRecord { network, role, uses, used, valid_from, expires_at, revoked, made_at };
        let changes = vec![(NetKey::Invite(id), None, NetRecord::Invite(record))];
        let revision = self.store_if_unchanged(changes, Urgency::Critical).ok_or(NetworkRefusal::BadInvite)?;
        Ok((id, revision))
    }

    /// Takes an invite back: no further key redeems it. Who redeemed it stays a member.
    ///
    /// # Errors
    /// [`NetworkRefusal::NoSuchInvite`].
    pub fn revoke_invite(&self, id: InviteId) -> Result<Revision, NetworkRefusal> {
        loop {
            let found = self.find(NetKey::Invite(id));
            let record = found.as_deref().and_then(NetRecord::invite).ok_or(NetworkRefusal::NoSuchInvite)?;
            if record.revoked {
                return Ok(self.store.revision());
            }
            let next = NetRecord::Invite(InviteRecord { revoked: true, ..record.clone() });
            if let Some(revision) = self.store_if_unchanged(vec![(NetKey::Invite(id), found, next)], Urgency::Critical)
            {
                return Ok(revision);
            }
        }
    }

    /// All invites, newest first.
    pub fn invites(&self) -> Vec<(InviteId, InviteRecord)> {
        let invite = |(key, record): (NetKey, Arc<NetRecord>)| match key {
            NetKey::Invite(id) => record.invite().map(|record| (id, record.clone())),
            _ => None,
        };
        let mut list: Vec<_> = self.store.walk().flatten().filter_map(invite).collect();
        list.sort_by_key(|(id, record)| (std::cmp::Reverse(record.made_at), *id));
        list
    }

    /// Who redeemed an invite, and when.
    pub fn redemptions(&self, id: InviteId) -> Vec<(PeerId, UnixMillis)> {
        let redemption = |(key, record): (NetKey, Arc<NetRecord>)| match key {
            NetKey::Redemption(of, peer) if of == id => record.redemption().map(|record| (peer, record.at)),
            _ => None,
        };
        let mut list: Vec<_> = self.store.walk().flatten().filter_map(redemption).collect();
        list.sort_unstable_by_key(|(peer, at)| (*at, *peer));
        list
    }

    /// Makes room: removes invites that have ended long ago, with their redemptions. Such a ticket is unknown from then on.
    fn forget_ended(&self, now: UnixMillis) {
        let ended = |invite: &InviteRecord| invite.expires_at.plus(ENDED_KEPT_MS) <= now;
        let invites = self.invites().into_iter().filter(|(_, invite)| ended(invite)).map(|(id, _)| id);
        let invites: std::collections::HashSet<InviteId> = invites.collect();
        let mut keys: Vec<NetKey> = self.store.walk().flatten().map(|(key, _)| key).collect();
        keys.retain(|key| matches!(key, NetKey::Invite(id) | NetKey::Redemption(id, _) if invites.contains(id)));
        // Invites first: a redemption without its invite is found by nobody.
        keys.sort_unstable();
        self.store.remove_all(&keys, |_| true);
    }

    /// A key that TLS proved redeems an invite. The reply may be said once the revision is durable, and is then asked
    /// for again, which changes nothing.
    pub fn redeem(
        &self,
        peer: PeerId,
        network: NetworkId,
        secret: &InviteSecret,
        now: UnixMillis,
    ) -> (JoinReply, Revision) {
        match self.try_redeem(peer, network, secret.id(), now) {
            Ok((reply, revision)) => (reply, revision),
            // A refusal may rest on what is not durable yet: a use that another key has taken.
            Err(refusal) => (JoinReply::refused(refusal), self.store.revision()),
        }
    }

    fn try_redeem(
        &self,
        peer: PeerId,
        network: NetworkId,
        id: InviteId,
        now: UnixMillis,
    ) -> Result<(JoinReply, Revision), JoinRefusal> {
        let keys = [NetKey::Invite(id), NetKey::Redemption(id, peer), NetKey::Member(network, peer)];
        loop {
            let [invite, redemption, member] = self.store.read(|table| keys.map(|key| table.get(&key).map(Arc::clone)));
            let record = invite.as_deref().and_then(NetRecord::invite).ok_or(JoinRefusal::Unknown)?;
            if record.network() != network {
                return Err(JoinRefusal::WrongNetwork);
            }
            if self.members().is_expelled(&network, &peer) {
                return Err(JoinRefusal::Expelled);
            }
            let certified =
                |membership: &handfast_protocol::Membership| JoinReply::Certified(Box::new(membership.clone()));
            if let Some(before) = redemption.as_deref().and_then(NetRecord::redemption) {
                return Ok((certified(before.membership.membership()), self.store.revision()));
            }
            record.may_be_redeemed(now)?;
            let made = self.issue(network, peer, record.role, now).map_err(|_| JoinRefusal::CannotIssue)?;
            let known = member.as_deref().and_then(NetRecord::member).cloned().unwrap_or_default();
            let known = known.with(&made, now, |kept| self.is_void(kept)).unwrap_or(known);
            let used = InviteRecord { used: record.used + 1, ..record.clone() };
            let reply = certified(made.membership());
            let changes = vec![
                (keys[0], invite, NetRecord::Invite(used)),
                (keys[1], redemption, NetRecord::Redemption(RedemptionRecord { at: now, membership: made })),
                (keys[2], member, NetRecord::Member(known)),
            ];
            if let Some(revision) = self.store_if_unchanged(changes, Urgency::Critical) {
                return Ok((reply, revision));
            }
        }
    }
}

impl InviteRecord {
    /// Whether another key may redeem it.
    fn may_be_redeemed(&self, now: UnixMillis) -> Result<(), JoinRefusal> {
        match () {
            () if self.revoked => Err(JoinRefusal::Revoked),
            () if now < self.valid_from => Err(JoinRefusal::NotYetValid),
            () if now >= self.expires_at => Err(JoinRefusal::Expired),
            () if self.used >= self.uses => Err(JoinRefusal::Exhausted),
            () => Ok(()),
        }
    }
}
