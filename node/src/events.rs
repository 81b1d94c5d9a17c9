//! What happened, for whoever listens: the last [`EVENTS_KEPT`] events in memory, numbered from 1 in each run.
//!
//! Invariants: a number is given once; a reader that asks for what is no longer kept, or for numbers of another run, is
//! told so and never silently skips. BOUND: the ring never grows past its limit, and no reader holds anything in it.
//!
//! Not here: what counts as an event (whoever pushes), and the history of one peer (kept in its trust record).

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use handfast_protocol::PeerId;
use tokio::sync::watch;

use crate::clock;
use crate::control::api::EventRow;

/// How many events are kept: at 200 bytes each less than a megabyte.
pub const EVENTS_KEPT: usize = 4_096;

/// The events asked for are not kept: they are too old, or of another run of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The events after number {since} are not kept; the node has {oldest} to {newest}")]
pub struct Gone {
    /// The number that was asked for.
    pub since: u64,
    /// The oldest number that is kept; one more than `newest` if there is none.
    pub oldest: u64,
    /// The newest number; 0 before the first event.
    pub newest: u64,
}

/// A bounded log of events with numbers.
#[derive(Debug)]
pub struct EventLog {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    rows: VecDeque<EventRow>,
    newest: u64,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog::new()
    }
}

impl EventLog {
    /// An empty log.
    pub fn new() -> EventLog {
        EventLog { ring: Mutex::default(), newest: watch::Sender::new(0) }
    }

    /// Adds an event that happened now, and wakes those who wait.
    pub fn push(&self, kind: &str, peer: Option<PeerId>, cause: &str) {
        let at = clock::rfc3339(clock::unix_now());
        let peer_id = peer.map(|peer| peer.to_string());
        let newest = self.with_ring(|ring| {
            ring.newest += 1;
            let row = EventRow { seq: ring.newest, at, kind: kind.to_owned(), peer_id, cause: cause.to_owned() };
            if ring.rows.len() == EVENTS_KEPT {
                ring.rows.pop_front();
            }
            ring.rows.push_back(row);
            ring.newest
        });
        // Two that push at once may arrive here in the other order.
        self.newest.send_if_modified(|known| {
            let is_newer = newest > *known;
            *known = newest.max(*known);
            is_newer
        });
    }

    /// The events after number `since`, oldest first; all of them after 0 if none has been dropped yet.
    ///
    /// # Errors
    /// [`Gone`] if one of them is no longer kept, or if `since` has not happened yet.
    pub fn since(&self, since: u64) -> Result<Vec<EventRow>, Gone> {
        self.with_ring(|ring| {
            let oldest = ring.oldest();
            if since > ring.newest || since + 1 < oldest {
                return Err(Gone { since, oldest, newest: ring.newest });
            }
            let skipped = usize::try_from(since + 1 - oldest).unwrap_or(usize::MAX);
            Ok(ring.rows.iter().skip(skipped).cloned().collect())
        })
    }

    /// The number of the last event; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.with_ring(|ring| ring.newest)
    }

    /// The number after which everything that is kept comes.
    pub fn before_oldest(&self) -> u64 {
        self.with_ring(|ring| ring.oldest() - 1)
    }

    /// Waits until there is an event after number `seq`.
    pub async fn wait_past(&self, seq: u64) {
        // The sender lives as long as `self`: there is no other way for the wait to end.
        let _ = self.newest.subscribe().wait_for(|newest| *newest > seq).await;
    }

    fn with_ring<T>(&self, f: impl FnOnce(&mut Ring) -> T) -> T {
        f(&mut self.ring.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ring {
    fn oldest(&self) -> u64 {
        self.rows.front().map_or(self.newest + 1, |row| row.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: &[EventRow]) -> Vec<u64> {
        rows.iter().map(|row| row.seq).collect()
    }

    #[test]
    fn events_are_numbered_and_resumed() {
        let log = EventLog::new();
        assert_eq!(log.since(0), Ok(Vec::new()));
        for _ in 0..3 {
            log.push("trusted", None, "operator");
        }
        assert_eq!(numbers(&log.since(0).unwrap()), [1, 2, 3]);
        assert_eq!(numbers(&log.since(2).unwrap()), [3]);
        assert!(log.since(3).unwrap().is_empty());
        assert_eq!(log.since(4), Err(Gone { since: 4, oldest: 1, newest: 3 }));
        assert!(log.since(u64::MAX).is_err());
    }

    #[test]
    fn what_is_dropped_is_said_to_be_gone() {
        let log = EventLog::new();
        for _ in 0..EVENTS_KEPT + 2 {
            log.push("pending", None, "peer");
        }
        let newest = EVENTS_KEPT as u64 + 2;
        assert_eq!(log.since(1), Err(Gone { since: 1, oldest: 3, newest }));
        assert_eq!(log.before_oldest(), 2);
        assert_eq!(log.since(2).unwrap().len(), EVENTS_KEPT);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let log = std::sync::Arc::new(EventLog::new());
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { log.wait_past(1).await }
        });
        log.push("a", None, "");
        assert!(!waiting.is_finished());
        log.push("b", None, "");
        waiting.await.unwrap();
        log.wait_past(0).await;
    }
}
