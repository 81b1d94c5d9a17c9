//! The networks of this node: the store of `invites.hf` with its rules.
//!
//! A change is prepared outside the lock, from the records as they are, because signing and checking take tens of
//! microseconds; inside the lock it is stored only if the records are still those, otherwise it is prepared again. So
//! every decision rests on what it replaces, and the lock never sees a signature.
//!
//! Invariants:
//! * NOW: an expulsion counts from the instant the lock of its change is released (`members`), however the certificates
//!   and expulsions arrive and in whatever order.
//! * REV: a notice only ever moves up in the order of merging; an end that was observed is recorded.
//! * ONCE: a redemption, the use that it took and the membership that it made are one change under one lock; a key that
//!   asks again gets the same certificate (`invites`).
//! * BOUND: [`NETWORKS_MAX`] networks, [`MEMBERS_MAX`] members and [`NOTICES_MAX`] notices of each, [`INVITES_MAX`]
//!   invites. Whatever is said of a network that we are not in is not heard.
//!
//! What a change means for trust records is not written here: whoever made it passes [`Changed::affected`] to
//! `Book::reconcile`. Nothing needs that to be safe; it writes history and says whom to cut.
//!
//! Thread: any. Not here: the disk (the store's drainer), addresses (the node's address book).

mod host;
mod invites;
mod learn;
mod members;
mod record;

use std::collections::HashMap;
use std::sync::Arc;

use handfast_protocol::exchange::Standing as Shown;
use handfast_protocol::limits::{EPOCH_CLOCK_MAX, NETWORK_NAME_BYTES_MAX, STANDINGS_MAX};
use handfast_protocol::{
    Address, Certificate, Membership, NetworkId, NetworkName, PeerId, Role, SecretKey, UnixMillis, VerifiedMembership,
};

pub use self::host::AddressOf;
pub use self::invites::{ENDED_KEPT_MS, Invitation};
use self::members::List;
pub use self::members::{Members, Standing};
use self::record::Found;
pub use self::record::{
    ISSUERS_MAX, InviteRecord, Joining, Kept, MemberRecord, NetKey, NetRecord, NetworkRecord, RedemptionRecord,
};
use crate::record::Revision;
use crate::signals::Durable;
use crate::store::Store;
use crate::sync::Lock;
use crate::table::Urgency;

/// How long a certificate is good for: 90 days.
pub const CERTIFICATE_LIFE_MS: u64 = 90 * 24 * 3_600_000;
/// A certificate is renewed when less than this part of its life is left.
pub const RENEWAL_PART: u64 = 3;
/// Most networks that a node is in.
pub const NETWORKS_MAX: usize = 64;
/// Most members that are known of one network.
pub const MEMBERS_MAX: u32 = 65_536;
/// Most members of one network that there are notices about.
pub const NOTICES_MAX: u32 = 16_384;
/// Most invites that are kept.
pub const INVITES_MAX: u64 = 1_024;

/// Why an operator's wish is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetworkRefusal {
    /// We are in no such network.
    #[error("this node is not in that network")]
    NotHere,
    /// Another network is called so here.
    #[error("another network is called so here")]
    NameTaken,
    /// This network is here already.
    #[error("this node is in that network already")]
    AlreadyHere,
    /// The key of the authority is not here.
    #[error("only the network's authority can do that, and its key is not here")]
    NotTheAuthority,
    /// We are neither the authority nor a sponsor with a certificate that counts.
    #[error("this node cannot sign certificates of that network")]
    CannotIssue,
    /// The certificate is another's, or for another network.
    #[error("the certificate is not for this node")]
    WrongCertificate,
    /// Nothing to take back.
    #[error("no such invite")]
    NoSuchInvite,
    /// An invite for nobody, or for too many, or one that ends before it begins.
    #[error("an invite is for 1 to {max} keys, and ends after it begins", max = handfast_protocol::limits::INVITE_USES_MAX)]
    BadInvite,
    /// The peer is expelled already, or is not.
    #[error("the network's authority has said so already")]
    SaidAlready,
    /// A bound is reached.
    #[error("there are too many of them already")]
    TooMany,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What must be durable before anybody may be told.
    pub revision: Revision,
    /// Whose trust may have changed: for `Book::reconcile`. This node itself stands for everybody, because its membership
    /// carries what others granted.
    pub affected: Vec<PeerId>,
}

