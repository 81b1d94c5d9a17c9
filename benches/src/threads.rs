//! Threads that begin together, work for a while, and end together.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::clock::{Stopwatch, pause};

/// What tells the threads when to end.
#[derive(Debug, Default)]
pub struct Signal(AtomicBool);

impl Signal {
    /// Whether it is time to end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs `count` threads for `time`; each is given its number and what tells it to end. Returns what they return, and how
/// long they really had.
///
/// # Errors
/// If a thread panicked.
pub fn run<T: Send>(
    count: usize,
    time: Duration,
    work: impl Fn(usize, &Signal) -> T + Sync,
) -> Result<(Vec<T>, Duration)> {
    let (signal, barrier) = (Signal::default(), Barrier::new(count + 1));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (work, signal, barrier) = (&work, &signal, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    work(number, signal)
                })
            })
            .collect();
        barrier.wait();
        let watch = Stopwatch::start();
        pause(time);
        signal.0.store(true, Ordering::Relaxed);
        let elapsed = watch.elapsed();
        let out: Result<Vec<T>> =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))).collect();
        Ok((out?, elapsed))
    })
}

/// What the system has done to this thread so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disturbances {
    preemptions: i64,
    on_processor_ns: u64,
}

impl Disturbances {
    /// Up to now.
    #[must_use]
    pub fn now() -> Self {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::time::{ClockId, clock_gettime};
        let preemptions = getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches());
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
        Self { preemptions, on_processor_ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Whether the processor was not taken from it since by another thread.
    #[must_use]
    pub const fn kept_the_processor_since(&self, earlier: &Self) -> bool {
        self.preemptions == earlier.preemptions
    }

    /// How long it has had a processor since. What the host of a virtual machine took is not counted.
    #[must_use]
    pub const fn on_processor_ns_since(&self, earlier: &Self) -> u64 {
        self.on_processor_ns.saturating_sub(earlier.on_processor_ns)
    }
}
