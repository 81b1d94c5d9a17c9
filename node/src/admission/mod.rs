//! Who may begin a handshake, decided by address alone, in constant time, before any cryptography. Stage one of two: the
//! second, by key, is where the key is known (`links`).
//!
//! Invariants:
//! * BOUND: at most [`BUCKETS_MAX`] sources are remembered; what is under way is bounded in each lane, for each friend's
//!   place, and for addresses that have proven nothing.
//! * Two lanes, each with permits of its own: *friends* come from an address that they have just proven to own, at a place
//!   (an IPv4 address or an IPv6 /64) where a peer that is trusted now authenticated within 30 days; everybody else is a
//!   *stranger*. Neither lane can take the other's last permit, and a spoofed address is never a friend's.
//! * A [`Slot`] holds every reservation of one handshake: until its key is proven it is *half open*, and until its first
//!   exchange has made it a session, or it has ended, it is *under way* and has a permit. It moves into the work that it
//!   pays for and gives all back when it drops, once, without I/O.
//! * Nobody can sit on a permit: when a lane is full, whoever has been under way longest makes room for one who has
//!   proven an address, once it has had its time: [`FULL_PATIENCE`], or several times what others usually take now, or
//!   wait for a thread, so that a node with too much to do does not throw away what it has half done.
//! * A node that has too much to do has fewer permits: no more than [`BUSY_MAX`] in a lane while there is always work, and
//!   while the work for a new one waits longer than [`WAIT_MAX`] for a
//!   thread, each lane shrinks towards [`PERMITS_MIN`], and grows again afterwards. What is begun is then soon done, and
//!   not given up half done by either end.
//! * Strangers stand back for everybody else (`transport::berths`) where there is somebody to protect: who begins while more
//!   than half of its lane is taken, and who comes from no friend's address while friends come in their lane. Two kinds of
//!   threads take the processors from each other, which costs a quarter more of them for a handshake.
//!
//! A source whose bucket is empty, or anybody while many that proved nothing are half open, must first prove the address
//! (QUIC Retry, RFC 9000, section 8.1.2), which costs us one small packet and no state. Who has proven it and finds no permit
//! free waits for one in the *anteroom* (`anteroom`): its first packet is all that is kept of it, a twentieth of what a
//! handshake under way takes. Who finds that full is refused with one small packet at once, so that it does not ask again
//! and again. Both cost the keys of a first packet, and are given so many times a second; first packets beyond that are left
//! out before QUIC sees them (`transport::sieve`), unless they say that they come from a friend's address and its lane has
//! room.
//!
//! Time is an argument. Not here: what a source may begin (`sources`), how many may be under way (`lanes`), where friends
//! are expected (`friends`).

mod anteroom;
mod friends;
mod lanes;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handfast_protocol::PeerId;
use tokio::sync::Notify;

pub use self::anteroom::{SEAT_PATIENCE, SEATS_MAX, Seat, Turn};
use self::friends::Friends;
pub use self::friends::{FRIEND_FOR, FRIEND_PLACES_MAX, PLACES_PER_PEER_MAX};
use self::lanes::Permits;
pub use self::lanes::{BUSY_MAX, BUSY_WAIT, FRIENDS_MAX, Lane, PERMITS_MIN, STRANGERS_MAX, WAIT_MAX};
pub use self::sources::{BUCKETS_MAX, Rates};
use self::sources::{Bucket, Place, Sources};

/// Half-open handshakes from addresses that proved nothing; more must prove theirs.
pub const UNPROVEN_MAX: u32 = 64;
/// While so many of these come from elsewhere than from friends' addresses, a friend is better off with a proof, in its own
/// lane.
pub const FRIENDS_UNPROVEN_MAX: u32 = 8;
/// Friends under way from one IPv4 address or IPv6 /64.
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
/// Answers in a second that say to addresses without proof that there is no room. Each costs the keys of a first packet,
/// derived only to say no; who is left without an answer tries again.
pub const REFUSALS_PER_S: u64 = 50;
/// And answers that ask an address for its proof while many that proved nothing are half open: a tenth of a processor.
pub const RETRIES_PER_S: u64 = 4_000;

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
    /// Keep it until its turn comes ([`Admission::turn`]).
    Wait(Seat),
    /// Let it prove its address first.
    Retry,
    /// Say that there is no room.
    Refuse,
}

