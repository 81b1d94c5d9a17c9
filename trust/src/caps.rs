//! How much strangers and rules have used up: counts that follow every change of the trust store, read without a lock.
//!
//! Invariant (BOUND): the counts are those of the stored records, also after a restart, because they are made of
//! nothing else. They are written by the holder of the store's lock, one at a time; a pending place and a grant of a rule
//! are checked against them inside that lock again, so that requests at the same time do not overrun a cap.
//!
//! Not here: what happens when a cap is full (`book`).

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use handfast_protocol::{Address, NetworkId, PeerId, UnixMillis};

use crate::trust_record::{Rule, TrustRecord};

/// A source network: the /24 of an IPv4 address, the /48 of an IPv6 one. What somebody can rent as one piece.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct SourcePrefix([u8; 6]);

impl SourcePrefix {
    /// The prefix of an address.
    pub(crate) fn of(address: SocketAddr) -> SourcePrefix {
        match address.ip().to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                // 0x20.. is global unicast and 0xfc.. to 0xff.. local: no IPv6 prefix begins with zeros and 4.
                SourcePrefix([0, 4, 0, a, b, c])
            }
            IpAddr::V6(v6) => SourcePrefix::of_v6(v6),
        }
    }

    fn of_v6(v6: Ipv6Addr) -> SourcePrefix {
        let [a, b, c, d, e, f, ..] = v6.octets();
        SourcePrefix([a, b, c, d, e, f])
    }
}

/// The records that strangers made us keep, by source.
#[derive(Default)]
pub(crate) struct Strangers {
    total: AtomicU64,
    /// Of each source its records, oldest first. Copied on change: a source has 64 at most by default.
    by_source: papaya::HashMap<Option<SourcePrefix>, Vec<(UnixMillis, PeerId)>, RandomState>,
}

/// Source and age of a record that counts as a stranger's.
fn place(record: Option<&TrustRecord>) -> Option<(Option<SourcePrefix>, UnixMillis)> {
    let record = record.filter(|record| record.is_strangers())?;
    Some((source_of(record), record.waits_since()))
}

fn source_of(record: &TrustRecord) -> Option<SourcePrefix> {
    let source = record.request.and_then(|request| request.source);
    source.map(|address: Address| SourcePrefix::of(address.into()))
}

