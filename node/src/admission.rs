//! Who may begin a handshake, decided by address alone, in constant time, before any cryptography. Stage one of two: the
//! second, by key, is where the key is known (`links`).
//!
//! Invariants:
//! * BOUND: at most [`BUCKETS_MAX`] sources are remembered; half-open handshakes are bounded in all, in each lane and
//!   for each address.
//! * Two lanes, each with permits of its own: *friends* come from an address that they have just proven to own and at
//!   which a peer that is trusted now authenticated within 30 days; everybody else is a *stranger*. Neither lane can
//!   take the other's last permit, and a spoofed address is never a friend's.
//! * A [`Slot`] holds every reservation of one handshake. It moves into the task that it pays for and gives all back
//!   when it drops, once, without I/O.
//!
//! A source whose bucket is empty, or anybody while many handshakes are half open, must first prove the address (QUIC
//! Retry, RFC 9000, section 8.1.2), which costs us one small packet and no state.
//!
//! The hash of the table is seeded, so that nobody can aim at one of its chains. Time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handfast_protocol::PeerId;

/// Half-open handshakes from which on every address must be proven.
pub const HALF_OPEN_RETRY: u32 = 64;
/// Half-open handshakes of strangers.
pub const STRANGERS_MAX: u32 = 768;
/// Half-open handshakes of friends.
pub const FRIENDS_MAX: u32 = 256;
/// Half-open handshakes of one proven address, as friends.
pub const FRIENDS_PER_ADDRESS_MAX: u32 = 32;
/// Sources that are remembered: addresses and prefixes together. About 4 MiB.
pub const BUCKETS_MAX: usize = 65_536;
/// Addresses at which friends are expected.
pub const FRIEND_ADDRESSES_MAX: usize = 65_536;
/// Friends that one address may stand for: a site behind one address translator.
const FRIENDS_AT_ONE_MAX: usize = 16;
/// How long an address stays a friend's: 30 days.
pub const FRIEND_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// A full bucket holds this many seconds of its rate.
const BURST_S: f64 = 2.0;

/// Handshakes that sources may begin in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// From one IPv4 address, or one IPv6 /64.
    pub per_address: u64,
    /// From one IPv4 /24, or one IPv6 /48.
    pub per_prefix: u64,
}

/// What is known of a first packet.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Where it says that it comes from.
    pub remote: SocketAddr,
    /// It has answered a Retry: it does come from there.
    pub is_validated: bool,
}

/// What to do with a first packet.
#[derive(Debug)]
pub enum Verdict {
    /// Begin the handshake; the slot pays for it.
    Accept(Slot),
    /// Let it prove its address first.
    Retry,
    /// Say that there is no room: it did prove its address.
    Refuse,
    /// Say nothing: an answer would cost more than the packet.
    Ignore,
}

/// Which permits a handshake uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Friend,
    Stranger,
}

/// A source network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    Address(u64),
    Prefix(u64),
}

impl Source {
    /// The narrow and the wide one of an address.
    fn both(ip: IpAddr) -> [Source; 2] {
        match ip.to_canonical() {
            IpAddr::V4(v4) => {
                // Above every IPv6 /64 that is in use: those begin with 0x2 or 0xf, not with 0x1.
                let whole = 0x1000_0000_0000_0000 | u64::from(u32::from(v4));
                [Source::Address(whole), Source::Prefix(whole >> 8)]
            }
            IpAddr::V6(v6) => {
                let upper = (u128::from(v6) >> 64) as u64;
                [Source::Address(upper), Source::Prefix(upper >> 16)]
            }
        }
    }
}

/// A token bucket that fills by itself.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    fn filled(&self, rate: u64, now: Duration) -> f64 {
        let rate = rate as f64;
        (self.tokens + rate * now.saturating_sub(self.at).as_secs_f64()).min(rate * BURST_S)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Admission {
    state: Mutex<State>,
    rates: Rates,
}

#[derive(Debug, Default)]
struct State {
    buckets: HashMap<Source, Bucket>,
    half_open: HashMap<IpAddr, u32>,
    friends: u32,
    strangers: u32,
    friend_addresses: HashMap<IpAddr, Vec<(PeerId, Duration)>>,
    counts: Counts,
}

/// What became of first packets, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub retried: u64,
    pub refused: u64,
    pub ignored: u64,
}

impl Admission {
    pub fn new(rates: Rates) -> Admission {
        Admission { state: Mutex::default(), rates }
    }

