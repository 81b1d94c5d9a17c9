//! Whose membership counts, answered without a lock: the index that the store of networks keeps inside its own lock.
//!
//! Invariants:
//! * NOW: an expulsion, a departure and the mark of an end are in here before the lock of the change is released, so
//!   from that instant no membership of that key counts, nor one that it signed, whatever certificates come or came.
//! * What counts is derived when it is asked: from the chains, the expulsions and the clock. Nothing is stored twice.
//! * It never waits. Writers are the store's lock holders, one at a time.
//! * BOUND: a change copies the few entries of one member, or one bucket of a list of keys (1/256 of a network).
//!
//! Not here: the certificates themselves (the table), what a membership is good for (`authorise`, `rules`).

use std::collections::hash_map::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use handfast_protocol::{ExpulsionsHeld, NetworkId, PeerId, Role, UnixMillis, VerifiedMembership};

use super::record::{MemberRecord, NetKey, NetRecord, NetworkRecord};
use crate::record::{Index, Revision};

type Map<K, V> = papaya::HashMap<K, V, RandomState>;

/// What a membership is worth now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It counts.
    Member {
        /// When the last of its certificates ends.
        until: UnixMillis,
        /// The sponsor who signed that one; `None`: the authority.
        sponsor: Option<PeerId>,
        /// The greatest role of those that count.
        role: Role,
    },
    /// The authority has expelled the key.
    Expelled,
    /// The authority has expelled every sponsor who signed a certificate that has not ended.
    SponsorExpelled,
    /// Its certificates have ended.
    Ended,
    /// No certificate is known here.
    Unknown,
    /// This node is not in the network, or has left it.
    NotHere,
}

impl Standing {
    /// True for a membership that counts.
    pub fn counts(&self) -> bool {
        matches!(self, Standing::Member { .. })
    }

    /// Its name in tables and JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Standing::Member { .. } => "member",
            Standing::Expelled => "expelled",
            Standing::SponsorExpelled => "sponsor_expelled",
            Standing::Ended => "ended",
            Standing::Unknown => "unknown",
            Standing::NotHere => "not_here",
        }
    }
}

/// A certificate of one member, as far as deciding needs it.
#[derive(Clone, Copy)]
struct Chain {
    sponsor: Option<PeerId>,
    until: UnixMillis,
    role: Role,
    expired: bool,
}

/// A part of a network's keys: those whose first byte is the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Bucket {
    network: NetworkId,
    of: List,
    first: u8,
}

/// A list of keys that can be read in pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum List {
    /// Members with a certificate.
    Members,
    /// Members that the authority has said something about.
    Notices,
}

/// See the module.
pub struct Members {
    here: Map<NetworkId, Arc<NetworkRecord>>,
    chains: Map<(NetworkId, PeerId), Arc<[Chain]>>,
    expelled: Map<(NetworkId, PeerId), ()>,
    networks_of: Map<PeerId, Vec<NetworkId>>,
    buckets: Map<Bucket, Arc<[PeerId]>>,
    counts: Map<NetworkId, u32>,
    held: Map<NetworkId, ExpulsionsHeld>,
    newest_notice: Map<NetworkId, u64>,
    invites: AtomicU64,
    /// No certificate that is not marked as ended ends before. May be too early, never too late.
    next_end: AtomicU64,
}

impl Default for Members {
    fn default() -> Members {
        Members {
            here: Map::default(),
            chains: Map::default(),
            expelled: Map::default(),
            networks_of: Map::default(),
            buckets: Map::default(),
            counts: Map::default(),
            held: Map::default(),
            newest_notice: Map::default(),
            invites: AtomicU64::new(0),
            next_end: AtomicU64::new(u64::MAX),
        }
    }
}

impl Members {
    /// The network, while this node is in it.
    pub fn here(&self, network: &NetworkId) -> Option<Arc<NetworkRecord>> {
        self.here.pin().get(network).filter(|record| !record.left).cloned()
    }

    /// Every network that this node is in.
    pub fn networks(&self) -> Vec<(NetworkId, Arc<NetworkRecord>)> {
        let here = self.here.pin();
        let mut list: Vec<_> =
            here.iter().filter(|(_, record)| !record.left).map(|(id, record)| (*id, record.clone())).collect();
        list.sort_unstable_by_key(|(id, _)| *id);
        list
    }

