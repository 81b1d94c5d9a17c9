//! When operations are to begin in an open loop: a Poisson process, so that arrivals do not wait for answers and bursts
//! come as they do in the world. A ramp thins its beginning.
//!
//! Not here: clocks. Times are offsets from the start of the load.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The intended start of one operation after the other, as offsets from the start of the load; never ends.
#[derive(Debug)]
pub struct Arrivals {
    rng: StdRng,
    rate_per_s: f64,
    ramp_s: f64,
    /// Expected number of arrivals up to the last one: arrivals are one unit apart on average in this measure.
    elapsed: f64,
}

impl Arrivals {
    /// `rate_per_s` on average once `ramp` is over; the rate grows linearly until then.
    pub fn new(seed: u64, rate_per_s: f64, ramp: Duration) -> Arrivals {
        let rng = StdRng::seed_from_u64(seed);
        Arrivals { rng, rate_per_s: rate_per_s.max(1e-6), ramp_s: ramp.as_secs_f64(), elapsed: 0.0 }
    }

    /// The offset at which `expected` arrivals are to have come, on average: the inverse of the rate's integral.
    fn offset_of(&self, expected: f64) -> f64 {
        let during_ramp = self.rate_per_s * self.ramp_s / 2.0;
        if expected < during_ramp {
            (2.0 * expected * self.ramp_s / self.rate_per_s).sqrt()
        } else {
            self.ramp_s + (expected - during_ramp) / self.rate_per_s
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let uniform: f64 = self.rng.random();
        self.elapsed += -(1.0 - uniform).ln();
        Some(Duration::from_secs_f64(self.offset_of(self.elapsed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_exponential_and_follow_from_the_seed() {
        let run = |seed| Arrivals::new(seed, 1_000.0, Duration::ZERO).take(20_000).collect::<Vec<_>>();
        let times = run(7);
        assert_eq!(times, run(7));
        assert_ne!(times, run(8));
        assert!(times.is_sorted());
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.001).abs() < 0.000_03, "{mean}");
        // An exponential's deviation equals its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{}", variance.sqrt() / mean);
    }

    #[test]
    fn a_ramp_thins_the_beginning() {
        let times = Arrivals::new(1, 1_000.0, Duration::from_secs(4)).take_while(|at| *at < Duration::from_secs(8));
        let times: Vec<f64> = times.map(|at| at.as_secs_f64()).collect();
        let within = |from: f64, to: f64| times.iter().filter(|at| (from..to).contains(*at)).count();
        let near =
            |found: usize, expected: usize| assert!(found.abs_diff(expected) < expected / 5, "{found} {expected}");
        near(within(0.0, 2.0), 500);
        near(within(2.0, 4.0), 1_500);
        near(within(4.0, 8.0), 4_000);
    }
}
