//! `doctor`: what a node needs and an operator can mend, looked at without a node. It only reads; what a check finds is a row,
//! also where it fails, and the other checks go on.
//!
//! Not here: the checks of record files (`store`), of the directory (`data_dir`) and of the key (`identity_file`).

use std::net::UdpSocket;
use std::ops::ControlFlow;

use handfast_protocol::UnixMillis;
use handfast_trust::{Edge, Medium, RealDir, Record, TrustRecord, salvage_last};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::store::check_all;
use super::{Context, Verdict, block_on};
use crate::clock::{rfc3339, unix_now};
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode};
use crate::control::client::{Client, ConnectError};
use crate::control::server::CONNECTIONS_MAX;
use crate::data_dir::{Access, DataDir};
use crate::identity_file;
use crate::output::table;
use crate::transport::{Buffers, buffers_granted};

/// Descriptors for everything but the control API's connections: record files, sockets, runtimes, twice over.
const OTHER_DESCRIPTORS: u64 = 128;
/// Clocks are set, a little, all the time.
const CLOCK_SLACK_MS: u64 = 1_000;

/// One row of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct CheckRow {
    pub(super) check: String,
    pub(super) ok: bool,
    /// What was found.
    pub(super) found: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
}

/// `doctor`
#[derive(Debug, Serialize)]
pub(super) struct DoctorReply {
    pub(super) ok: bool,
    pub(super) checks: Vec<CheckRow>,
}

impl CheckRow {
    fn new(check: &str, found: Result<String, ApiError>) -> CheckRow {
        let check = check.to_owned();
        match found {
            Ok(found) => CheckRow { check, ok: true, found, hint: None },
            Err(error) => CheckRow { check, ok: false, found: error.message, hint: error.hint },
        }
    }
}

pub(super) fn doctor(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let mut checks = Vec::new();
    let mut is_damaged = false;
    let directory = context.path().and_then(|path| Ok(DataDir::open(&path, Access::Own)?));
    let found = directory.as_ref().map(|directory| format!("{}, for its owner only", directory.path().display()));
    checks.push(CheckRow::new("data directory", found.map_err(Clone::clone)));
    let directory = directory.ok();
    let config = context.configuration(directory.as_ref(), &[]);
    checks.push(CheckRow::new("configuration", config.as_ref().map(|_| "valid".to_owned()).map_err(Clone::clone)));
    if let Some(directory) = &directory {
        let key = identity_file::load(directory.path()).map_err(ApiError::from);
        checks.push(CheckRow::new("identity", key.map(|key| key.peer_id().to_string())));
        let stores = stores(directory);
        is_damaged = stores.iter().any(|row| !row.ok);
        checks.extend(stores);
        checks.push(CheckRow::new("node", node(directory)));
        checks.push(CheckRow::new("clock", clock(directory, unix_now())));
    }
    let asked = config.unwrap_or_default();
    checks.push(CheckRow::new("socket buffers", socket_buffers(&asked)));
    checks.push(CheckRow::new("descriptors", descriptors(getrlimit(Resource::Nofile).current)));
    let reply = DoctorReply { ok: checks.iter().all(|row| row.ok), checks };
    context.output.reply(&reply, doctor_text)?;
    Ok(match (is_damaged, reply.ok) {
        (true, _) => Verdict::But(ErrorCode::Damaged),
        (false, false) => Verdict::But(ErrorCode::Failure),
        (false, true) => Verdict::Done,
    })
}

fn stores(directory: &DataDir) -> Vec<CheckRow> {
    let rows = match check_all(directory) {
        Ok(rows) => rows,
        // Without an identity there may be none yet: that row says so already.
        Err(error) if error.code == ErrorCode::NotFound => return Vec::new(),
        Err(error) => return vec![CheckRow::new("stores", Err(error))],
    };
    let row = |file: crate::control::api::FileRow| {
        let found = match file.error {
            None => Ok(format!("revision {}, {} records, {} bytes", file.revision, file.records, file.bytes)),
            Some(error) => Err(ApiError::new(ErrorCode::Damaged, error).hint("handfast store check, and then recover")),
        };
        CheckRow::new(&file.file, found)
    };
    rows.into_iter().map(row).collect()
}

/// Whether one runs is no fault; one that cannot be reached is.
fn node(directory: &DataDir) -> Result<String, ApiError> {
    let socket = directory.control_socket(|name| std::env::var_os(name))?;
    let connected = block_on(async { Ok(Client::connect(&socket, directory.path()).await.map(drop)) })?;
    match connected {
        Ok(()) | Err(ConnectError::Busy) => Ok("is running".to_owned()),
        Err(ConnectError::NoNode) => Ok("is not running".to_owned()),
        Err(ConnectError::Failed(error)) => Err(error),
    }
}

