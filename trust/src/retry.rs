//! When to try again: exponential, capped, with full jitter, until a deadline. And which faults are worth it.
//!
//! The delay before try `n + 1` is drawn evenly from `0 ..= min(cap, first * 2^n)`. The randomness is an argument, so
//! that a run can be repeated; so is the time.
//!
//! Not here: waiting.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::error::DiskErrorKind;
use crate::medium::Monotonic;

/// What a disk fault calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// EINTR, EAGAIN: try at once.
    Transient,
    /// The disk, its space or its descriptors: try again after a while.
    Backoff,
}

impl DiskErrorKind {
    /// How a failed operation is treated.
    #[must_use]
    pub const fn class(self) -> FaultClass {
        match self {
            Self::Interrupted | Self::Again => FaultClass::Transient,
            _ => FaultClass::Backoff,
        }
    }
}

/// The bounds of a [`Backoff`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Bound of the first delay.
    pub first: Duration,
    /// Bound of every delay.
    pub cap: Duration,
    /// How long after the first failure to go on; `None` for ever.
    pub deadline: Option<Duration>,
}

impl RetryPolicy {
    /// For a disk: from 20 ms to 4 s, for ever.
    pub const DISK: Self = Self { first: Duration::from_millis(20), cap: Duration::from_secs(4), deadline: None };
}

/// Counts failures in a row and says when to try again.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: RetryPolicy,
    failures: u32,
    first_failure: Option<Monotonic>,
}

impl Backoff {
    /// Without failures so far.
    #[must_use]
    pub const fn new(policy: RetryPolicy) -> Self {
        Self { policy, failures: 0, first_failure: None }
    }

    /// How many failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Another failure: when to try again, or `None` if that would be past the deadline.
    pub fn failed(&mut self, now: Monotonic, rng: &mut impl Rng) -> Option<Monotonic> {
        let bound = self.policy.first.saturating_mul(1 << self.failures.min(30)).min(self.policy.cap);
        self.failures = self.failures.saturating_add(1);
        let first = *self.first_failure.get_or_insert(now);
        let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        let next = now.plus(Duration::from_micros(rng.random_range(0..=bound_us)));
        match self.policy.deadline {
            Some(deadline) if next.since(first) > deadline => None,
            _ => Some(next),
        }
    }

    /// It worked: the next failure is the first again.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
        self.first_failure = None;
    }
}