/// See the module.
#[derive(Debug)]
pub struct Admission {
    state: Mutex<State>,
    /// A permit has come back that somebody waits for.
    freed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Begins,
    Waits,
    Asked,
    Refused,
}

#[derive(Debug)]
struct State {
    sources: Sources,
    /// Answers to addresses without proof that may still be given.
    refusals: Bucket,
    retries: Bucket,
    friends: Permits,
    strangers: Permits,
    /// How long the work for a new one has waited for a thread lately.
    usual_wait: Duration,
    next: u64,
    /// Who waits for a stranger's permit.
    seated: u32,
    half_open: u32,
    unproven: u32,
    /// Of these, from addresses that are no friend's.
    unproven_strangers: u32,
    /// What conversations have taken lately, from the first packet to the answer.
    usual: Duration,
    friends_at: HashMap<Place, u32>,
    expected: Friends,
    counts: Counts,
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
    /// Places that have friends under way.
    pub friend_addresses: u32,
    /// Who has proven an address and waits for a permit.
    pub seated: u32,
}

impl Admission {
    pub fn new(rates: Rates) -> Admission {
        let state = State {
            sources: Sources::new(rates),
            refusals: Bucket::default(),
            retries: Bucket::default(),
            friends: Permits::of(Lane::Friend),
            strangers: Permits::of(Lane::Stranger),
            usual_wait: Duration::ZERO,
            next: 0,
            seated: 0,
            half_open: 0,
            unproven: 0,
            unproven_strangers: 0,
            usual: Duration::ZERO,
            friends_at: HashMap::new(),
            expected: Friends::default(),
            counts: Counts::default(),
        };
        Admission { state: Mutex::new(state), freed: Notify::new() }
    }

