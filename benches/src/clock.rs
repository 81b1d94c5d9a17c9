//! The clock of the benchmarks.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::time::{Duration, Instant};

use handfast_trust::{Clock, Monotonic};
use nix::sys::resource::{UsageWho, getrusage};

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

/// User and system time that this process has used, in microseconds.
///
/// # Errors
/// The system does not say.
pub fn used_us() -> anyhow::Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let us = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    Ok(us(usage.user_time()) + us(usage.system_time()))
}
