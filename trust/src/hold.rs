//! How long a lock is held: a histogram that costs one atomic addition, and is always on.
//!
//! Four buckets for each power of two, so that no bucket is wider than a quarter of its lower end; the last takes all
//! the rest.
//!
//! Not here: reading the clock (the store does, at both ends of a hold).

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sync::Counter;

/// Number of buckets: the last but one ends at 2^39 ns, nine minutes.
pub const HOLD_BUCKETS: usize = 4 * 38 + 1;

/// The bucket of a hold of so many nanoseconds. Those of less than 4 have one each.
#[allow(clippy::cast_possible_truncation)]
const fn bucket_of(ns: u64) -> usize {
    let bucket = if ns < 4 {
        ns as usize
    } else {
        let power = ns.ilog2();
        4 * (power as usize - 1) + (ns >> (power - 2) & 3) as usize
    };
    if bucket < HOLD_BUCKETS { bucket } else { HOLD_BUCKETS - 1 }
}

/// What all holds of a bucket are shorter than; the last has no end, and says where it begins.
#[must_use]
pub const fn hold_bucket_end(bucket: usize) -> Duration {
    let next = if bucket + 1 < HOLD_BUCKETS { bucket + 1 } else { HOLD_BUCKETS - 1 };
    if next < 4 {
        return Duration::from_nanos(next as u64);
    }
    Duration::from_nanos((4 + next as u64 % 4) << (next / 4 - 1))
}

#[derive(Debug)]
pub(crate) struct HoldTimes {
    counts: [Counter; HOLD_BUCKETS],
    max_ns: Counter,
}

/// What was counted up to one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldTimesSnapshot {
    /// Holds by length: each bucket has those that are shorter than [`hold_bucket_end`] and in no bucket before.
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
        self.counts[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
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
                return hold_bucket_end(bucket);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_none_is_wide() {
        for bucket in 0..HOLD_BUCKETS - 1 {
            let end = u64::try_from(hold_bucket_end(bucket).as_nanos()).unwrap();
            assert_eq!((bucket_of(end - 1), bucket_of(end)), (bucket, bucket + 1), "{end}");
            let begin = bucket.checked_sub(1).map_or(Duration::ZERO, hold_bucket_end);
            let begin = u64::try_from(begin.as_nanos()).unwrap();
            assert!(end - begin <= 1.max(begin / 4), "{begin}..{end}");
        }
        assert_eq!(hold_bucket_end(HOLD_BUCKETS - 2), Duration::from_nanos(1 << 39));
        assert_eq!(bucket_of(u64::MAX), HOLD_BUCKETS - 1);
    }
}
