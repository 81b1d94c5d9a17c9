//! What a storm is to be: flags laid over a scenario laid over defaults, checked together and bounded.
//!
//! Not here: how the flags are typed (`cli`), and what is done (`load`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::kind::{Kind, Mix};
use crate::clock;
use crate::config::text_of;
use crate::control::api::{ApiError, ErrorCode};

/// Operations without other wishes.
pub const PEERS_DEFAULT: u64 = 2_000;
/// Most operations of one run.
pub const PEERS_MAX: u64 = 1_000_000;
/// Conversations at once without other wishes.
const CONCURRENCY_DEFAULT: u32 = 64;
const CONCURRENCY_MAX: u32 = 10_000;
/// Operations that an open loop may have begun and not ended, without other wishes: more than a node has permits for
/// strangers.
const IN_FLIGHT_DEFAULT: u32 = 512;
/// About 30 KB each.
const IN_FLIGHT_MAX: u64 = 65_536;
const RATE_MAX: f64 = 1_000_000.0;
/// A day.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Endpoints of a run without sources: a burst that fills one socket's buffer leaves the others alone.
const ENDPOINTS_DEFAULT: u32 = 4;
const SOURCES_MAX: u32 = 1_000;
/// Keys that can be on an allow list, those that are trusted while strangers are not: what a configuration file holds.
const ALLOWED_MAX: u64 = 15_000;
const CHURN_MIN: Duration = Duration::from_secs(1);
const FSYNC_DELAY_MAX: Duration = Duration::from_secs(30);
const LINGER_MAX: Duration = Duration::from_secs(300);

/// A scenario, or a report that was kept.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The scenarios that the program carries.
const SCENARIOS: [(&str, &str); 9] = [
    ("fresh-network", include_str!("../../../config/storm/fresh-network.toml")),
    ("reconnect", include_str!("../../../config/storm/reconnect.toml")),
    ("flood", include_str!("../../../config/storm/flood.toml")),
    ("slow-disk", include_str!("../../../config/storm/slow-disk.toml")),
    ("hung-disk", include_str!("../../../config/storm/hung-disk.toml")),
    ("revocation-wave", include_str!("../../../config/storm/revocation-wave.toml")),
    ("cut", include_str!("../../../config/storm/cut.toml")),
    ("vanish", include_str!("../../../config/storm/vanish.toml")),
    ("slowloris", include_str!("../../../config/storm/slowloris.toml")),
];

/// Their names.
pub fn scenarios() -> impl Iterator<Item = &'static str> {
    SCENARIOS.iter().map(|(name, _)| *name)
}

/// What was asked for, by flags or in a scenario file; whatever is absent has its default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    pub peers: Option<u64>,
    pub concurrency: Option<u32>,
    pub rate: Option<f64>,
    pub duration: Option<String>,
    pub ramp: Option<String>,
    pub seed: Option<u64>,
    pub sources: Option<u32>,
    pub mix: Option<String>,
    pub churn: Option<String>,
    pub fsync_delay: Option<String>,
    pub fsync_hang: Option<String>,
    pub linger: Option<String>,
    pub in_flight: Option<u32>,
    pub default_limits: Option<bool>,
}

/// The resolved options of a run. In reports, durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The scenario's name; absent without one.
    pub scenario: Option<String>,
    /// Operations in all; absent: as many as the duration takes.
    pub peers: Option<u64>,
    /// Conversations at once in a closed loop; absent in an open one.
    pub concurrency: Option<u32>,
    /// Arrivals a second in an open loop.
    pub rate: Option<f64>,
    pub duration_ms: Option<u64>,
    pub ramp_ms: u64,
    pub seed: u64,
    /// Loopback addresses that the peers come from; absent: the one that the system chooses.
    pub sources: Option<u32>,
    pub mix: String,
    pub churn_ms: Option<u64>,
    pub fsync_delay_ms: u64,
    /// How long the own node's disk hangs, once.
    #[serde(default)]
    pub fsync_hang_ms: u64,
    /// Operations of the crowd that an open loop may have under way.
    #[serde(default = "in_flight_default")]
    pub in_flight: u32,
    /// How long the own node's memory is watched after the load.
    #[serde(default)]
    pub linger_ms: u64,
    /// Whether the own node keeps its default limits on sources.
    pub default_limits: bool,
}