    /// Decides about a first packet. `is_trusted` says whether a peer is trusted now.
    pub fn judge(
        self: &Arc<Admission>,
        arrival: Arrival,
        now: Duration,
        is_trusted: impl Fn(&PeerId) -> bool,
    ) -> Verdict {
        let ip = arrival.remote.ip().to_canonical();
        let mut state = self.state();
        let is_friend = arrival.is_validated && state.is_friend(ip, now, is_trusted);
        let lane = if is_friend && state.has_friends_permit(ip) { Lane::Friend } else { Lane::Stranger };
        let crowded = state.friends + state.strangers >= HALF_OPEN_RETRY;
        if !arrival.is_validated && (crowded || !state.has_token(ip, self.rates, now)) {
            state.counts.retried += 1;
            return Verdict::Retry;
        }
        if lane == Lane::Stranger {
            if state.strangers >= STRANGERS_MAX {
                state.counts.ignored += 1;
                return Verdict::Ignore;
            }
            if !state.take_token(ip, self.rates, now) {
                state.counts.refused += 1;
                return Verdict::Refuse;
            }
        }
        state.counts.accepted += 1;
        state.reserve(ip, lane);
        Verdict::Accept(Slot { admission: self.clone(), ip, lane })
    }

    /// A peer that is trusted has authenticated at this address.
    pub fn befriend(&self, peer: PeerId, ip: IpAddr, now: Duration) {
        let mut state = self.state();
        let ip = ip.to_canonical();
        if state.friend_addresses.len() >= FRIEND_ADDRESSES_MAX && !state.friend_addresses.contains_key(&ip) {
            state.friend_addresses.retain(|_, peers| peers.iter().any(|(_, until)| *until > now));
            if state.friend_addresses.len() >= FRIEND_ADDRESSES_MAX {
                return;
            }
        }
        let peers = state.friend_addresses.entry(ip).or_default();
        peers.retain(|(known, until)| *known != peer && *until > now);
        if peers.len() >= FRIENDS_AT_ONE_MAX {
            peers.remove(0);
        }
        peers.push((peer, now + FRIEND_FOR));
    }

    /// Half-open handshakes now.
    pub fn half_open(&self) -> u32 {
        let state = self.state();
        state.friends + state.strangers
    }

    /// What became of first packets.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// How many addresses have half-open handshakes.
    pub fn busy_addresses(&self) -> usize {
        self.state().half_open.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: a panic elsewhere leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_friend(&self, ip: IpAddr, now: Duration, is_trusted: impl Fn(&PeerId) -> bool) -> bool {
        self.friend_addresses
            .get(&ip)
            .is_some_and(|peers| peers.iter().any(|(peer, until)| *until > now && is_trusted(peer)))
    }

    fn has_friends_permit(&self, ip: IpAddr) -> bool {
        self.friends < FRIENDS_MAX && self.half_open.get(&ip).is_none_or(|n| *n < FRIENDS_PER_ADDRESS_MAX)
    }

    fn filled(&self, source: Source, rates: Rates, now: Duration) -> f64 {
        let rate = rates.of(source);
        self.buckets.get(&source).map_or(rate as f64 * BURST_S, |bucket| bucket.filled(rate, now))
    }

    fn has_token(&self, ip: IpAddr, rates: Rates, now: Duration) -> bool {
        Source::both(ip).iter().all(|source| self.filled(*source, rates, now) >= 1.0)
    }

    /// One token of each of the two buckets, or none of either.
    fn take_token(&mut self, ip: IpAddr, rates: Rates, now: Duration) -> bool {
        if !self.has_token(ip, rates, now) {
            return false;
        }
        for source in Source::both(ip) {
            self.make_room(rates, now);
            let tokens = self.filled(source, rates, now) - 1.0;
            self.buckets.insert(source, Bucket { tokens, at: now });
        }
        true
    }

    /// A bucket that is full again says nothing that a missing one does not. If none is, all are forgotten: for two
    /// seconds everybody has a burst, which the permits bound.
    fn make_room(&mut self, rates: Rates, now: Duration) {
        if self.buckets.len() < BUCKETS_MAX {
            return;
        }
        self.buckets.retain(|source, bucket| {
            let rate = rates.of(*source);
            bucket.filled(rate, now) < rate as f64 * BURST_S
        });
        if self.buckets.len() >= BUCKETS_MAX {
            self.buckets.clear();
        }
    }

    fn reserve(&mut self, ip: IpAddr, lane: Lane) {
        match lane {
            Lane::Friend => self.friends += 1,
            Lane::Stranger => self.strangers += 1,
        }
        *self.half_open.entry(ip).or_default() += 1;
    }

    fn release(&mut self, ip: IpAddr, lane: Lane) {
        match lane {
            Lane::Friend => self.friends -= 1,
            Lane::Stranger => self.strangers -= 1,
        }
        if let Some(count) = self.half_open.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.half_open.remove(&ip);
            }
        }
    }
}

impl Rates {
    fn of(&self, source: Source) -> u64 {
        match source {
            Source::Address(_) => self.per_address,
            Source::Prefix(_) => self.per_prefix,
        }
    }
}