/// A join that has its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// What the inviter calls the network.
    pub name: NetworkName,
    /// Who issued the certificate.
    pub inviter: PeerId,
    /// Where the ticket said that the inviter is.
    pub addresses: Vec<Address>,
}

/// See the module.
pub struct Networks {
    store: Store<NetRecord>,
    key: SecretKey,
    /// Keys of the networks whose authority is here.
    authorities: Lock<HashMap<NetworkId, SecretKey>>,
}

impl Networks {
    /// The networks of a recovered store. `key` is this node's.
    pub fn new(store: Store<NetRecord>, key: SecretKey) -> Networks {
        Networks { store, key, authorities: Lock::default() }
    }

    /// Takes the key of a network's authority into use, for as long as this runs.
    pub fn hold_authority(&self, authority: SecretKey) {
        self.authorities.with(|keys| keys.insert(authority.network_id(), authority));
    }

    fn authority(&self, network: &NetworkId) -> Option<SecretKey> {
        self.authorities.with(|keys| keys.get(network).cloned())
    }

    /// This node.
    pub fn me(&self) -> PeerId {
        self.key.peer_id()
    }

    /// Whose membership counts, without a lock.
    pub fn members(&self) -> &Members {
        self.store.index()
    }

    /// The store under it.
    pub fn store(&self) -> &Store<NetRecord> {
        &self.store
    }

    /// When changes are durable.
    pub fn durable(&self) -> &Durable {
        self.store.durable()
    }

    fn find(&self, key: NetKey) -> Found {
        self.store.read(|table| table.get(&key).cloned())
    }

    /// Stores `changes` in one piece, if the table still holds what each was prepared from.
    fn store_if_unchanged(&self, changes: Vec<(NetKey, Found, NetRecord)>, urgency: Urgency) -> Option<Revision> {
        let mut changes: Vec<_> =
            changes.into_iter().map(|(key, found, record)| (key, found, Arc::new(record))).collect();
        let (stored, revision) = self.store.write(|table| {
            if !changes.iter().all(|(key, found, _)| table.still_holds(key, found.as_ref())) {
                return false;
            }
            for (key, _, record) in changes.drain(..) {
                table.put_shared(key, record, urgency);
            }
            true
        });
        stored.then_some(revision)
    }

    /// Prepares a change of one network's record from what it is, until it is stored.
    fn update_network(
        &self,
        network: NetworkId,
        mut change: impl FnMut(&NetworkRecord) -> Result<NetworkRecord, NetworkRefusal>,
    ) -> Result<Revision, NetworkRefusal> {
        loop {
            let found = self.find(NetKey::Network(network));
            let record = found.as_deref().and_then(NetRecord::network).filter(|record| !record.left);
            let next = NetRecord::Network(change(record.ok_or(NetworkRefusal::NotHere)?)?);
            if found.as_deref() == Some(&next) {
                return Ok(self.store.revision());
            }
            let changes = vec![(NetKey::Network(network), found, next)];
            if let Some(revision) = self.store_if_unchanged(changes, Urgency::Critical) {
                return Ok(revision);
            }
        }
    }

    /// Founds a network: its authority's key is `authority`, and this node is its first sponsor.
    ///
    /// # Errors
    /// [`NetworkRefusal::NameTaken`], [`NetworkRefusal::AlreadyHere`] and [`NetworkRefusal::TooMany`].
    pub fn create(&self, authority: SecretKey, name: NetworkName, now: UnixMillis) -> Result<Changed, NetworkRefusal> {
        let network = authority.network_id();
        self.hold_authority(authority);
        loop {
            if self.members().here(&network).is_some() {
                return Err(NetworkRefusal::AlreadyHere);
            }
            if self.name_is_taken(&name) {
                return Err(NetworkRefusal::NameTaken);
            }
            let own = self.issue(network, self.me(), Role::Sponsor, now)?;
            let record = NetworkRecord {
                name: name.clone(),
                authority: true,
                left: false,
                rule: true,
                joined_at: now,
                joining: None,
            };
            if let Some(changed) = self.enter(network, record, &own, now)? {
                return Ok(changed);
            }
        }
    }

