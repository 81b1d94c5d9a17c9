//! `GET /metrics`: the status, the lock hold times and what became of first packets, as OpenMetrics text (version
//! 1.0.0).
//!
//! Written by hand: two dozen gauges and counters that are copies of the status need no registry beside it.

use std::fmt::{Display, Write};

use handfast_trust::{FileKind, HoldTimesSnapshot};

use super::api::StatusReply;
use crate::admission;

/// What only metrics show, beside the status.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// How long the lock of each store was held.
    pub holds: Vec<(FileKind, HoldTimesSnapshot)>,
    /// What became of first packets, and what is reserved; absent without a network.
    pub admission: Option<(admission::Counts, admission::InUse)>,
}

/// Content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text.
pub fn openmetrics(status: &StatusReply, measured: &Measured) -> String {
    let mut text = String::new();
    family(&mut text, "handfast_health", "gauge", "1 for the health that the node is in");
    for health in ["ok", "degraded", "closed"] {
        sample(&mut text, &format!("handfast_health{{state=\"{health}\"}}"), u8::from(status.health == health));
    }
    let counts = &status.counts;
    family(&mut text, "handfast_peers", "gauge", "Peers by state");
    let states = [
        ("trusted", counts.trusted),
        ("pending", counts.pending),
        ("requested", counts.requested),
        ("revoked", counts.revoked),
        ("refused", counts.refused),
        ("blocked", counts.blocked),
    ];
    for (state, count) in states {
        sample(&mut text, &format!("handfast_peers{{state=\"{state}\"}}"), count);
    }
    let gauges = [
        ("handfast_sessions", "Sessions that are open", counts.sessions),
        ("handfast_half_open", "Connections that have not authenticated yet", counts.half_open),
        ("handfast_undelivered", "Statements of ours that their subjects do not hold yet", counts.undelivered),
        ("handfast_revision", "Number of the last change of trust", status.revision),
        ("handfast_durable_revision", "Number of the last change that is on the disk", status.durable_revision),
        (
            "handfast_storage_failures_in_a_row",
            "Failed writes since the last that succeeded",
            u64::from(status.storage.failures_in_a_row),
        ),
    ];
    for (name, help, value) in gauges {
        family(&mut text, name, "gauge", help);
        sample(&mut text, name, value);
    }
    let counters = [
        ("handfast_storage_fsyncs", "Syncs of files and directories", status.storage.fsyncs),
        ("handfast_storage_written_bytes", "Bytes written to record files", status.storage.bytes_written),
        ("handfast_storage_checkpoints", "Checkpoints completed", status.storage.checkpoints),
    ];
    for (name, help, value) in counters {
        family(&mut text, name, "counter", help);
        sample(&mut text, &format!("{name}_total"), value);
    }
    if let Some((counts, in_use)) = measured.admission {
        let name = "handfast_first_packets";
        family(&mut text, name, "counter", "First packets of connections, by what became of them");
        let fates = [
            ("accepted", counts.accepted),
            ("retried", counts.retried),
            ("refused", counts.refused),
            ("overlooked", counts.overlooked),
        ];
        for (fate, count) in fates {
            sample(&mut text, &format!("{name}_total{{fate=\"{fate}\"}}"), count);
        }
        let name = "handfast_evicted";
        family(&mut text, name, "counter", "Connections under way that made room for others");
        sample(&mut text, &format!("{name}_total"), counts.evicted);
        let name = "handfast_permits";
        family(&mut text, name, "gauge", "Permits that connections under way hold");
        for (lane, count) in [("friend", in_use.friends), ("stranger", in_use.strangers)] {
            sample(&mut text, &format!("{name}{{lane=\"{lane}\"}}"), count);
        }
        let name = "handfast_waiting_for_permit";
        family(&mut text, name, "gauge", "Strangers with a proven address that wait for a permit");
        sample(&mut text, name, in_use.seated);
        let name = "handfast_friend_addresses";
        family(&mut text, name, "gauge", "Addresses that have friends under way");
        sample(&mut text, name, in_use.friend_addresses);
    }
    lock_holds(&mut text, &measured.holds);
    text.push_str("# EOF\n");
    text
}

/// Quantiles of a summary are over the whole run: the upper ends of the buckets that hold them.
fn lock_holds(text: &mut String, holds: &[(FileKind, HoldTimesSnapshot)]) {
    let name = "handfast_lock_hold_seconds";
    family(text, name, "summary", "How long the lock of a store was held");
    for (kind, times) in holds {
        for quantile in [0.5, 0.99, 0.999, 1.0] {
            let seconds = if quantile < 1.0 { times.quantile(quantile) } else { times.max }.as_secs_f64();
            sample(text, &format!("{name}{{store=\"{kind}\",quantile=\"{quantile}\"}}"), seconds);
        }
        sample(text, &format!("{name}_count{{store=\"{kind}\"}}"), times.counts.iter().sum::<u64>());
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# TYPE {name} {kind}\n# HELP {name} {help}.");
}

fn sample(text: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(text, "{name} {value}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use handfast_trust::HOLD_BUCKETS;

    use super::*;
    use crate::control::api::{Counts, Storage};

    #[test]
    fn the_text_is_openmetrics() {
        let status = StatusReply {
            peer_id: "hf1x".into(),
            health: "degraded".into(),
            reasons: vec!["writing fails".into()],
            revision: 9,
            durable_revision: 7,
            counts: Counts { trusted: 3, ..Counts::default() },
            storage: Storage { fsyncs: 12, failures_in_a_row: 4, ..Storage::default() },
            data_dir: "/d".into(),
            listen: Vec::new(),
            networks: Vec::new(),
        };
        let mut holds = HoldTimesSnapshot { counts: [0; HOLD_BUCKETS], max: Duration::from_nanos(1_500) };
        holds.counts[10] = 999;
        let counts = admission::Counts { retried: 5, ..admission::Counts::default() };
        let admission = Some((counts, admission::InUse { friends: 8, ..admission::InUse::default() }));
        let text = openmetrics(&status, &Measured { holds: vec![(FileKind::Trust, holds)], admission });
        for line in [
            "handfast_health{state=\"ok\"} 0",
            "handfast_health{state=\"degraded\"} 1",
            "handfast_peers{state=\"trusted\"} 3",
            "handfast_durable_revision 7",
            "handfast_storage_failures_in_a_row 4",
            "handfast_storage_fsyncs_total 12",
            "handfast_first_packets_total{fate=\"retried\"} 5",
            "handfast_permits{lane=\"friend\"} 8",
            "handfast_lock_hold_seconds{store=\"trust.hf\",quantile=\"1\"} 0.0000015",
            "handfast_lock_hold_seconds_count{store=\"trust.hf\"} 999",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
        let mut family = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(named) => family = named.split(' ').next().unwrap(),
                None => assert!(line.starts_with('#') || line.starts_with(family), "{line}"),
            }
        }
    }
}