/// The reservations of one handshake. See the module.
#[derive(Debug)]
pub struct Slot {
    admission: Arc<Admission>,
    ip: IpAddr,
    lane: Lane,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.state().release(self.ip, self.lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { per_address: 10, per_prefix: 40 };
    const SECOND: Duration = Duration::from_secs(1);

    fn admission(rates: Rates) -> Arc<Admission> {
        Arc::new(Admission::new(rates))
    }

    fn from(text: &str, is_validated: bool) -> Arrival {
        Arrival { remote: SocketAddr::new(text.parse().unwrap(), 4433), is_validated }
    }

    fn friend() -> PeerId {
        PeerId::from_stored([7; 32])
    }

    fn judge(admission: &Arc<Admission>, arrival: Arrival, now: Duration) -> Verdict {
        admission.judge(arrival, now, |peer| *peer == friend())
    }

    fn accepted(admission: &Arc<Admission>, arrival: Arrival, now: Duration, tries: u32) -> Vec<Slot> {
        let slot = |_| match judge(admission, arrival, now) {
            Verdict::Accept(slot) => Some(slot),
            _ => None,
        };
        (0..tries).filter_map(slot).collect()
    }

    #[test]
    fn an_address_gets_its_rate_and_then_must_prove_itself_and_then_is_refused() {
        let admission = admission(RATES);
        let slots = accepted(&admission, from("192.0.2.1", false), SECOND, 100);
        assert_eq!(slots.len(), 20, "two seconds of ten");
        assert!(matches!(judge(&admission, from("192.0.2.1", false), SECOND), Verdict::Retry));
        assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Refuse));
        drop(slots);
        assert_eq!(accepted(&admission, from("192.0.2.1", false), 2 * SECOND, 100).len(), 10);
    }

    #[test]
    fn a_prefix_bounds_its_addresses_together() {
        let admission = admission(Rates { per_address: 10, per_prefix: 20 });
        let mut all = 0;
        for host in 1..=50 {
            all += accepted(&admission, from(&format!("192.0.2.{host}"), true), SECOND, 10).len();
        }
        assert_eq!(all, 40, "two seconds of twenty");
        assert!(matches!(judge(&admission, from("198.51.100.1", true), SECOND), Verdict::Accept(_)));
    }

    #[test]
    fn the_addresses_of_an_ipv6_64_are_one_source() {
        let admission = admission(RATES);
        let mut all = 0;
        for host in 1..=100 {
            all += accepted(&admission, from(&format!("2001:db8:1:2::{host:x}"), true), SECOND, 1).len();
        }
        assert_eq!(all, 20);
    }

    #[test]
    fn a_crowd_must_prove_its_addresses() {
        let admission = admission(Rates { per_address: 1_000, per_prefix: 1_000 });
        let slots = accepted(&admission, from("192.0.2.1", false), SECOND, 1_000);
        assert_eq!(slots.len() as u32, HALF_OPEN_RETRY);
        assert!(matches!(judge(&admission, from("192.0.2.2", false), SECOND), Verdict::Retry));
        assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND), Verdict::Accept(_)));
    }

    #[test]
    fn strangers_cannot_take_the_friends_permits_nor_friends_the_strangers() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
        let strangers = accepted(&admission, from("192.0.2.1", true), SECOND, 2_000);
        assert_eq!(strangers.len() as u32, STRANGERS_MAX);
        assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Ignore));
        let friends = accepted(&admission, from("203.0.113.9", true), SECOND, 2_000);
        assert_eq!(friends.len() as u32, FRIENDS_PER_ADDRESS_MAX, "the rest of one address are strangers");
        drop(strangers);
        assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Accept(_)));
    }

    #[test]
    fn a_spoofed_friends_address_takes_no_friends_permit() {
        let admission = admission(Rates { per_address: 5, per_prefix: 5 });
        admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
        let spoofed = accepted(&admission, from("203.0.113.9", false), SECOND, 1_000);
        assert_eq!(spoofed.len(), 10, "as for any stranger");
        assert_eq!(accepted(&admission, from("203.0.113.9", true), SECOND, 10).len(), 10, "friends still come in");
    }

    #[test]
    fn a_friend_is_one_only_while_trusted_and_for_thirty_days() {
        let admission = admission(Rates { per_address: 1, per_prefix: 1 });
        admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
        let arrival = from("203.0.113.9", true);
        let slots: Vec<_> = (0..10).map(|_| admission.judge(arrival, SECOND, |_| false)).collect();
        assert_eq!(slots.iter().filter(|v| matches!(v, Verdict::Accept(_))).count(), 2, "revoked: a stranger");
        let later = FRIEND_FOR + 2 * SECOND;
        assert_eq!(accepted(&admission, arrival, later, 10).len(), 2, "a month later: a stranger");
    }

    #[test]
    fn every_reservation_comes_back_once() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
        let mut slots = accepted(&admission, from("192.0.2.1", true), SECOND, 100);
        slots.extend(accepted(&admission, from("203.0.113.9", true), SECOND, 100));
        assert_eq!((admission.half_open(), admission.busy_addresses()), (200, 2));
        slots.clear();
        assert_eq!((admission.half_open(), admission.busy_addresses()), (0, 0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let admission = admission(RATES);
        for i in 0..200_000u32 {
            let remote = SocketAddr::new(IpAddr::from(i.to_be_bytes()), 1);
            drop(judge(&admission, Arrival { remote, is_validated: true }, SECOND));
        }
        assert!(admission.state().buckets.len() <= BUCKETS_MAX);
    }
}
