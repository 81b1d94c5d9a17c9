//! How late a node answers that is asked at fixed moments, with what nobody could ask while it was silent: a stall counts
//! for as long as it takes, and not as one slow answer among many quick ones (coordinated omission, Gil Tene).
//!
//! Pure: times in, a histogram out.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::measure::LATENCY_US_MAX;

/// Asking costs the node: it is to take no more than one part in so many of its time.
const SHARE: u32 = 10;

/// Records something that was late, and what was due every `every` meanwhile: each waited for the rest of it.
pub(super) fn record_late(histogram: &mut Histogram<u64>, late: Duration, every: Duration) {
    let every = micros(every).max(1);
    // BOUND: what is later than can be told apart counts as that.
    let mut late = micros(late).min(LATENCY_US_MAX);
    histogram.saturating_record(late);
    while late >= 2 * every {
        late -= every;
        histogram.saturating_record(late);
    }
}

/// Answers to questions that are asked every so often.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) late: Histogram<u64>,
    every: Duration,
    /// How late the last one was.
    before: Duration,
}

impl Answers {
    /// None yet, of questions that are asked every `every`.
    pub(super) fn new(late: Histogram<u64>, every: Duration) -> Answers {
        Answers { late, every, before: Duration::ZERO }
    }

    /// An answer came so late. Returns how long nobody is to ask now, so that asking stays under its share. One slow
    /// answer does not say that answers are dear, two do; what is not asked then counts as answered like these two.
    pub(super) fn answered(&mut self, late: Duration) -> Duration {
        record_late(&mut self.late, late, self.every);
        let cost = late.min(self.before);
        self.before = late;
        let rest = (cost * (SHARE - 1)).min(self.every * 20);
        let unasked = rest.as_micros() / self.every.as_micros().max(1);
        let unasked = u64::try_from(unasked).unwrap_or_default();
        if unasked > 0 {
            self.late.saturating_record_n(micros(cost), unasked);
        }
        rest
    }

    /// Nobody has answered yet what was asked so long ago, and nobody waits any more.
    pub(super) fn given_up(&mut self, late: Duration) {
        // What is not overdue says nothing.
        if late > self.every {
            record_late(&mut self.late, late, self.every);
        }
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::measure::{Percentiles, histogram};

    const EVERY: Duration = Duration::from_millis(50);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_stall_counts_for_as_long_as_it_takes() {
        let mut answers = Answers::new(histogram().unwrap(), EVERY);
        for _ in 0..100 {
            assert!(answers.answered(ms(1)) < EVERY);
        }
        // As long as all the others together.
        assert_eq!(answers.answered(ms(5_000)), ms(9));
        assert_eq!(answers.late.len(), 200);
        let found = Percentiles::of(&answers.late).unwrap();
        assert!(found.p99 > 4_800_000 && found.p90 > 3_900_000 && found.p50 < 60_000, "{found:?}");
    }

    #[test]
    fn answers_that_are_dear_are_asked_for_more_seldom_and_count_the_more() {
        let mut answers = Answers::new(histogram().unwrap(), EVERY);
        answers.answered(ms(40));
        assert_eq!(answers.answered(ms(20)), ms(180));
        assert_eq!(answers.late.len(), 2 + 3);
        assert_eq!(answers.answered(ms(900)), ms(180));
        assert_eq!(answers.answered(ms(900)), ms(1_000), "at most");
    }

    #[test]
    fn what_never_was_answered_counts_once_it_is_overdue() {
        let mut answers = Answers::new(histogram().unwrap(), EVERY);
        answers.given_up(ms(20));
        assert!(answers.late.is_empty());
        answers.given_up(ms(200));
        assert_eq!(answers.late.len(), 4);
    }
}