impl Wishes {
    /// These, and what is absent from `under`.
    #[must_use]
    pub fn over(self, under: Wishes) -> Wishes {
        // An open loop asked for by a flag replaces a closed one of the scenario, and the other way round.
        let (concurrency, rate) = match (self.concurrency, self.rate) {
            (None, None) => (under.concurrency, under.rate),
            chosen => chosen,
        };
        Wishes {
            peers: self.peers.or(under.peers),
            concurrency,
            rate,
            duration: self.duration.or(under.duration),
            ramp: self.ramp.or(under.ramp),
            seed: self.seed.or(under.seed),
            sources: self.sources.or(under.sources),
            mix: self.mix.or(under.mix),
            churn: self.churn.or(under.churn),
            fsync_delay: self.fsync_delay.or(under.fsync_delay),
            fsync_hang: self.fsync_hang.or(under.fsync_hang),
            linger: self.linger.or(under.linger),
            in_flight: self.in_flight.or(under.in_flight),
            default_limits: self.default_limits.or(under.default_limits),
        }
    }
}

/// The scenario of this name, or in this file.
///
/// # Errors
/// `NotFound` if there is none, `Usage` if it is not one.
pub fn scenario(name: &str) -> Result<Wishes, ApiError> {
    let carried = SCENARIOS.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
    let text = match carried {
        Some(text) => text,
        None => text_of(Path::new(name), FILE_BYTES_MAX).map_err(|error| {
            let names: Vec<&str> = scenarios().collect();
            ApiError::new(ErrorCode::NotFound, format!("There is no scenario `{name}`, and no file: {error}."))
                .hint(format!("scenarios are {}; or name a file", names.join(", ")))
        })?,
    };
    toml::from_str(&text).map_err(|error| {
        let what = error.to_string();
        let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
        ApiError::new(ErrorCode::Usage, format!("The scenario `{name}` cannot be used: {what}."))
            .hint("see config/storm for the form")
    })
}

fn usage(message: String, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Usage, message).hint(hint)
}

fn time(name: &str, text: Option<&str>, range: (Duration, Duration)) -> Result<Option<Duration>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let ms = clock::parse_duration_ms(text)
        .map_err(|error| usage(format!("`{text}` for {name}: {error}."), "for example 500ms, 30s or 5m"))?;
    let time = Duration::from_millis(ms);
    if time < range.0 || time > range.1 {
        let hint = format!("from {} to {} seconds", range.0.as_secs_f64(), range.1.as_secs());
        return Err(usage(format!("`{text}` for {name} is out of its range."), &hint));
    }
    Ok(Some(time))
}

