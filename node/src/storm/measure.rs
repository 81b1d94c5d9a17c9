//! What is counted while a storm runs: outcomes by kind, latencies, and both over time.
//!
//! Invariants (BOUND): memory does not grow with the number of operations: histograms, a slot for each
//! [`SLOT_MS`] of the run up to [`SLOTS_MAX`], and [`FAULTS_MAX`] different texts of faults.
//!
//! Not here: clocks; times come in as offsets from the start of the load.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::kind::Kind;
use crate::control::api::{ApiError, ErrorCode};

/// Length of one slot of the course.
pub const SLOT_MS: u64 = 100;
/// Slots that are kept, for what is drawn: two and a half hours.
const SLOTS_MAX: usize = 90_000;
/// Different faults that are told apart.
const FAULTS_MAX: usize = 32;
/// Longest latency that is told apart: two minutes.
pub const LATENCY_US_MAX: u64 = 120_000_000;

/// A histogram of microseconds, to three digits.
///
/// # Errors
/// Never with these bounds; the library says it at run time.
pub fn histogram() -> Result<Histogram<u64>, ApiError> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
        .map_err(|error| ApiError::new(ErrorCode::Failure, format!("The histogram cannot be made: {error}.")))
}

/// Percentiles of latencies, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Percentiles {
    /// Those of a histogram; `None` where it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Percentiles> {
        let at = |quantile| histogram.value_at_quantile(quantile);
        let found = Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() };
        (!histogram.is_empty()).then_some(found)
    }
}

/// Outcomes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcomes {
    pub completed: u64,
    pub failed: u64,
}

/// One piece of the course.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slot {
    pub completed: u64,
    pub failed: u64,
    pub slowest_us: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Tally {
    /// Of honest conversations that were completed.
    pub latency: Histogram<u64>,
    /// The same since the last line of progress.
    pub recent: Histogram<u64>,
    pub kinds: [Outcomes; Kind::ALL.len()],
    /// Of completed operations, by kind; in the order of [`Kind::ALL`].
    pub latencies: Vec<Histogram<u64>>,
    pub slots: Vec<Slot>,
    pub faults: BTreeMap<String, u64>,
    /// Arrivals of an open loop for which the generator had no place; among those that failed.
    pub not_sent: u64,
    /// Connections that hung, by stage.
    pub stages: BTreeMap<&'static str, Stage>,
    /// How long sessions went on serving once their revocation had been asked for.
    pub serving: Histogram<u64>,
    /// When the last honest conversation was completed.
    pub last: Duration,
    /// Until when arrivals of an open loop come.
    pub open: Option<Duration>,
    /// Honest conversations that were completed until then.
    pub completed_in_time: u64,
}

/// What became of connections that hung at one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stage {
    pub count: u64,
    /// Those that heard of their end.
    pub heard: u64,
    pub longest_us: u64,
}

impl Tally {
    /// Nothing yet.
    ///
    /// # Errors
    /// As [`histogram`].
    pub fn new() -> Result<Tally, ApiError> {
        let (latency, recent, serving) = (histogram()?, histogram()?, histogram()?);
        let kinds = [Outcomes::default(); Kind::ALL.len()];
        let latencies = Kind::ALL.into_iter().map(|_| histogram()).collect::<Result<_, _>>()?;
        Ok(Tally {
            latency,
            recent,
            kinds,
            latencies,
            slots: Vec::new(),
            faults: BTreeMap::new(),
            not_sent: 0,
            stages: BTreeMap::new(),
            serving,
            last: Duration::ZERO,
            open: None,
            completed_in_time: 0,
        })
    }

