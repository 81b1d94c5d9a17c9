//! How many lines the log takes, whatever strangers do: each place in the program that logs has a bucket of its own,
//! [`BURST`] lines at once and [`REFILL`] after that. What does not fit is counted, and the place's next line says how
//! much was left out.
//!
//! Invariants (BOUND): the number of lines is bounded by the number of places and by time, not by what happens. A line
//! that is left out is not formatted. DEBUG and TRACE are not bounded: who asks for them wants to see all.
//!
//! Thread: any; the lock is held for one map operation.
//!
//! Not here: which levels are wanted (the filter of `log.filter`, `-v` and `-q`).

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter};

use crate::clock::MonotonicClock;

/// Lines that one place may log at once.
pub const BURST: u32 = 100;
/// From then on one line in this time.
pub const REFILL: Duration = Duration::from_secs(1);

/// See the module. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct LineLimit {
    places: Arc<Mutex<HashMap<Identifier, Place>>>,
    now: Arc<dyn Fn() -> Duration + Send + Sync>,
}

/// One place that logs.
struct Place {
    /// When its bucket is full again: the bucket's level, as a time.
    full_at: Duration,
    left_out: u64,
}

impl LineLimit {
    /// Nothing was logged yet.
    pub fn new(clock: MonotonicClock) -> LineLimit {
        LineLimit::with_time(Arc::new(move || clock.now().0))
    }

    fn with_time(now: Arc<dyn Fn() -> Duration + Send + Sync>) -> LineLimit {
        LineLimit { places: Arc::default(), now }
    }

    /// Whether the place may log a line now.
    fn take(&self, metadata: &Metadata<'_>) -> bool {
        if *metadata.level() > Level::INFO {
            return true;
        }
        let now = (self.now)();
        self.with(metadata, |place| {
            let full_at = place.full_at.max(now) + REFILL;
            let fits = full_at - now <= REFILL * BURST;
            if fits {
                place.full_at = full_at;
            } else {
                place.left_out += 1;
            }
            fits
        })
    }

    fn take_left_out(&self, metadata: &Metadata<'_>) -> u64 {
        self.with(metadata, |place| std::mem::take(&mut place.left_out))
    }

    fn with<T>(&self, metadata: &Metadata<'_>, use_place: impl FnOnce(&mut Place) -> T) -> T {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = || Place { full_at: Duration::ZERO, left_out: 0 };
        use_place(places.entry(metadata.callsite()).or_insert_with(unused))
    }

    /// Where lines go: `to`, with a line before those that others were left out before.
    pub fn writer<W>(&self, to: W) -> LimitedWriter<W> {
        LimitedWriter { limit: self.clone(), to }
    }
}

impl<S: Subscriber> Filter<S> for LineLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.take(event.metadata())
    }
}

/// See [`LineLimit::writer`].
pub struct LimitedWriter<W> {
    limit: LineLimit,
    to: W,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for LimitedWriter<W> {
    type Writer = W::Writer;

    fn make_writer(&'a self) -> W::Writer {
        self.to.make_writer()
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> W::Writer {
        let mut writer = self.to.make_writer_for(metadata);
        let left_out = self.limit.take_left_out(metadata);
        if left_out > 0 {
            // Nothing can be done where the log cannot be written.
            let _: io::Result<()> = writeln!(writer, "{left_out} lines like the next one were left out");
        }
        writer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt};

    use super::*;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    /// Runs `f` with a log of what passes `filter`, and a time in seconds that `f` sets.
    fn logged(filter: &str, f: impl FnOnce(&AtomicU64)) -> Vec<String> {
        let (log, seconds) = (Log::default(), Arc::new(AtomicU64::new(0)));
        let at = seconds.clone();
        let limit = LineLimit::with_time(Arc::new(move || Duration::from_secs(at.load(Ordering::Relaxed))));
        let to = log.clone();
        let layer = fmt::layer().without_time().with_ansi(false).with_writer(limit.writer(move || to.clone()));
        let subscriber = Registry::default().with(layer.with_filter(limit).with_filter(EnvFilter::new(filter)));
        tracing::subscriber::with_default(subscriber, || f(&seconds));
        log.lines()
    }

    #[test]
    fn a_million_hostile_events_are_a_bounded_number_of_lines_and_none_is_hidden() {
        const EVENTS: u64 = 1_000_000;
        let lines = logged("info", |seconds| {
            for number in 0..=EVENTS {
                seconds.store(number / (EVENTS / 10), Ordering::Relaxed);
                tracing::warn!(number, "hostile");
            }
        });
        let shown = lines.iter().filter(|line| line.contains("hostile")).count() as u64;
        assert_eq!(shown, u64::from(BURST) + 9 + 1, "a burst, and one for each of ten more seconds");
        let told: u64 = lines
            .iter()
            .filter_map(|line| line.strip_suffix(" lines like the next one were left out"))
            .map(|n| n.parse::<u64>().unwrap())
            .sum();
        assert_eq!(told + shown, EVENTS + 1);
    }

    #[test]
    fn one_place_that_is_full_does_not_silence_another() {
        let lines = logged("info", |_| {
            for _ in 0..1_000 {
                tracing::info!("noise");
            }
            tracing::error!("a broken promise");
        });
        assert_eq!(lines.len() as u32, BURST + 1);
        assert!(lines.last().unwrap().contains("a broken promise"));
    }

    #[test]
    fn who_asks_for_details_gets_all_and_who_does_not_gets_none() {
        let log_all = |_: &AtomicU64| {
            for _ in 0..1_000 {
                tracing::debug!("detail");
            }
        };
        assert_eq!(logged("debug", log_all).len(), 1_000);
        assert_eq!(logged("info", log_all).len(), 0);
    }
}
