//! How many handshakes a source may begin: a bucket of tokens for its address and one for its prefix.
//!
//! Invariant: a bounded number of buckets is remembered. The hash of the table is seeded, so that nobody can aim at one
//! of its chains.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Sources that are remembered: addresses and prefixes together. About 4 MiB.
pub const BUCKETS_MAX: usize = 65_536;
/// A full bucket holds this many seconds of its rate.
pub(super) const BURST_S: f64 = 2.0;

/// Handshakes that sources may begin in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// From one IPv4 address, or one IPv6 /64.
    pub per_address: u64,
    /// From one IPv4 /24, or one IPv6 /48.
    pub per_prefix: u64,
}

impl Rates {
    fn of(&self, source: Source) -> u64 {
        match source {
            Source::Address(_) => self.per_address,
            Source::Prefix(_) => self.per_prefix,
        }
    }
}

/// A source network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    Address(u64),
    Prefix(u64),
}

impl Source {
    /// The narrow and the wide one of an address.
    fn both(ip: IpAddr) -> [Source; 2] {
        let Place(whole) = Place::of(ip);
        let host_bits = if ip.to_canonical().is_ipv4() { 8 } else { 16 };
        [Source::Address(whole), Source::Prefix(whole >> host_bits)]
    }
}

/// One IPv4 address, or one IPv6 /64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Place(u64);

impl Place {
    pub(super) const LEAST: Place = Place(0);
    pub(super) const GREATEST: Place = Place(u64::MAX);

    /// Where an address is.
    pub(super) fn of(ip: IpAddr) -> Place {
        match ip.to_canonical() {
            // Apart from every IPv6 /64 that is in use: those begin with 0x2 or 0xf, not with 0x1.
            IpAddr::V4(v4) => Place(0x1000_0000_0000_0000 | u64::from(u32::from(v4))),
            IpAddr::V6(v6) => Place((u128::from(v6) >> 64) as u64),
        }
    }
}

/// A token bucket that fills by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    fn full(rate: u64, now: Duration) -> Bucket {
        Bucket { tokens: rate as f64 * BURST_S, at: now }
    }

    fn filled(&self, rate: u64, now: Duration) -> f64 {
        let filled = self.tokens + rate as f64 * now.saturating_sub(self.at).as_secs_f64();
        filled.min(Bucket::full(rate, now).tokens)
    }

    /// True if there was one.
    pub(super) fn take(&mut self, rate: u64, now: Duration) -> bool {
        let tokens = self.filled(rate, now);
        let is_there = tokens >= 1.0;
        *self = Bucket { tokens: if is_there { tokens - 1.0 } else { tokens }, at: now };
        is_there
    }
}

/// The buckets of all sources.
#[derive(Debug)]
pub(super) struct Sources {
    rates: Rates,
    buckets: HashMap<Source, Bucket>,
}

impl Sources {
    pub(super) fn new(rates: Rates) -> Sources {
        Sources { rates, buckets: HashMap::new() }
    }

    fn filled(&self, source: Source, now: Duration) -> f64 {
        let rate = self.rates.of(source);
        self.buckets.get(&source).map_or(Bucket::full(rate, now).tokens, |bucket| bucket.filled(rate, now))
    }

    pub(super) fn has_token(&self, ip: IpAddr, now: Duration) -> bool {
        Source::both(ip).iter().all(|source| self.filled(*source, now) >= 1.0)
    }

    /// One token of each of the two buckets; the caller has seen that there are some.
    pub(super) fn take_token(&mut self, ip: IpAddr, now: Duration) {
        for source in Source::both(ip) {
            self.make_room(now);
            let rate = self.rates.of(source);
            self.buckets.entry(source).or_insert(Bucket::full(rate, now)).take(rate, now);
        }
    }

    /// A bucket that is full again says nothing that a missing one does not. If none is, all are forgotten: for two
    /// seconds everybody has a burst, which the permits bound.
    fn make_room(&mut self, now: Duration) {
        if self.buckets.len() < BUCKETS_MAX {
            return;
        }
        let rates = self.rates;
        self.buckets.retain(|source, bucket| {
            let rate = rates.of(*source);
            bucket.filled(rate, now) < Bucket::full(rate, now).tokens
        });
        if self.buckets.len() >= BUCKETS_MAX {
            self.buckets.clear();
        }
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.buckets.len()
    }
}