impl Plan {
    /// Checks the wishes and fills in what was not asked for. `own_node`: whether the node is the storm's own.
    ///
    /// # Errors
    /// `Usage` for what is out of range or does not go together.
    pub fn of(wishes: Wishes, scenario: Option<String>, own_node: bool, seed: u64) -> Result<Plan, ApiError> {
        let mix: Mix = wishes.mix.as_deref().unwrap_or("new=1").parse().map_err(|fault: super::kind::MixFault| {
            usage(format!("{fault}."), "for example --mix new=6,known=3,garbage=1")
        })?;
        let duration = time("--duration", wishes.duration.as_deref(), (Duration::from_millis(100), DURATION_MAX))?;
        let ramp = time("--ramp", wishes.ramp.as_deref(), (Duration::ZERO, DURATION_MAX))?.unwrap_or_default();
        let churn = time("--churn", wishes.churn.as_deref(), (CHURN_MIN, DURATION_MAX))?;
        let delay = time("--fsync-delay", wishes.fsync_delay.as_deref(), (Duration::ZERO, FSYNC_DELAY_MAX))?;
        let hang = time("--fsync-hang", wishes.fsync_hang.as_deref(), (Duration::ZERO, FSYNC_DELAY_MAX))?;
        let linger = time("--linger", wishes.linger.as_deref(), (Duration::ZERO, LINGER_MAX))?;
        let asks_of_own = [churn, delay, hang, linger].iter().any(Option::is_some) || wishes.default_limits.is_some();
        if !own_node && (asks_of_own || mix.weight(Kind::Cut) > 0) {
            return Err(usage(
                "--churn, --fsync-delay, --fsync-hang, --linger, --default-limits and the kind `cut` concern a node of \
                 the storm's own."
                    .to_owned(),
                "leave --target out",
            ));
        }
        let peers = match (wishes.peers, duration) {
            (None, None) => Some(PEERS_DEFAULT),
            (peers, _) => peers,
        };
        within("--peers", peers, 1, PEERS_MAX)?;
        within("--concurrency", wishes.concurrency.map(u64::from), 1, u64::from(CONCURRENCY_MAX))?;
        within("--in-flight", wishes.in_flight.map(u64::from), 1, IN_FLIGHT_MAX)?;
        within("--sources", wishes.sources.map(u64::from), 1, u64::from(SOURCES_MAX))?;
        if wishes.rate.is_some_and(|rate| !(rate > 0.0 && rate <= RATE_MAX)) {
            return Err(usage("--rate is out of its range.".to_owned(), "more than 0, up to 1000000"));
        }
        if wishes.rate.is_some() && wishes.concurrency.is_some() {
            return Err(usage("--rate and --concurrency do not go together.".to_owned(), "choose one of them"));
        }
        let plan = Plan {
            scenario,
            peers,
            concurrency: wishes.rate.is_none().then(|| wishes.concurrency.unwrap_or(CONCURRENCY_DEFAULT)),
            rate: wishes.rate,
            duration_ms: duration.map(millis),
            ramp_ms: millis(ramp),
            seed: wishes.seed.unwrap_or(seed),
            sources: wishes.sources,
            mix: mix.to_string(),
            churn_ms: churn.map(millis),
            fsync_delay_ms: delay.map_or(0, millis),
            fsync_hang_ms: hang.map_or(0, millis),
            in_flight: wishes.in_flight.unwrap_or(IN_FLIGHT_DEFAULT),
            linger_ms: linger.map_or(0, millis),
            default_limits: wishes.default_limits.unwrap_or(false),
        };
        if mix.weight(Kind::Pending) > 0 && plan.friends().is_none_or(|friends| friends > ALLOWED_MAX) {
            return Err(usage(
                "A mix with `pending` needs to know who is no stranger, and that list would be too long.".to_owned(),
                "give fewer --peers, so that at most 15000 are not `pending` or hostile",
            ));
        }
        Ok(plan)
    }

    /// How many identities the own node is told to trust, where it does not trust everybody: those that are expected,
    /// and some more. Absent: as many as come.
    pub fn friends(&self) -> Option<u64> {
        let mix = self.mix();
        if mix.weight(Kind::Pending) == 0 {
            return None;
        }
        let kinds = [Kind::New, Kind::Known, Kind::Revoke, Kind::Flap, Kind::Idle, Kind::Vanish, Kind::Cut];
        let expected = |operations| kinds.iter().map(|kind| mix.expected(*kind, operations)).sum::<u64>();
        self.peers.map(|operations| (expected(operations) * 5 / 4 + 1_000).min(operations.max(1)))
    }

    /// The mix, as weights.
    pub fn mix(&self) -> Mix {
        self.mix.parse().unwrap_or_default()
    }

    /// Where the simulated peers come from. With sources, each in a /24 of its own, so that limits on prefixes see as
    /// many; `target` says of which family they are otherwise.
    pub fn addresses(&self, target: SocketAddr) -> Vec<SocketAddr> {
        self.hosts(target, 1)
    }

    /// The same for the crowd: with sources, another address of the same networks each.
    pub fn crowd_addresses(&self, target: SocketAddr) -> Vec<SocketAddr> {
        self.hosts(target, 2)
    }