/// Nothing that is stored was stored later than now.
fn clock(directory: &DataDir, now: UnixMillis) -> Result<String, ApiError> {
    let mut medium = RealDir::open(directory.path())?;
    let mut newest = None;
    if medium.exists(TrustRecord::KIND.file_name())? {
        salvage_last(&mut medium, TrustRecord::KIND, |key, bytes| {
            // What does not decode is in the row of its file.
            let record = TrustRecord::decode_key(key).and_then(|key| TrustRecord::decode(&key, bytes)).ok();
            newest = newest.max(record.as_ref().and_then(last_change));
            ControlFlow::Continue(())
        })?;
    }
    match newest {
        Some(newest) if newest > now.plus(CLOCK_SLACK_MS) => {
            let message = format!("It is {}, and something was stored at {}.", rfc3339(now), rfc3339(newest));
            Err(ApiError::new(ErrorCode::Failure, message).hint("set the clock: grants end by it"))
        }
        Some(newest) => Ok(format!("{}, after the last change, {}", rfc3339(now), rfc3339(newest))),
        None => Ok(rfc3339(now)),
    }
}

fn last_change(record: &TrustRecord) -> Option<UnixMillis> {
    let edges = [&record.ours, &record.theirs].into_iter().flatten().map(|edge: &Edge| edge.stored_at);
    edges.chain(record.history.iter().map(|step| step.at)).max()
}

fn socket_buffers(config: &Config) -> Result<String, ApiError> {
    let asked = config.transport().socket_buffer_bytes;
    let granted = UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| buffers_granted(&socket, asked));
    let granted = granted.map_err(|error| {
        ApiError::new(ErrorCode::Failure, format!("The system does not say: {error}."))
            .hint("see the limits on sockets")
    })?;
    judge_buffers(asked, granted)
}

fn judge_buffers(asked: usize, granted: Buffers) -> Result<String, ApiError> {
    let Buffers { receive_bytes, send_bytes } = granted;
    let short = [(receive_bytes, "net.core.rmem_max"), (send_bytes, "net.core.wmem_max")];
    let raise: Vec<_> =
        short.iter().filter(|(bytes, _)| *bytes < asked).map(|(_, name)| format!("{name}={asked}")).collect();
    let found = format!("{receive_bytes} bytes to receive and {send_bytes} to send, of {asked} asked for");
    if raise.is_empty() {
        return Ok(found);
    }
    let hint = format!("packets of a storm are lost; as root: sysctl -w {}", raise.join(" "));
    Err(ApiError::new(ErrorCode::Failure, found).hint(hint))
}

/// `None`: without limit.
fn descriptors(limit: Option<u64>) -> Result<String, ApiError> {
    let needed = CONNECTIONS_MAX as u64 + OTHER_DESCRIPTORS;
    match limit {
        Some(limit) if limit < needed => {
            Err(ApiError::new(ErrorCode::Failure, format!("{limit} at most, of {needed} that a node may use"))
                .hint(format!("raise the limit: ulimit -n {needed}, or LimitNOFILE= in the unit")))
        }
        Some(limit) => Ok(format!("{limit} at most")),
        None => Ok("without limit".to_owned()),
    }
}

fn doctor_text(reply: &DoctorReply) -> String {
    let rows = reply.checks.iter().map(|row| {
        let state = if row.ok { "ok" } else { "attention" };
        vec![row.check.clone(), state.to_owned(), row.found.clone()]
    });
    let mut text = table(&["CHECK", "STATE", "FOUND"], &["CHECK", "STATE"], rows);
    for row in &reply.checks {
        if let Some(hint) = &row.hint {
            text.push_str(&format!("\n{}: {}", row.check, handfast_protocol::text::escaped(hint)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_does_not_grant_is_said_with_what_to_raise() {
        let granted = |receive_bytes, send_bytes| judge_buffers(1_000, Buffers { receive_bytes, send_bytes });
        assert!(granted(1_000, 2_000).is_ok());
        let hint = granted(999, 1_000).unwrap_err().hint.unwrap();
        assert!(hint.contains("net.core.rmem_max=1000") && !hint.contains("wmem"), "{hint}");
        assert!(granted(1_000, 1).unwrap_err().hint.unwrap().contains("net.core.wmem_max=1000"));
        assert!(descriptors(None).is_ok() && descriptors(Some(1_024)).is_ok());
        assert!(descriptors(Some(64)).unwrap_err().hint.unwrap().contains("ulimit -n"));
    }
}
