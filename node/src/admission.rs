//! Who may begin a handshake, decided by address alone, in constant time, before any cryptography. Stage one of two: the
//! second, by key, is where the key is known (`links`).
//!
//! Invariants:
//! * BOUND: at most [`BUCKETS_MAX`] sources are remembered; what is under way is bounded in each lane, for each friend's
//!   address, and for addresses that have proven nothing.
//! * Two lanes, each with permits of its own: *friends* come from an address that they have just proven to own and at
//!   which a peer that is trusted now authenticated within 30 days; everybody else is a *stranger*. Neither lane can
//!   take the other's last permit, and a spoofed address is never a friend's.
//! * A [`Slot`] holds every reservation of one handshake: until its key is proven it is *half open*, and until its first
//!   exchange has made it a session, or it has ended, it is *under way* and has a permit. It moves into the work that it
//!   pays for and gives all back when it drops, once, without I/O.
//! * Nobody can sit on a permit: when a lane is full, whoever has been under way longest makes room for one who has
//!   proven an address, once it has had its time: [`FULL_PATIENCE`], or several times what others usually take now, or
//!   wait for a thread, so that a node with too much to do does not throw away what it has half done.
//! * A node that has too much to do has fewer permits: while the work for a new one waits longer than [`WAIT_MAX`] for a
//!   thread, each lane shrinks towards [`PERMITS_MIN`], and grows again afterwards. What is begun is then soon done, and
//!   not given up half done by either end.
//!
//! A source whose bucket is empty, or anybody while many that proved nothing are half open, must first prove the address
//! (QUIC Retry, RFC 9000, section 8.1.2), which costs us one small packet and no state. Who cannot get a permit is
//! refused with one small packet at once, so that it does not ask again and again. Both cost the keys of a first packet,
//! and are given so many times a second; first packets beyond that are left out before QUIC sees them
//! (`transport::sieve`), unless they say that they come from a friend's address.
//!
//! The hash of the table is seeded, so that nobody can aim at one of its chains. Time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handfast_protocol::PeerId;
use tokio::sync::Notify;

/// Half-open handshakes from addresses that proved nothing; more must prove theirs.
pub const UNPROVEN_MAX: u32 = 64;
/// From here on a friend is better off with a proof, in its own lane.
pub const FRIENDS_UNPROVEN_MAX: u32 = 8;
/// Strangers under way.
pub const STRANGERS_MAX: u32 = 320;
/// Friends under way.
pub const FRIENDS_MAX: u32 = 256;
/// What a lane shrinks to.
pub const PERMITS_MIN: u32 = 64;
/// How long the work for a new one may wait for a thread.
pub const WAIT_MAX: Duration = Duration::from_millis(80);
/// What a lane loses each time it was longer, and wins back each time it was not.
const SHRINKS_BY: f64 = 0.02;
const GROWS_BY: f64 = 0.25;
/// Friends under way from one address.
pub const FRIENDS_PER_ADDRESS_MAX: u32 = 32;
/// How long one may be under way in a full lane before it makes room, at least. An honest one takes a few round trips.
pub const FULL_PATIENCE: Duration = Duration::from_millis(500);
/// And at most, whatever others take.
pub const FULL_PATIENCE_MAX: Duration = Duration::from_secs(4);
/// How many times as long as usual one may take.
const TIMES_USUAL: u32 = 4;
/// A conversation has to wait for a thread several times.
const WAITS: u32 = 16;
/// One conversation is this part of what is usual.
const USUAL_OF: u32 = 16;
/// Sources that are remembered: addresses and prefixes together. About 4 MiB.
pub const BUCKETS_MAX: usize = 65_536;
/// Addresses at which friends are expected.
pub const FRIEND_ADDRESSES_MAX: usize = 65_536;
/// Friends that one address may stand for: a site behind one address translator.
const FRIENDS_AT_ONE_MAX: usize = 16;
/// How long an address stays a friend's: 30 days.
pub const FRIEND_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Answers in a second that say to addresses without proof that there is no room. Each costs the keys of a first packet,
/// derived only to say no; who is left without an answer tries again.
pub const REFUSALS_PER_S: u64 = 50;
/// And answers that ask an address for its proof while many that proved nothing are half open: a tenth of a processor.
pub const RETRIES_PER_S: u64 = 4_000;
/// Of a full lane so many at most are invited to take the place of one that makes way.
const INVITED_TO_FULL: usize = 64;
/// How long a permit is expected to be wanted by somebody who was asked for a proof: a round trip. It matters where
/// most permits of a lane are taken.
const INVITATION: Duration = Duration::from_millis(14);
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
    /// Say that there is no room.
    Refuse,
}