    fn hosts(&self, target: SocketAddr, host: u8) -> Vec<SocketAddr> {
        let any = match target.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(ip) if ip.is_loopback() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let own = |number: u32| {
            let (second, third) = (number / 250, number % 250);
            let octet = |n: u32| u8::try_from(n % 256).unwrap_or_default();
            IpAddr::V4(Ipv4Addr::new(127, octet(1 + second), octet(third), host))
        };
        match self.sources {
            Some(sources) => (0..sources).map(|number| SocketAddr::new(own(number), 0)).collect(),
            None => (0..ENDPOINTS_DEFAULT).map(|_| SocketAddr::new(any, 0)).collect(),
        }
    }
}

fn in_flight_default() -> u32 {
    IN_FLIGHT_DEFAULT
}

fn within(name: &str, value: Option<u64>, min: u64, max: u64) -> Result<(), ApiError> {
    match value {
        Some(value) if value < min || value > max => {
            Err(usage(format!("{name} {value} is out of its range."), &format!("from {min} to {max}")))
        }
        _ => Ok(()),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(wishes: Wishes) -> Result<Plan, ApiError> {
        Plan::of(wishes, None, true, 9)
    }

    #[test]
    fn without_wishes_two_thousand_new_peers_come_in_a_closed_loop() {
        let plan = plan(Wishes::default()).unwrap();
        assert_eq!((plan.peers, plan.concurrency, plan.rate), (Some(2_000), Some(64), None));
        assert_eq!((plan.mix.as_str(), plan.seed), ("new=1", 9));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let check = |wishes: Wishes, says: &str| {
            let error = plan(wishes).unwrap_err();
            assert_eq!(error.code, ErrorCode::Usage);
            assert!(error.message.contains(says), "{error:?}");
        };
        let none = Wishes::default;
        check(Wishes { peers: Some(0), ..none() }, "--peers");
        check(Wishes { concurrency: Some(20_000), ..none() }, "--concurrency");
        check(Wishes { rate: Some(f64::NAN), ..none() }, "--rate");
        check(Wishes { rate: Some(1.0), concurrency: Some(1), ..none() }, "do not go together");
        check(Wishes { duration: Some("soon".into()), ..none() }, "--duration");
        check(Wishes { churn: Some("10ms".into()), ..none() }, "--churn");
        check(Wishes { mix: Some("new".into()), ..none() }, "KIND=WEIGHT");
        check(Wishes { mix: Some("pending=1".into()), duration: Some("5s".into()), ..none() }, "pending");
        let remote = Plan::of(Wishes { churn: Some("5s".into()), ..none() }, None, false, 1).unwrap_err();
        assert!(remote.message.contains("own"), "{remote:?}");
    }

    #[test]
    fn every_scenario_is_a_plan_and_flags_go_over_it() {
        for name in scenarios() {
            let plan = plan(scenario(name).unwrap()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert!(plan.duration_ms.is_some_and(|ms| ms <= 60_000) || plan.peers.is_some(), "{name} is bounded");
        }
        let flags = Wishes { concurrency: Some(3), seed: Some(5), ..Wishes::default() };
        let under = Wishes { rate: Some(10.0), seed: Some(6), peers: Some(7), ..Wishes::default() };
        let both = flags.over(under);
        assert_eq!((both.concurrency, both.rate, both.seed, both.peers), (Some(3), None, Some(5), Some(7)));
        assert_eq!(scenario("no-such").unwrap_err().code, ErrorCode::NotFound);
        let endless = scenario("/dev/zero").unwrap_err();
        assert!(endless.message.contains("too large"), "{endless:?}");
    }

    #[test]
    fn sources_are_of_different_prefixes() {
        let plan = plan(Wishes { sources: Some(1_000), ..Wishes::default() }).unwrap();
        let addresses = plan.addresses("127.0.0.1:1".parse().unwrap());
        let prefixes: std::collections::HashSet<_> = addresses
            .iter()
            .map(|at| match at.ip() {
                IpAddr::V4(ip) => [ip.octets()[0], ip.octets()[1], ip.octets()[2]],
                IpAddr::V6(_) => panic!("an IPv4 address"),
            })
            .collect();
        assert_eq!(prefixes.len(), 1_000);
    }
}