    /// A conversation of `kind` that did what it should, ended at `at`.
    pub fn completed(&mut self, kind: Kind, at: Duration, latency: Duration) {
        self.kinds[kind as usize].completed += 1;
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies[kind as usize].saturating_record(us);
        if !kind.is_honest() {
            return;
        }
        self.latency.saturating_record(us);
        self.recent.saturating_record(us);
        self.last = self.last.max(at);
        self.completed_in_time += u64::from(self.open.is_none_or(|open| at <= open));
        if let Some(slot) = self.slot(at) {
            slot.completed += 1;
            slot.slowest_us = slot.slowest_us.max(us);
        }
    }

    /// One that did not.
    pub fn failed(&mut self, kind: Kind, at: Duration, fault: &str) {
        self.kinds[kind as usize].failed += 1;
        let text = format!("{kind}: {fault}");
        if self.faults.len() < FAULTS_MAX || self.faults.contains_key(&text) {
            *self.faults.entry(text).or_default() += 1;
        }
        if let Some(slot) = self.slot(at) {
            slot.failed += 1;
        }
    }

    /// A connection that hung, and after what time it heard of its end.
    pub fn hung(&mut self, stage: &'static str, heard: Option<Duration>) {
        let stage = self.stages.entry(stage).or_default();
        stage.count += 1;
        if let Some(after) = heard {
            stage.heard += 1;
            stage.longest_us = stage.longest_us.max(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        }
    }

    fn slot(&mut self, at: Duration) -> Option<&mut Slot> {
        let place = usize::try_from(at.as_millis() / u128::from(SLOT_MS)).unwrap_or(usize::MAX);
        if place >= SLOTS_MAX {
            return None;
        }
        if self.slots.len() <= place {
            self.slots.resize(place + 1, Slot::default());
        }
        self.slots.get_mut(place)
    }

    /// Handshakes that were completed, and operations of any kind that failed.
    pub fn totals(&self) -> Outcomes {
        let mut totals = Outcomes::default();
        for kind in Kind::ALL {
            let of_kind = self.kinds[kind as usize];
            totals.completed += if kind.is_honest() { of_kind.completed } else { 0 };
            totals.failed += of_kind.failed;
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_honest_conversations_are_handshakes() {
        let mut tally = Tally::new().unwrap();
        for us in 1..=1_000 {
            tally.completed(Kind::New, ms(us), Duration::from_micros(us));
        }
        tally.completed(Kind::Garbage, ms(1), ms(5_000));
        tally.failed(Kind::Slow, ms(250), "still connected");
        tally.failed(Kind::New, ms(99_000_000), "late");
        assert_eq!(tally.totals(), Outcomes { completed: 1_000, failed: 2 });
        let percentiles = Percentiles::of(&tally.latency);
        assert_eq!(percentiles, Some(Percentiles { p50: 500, p90: 900, p99: 990, p999: 999, max: 1_000 }));
        assert_eq!(Percentiles::of(&tally.serving), None);
        assert_eq!(tally.last, ms(1_000));
        assert_eq!(tally.slots.len(), 11);
        assert_eq!(tally.slots[0].completed, 99);
        assert_eq!(tally.slots[2].failed, 1);
        assert_eq!(tally.slots[10].slowest_us, 1_000);
        assert_eq!(tally.faults["slow: still connected"], 1);
    }

    #[test]
    fn an_open_loop_counts_what_came_in_time_however_long_it_is() {
        let mut tally = Tally::new().unwrap();
        let hours = |hours: u64| Duration::from_secs(3_600 * hours);
        tally.open = Some(hours(4));
        for at in [1, 3, 4, 5].map(hours) {
            tally.completed(Kind::New, at, ms(1));
        }
        assert_eq!((tally.completed_in_time, tally.totals().completed), (3, 4));
    }

    #[test]
    fn a_flood_of_different_faults_is_bounded() {
        let mut tally = Tally::new().unwrap();
        for number in 0..1_000 {
            tally.failed(Kind::New, ms(1), &number.to_string());
        }
        assert_eq!(tally.faults.len(), FAULTS_MAX);
        assert_eq!(tally.totals().failed, 1_000);
    }
}