    /// Whether a first packet that proves nothing is to be left out unseen: it would only be refused, or asked for its
    /// proof, and enough of these are.
    pub fn overlooks(&self, ip: IpAddr, now: Duration) -> bool {
        let mut state = self.state();
        let is_friend = state.is_friend(ip, now, |_| true) && state.has_friends_permit(ip, now);
        let (patience, seats) = (state.patience(), state.free_seats());
        // A friend that finds its lane full may still be a stranger.
        let is_invited = is_friend && state.friends.invites(0, patience, now);
        let lane = if is_invited { Lane::Friend } else { Lane::Stranger };
        let is_taken = state.takes_unproven(is_friend, now) && state.sources.has_token(ip, now);
        let answers = if is_taken || is_invited {
            true
        } else if seats == 0 {
            state.refusals.take(REFUSALS_PER_S, now)
        } else {
            state.strangers.invites(seats, patience, now) && state.retries.take(RETRIES_PER_S, now)
        };
        if answers {
            // On its way to being judged, behind all that came with it.
            state.lane(lane).invited(now);
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
        // Nobody comes before those who wait. Where all seats are taken, there is no room for strangers.
        let has_room = (lane == Lane::Friend || state.seated == 0) && state.has_room(lane, now);
        let has_seat = state.free_seats() > 0;
        let has_token = lane == Lane::Friend || state.sources.has_token(ip, now);
        let fate = match (arrival.is_validated, has_token) {
            (true, true) if has_room => Fate::Begins,
            (true, true) if has_seat => Fate::Waits,
            (true, _) => Fate::Refused,
            // The friends' lane has room, where it is a friend.
            (false, _) if !has_seat && !is_friend => Fate::Refused,
            (false, true) if has_room && state.takes_unproven_now(is_friend) => Fate::Begins,
            (false, _) => Fate::Asked,
        };
        // Who is asked for a proof stays expected.
        if fate != Fate::Asked {
            state.lane(if is_friend { Lane::Friend } else { Lane::Stranger }).came(now);
        }
        if lane == Lane::Stranger && matches!(fate, Fate::Begins | Fate::Waits) {
            state.sources.take_token(ip, now);
        }
        match fate {
            Fate::Begins => Verdict::Accept(state.begin(self, arrival, (lane, is_friend), now)),
            Fate::Waits => Verdict::Wait(state.seat(self, arrival, now)),
            Fate::Asked => {
                state.counts.retried += 1;
                Verdict::Retry
            }
            Fate::Refused => {
                state.counts.refused += 1;
                Verdict::Refuse
            }
        }
    }

    /// A peer that is trusted has authenticated at this address.
    pub fn befriend(&self, peer: PeerId, ip: IpAddr, now: Duration) {
        self.expect(peer, ip, now + FRIEND_FOR);
    }

    /// A peer that is trusted is expected at this address until then.
    pub fn expect(&self, peer: PeerId, ip: IpAddr, until: Duration) {
        self.state().expected.expect(peer, Place::of(ip), until);
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
            friends: state.friends.taken(),
            strangers: state.strangers.taken(),
            friend_addresses: u32::try_from(state.friends_at.len()).unwrap_or(u32::MAX),
            seated: state.seated,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: a panic elsewhere leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_friend(&self, ip: IpAddr, now: Duration, is_trusted: impl Fn(&PeerId) -> bool) -> bool {
        self.expected.is_expected(Place::of(ip), now, is_trusted)
    }

    fn has_friends_permit(&self, ip: IpAddr, now: Duration) -> bool {
        self.has_room(Lane::Friend, now)
            && self.friends_at.get(&Place::of(ip)).is_none_or(|n| *n < FRIENDS_PER_ADDRESS_MAX)
    }

    fn lane(&mut self, lane: Lane) -> &mut Permits {
        match lane {
            Lane::Friend => &mut self.friends,
            Lane::Stranger => &mut self.strangers,
        }
    }

    /// Work for one in this lane has waited so long for a thread.
    fn waited(&mut self, lane: Lane, wait: Duration) {
        self.usual_wait = self.usual_wait - self.usual_wait / USUAL_OF + wait / USUAL_OF;
        self.lane(lane).waited(wait);
        let is_busy = self.usual_wait > BUSY_WAIT;
        self.friends.set_busy(is_busy);
        self.strangers.set_busy(is_busy);
    }

    /// How long one may be under way in a full lane.
    fn patience(&self) -> Duration {
        (self.usual * TIMES_USUAL).max(self.usual_wait * WAITS).clamp(FULL_PATIENCE, FULL_PATIENCE_MAX)
    }

    /// A permit is free, or the oldest has had its time.
    fn has_room(&self, lane: Lane, now: Duration) -> bool {
        let permits = match lane {
            Lane::Friend => &self.friends,
            Lane::Stranger => &self.strangers,
        };
        permits.has_room(self.patience(), now)
    }

    /// Whether one without proof, a stranger therefore, begins at once: nobody makes way for it.
    fn takes_unproven_now(&self, is_friend: bool) -> bool {
        let is_better_off = is_friend && self.unproven_strangers >= FRIENDS_UNPROVEN_MAX;
        self.unproven < UNPROVEN_MAX && !is_better_off && self.strangers.has_free()
    }

    /// The same, beside those who are about to be judged.
    fn takes_unproven(&self, is_friend: bool, now: Duration) -> bool {
        self.takes_unproven_now(is_friend) && self.strangers.has_free_beside_the_invited(now)
    }

    /// Takes a permit for it, from whoever has had its time if none is free.
    fn begin(
        &mut self,
        admission: &Arc<Admission>,
        arrival: Arrival,
        (lane, is_friend): (Lane, bool),
        now: Duration,
    ) -> Slot {
        self.counts.accepted += 1;
        self.counts.evicted += u64::from(self.lane(lane).make_way());
        self.reserve(admission, arrival, (lane, is_friend), now)
    }

    fn reserve(
        &mut self,
        admission: &Arc<Admission>,
        arrival: Arrival,
        (lane, is_friend): (Lane, bool),
        now: Duration,
    ) -> Slot {
        let place = Place::of(arrival.remote.ip());
        let beside_friends = !is_friend && self.friends.is_used(now);
        let stands_back = lane == Lane::Stranger && (self.strangers.is_crowded() || beside_friends);
        let id = self.next;
        self.next += 1;
        let gives_way = self.lane(lane).take(id, now);
        self.half_open += 1;
        let proof = match (arrival.is_validated, is_friend) {
            (true, _) => Proof::Given,
            (false, true) => Proof::FriendsToGive,
            (false, false) => Proof::ToGive,
        };
        self.unproven += u32::from(proof != Proof::Given);
        self.unproven_strangers += u32::from(proof == Proof::ToGive);
        if lane == Lane::Friend {
            *self.friends_at.entry(place).or_default() += 1;
        }
        let admission = admission.clone();
        Slot {
            admission,
            place,
            lane,
            id,
            since: now,
            gives_way,
            stands_back,
            is_half_open: true,
            proof,
            is_answered: false,
        }
    }

    fn close_half(&mut self, proof: Proof) {
        self.half_open -= 1;
        self.unproven -= u32::from(proof != Proof::Given);
        self.unproven_strangers -= u32::from(proof == Proof::ToGive);
    }

    fn release(&mut self, slot: &Slot) {
        if slot.is_half_open {
            self.close_half(slot.proof);
        }
        self.lane(slot.lane).put_back(slot.id);
        if slot.lane == Lane::Friend
            && let Some(count) = self.friends_at.get_mut(&slot.place)
        {
            *count -= 1;
            if *count == 0 {
                self.friends_at.remove(&slot.place);
            }
        }
    }
}

/// Whether a source has proven its address, and whether a friend is known there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Given,
    FriendsToGive,
    ToGive,
}

/// The reservations of one handshake. See the module.
#[derive(Debug)]
pub struct Slot {
    admission: Arc<Admission>,
    place: Place,
    lane: Lane,
    id: u64,
    since: Duration,
    gives_way: Arc<Notify>,
    stands_back: bool,
    is_half_open: bool,
    proof: Proof,
    is_answered: bool,
}

impl Slot {
    /// TLS has proven a key: it is not half open any more, and keeps its permit.
    pub fn authenticated(&mut self) {
        if std::mem::take(&mut self.is_half_open) {
            self.admission.state().close_half(self.proof);
        }
    }

    /// The work for it begins.
    pub fn begins(&self, now: Duration) {
        self.admission.state().waited(self.lane, now.saturating_sub(self.since));
    }

    /// What it paid for has been done: an exchange came to its end. The first one says how long that takes; whoever stays
    /// for more does not make others look slow.
    pub fn answered(&mut self, now: Duration) {
        if std::mem::replace(&mut self.is_answered, true) {
            return;
        }
        let mut state = self.admission.state();
        let took = now.saturating_sub(self.since);
        state.usual = state.usual - state.usual / USUAL_OF + took / USUAL_OF;
    }

    /// Notified when it is to end, because others need its permit.
    pub fn gives_way(&self) -> Arc<Notify> {
        self.gives_way.clone()
    }

    /// Whether it stands back for everybody else.
    pub fn stands_back(&self) -> bool {
        self.stands_back
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        state.release(self);
        if state.seated > 0 {
            self.admission.freed.notify_one();
        }
    }
}