    /// This node got a certificate: it is in the network from now on, and the network's rule grants. The name is the
    /// inviter's, or one like it where that is taken; see [`Members::here`]. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`NetworkRefusal::WrongCertificate`] and [`NetworkRefusal::TooMany`].
    pub fn joined(
        &self,
        joined: &Joined,
        membership: &VerifiedMembership,
        now: UnixMillis,
    ) -> Result<Changed, NetworkRefusal> {
        let network = membership.network();
        if membership.member() != self.me() {
            return Err(NetworkRefusal::WrongCertificate);
        }
        let joining = Joining::new(joined.inviter, joined.addresses.clone());
        loop {
            let here = self.members().here(&network);
            let record = match here {
                Some(record) => NetworkRecord { joining: Some(joining.clone()), ..NetworkRecord::clone(&record) },
                None => NetworkRecord {
                    name: self.free_name(&joined.name),
                    authority: self.authority(&network).is_some(),
                    left: false,
                    rule: true,
                    joined_at: now,
                    joining: Some(joining.clone()),
                },
            };
            if let Some(changed) = self.enter(network, record, membership, now)? {
                return Ok(changed);
            }
        }
    }

    /// Stores that we are in a network, with our certificate, in one change. `None`: prepare it again.
    fn enter(
        &self,
        network: NetworkId,
        record: NetworkRecord,
        own: &VerifiedMembership,
        now: UnixMillis,
    ) -> Result<Option<Changed>, NetworkRefusal> {
        let was_here = self.members().here(&network).is_some();
        if !was_here && self.members().networks().len() >= NETWORKS_MAX {
            return Err(NetworkRefusal::TooMany);
        }
        let (at, mine) = (NetKey::Network(network), NetKey::Member(network, self.me()));
        let (found, member) = (self.find(at), self.find(mine));
        let mut changes = vec![(at, found, NetRecord::Network(record))];
        let known = member.as_deref().and_then(NetRecord::member).cloned().unwrap_or_default();
        if let Some(next) = known.with(own, now, |kept| self.is_void(kept)) {
            changes.push((mine, member, NetRecord::Member(next)));
        }
        let Some(revision) = self.store_if_unchanged(changes, Urgency::Critical) else {
            return Ok(None);
        };
        Ok(Some(Changed { revision, affected: vec![self.me()] }))
    }

    /// The roster has been read to its end: the join is done.
    ///
    /// # Errors
    /// [`NetworkRefusal::NotHere`].
    pub fn roster_is_read(&self, network: NetworkId) -> Result<Revision, NetworkRefusal> {
        self.update_network(network, |record| Ok(NetworkRecord { joining: None, ..record.clone() }))
    }

    /// Turns the network's rule on or off.
    ///
    /// # Errors
    /// [`NetworkRefusal::NotHere`].
    pub fn set_rule(&self, network: NetworkId, rule: bool) -> Result<Revision, NetworkRefusal> {
        self.update_network(network, |record| Ok(NetworkRecord { rule, ..record.clone() }))
    }

    /// Calls the network something else here.
    ///
    /// # Errors
    /// [`NetworkRefusal::NotHere`] and [`NetworkRefusal::NameTaken`].
    pub fn rename(&self, network: NetworkId, name: &NetworkName) -> Result<Revision, NetworkRefusal> {
        self.update_network(network, |record| {
            if record.name != *name && self.name_is_taken(name) {
                return Err(NetworkRefusal::NameTaken);
            }
            Ok(NetworkRecord { name: name.clone(), ..record.clone() })
        })
    }