/// Which permits a handshake uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
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
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    fn filled(&self, rate: u64, now: Duration) -> f64 {
        let rate = rate as f64;
        (self.tokens + rate * now.saturating_sub(self.at).as_secs_f64()).min(rate * BURST_S)
    }

    /// True if there was one.
    fn take(&mut self, rate: u64, now: Duration) -> bool {
        let tokens = self.filled(rate, now);
        let is_there = tokens >= 1.0;
        *self = Bucket { tokens: if is_there { tokens - 1.0 } else { tokens }, at: now };
        is_there
    }
}

/// A number that fades: of those who have not come back by [`INVITATION`], two thirds are not expected any more.
#[derive(Clone, Copy, Debug, Default)]
struct Invited {
    count: f64,
    at: Duration,
}

impl Invited {
    fn expected(&self, now: Duration) -> f64 {
        self.count * (-now.saturating_sub(self.at).div_duration_f64(INVITATION)).exp()
    }

    fn add(&mut self, change: f64, now: Duration) {
        *self = Invited { count: (self.expected(now) + change).max(0.0), at: now };
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
    /// Answers to addresses without proof that may still be given.
    refusals: Bucket,
    retries: Bucket,
    /// Who has been asked for a proof lately and has not come back with it.
    friends_invited: Invited,
    strangers_invited: Invited,
    /// Who is under way, the oldest first.
    friends: BTreeMap<u64, UnderWay>,
    strangers: BTreeMap<u64, UnderWay>,
    /// Permits that a lane does not give now.
    friends_withheld: f64,
    strangers_withheld: f64,
    /// How long the work for a new one has waited for a thread lately.
    usual_wait: Duration,
    next: u64,
    half_open: u32,
    unproven: u32,
    /// What conversations have taken lately, from the first packet to the answer.
    usual: Duration,
    friends_at: HashMap<IpAddr, u32>,
    friend_addresses: HashMap<IpAddr, Vec<(PeerId, Duration)>>,
    counts: Counts,
}

/// One that has a permit.
#[derive(Debug)]
struct UnderWay {
    since: Duration,
    gives_way: Arc<Notify>,
}

/// What became of first packets, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub retried: u64,
    pub refused: u64,
    /// Not even looked at, because too many were refused or asked for a proof.
    pub overlooked: u64,
    /// Of those accepted, who made room for others.
    pub evicted: u64,
}

/// What is reserved now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Handshakes that have not proven a key.
    pub half_open: u32,
    pub friends: u32,
    pub strangers: u32,
    /// Addresses that have friends under way.
    pub friend_addresses: u32,
}

impl Admission {
    pub fn new(rates: Rates) -> Admission {
        Admission { state: Mutex::default(), rates }
    }