impl Strangers {
    pub(crate) fn changed(&self, key: &PeerId, old: Option<&TrustRecord>, new: Option<&TrustRecord>) {
        let (old, new) = (place(old), place(new));
        if old == new {
            return;
        }
        if let Some((source, _)) = old {
            self.edit(source, |list| list.retain(|(_, peer)| peer != key));
            self.total.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some((source, age)) = new {
            self.edit(source, |list| list.insert(list.partition_point(|(at, _)| *at <= age), (age, *key)));
            self.total.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn edit(&self, source: Option<SourcePrefix>, change: impl FnOnce(&mut Vec<(UnixMillis, PeerId)>)) {
        let map = self.by_source.pin();
        let mut list = map.get(&source).cloned().unwrap_or_default();
        change(&mut list);
        if list.is_empty() {
            map.remove(&source);
        } else {
            map.insert(source, list);
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(crate) fn of_source(&self, source: Option<SourcePrefix>) -> u64 {
        self.by_source.pin().get(&source).map_or(0, |list| list.len() as u64)
    }

    /// The oldest record of the source that has the most (of several such sources, the oldest of them all), if that
    /// source has more than `newcomer`'s: nobody pushes out others who ask for less.
    pub(crate) fn evictable(&self, newcomer: Option<SourcePrefix>) -> Option<PeerId> {
        let own = self.of_source(newcomer);
        let map = self.by_source.pin();
        let oldest = |list: &[(UnixMillis, PeerId)]| list.first().copied();
        let (_, largest) = map.iter().max_by_key(|(_, list)| (list.len(), Reverse(oldest(list))))?;
        oldest(largest).filter(|_| largest.len() as u64 > own).map(|(_, peer)| peer)
    }

    /// Whether the step from `old` to `new` stays within so many in all and so many of one source. Exact only for the
    /// holder of the store's lock.
    pub(crate) fn has_room(&self, old: Option<&TrustRecord>, new: &TrustRecord, total: u64, of_source: u64) -> bool {
        let takes_place = new.is_strangers() && !old.is_some_and(TrustRecord::is_strangers);
        !takes_place || (self.total() < total && self.of_source(source_of(new)) < of_source)
    }

    /// Those that came before `limit`.
    pub(crate) fn older_than(&self, limit: UnixMillis) -> Vec<PeerId> {
        let map = self.by_source.pin();
        map.iter().flat_map(|(_, list)| list.iter().take_while(|(at, _)| *at < limit).map(|(_, peer)| *peer)).collect()
    }
}

const MINUTES: usize = 64;
const MINUTE_MS: u64 = 60_000;
const HOUR_MINUTES: u64 = 60;

/// Grants that rules made: how many stand, and how many were made in each of the last minutes.
#[derive(Default)]
pub(crate) struct RuleUse {
    allow: Used,
    accept_all: Used,
    /// Of each network in all (no sponsor), and of the members that one sponsor let in.
    networks: papaya::HashMap<(NetworkId, Option<PeerId>), Arc<Used>, RandomState>,
}

struct Used {
    standing: AtomicU64,
    /// Minute since 1970 in the upper half, grants in the lower.
    minutes: [AtomicU64; MINUTES],
}

impl Default for Used {
    fn default() -> Used {
        Used { standing: AtomicU64::new(0), minutes: [const { AtomicU64::new(0) }; MINUTES] }
    }
}

/// The rule behind a standing grant, the sponsor of its subject, and when it was stored.
fn grant(record: Option<&TrustRecord>) -> Option<(Rule, Option<PeerId>, UnixMillis)> {
    let record = record?;
    let edge = record.ours.as_ref().filter(|edge| !edge.is_revoke() && !edge.expired)?;
    Some((record.rule?, record.sponsor.as_deref().copied(), edge.stored_at))
}

impl RuleUse {
    /// Calls `f` with what a grant of this rule, and of this sponsor, is counted in.
    fn each(&self, rule: &Rule, sponsor: Option<PeerId>, f: impl Fn(&Used)) {
        match rule {
            Rule::Allow => f(&self.allow),
            Rule::AcceptAll => f(&self.accept_all),
            Rule::Network(network) => {
                let networks = self.networks.pin();
                f(networks.get_or_insert_with((*network, None), Arc::default));
                if sponsor.is_some() {
                    f(networks.get_or_insert_with((*network, sponsor), Arc::default));
                }
            }
        }
    }

    /// `live`: in this run, and not as it is read.
    pub(crate) fn changed(&self, old: Option<&TrustRecord>, new: Option<&TrustRecord>, live: bool) {
        let (old, new) = (grant(old), grant(new));
        if old == new {
            return;
        }
        if let Some((rule, sponsor, _)) = old {
            self.each(&rule, sponsor, |used| {
                used.standing.fetch_sub(1, Ordering::Relaxed);
            });
        }
        if let Some((rule, sponsor, at)) = new {
            self.each(&rule, sponsor, |used| {
                used.standing.fetch_add(1, Ordering::Relaxed);
                used.note(at.0 / MINUTE_MS, live);
            });
        }
    }

    /// Standing grants of `rule`, and those made in the last 60 minutes.
    pub(crate) fn count(&self, rule: &Rule, now: UnixMillis) -> (u64, u64) {
        match rule {
            Rule::Allow => self.allow.count(now),
            Rule::AcceptAll => self.accept_all.count(now),
            Rule::Network(network) => self.count_in(*network, None, now),
        }
    }

    /// The same of the members of a network that one sponsor let in.
    pub(crate) fn count_of_sponsor(&self, network: NetworkId, sponsor: PeerId, now: UnixMillis) -> (u64, u64) {
        self.count_in(network, Some(sponsor), now)
    }

    fn count_in(&self, network: NetworkId, sponsor: Option<PeerId>, now: UnixMillis) -> (u64, u64) {
        self.networks.pin().get(&(network, sponsor)).map_or((0, 0), |used| used.count(now))
    }
}

impl Used {
    fn count(&self, now: UnixMillis) -> (u64, u64) {
        (self.standing.load(Ordering::Relaxed), self.last_hour(now.0 / MINUTE_MS))
    }

    fn note(&self, minute: u64, live: bool) {
        let cell = &self.minutes[minute as usize % MINUTES];
        let (then, count) = split(cell.load(Ordering::Relaxed));
        let minute32 = minute & u64::from(u32::MAX);
        // What is granted now counts, also when the clock was set back; an older grant that recovery brings in late
        // does not displace a newer minute.
        if then > minute32 && !live {
            return;
        }
        let count = if then == minute32 { count + 1 } else { 1 };
        cell.store(minute32 << 32 | count.min(u64::from(u32::MAX)), Ordering::Relaxed);
    }

    /// Minutes up to an hour ahead count as well: setting the clock back by less does not renew a budget.
    fn last_hour(&self, minute: u64) -> u64 {
        let recent = |then: u64| minute.abs_diff(then) < HOUR_MINUTES;
        self.minutes
            .iter()
            .map(|cell| split(cell.load(Ordering::Relaxed)))
            .filter(|(then, _)| recent(*then))
            .map(|(_, count)| count)
            .sum()
    }
}

fn split(cell: u64) -> (u64, u64) {
    (cell >> 32, cell & u64::from(u32::MAX))
}
