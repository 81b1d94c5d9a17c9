//! The clock of the benchmarks.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::time::{Duration, Instant};

use handfast_trust::{Clock, Monotonic};

/// A clock that reads zero when it is made.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// The same in nanoseconds.
    #[must_use]
    pub fn ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Clock for Stopwatch {
    fn now(&self) -> Monotonic {
        Monotonic(self.elapsed())
    }
}

/// Lets time pass: for a measurement that runs elsewhere, or as a disk that is slow.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
