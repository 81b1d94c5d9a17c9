//! The permits of friends and of strangers: who is under way in a lane, and how many may be.
//!
//! Invariants: a lane never has more under way than its maximum. It gives fewer while the work for a new one waits too long
//! for a thread, but never fewer than [`PERMITS_MIN`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// Strangers under way. Twice as many that hang must come in a second, each given up after half of one, before they keep
/// others waiting.
pub const STRANGERS_MAX: u32 = 320;
/// Friends under way.
pub const FRIENDS_MAX: u32 = 128;
/// Under way in a lane while there is always work: twice as many as keep two processors busy. More only push each other out
/// of the caches, and who waits for a permit is not lost (`anteroom`).
pub const BUSY_MAX: u32 = 128;
/// How long the work for a new one usually waits for a thread where there is always work.
pub const BUSY_WAIT: Duration = Duration::from_millis(1);
/// What a lane shrinks to.
pub const PERMITS_MIN: u32 = 64;
/// How long the work for a new one may wait for a thread.
pub const WAIT_MAX: Duration = Duration::from_millis(80);
/// What a lane loses each time it was longer, and wins back each time it was not.
const SHRINKS_BY: f64 = 0.02;
const GROWS_BY: f64 = 0.25;
/// Of a full lane so many at most are invited to take the place of one that makes way.
pub(super) const INVITED_TO_FULL: usize = 64;
/// How long a permit is expected to be wanted by somebody who was asked for a proof: a round trip. It matters where
/// most permits of a lane are taken.
pub(super) const INVITATION: Duration = Duration::from_millis(14);
/// How long a lane counts as used after somebody has begun in it.
pub(super) const USED_FOR: Duration = Duration::from_secs(1);

/// Which permits a handshake uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Friend,
    Stranger,
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

/// One that has a permit.
#[derive(Debug)]
struct UnderWay {
    since: Duration,
    gives_way: Arc<Notify>,
}

/// The permits of one lane.
#[derive(Debug)]
pub(super) struct Permits {
    max: u32,
    /// Of those, what it does not give now.
    withheld: f64,
    /// There is always work.
    is_busy: bool,
    /// The oldest first.
    under_way: BTreeMap<u64, UnderWay>,
    /// Who has been asked for a proof lately and has not come back with it.
    invited: Invited,
    /// When somebody last began.
    last: Option<Duration>,
}

impl Permits {
    pub(super) fn of(lane: Lane) -> Permits {
        let max = match lane {
            Lane::Friend => FRIENDS_MAX,
            Lane::Stranger => STRANGERS_MAX,
        };
        Permits {
            max,
            withheld: 0.0,
            is_busy: false,
            under_way: BTreeMap::new(),
            invited: Invited::default(),
            last: None,
        }
    }

    /// How many are under way.
    pub(super) fn taken(&self) -> u32 {
        u32::try_from(self.under_way.len()).unwrap_or(u32::MAX)
    }

    /// How many may be now.
    pub(super) fn given(&self) -> u32 {
        let given = self.max - self.withheld as u32;
        if self.is_busy { given.min(BUSY_MAX) } else { given }
    }

    /// Whether there is always work.
    pub(super) fn set_busy(&mut self, is_busy: bool) {
        self.is_busy = is_busy;
    }

    /// More than half of those that it gives now are taken.
    pub(super) fn is_crowded(&self) -> bool {
        2 * self.taken() > self.given()
    }

    /// Somebody has begun in it lately.
    pub(super) fn is_used(&self, now: Duration) -> bool {
        self.last.is_some_and(|last| now < last + USED_FOR)
    }

    /// Somebody can begin, and nobody makes way for it.
    pub(super) fn has_free(&self) -> bool {
        self.taken() < self.given()
    }

    /// The same, beside those who are about to be judged.
    pub(super) fn has_free_beside_the_invited(&self, now: Duration) -> bool {
        let coming = self.invited.expected(now).ceil() as u32;
        self.taken() + coming < self.given()
    }

    /// A permit is free, or the oldest has been under way for longer than `patience`.
    pub(super) fn has_room(&self, patience: Duration, now: Duration) -> bool {
        self.has_free() || self.oldest().is_some_and(|oldest| oldest + patience <= now)
    }

    /// Many permits are free, or more, with so many seats beside them, than people are on their way for.
    pub(super) fn invites(&self, seats: u32, patience: Duration, now: Duration) -> bool {
        let old = self.under_way.values().take(INVITED_TO_FULL).take_while(|one| one.since + patience <= now).count();
        let free = self.given().saturating_sub(self.taken());
        let wanted = || self.invited.expected(now) - old as f64;
        free >= self.given() / 4 || wanted() < f64::from(free + seats)
    }

    /// Since when the one is under way that began first.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.under_way.values().next().map(|oldest| oldest.since)
    }

    /// One is on its way to being judged.
    pub(super) fn invited(&mut self, now: Duration) {
        self.invited.add(1.0, now);
    }

    /// One of them has come.
    pub(super) fn came(&mut self, now: Duration) {
        self.invited.add(-1.0, now);
    }

    /// The work for a new one has waited so long for a thread.
    pub(super) fn waited(&mut self, wait: Duration) {
        let max = f64::from(self.max);
        let given = if wait > WAIT_MAX {
            ((max - self.withheld) * (1.0 - SHRINKS_BY)).max(f64::from(PERMITS_MIN))
        } else {
            (max - self.withheld + GROWS_BY).min(max)
        };
        self.withheld = max - given;
    }

    /// Gives a permit, and what is notified when it is to be given up.
    pub(super) fn take(&mut self, id: u64, now: Duration) -> Arc<Notify> {
        self.last = Some(now);
        let gives_way = Arc::new(Notify::new());
        self.under_way.insert(id, UnderWay { since: now, gives_way: gives_way.clone() });
        gives_way
    }

    /// Takes it back; one that made way has none any more.
    pub(super) fn put_back(&mut self, id: u64) {
        self.under_way.remove(&id);
    }

    /// If the lane is full, the oldest gives its permit up: whether one did.
    pub(super) fn make_way(&mut self) -> bool {
        if self.has_free() {
            return false;
        }
        let oldest = self.under_way.pop_first();
        oldest.inspect(|(_, oldest)| oldest.gives_way.notify_one()).is_some()
    }
}