    /// Whether a first packet that proves nothing is to be left out unseen: it would only be refused, or asked for its
    /// proof, and enough of these are.
    pub fn overlooks(&self, ip: IpAddr, now: Duration) -> bool {
        let mut state = self.state();
        let is_friend = state.is_friend(ip, now, |_| true) && state.has_friends_permit(ip, now);
        let lane = if is_friend { Lane::Friend } else { Lane::Stranger };
        let is_taken = state.takes_unproven(is_friend, now) && state.has_token(ip, self.rates, now);
        let answers = if is_taken {
            true
        } else if !state.has_room(lane, now) {
            state.refusals.take(REFUSALS_PER_S, now)
        } else {
            state.invites(lane, now) && (is_friend || state.retries.take(RETRIES_PER_S, now))
        };
        if answers {
            // On its way to being judged, behind all that came with it.
            state.invited(lane).add(1.0, now);
        } else {
            state.counts.overlooked += 1;
        }
        !answers
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
        let is_friend = state.is_friend(ip, now, is_trusted) && state.has_friends_permit(ip, now);
        let lane = match is_friend && arrival.is_validated {
            true => Lane::Friend,
            false => Lane::Stranger,
        };
        let has_room = state.has_room(lane, now);
        let has_token = lane == Lane::Friend || state.has_token(ip, self.rates, now);
        let verdict = match (arrival.is_validated, has_room && has_token) {
            (true, true) => None,
            (true, false) => Some(Verdict::Refuse),
            // The friends' lane has room, where it is a friend.
            (false, _) if !has_room && !is_friend => Some(Verdict::Refuse),
            (false, true) if state.takes_unproven_now(is_friend) => None,
            (false, _) => Some(Verdict::Retry),
        };
        let invited = state.invited(if is_friend { Lane::Friend } else { Lane::Stranger });
        // Who is asked for a proof stays expected.
        if arrival.is_validated || !matches!(verdict, Some(Verdict::Retry)) {
            invited.add(-1.0, now);
        }
        match verdict {
            Some(Verdict::Refuse) => state.counts.refused += 1,
            Some(_) => state.counts.retried += 1,
            None => state.counts.accepted += 1,
        }
        if let Some(verdict) = verdict {
            return verdict;
        }
        if lane == Lane::Stranger {
            state.take_token(ip, self.rates, now);
        }
        state.make_way(lane);
        Verdict::Accept(state.reserve(self, arrival, lane, now))
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

    /// What became of first packets.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// What is reserved now.
    pub fn in_use(&self) -> InUse {
        let state = self.state();
        InUse {
            half_open: state.half_open,
            friends: state.under_way(Lane::Friend),
            strangers: state.under_way(Lane::Stranger),
            friend_addresses: u32::try_from(state.friends_at.len()).unwrap_or(u32::MAX),
        }
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

    fn has_friends_permit(&self, ip: IpAddr, now: Duration) -> bool {
        self.has_room(Lane::Friend, now) && self.friends_at.get(&ip).is_none_or(|n| *n < FRIENDS_PER_ADDRESS_MAX)
    }

    fn lane(&mut self, lane: Lane) -> &mut BTreeMap<u64, UnderWay> {
        match lane {
            Lane::Friend => &mut self.friends,
            Lane::Stranger => &mut self.strangers,
        }
    }

    fn invited(&mut self, lane: Lane) -> &mut Invited {
        match lane {
            Lane::Friend => &mut self.friends_invited,
            Lane::Stranger => &mut self.strangers_invited,
        }
    }

    /// Many permits are free, or more than people are on their way for.
    fn invites(&mut self, lane: Lane, now: Duration) -> bool {
        let permits = self.permits(lane);
        let patience = self.patience();
        let make_way = self.lane(lane).values().take(INVITED_TO_FULL).take_while(|one| one.since + patience <= now);
        let make_way = u32::try_from(make_way.count()).unwrap_or(u32::MAX);
        let free = permits.saturating_sub(self.under_way(lane)) + make_way;
        free >= permits / 4 || self.invited(lane).expected(now) < f64::from(free)
    }

    fn withheld(&mut self, lane: Lane) -> &mut f64 {
        match lane {
            Lane::Friend => &mut self.friends_withheld,
            Lane::Stranger => &mut self.strangers_withheld,
        }
    }

    /// Work for one in this lane has waited so long for a thread.
    fn waited(&mut self, lane: Lane, wait: Duration) {
        self.usual_wait = self.usual_wait - self.usual_wait / USUAL_OF + wait / USUAL_OF;
        let (max, withheld) = (f64::from(lane.max()), self.withheld(lane));
        let permits = if wait > WAIT_MAX {
            ((max - *withheld) * (1.0 - SHRINKS_BY)).max(f64::from(PERMITS_MIN))
        } else {
            (max - *withheld + GROWS_BY).min(max)
        };
        *withheld = max - permits;
    }

    /// How many may be under way in a lane now.
    fn permits(&self, lane: Lane) -> u32 {
        let withheld = match lane {
            Lane::Friend => self.friends_withheld,
            Lane::Stranger => self.strangers_withheld,
        };
        lane.max() - withheld as u32
    }

    /// How long one may be under way in a full lane.
    fn patience(&self) -> Duration {
        (self.usual * TIMES_USUAL).max(self.usual_wait * WAITS).clamp(FULL_PATIENCE, FULL_PATIENCE_MAX)
    }

    fn under_way(&self, lane: Lane) -> u32 {
        let count = match lane {
            Lane::Friend => self.friends.len(),
            Lane::Stranger => self.strangers.len(),
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// A permit is free, or the oldest has had its time.
    fn has_room(&self, lane: Lane, now: Duration) -> bool {
        let all = match lane {
            Lane::Friend => &self.friends,
            Lane::Stranger => &self.strangers,
        };
        let is_old = |oldest: &UnderWay| oldest.since + self.patience() <= now;
        self.under_way(lane) < self.permits(lane) || all.values().next().is_some_and(is_old)
    }

    /// Whether one without proof, a stranger therefore, begins at once: nobody makes way for it.
    fn takes_unproven_now(&self, is_friend: bool) -> bool {
        let unproven_max = if is_friend { FRIENDS_UNPROVEN_MAX } else { UNPROVEN_MAX };
        self.unproven < unproven_max && self.under_way(Lane::Stranger) < self.permits(Lane::Stranger)
    }

    /// The same, beside those who are about to be judged.
    fn takes_unproven(&self, is_friend: bool, now: Duration) -> bool {
        let coming = self.strangers_invited.expected(now).ceil() as u32;
        self.takes_unproven_now(is_friend) && self.under_way(Lane::Stranger) + coming < self.permits(Lane::Stranger)
    }

    /// In a full lane the oldest gives its permit up.
    fn make_way(&mut self, lane: Lane) {
        if self.under_way(lane) < self.permits(lane) {
            return;
        }
        if let Some((_, oldest)) = self.lane(lane).pop_first() {
            oldest.gives_way.notify_one();
            self.counts.evicted += 1;
        }
    }

    fn filled(&self, source: Source, rates: Rates, now: Duration) -> f64 {
        let rate = rates.of(source);
        self.buckets.get(&source).map_or(rate as f64 * BURST_S, |bucket| bucket.filled(rate, now))
    }

    fn has_token(&self, ip: IpAddr, rates: Rates, now: Duration) -> bool {
        Source::both(ip).iter().all(|source| self.filled(*source, rates, now) >= 1.0)
    }

    /// One token of each of the two buckets; the caller has seen that there are some.
    fn take_token(&mut self, ip: IpAddr, rates: Rates, now: Duration) {
        for source in Source::both(ip) {
            self.make_room(rates, now);
            let tokens = self.filled(source, rates, now) - 1.0;
            self.buckets.insert(source, Bucket { tokens, at: now });
        }
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

    fn reserve(&mut self, admission: &Arc<Admission>, arrival: Arrival, lane: Lane, now: Duration) -> Slot {
        let ip = arrival.remote.ip().to_canonical();
        let id = self.next;
        self.next += 1;
        let gives_way = Arc::new(Notify::new());
        self.lane(lane).insert(id, UnderWay { since: now, gives_way: gives_way.clone() });
        self.half_open += 1;
        self.unproven += u32::from(!arrival.is_validated);
        if lane == Lane::Friend {
            *self.friends_at.entry(ip).or_default() += 1;
        }
        let admission = admission.clone();
        Slot { admission, ip, lane, id, since: now, gives_way, is_half_open: true, is_unproven: !arrival.is_validated }
    }

    fn close_half(&mut self, is_unproven: bool) {
        self.half_open -= 1;
        self.unproven -= u32::from(is_unproven);
    }

    fn release(&mut self, slot: &Slot) {
        if slot.is_half_open {
            self.close_half(slot.is_unproven);
        }
        // One that made way has no permit any more.
        self.lane(slot.lane).remove(&slot.id);
        if slot.lane == Lane::Friend
            && let Some(count) = self.friends_at.get_mut(&slot.ip)
        {
            *count -= 1;
            if *count == 0 {
                self.friends_at.remove(&slot.ip);
            }
        }
    }
}

impl Lane {
    fn max(self) -> u32 {
        match self {
            Lane::Friend => FRIENDS_MAX,
            Lane::Stranger => STRANGERS_MAX,
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
    id: u64,
    since: Duration,
    gives_way: Arc<Notify>,
    is_half_open: bool,
    is_unproven: bool,
}

impl Slot {
    /// TLS has proven a key: it is not half open any more, and keeps its permit.
    pub fn authenticated(&mut self) {
        if std::mem::take(&mut self.is_half_open) {
            self.admission.state().close_half(self.is_unproven);
        }
    }

    /// The work for it begins.
    pub fn begins(&self, now: Duration) {
        self.admission.state().waited(self.lane, now.saturating_sub(self.since));
    }

    /// What it paid for has been done: an exchange came to its end.
    pub fn answered(&self, now: Duration) {
        let mut state = self.admission.state();
        let took = now.saturating_sub(self.since);
        state.usual = state.usual - state.usual / USUAL_OF + took / USUAL_OF;
    }

    /// Notified when it is to end, because others need its permit.
    pub fn gives_way(&self) -> Arc<Notify> {
        self.gives_way.clone()
    }

    /// Whether it has a friend's permit.
    pub fn is_friends(&self) -> bool {
        self.lane == Lane::Friend
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.state().release(self);
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
        assert_eq!(slots.len() as u32, UNPROVEN_MAX);
        assert!(matches!(judge(&admission, from("192.0.2.2", false), SECOND), Verdict::Retry));
        assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND), Verdict::Accept(_)));
        let mut slots = slots;
        slots[0].authenticated();
        assert!(matches!(judge(&admission, from("192.0.2.2", false), SECOND), Verdict::Accept(_)), "a key is enough");
    }

    #[test]
    fn strangers_cannot_take_the_friends_permits_nor_friends_the_strangers() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
        let strangers = accepted(&admission, from("192.0.2.1", true), SECOND, 2_000);
        assert_eq!(strangers.len() as u32, STRANGERS_MAX);
        assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Refuse));
        assert!(matches!(judge(&admission, from("192.0.2.1", false), SECOND), Verdict::Refuse), "Retry would be vain");
        assert!(matches!(judge(&admission, from("203.0.113.9", false), SECOND), Verdict::Retry), "perhaps a friend");
        let friends = accepted(&admission, from("203.0.113.9", true), SECOND, 2_000);
        assert_eq!(friends.len() as u32, FRIENDS_PER_ADDRESS_MAX, "the rest of one address are strangers");
        assert!(matches!(judge(&admission, from("203.0.113.9", false), SECOND), Verdict::Refuse), "vain for it, too");
        drop(strangers);
        assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Accept(_)));
    }

    #[test]
    fn a_spoofed_friends_address_takes_no_friends_permit() {
        let admission = admission(Rates { per_address: 5, per_prefix: 5 });
        admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
        let spoofed = accepted(&admission, from("203.0.113.9", false), SECOND, 1_000);
        assert_eq!(spoofed.len() as u32, FRIENDS_UNPROVEN_MAX, "as strangers, and fewer: a friend proves its address");
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
        slots.extend(accepted(&admission, from("192.0.2.1", false), SECOND, 10));
        slots.extend(accepted(&admission, from("203.0.113.9", true), SECOND, 100));
        let (friends, strangers) = (FRIENDS_PER_ADDRESS_MAX, 210 - FRIENDS_PER_ADDRESS_MAX);
        assert_eq!(admission.in_use(), InUse { half_open: 210, friends, strangers, friend_addresses: 1 });
        slots.iter_mut().step_by(2).for_each(Slot::authenticated);
        slots.iter_mut().step_by(2).for_each(Slot::authenticated);
        assert_eq!(admission.in_use(), InUse { half_open: 105, friends, strangers, friend_addresses: 1 });
        slots.clear();
        assert_eq!(admission.in_use(), InUse::default());
        assert_eq!(admission.state().unproven, 0);
    }

    #[test]
    fn who_sits_on_a_permit_makes_way_for_one_who_has_proven_an_address() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        let sitting = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
        let soon = SECOND + FULL_PATIENCE - Duration::from_millis(1);
        assert!(matches!(judge(&admission, from("192.0.2.2", true), soon), Verdict::Refuse), "it has its time");
        let later = SECOND + FULL_PATIENCE;
        assert!(matches!(judge(&admission, from("192.0.2.2", false), later), Verdict::Retry), "not for a spoofed one");
        let next = accepted(&admission, from("192.0.2.2", true), later, 3);
        assert_eq!((next.len(), admission.in_use().strangers), (3, STRANGERS_MAX));
        let told = |slot: &Slot| tokio_told(&slot.gives_way());
        assert!(sitting[..3].iter().all(told), "the oldest");
        assert!(!sitting[3..].iter().any(told));
        assert_eq!(admission.counts().evicted, 3);
        drop(sitting);
        assert_eq!(admission.in_use().strangers, 3, "a permit that was given up is not given back again");
        drop(next);
        assert_eq!(admission.in_use(), InUse::default());
    }

    #[test]
    fn where_all_take_long_nobody_makes_way_early() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
        let took = FULL_PATIENCE;
        (0..100).for_each(|_| slots[0].answered(SECOND + took));
        assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND + 3 * took), Verdict::Refuse));
        assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND + 4 * took), Verdict::Accept(_)));
        (0..100).for_each(|_| slots[0].answered(100 * SECOND));
        let at_most = SECOND + FULL_PATIENCE_MAX;
        assert!(matches!(judge(&admission, from("192.0.2.2", true), at_most), Verdict::Accept(_)), "nor ever");
    }

    /// Of so many first packets, those that were left out; the others are judged, and end at once.
    fn overlooked(admission: &Arc<Admission>, ip: &str, now: Duration, packets: u64) -> u64 {
        let is_left_out = |_: &u64| {
            let is_left_out = admission.overlooks(ip.parse().unwrap(), now);
            drop((!is_left_out).then(|| judge(admission, from(ip, false), now)));
            is_left_out
        };
        (0..packets).filter(is_left_out).count() as u64
    }

    #[test]
    fn where_there_is_no_room_so_many_are_told_and_the_rest_is_left_out() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
        assert_eq!(overlooked(&admission, "192.0.2.1", SECOND, 10_000), 0, "there is room");
        let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
        assert_eq!(overlooked(&admission, "192.0.2.1", SECOND, 10_000), 10_000 - REFUSALS_PER_S);
        assert_eq!(overlooked(&admission, "203.0.113.9", SECOND, 10_000), 0, "perhaps a friend");
        assert_eq!(admission.counts().overlooked, 10_000 - REFUSALS_PER_S);
        let later = SECOND + FULL_PATIENCE;
        let asked = overlooked(&admission, "192.0.2.1", later, 10_000);
        assert_eq!(asked, 10_000 - INVITED_TO_FULL as u64, "the oldest would make way for one with a proof");
        drop(slots);
        assert_eq!(overlooked(&admission, "192.0.2.1", later, 10_000), 0, "there is room again");
    }

    #[test]
    fn a_crowd_that_proves_nothing_is_asked_so_many_times_for_its_proof() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        let slots = accepted(&admission, from("192.0.2.1", false), SECOND, UNPROVEN_MAX);
        assert_eq!(overlooked(&admission, "192.0.2.2", SECOND, 10_000), 10_000 - RETRIES_PER_S);
        let later = 100 * SECOND;
        assert_eq!(overlooked(&admission, "192.0.2.2", later, 10_000), 10_000 - RETRIES_PER_S * BURST_S as u64);
        drop(slots);
        assert_eq!(overlooked(&admission, "192.0.2.2", 2 * later, 10_000), 0);
    }

    #[test]
    fn of_many_that_come_together_no_more_are_looked_at_than_there_are_permits() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX - 10);
        let looked_at = (0..1_000).filter(|_| !admission.overlooks("192.0.2.2".parse().unwrap(), SECOND));
        assert_eq!(looked_at.count(), 10, "before the first of them was judged");
        drop(slots);
    }

    #[test]
    fn who_is_begun_does_not_make_way_while_all_wait_for_a_thread() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
        (0..100).for_each(|_| slots[0].begins(SECOND + WAIT_MAX));
        let patience = WAIT_MAX * (WAITS - 1);
        assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND + patience), Verdict::Refuse));
        let most = SECOND + WAIT_MAX * WAITS;
        assert!(matches!(judge(&admission, from("192.0.2.2", true), most), Verdict::Accept(_)));
    }

    #[test]
    fn a_lane_shrinks_while_its_work_waits_for_a_thread_and_grows_again() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        let first = accepted(&admission, from("192.0.2.1", true), SECOND, 1).remove(0);
        let permits = || accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX).len() as u32 + 1;
        (0..1_000).for_each(|_| first.begins(SECOND + WAIT_MAX));
        assert_eq!(permits(), STRANGERS_MAX, "it did not wait long");
        (0..10).for_each(|_| first.begins(SECOND + 2 * WAIT_MAX));
        let fewer = permits();
        assert!(fewer < STRANGERS_MAX * 9 / 10 && fewer > PERMITS_MIN, "{fewer}");
        (0..10_000).for_each(|_| first.begins(SECOND + 2 * WAIT_MAX));
        assert_eq!(permits(), PERMITS_MIN, "some are always there");
        assert_eq!(admission.state().permits(Lane::Friend), FRIENDS_MAX, "friends have their own");
        (0..10_000).for_each(|_| first.begins(SECOND));
        assert_eq!(permits(), STRANGERS_MAX);
    }

    #[test]
    fn no_more_are_asked_for_a_proof_than_there_are_permits() {
        let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
        let before = SECOND * 3 / 5;
        let mut slots = accepted(&admission, from("192.0.2.1", false), before, UNPROVEN_MAX);
        assert_eq!(overlooked(&admission, "192.0.2.2", before, 1_000), 0, "while many permits are free");
        let free = 50;
        slots.extend(accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX - UNPROVEN_MAX - 50));
        let asked = |now| 1_000 - overlooked(&admission, "192.0.2.2", now, 1_000);
        assert_eq!(asked(SECOND), free);
        let soon = SECOND + INVITATION / 20;
        assert_eq!(asked(soon), free / 20 + 1, "some are not expected any more");
        let came = accepted(&admission, from("192.0.2.2", true), soon, 10);
        assert_eq!(came.len(), 10);
        assert_eq!(asked(soon), 0, "who came has a permit");
        drop((slots, came));
    }

    /// Whether a notification is there.
    fn tokio_told(gives_way: &Notify) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(gives_way.notified()).poll(&mut context).is_ready()
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