    /// What the membership of `peer` is worth at `now`. A few lookups; never waits.
    pub fn standing(&self, network: &NetworkId, peer: &PeerId, now: UnixMillis) -> Standing {
        if self.here.pin().get(network).is_none_or(|record| record.left) {
            return Standing::NotHere;
        }
        if self.is_expelled(network, peer) {
            return Standing::Expelled;
        }
        let chains = self.chains.pin();
        let Some(chains) = chains.get(&(*network, *peer)) else {
            return Standing::Unknown;
        };
        let mut standing = Standing::Ended;
        let mut role = Role::Member;
        for chain in chains.iter().filter(|chain| !chain.expired && chain.until > now) {
            if chain.sponsor.is_some_and(|sponsor| self.is_expelled(network, &sponsor)) {
                if standing == Standing::Ended {
                    standing = Standing::SponsorExpelled;
                }
                continue;
            }
            role = role.max(chain.role);
            let Chain { until, sponsor, .. } = *chain;
            match standing {
                Standing::Member { until: longest, .. } if longest >= until => {}
                _ => standing = Standing::Member { until, sponsor, role },
            }
        }
        match standing {
            Standing::Member { until, sponsor, .. } => Standing::Member { until, sponsor, role },
            other => other,
        }
    }

    /// Whether the membership of `peer` counts at `now`.
    pub fn counts(&self, network: &NetworkId, peer: &PeerId, now: UnixMillis) -> bool {
        self.standing(network, peer, now).counts()
    }

    /// Whether a chain that somebody shows counts at `now`, known here or not.
    pub fn would_count(&self, shown: &VerifiedMembership, now: UnixMillis) -> bool {
        let network = shown.network();
        let sponsor = shown.membership().sponsor();
        self.here(&network).is_some()
            && shown.membership().ends_at() > now
            && !self.is_expelled(&network, &shown.member())
            && !sponsor.is_some_and(|sponsor| self.is_expelled(&network, &sponsor))
    }

    /// True while the last that the authority said of `peer` is that it is expelled.
    pub fn is_expelled(&self, network: &NetworkId, peer: &PeerId) -> bool {
        self.expelled.pin().contains_key(&(*network, *peer))
    }

    /// The networks in which `peer` has a certificate, in ascending order.
    pub fn networks_of(&self, peer: &PeerId) -> Vec<NetworkId> {
        self.networks_of.pin().get(peer).cloned().unwrap_or_default()
    }

    /// What is held of a network's notices.
    pub fn expulsions(&self, network: &NetworkId) -> ExpulsionsHeld {
        self.held.pin().get(network).copied().unwrap_or_default()
    }

    /// How many members of a network are known, whatever their certificates are worth.
    pub fn known(&self, network: &NetworkId) -> u32 {
        self.counts.pin().get(network).copied().unwrap_or(0)
    }

    pub(super) fn newest_notice(&self, network: &NetworkId) -> u64 {
        self.newest_notice.pin().get(network).copied().unwrap_or(0)
    }

    pub(super) fn invites(&self) -> u64 {
        self.invites.load(Ordering::Relaxed)
    }

    /// Up to `limit` keys of a list after `after`, in ascending order, and whether that is the end of it.
    pub(super) fn page(
        &self,
        network: NetworkId,
        of: List,
        after: Option<PeerId>,
        limit: usize,
    ) -> (Vec<PeerId>, bool) {
        let buckets = self.buckets.pin();
        let mut page = Vec::new();
        for first in after.map_or(0, |after| after.as_bytes()[0])..=u8::MAX {
            let Some(keys) = buckets.get(&Bucket { network, of, first }) else {
                continue;
            };
            let from = after.map_or(0, |after| keys.partition_point(|key| *key <= after));
            for key in &keys[from..] {
                if page.len() == limit {
                    return (page, false);
                }
                page.push(*key);
            }
        }
        (page, true)
    }

    /// Every key of a list.
    pub(super) fn all(&self, network: NetworkId, of: List) -> Vec<PeerId> {
        self.page(network, of, None, usize::MAX).0
    }

