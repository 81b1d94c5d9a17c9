//! `GET /metrics`: the status as OpenMetrics text (version 1.0.0).
//!
//! Written by hand: a dozen gauges and counters that are copies of the status need no registry beside it.

use std::fmt::{Display, Write};

use super::api::StatusReply;

/// Content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text.
pub fn openmetrics(status: &StatusReply) -> String {
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
    text.push_str("# EOF\n");
    text
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# TYPE {name} {kind}\n# HELP {name} {help}.");
}

fn sample(text: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(text, "{name} {value}");
}

#[cfg(test)]
mod tests {
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
        };
        let text = openmetrics(&status);
        for line in [
            "handfast_health{state=\"ok\"} 0",
            "handfast_health{state=\"degraded\"} 1",
            "handfast_peers{state=\"trusted\"} 3",
            "handfast_durable_revision 7",
            "handfast_storage_failures_in_a_row 4",
            "handfast_storage_fsyncs_total 12",
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
