//! The clocks. The only file of the project that reads them: everything else gets the time as an argument.
//!
//! Wall time ([`unix_now`]) goes into what people and other nodes see; it may jump. Monotonic time
//! ([`MonotonicClock`]) is for deadlines and retries; it never goes back. The two are never compared.
//!
//! Not here: sleeping and timers (tokio's, on the control runtime).
#![allow(clippy::disallowed_methods, reason = "this is the file that reads the clocks")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use handfast_protocol::UnixMillis;
use handfast_trust::{Clock, Monotonic};

/// The last millisecond that RFC 3339 can write: 9999-12-31T23:59:59.999Z.
const RFC3339_MAX: UnixMillis = UnixMillis(253_402_300_799_999);

/// Now, by the wall clock; a clock before 1970 reads as 1970.
pub fn unix_now() -> UnixMillis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// A clock that never goes back. Its origin is its creation.
#[derive(Debug, Clone, Copy)]
pub struct MonotonicClock {
    origin: Instant,
}

impl MonotonicClock {
    /// A clock that reads zero now.
    pub fn start() -> MonotonicClock {
        MonotonicClock { origin: Instant::now() }
    }

    /// Time since the clock was started.
    pub fn now(&self) -> Monotonic {
        Monotonic(self.origin.elapsed())
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Monotonic {
        MonotonicClock::now(self)
    }
}

/// An instant as RFC 3339 in UTC with milliseconds. Instants after the year 9999 read as its end: they come from
/// strangers and must not stop a listing.
pub fn rfc3339(at: UnixMillis) -> String {
    let shown = at.min(RFC3339_MAX);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(shown.0)).to_string()
}

/// A text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a duration; expected for example 30s, 15m, 24h or 30d")]
pub struct NotADuration;

/// Reads a duration such as `30d` or `1h 30m` as milliseconds.
///
/// # Errors
/// [`NotADuration`], also for one that 64 bits of milliseconds cannot hold.
pub fn parse_duration_ms(text: &str) -> Result<u64, NotADuration> {
    let duration = humantime::parse_duration(text).map_err(|_| NotADuration)?;
    u64::try_from(duration.as_millis()).map_err(|_| NotADuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_read_as_rfc3339_and_none_panics() {
        let check = |ms, expected: &str| assert_eq!(rfc3339(UnixMillis(ms)), expected);
        check(0, "1970-01-01T00:00:00.000Z");
        check(1_700_000_000_123, "2023-11-14T22:13:20.123Z");
        check(RFC3339_MAX.0, "9999-12-31T23:59:59.999Z");
        check(u64::MAX, "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn durations_are_read_with_their_units() {
        let check = |text, expected| assert_eq!(parse_duration_ms(text), expected, "{text}");
        check("30d", Ok(30 * 24 * 3_600_000));
        check("1h 30m", Ok(90 * 60_000));
        check("250ms", Ok(250));
        for bad in ["", "30", "d", "-5s", "5 parsecs", "99999999999999999999y"] {
            check(bad, Err(NotADuration));
        }
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let clock = MonotonicClock::start();
        let earlier = clock.now();
        assert!(clock.now() >= earlier);
        assert!(unix_now() > UnixMillis(1_700_000_000_000));
    }
}