    /// Leaves the network: nothing that its rule granted counts any more, nor its invites. Its expulsions are kept, so
    /// that coming back does not forget them.
    ///
    /// # Errors
    /// [`NetworkRefusal::NotHere`].
    pub fn leave(&self, network: NetworkId) -> Result<Changed, NetworkRefusal> {
        let members = self.members().all(network, List::Members);
        let revision = self.update_network(network, |record| {
            Ok(NetworkRecord { left: true, rule: false, joining: None, ..record.clone() })
        })?;
        // No certificate counts from here on: removing them is tidying, a few at a time.
        let members: Vec<_> = members.into_iter().map(|peer| NetKey::Member(network, peer)).collect();
        let revision = revision.max(self.store.remove_all(&members, |_| true));
        Ok(Changed { revision, affected: vec![self.me()] })
    }

    /// The network that is called `name` here.
    pub fn by_name(&self, name: &str) -> Option<NetworkId> {
        let networks = self.members().networks();
        networks.into_iter().find(|(_, record)| record.name.as_str() == name).map(|(network, _)| network)
    }

    fn name_is_taken(&self, name: &NetworkName) -> bool {
        self.by_name(name.as_str()).is_some()
    }

    /// `name`, or the first of `name-2`, `name-3`, .. that nothing is called.
    fn free_name(&self, name: &NetworkName) -> NetworkName {
        let numbered = |number: usize| {
            let suffix = format!("-{number}");
            let stem = &name.as_str()[..name.as_str().len().min(NETWORK_NAME_BYTES_MAX - suffix.len())];
            NetworkName::new(&format!("{stem}{suffix}")).ok()
        };
        let mut names = std::iter::once(Some(name.clone())).chain((2..).map(numbered)).flatten();
        names.find(|name| !self.name_is_taken(name)).unwrap_or_else(|| name.clone())
    }

    /// What is known of a member.
    pub fn member(&self, network: NetworkId, peer: PeerId) -> Option<MemberRecord> {
        self.find(NetKey::Member(network, peer)).as_deref().and_then(NetRecord::member).cloned()
    }

    /// The members whose membership counts at `now`, in ascending order, this node among them.
    pub fn roster(&self, network: NetworkId, now: UnixMillis) -> Vec<PeerId> {
        let mut members = self.members().all(network, List::Members);
        members.retain(|peer| self.members().counts(&network, peer, now));
        members
    }

    /// Every key with a certificate, expelled and ended ones too, with what it is worth.
    pub fn all_members(&self, network: NetworkId, now: UnixMillis) -> Vec<(PeerId, Standing)> {
        let members = self.members().all(network, List::Members);
        members.into_iter().map(|peer| (peer, self.members().standing(&network, &peer, now))).collect()
    }

    /// The best membership of `peer`, where one counts: the one that ends last.
    pub fn proof(&self, network: NetworkId, peer: PeerId, now: UnixMillis) -> Option<Membership> {
        let Standing::Member { sponsor, .. } = self.members().standing(&network, &peer, now) else {
            return None;
        };
        let record = self.member(network, peer)?;
        record.by(sponsor).map(|kept| kept.membership.membership().clone())
    }

    /// The last certificate of ours, whatever it is worth: whoever is expelled asks for the expulsions with it, and learns
    /// that it was, or that it is readmitted.
    pub fn own_chain(&self, network: NetworkId) -> Option<Membership> {
        let kept = self.member(network, self.me())?.kept;
        let last = kept.iter().max_by_key(|kept| kept.membership.membership().ends_at())?;
        Some(last.membership.membership().clone())
    }

    /// Our place in the networks in which we know `peer`: for the Offer that we open an exchange with. Others do not
    /// learn from us what we are in.
    pub fn standings_with(&self, peer: &PeerId, now: UnixMillis) -> Vec<Shown> {
        self.standings_in(self.members().networks_of(peer).into_iter(), now)
    }

    /// Our place in the networks that the peer has shown: for the Answer.
    pub fn standings_like(&self, shown: &[Shown], now: UnixMillis) -> Vec<Shown> {
        let ours = shown.iter().filter(|standing| {
            let peer = standing.membership.member();
            self.members().networks_of(&peer).contains(&standing.membership.network())
        });
        self.standings_in(ours.map(|standing| standing.membership.network()), now)
    }

