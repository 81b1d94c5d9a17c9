//! Who waits for a stranger's permit: proven addresses, in the order in which they came.
//!
//! A first packet that is left out comes again after one second, then after two more, then after four: where a permit is
//! free again after a few milliseconds, that is time in which neither end does anything. So it is kept, unopened, until its
//! turn comes.
//!
//! Invariants: at most [`SEATS_MAX`] wait, each after a token of its source was taken, so that no source can fill the room
//! faster than it may begin handshakes. Nobody waits longer than [`SEAT_PATIENCE`]: its sender would ask again. A [`Seat`]
//! gives its place back once, when it drops.
//!
//! Not here: the packets themselves, which whoever asked keeps beside their seats (`links`).

use std::sync::Arc;
use std::time::Duration;

use super::{Admission, Arrival, Lane, Slot, State};

/// Who may wait at a time: a few kilobytes each.
pub const SEATS_MAX: u32 = 512;
/// How long one waits at most: until a first packet is repeated.
pub const SEAT_PATIENCE: Duration = Duration::from_secs(1);

/// A place in the anteroom.
#[derive(Debug)]
pub struct Seat {
    admission: Arc<Admission>,
    arrival: Arrival,
    since: Duration,
}

/// What becomes of one that waits.
#[derive(Debug)]
pub enum Turn {
    /// Begin the handshake; the slot pays for it.
    Begin(Slot),
    /// Not yet.
    Wait(Seat),
    /// Say that there is no room.
    Refuse,
}

impl Admission {
    /// Whether the turn has come of the one that has waited longest.
    pub fn turn(self: &Arc<Admission>, seat: Seat, now: Duration) -> Turn {
        let mut state = self.state();
        let turn = if state.has_room(Lane::Stranger, now) {
            Turn::Begin(state.begin(self, seat.arrival, (Lane::Stranger, false), now))
        } else if now >= seat.since + SEAT_PATIENCE {
            state.counts.refused += 1;
            Turn::Refuse
        } else {
            return Turn::Wait(seat);
        };
        drop(state);
        drop(seat);
        turn
    }

    /// Waits until it is worth while to ask for the turn of one that waits: a permit has come back, or somebody's time is
    /// up.
    pub async fn freed(&self, seat: &Seat, now: Duration) {
        let at = {
            let state = self.state();
            let oldest = state.strangers.oldest().map(|since| since + state.patience());
            oldest.map_or(seat.since + SEAT_PATIENCE, |oldest| oldest.min(seat.since + SEAT_PATIENCE))
        };
        // Both are worth another look, which says which it was.
        let _ = tokio::time::timeout(at.saturating_sub(now), self.freed.notified()).await;
    }
}

impl State {
    /// How many more may wait.
    pub(super) fn free_seats(&self) -> u32 {
        SEATS_MAX - self.seated
    }

    pub(super) fn seat(&mut self, admission: &Arc<Admission>, arrival: Arrival, now: Duration) -> Seat {
        self.seated += 1;
        Seat { admission: admission.clone(), arrival, since: now }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.admission.state().seated -= 1;
    }
}
