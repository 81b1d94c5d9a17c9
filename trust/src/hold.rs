//! How long a lock is held: a histogram that costs one atomic addition, and is always on.
//!
//! Bucket `i` counts holds of less than `2^i` nanoseconds that no smaller bucket counts; the last takes all the rest.
//!
//! Not here: reading the clock (the store does, at both ends of a hold).

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sync::Counter;

/// Number of buckets: the last but one ends at 2^39 ns, nine minutes.
pub const HOLD_BUCKETS: usize = 41;

#[derive(Debug)]
pub(crate) struct HoldTimes {
    counts: [Counter; HOLD_BUCKETS],
    max_ns: Counter,
}

/// What was counted up to one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldTimesSnapshot {
    /// Holds by length: bucket `i` has those of less than `2^i` ns.
    pub counts: [u64; HOLD_BUCKETS],
    /// The longest hold.
    pub max: Duration,
}

impl Default for HoldTimes {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| Counter::new(0)), max_ns: Counter::new(0) }
    }
}

impl HoldTimes {
    pub(crate) fn add(&self, held: Duration) {
        let ns = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - ns.leading_zeros()) as usize;
        self.counts[bucket.min(HOLD_BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        if ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> HoldTimesSnapshot {
        HoldTimesSnapshot {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed)),
            max: Duration::from_nanos(self.max_ns.load(Ordering::Relaxed)),
        }
    }
}

impl HoldTimesSnapshot {
    /// The upper end of the bucket that the given share (0.0 to 1.0) of all holds does not exceed.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let all: u64 = self.counts.iter().sum();
        let mut rest = all;
        for (bucket, count) in self.counts.iter().enumerate() {
            rest -= count;
            #[allow(clippy::cast_precision_loss)]
            if all > 0 && rest as f64 <= all as f64 * (1.0 - share) {
                return Duration::from_nanos(1 << bucket);
            }
        }
        Duration::ZERO
    }
}