    /// True when a certificate may have ended by `now`. Then the caller looks at all of them, and has the ends that are
    /// still to come noted again.
    pub(super) fn take_ends(&self, now: UnixMillis) -> bool {
        self.next_end.load(Ordering::Acquire) <= now.0 && {
            self.next_end.store(u64::MAX, Ordering::Release);
            true
        }
    }

    pub(super) fn note_end(&self, end: UnixMillis) {
        self.next_end.fetch_min(end.0, Ordering::AcqRel);
    }

    fn list(&self, network: NetworkId, of: List, peer: PeerId, present: bool) {
        let bucket = Bucket { network, of, first: peer.as_bytes()[0] };
        let buckets = self.buckets.pin();
        let mut keys: Vec<PeerId> = buckets.get(&bucket).map(|keys| keys.to_vec()).unwrap_or_default();
        match (keys.binary_search(&peer), present) {
            (Err(at), true) => keys.insert(at, peer),
            (Ok(at), false) => drop(keys.remove(at)),
            _ => return,
        }
        if keys.is_empty() {
            buckets.remove(&bucket)
        } else {
            buckets.insert(bucket, keys.into())
        };
    }

    fn member_changed(&self, network: NetworkId, peer: PeerId, was: bool, record: Option<&MemberRecord>) {
        match record {
            Some(record) => {
                let chain = |kept: &super::record::Kept| {
                    let membership = kept.membership.membership();
                    let (sponsor, until) = (membership.sponsor(), membership.ends_at());
                    Chain { sponsor, until, role: kept.membership.role(), expired: kept.expired }
                };
                let chains: Arc<[Chain]> = record.kept.iter().map(chain).collect();
                chains.iter().filter(|chain| !chain.expired).for_each(|chain| self.note_end(chain.until));
                self.chains.pin().insert((network, peer), chains);
            }
            None => drop(self.chains.pin().remove(&(network, peer))),
        }
        let is = record.is_some();
        if is == was {
            return;
        }
        self.list(network, List::Members, peer, is);
        let counts = self.counts.pin();
        let count = self.known(&network);
        counts.insert(network, if is { count.saturating_add(1) } else { count.saturating_sub(1) });
        let of = self.networks_of.pin();
        let mut networks = of.get(&peer).cloned().unwrap_or_default();
        match (networks.binary_search(&network), is) {
            (Err(at), true) => networks.insert(at, network),
            (Ok(at), false) => drop(networks.remove(at)),
            _ => {}
        }
        if networks.is_empty() {
            of.remove(&peer)
        } else {
            of.insert(peer, networks)
        };
    }
}

impl Index<NetRecord> for Members {
    fn changed(&self, key: &NetKey, old: Option<&NetRecord>, new: Option<&Arc<NetRecord>>, _: Revision) {
        let new = new.map(|record| &**record);
        match *key {
            NetKey::Network(network) => match new.and_then(NetRecord::network) {
                Some(record) => drop(self.here.pin().insert(network, Arc::new(record.clone()))),
                None => drop(self.here.pin().remove(&network)),
            },
            NetKey::Member(network, peer) => {
                self.member_changed(network, peer, old.is_some(), new.and_then(NetRecord::member));
            }
            NetKey::Notice(network, peer) => {
                let (old, new) = (old.and_then(NetRecord::notice), new.and_then(NetRecord::notice));
                match new.filter(|notice| notice.expels()) {
                    Some(_) => drop(self.expelled.pin().insert((network, peer), ())),
                    None => drop(self.expelled.pin().remove(&(network, peer))),
                }
                let digest = |notice: Option<&handfast_protocol::VerifiedNotice>| notice.map(|notice| notice.digest());
                let held = self.expulsions(&network).replacing(digest(old), digest(new));
                self.held.pin().insert(network, held);
                if let Some(notice) = new {
                    let newest = self.newest_notice(&network).max(notice.notice().number);
                    self.newest_notice.pin().insert(network, newest);
                }
                self.list(network, List::Notices, peer, new.is_some());
            }
            NetKey::Invite(_) => match (old, new) {
                (None, Some(_)) => {
                    self.invites.fetch_add(1, Ordering::Relaxed);
                }
                (Some(_), None) => {
                    self.invites.fetch_sub(1, Ordering::Relaxed);
                }
                _ => {}
            },
            NetKey::Redemption(..) => {}
        }
    }
}