    fn standings_in(&self, networks: impl Iterator<Item = NetworkId>, now: UnixMillis) -> Vec<Shown> {
        let standing = |network: NetworkId| {
            let membership = self.proof(network, self.me(), now)?;
            Some(Shown { membership, expulsions: self.members().expulsions(&network) })
        };
        networks.filter_map(standing).take(STANDINGS_MAX).collect()
    }

    /// The networks of which the peer holds other notices than we do: one of the two lacks some.
    pub fn differing(&self, shown: &[Shown]) -> Vec<NetworkId> {
        let differs = |standing: &&Shown| {
            let network = standing.membership.network();
            self.members().here(&network).is_some() && self.members().expulsions(&network) != standing.expulsions
        };
        shown.iter().filter(differs).map(|standing| standing.membership.network()).collect()
    }

    /// True for a membership that no clock will ever revive while things are as they are.
    fn is_void(&self, kept: &Kept) -> bool {
        let (network, sponsor) = (kept.membership.network(), kept.membership.membership().sponsor());
        sponsor.is_some_and(|sponsor| self.members().is_expelled(&network, &sponsor))
    }

    /// A new certificate for `member`, by the authority's key where it is here, else by ours as a sponsor. Not stored.
    fn issue(
        &self,
        network: NetworkId,
        member: PeerId,
        role: Role,
        now: UnixMillis,
    ) -> Result<VerifiedMembership, NetworkRefusal> {
        let authority = self.authority(&network);
        let issuer = if authority.is_some() { None } else { Some(self.me()) };
        let known = self.member(network, member).and_then(|record| record.epoch_by(issuer));
        let epoch = known.map_or(0, |epoch| epoch.saturating_add(1)).max(now.0.min(EPOCH_CLOCK_MAX));
        let expires_at = now.plus(CERTIFICATE_LIFE_MS);
        let certificate = Certificate { network, member, epoch, issued_at: now, expires_at, role };
        let made = match authority {
            Some(authority) => certificate.by_authority(&authority),
            None => {
                let sponsor = self.sponsorship(network, now).ok_or(NetworkRefusal::CannotIssue)?;
                certificate.by_sponsor(&self.key, &sponsor)
            }
        };
        made.map_err(|_| NetworkRefusal::CannotIssue)
    }

    /// Our own certificate, where it makes us a sponsor now.
    fn sponsorship(&self, network: NetworkId, now: UnixMillis) -> Option<VerifiedMembership> {
        let own = self.member(network, self.me())?;
        let kept = own.by(None).filter(|kept| !kept.expired && kept.membership.role() == Role::Sponsor)?;
        self.members().would_count(&kept.membership, now).then(|| kept.membership.clone())
    }

    /// Our memberships of which less than a third of their life is left, with the network: a sponsor renews them.
    pub fn due_for_renewal(&self, now: UnixMillis) -> Vec<(NetworkId, Membership)> {
        let due = |(network, _)| {
            let own = self.proof(network, self.me(), now)?;
            (self.authority(&network).is_none() && is_due(&own, now)).then_some((network, own))
        };
        self.members().networks().into_iter().filter_map(due).collect()
    }

    /// Renews our own memberships in the networks whose authority is here, also those that have ended.
    pub fn renew_own(&self, now: UnixMillis) -> Changed {
        let due = |network: &NetworkId| {
            let own = self.proof(*network, self.me(), now);
            self.authority(network).is_some()
                && !self.members().is_expelled(network, &self.me())
                && own.is_none_or(|own| is_due(&own, now))
        };
        let networks = self.members().networks().into_iter().map(|(network, _)| network).filter(due);
        let renewed: Vec<_> =
            networks.filter_map(|network| self.issue(network, self.me(), Role::Sponsor, now).ok()).collect();
        self.learn_verified(&renewed, now, Urgency::Critical)
    }
}

/// Less than a third of its life is left.
fn is_due(membership: &Membership, now: UnixMillis) -> bool {
    let life = membership.ends_at().since(membership.certificate.certificate.issued_at);
    membership.ends_at().since(now) < life / RENEWAL_PART
}
