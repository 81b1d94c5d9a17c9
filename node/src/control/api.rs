//! The control API's words: what a client may ask and what it gets back, as JSON. The CLI's `--json` output is these
//! same objects with `"v":1` in front, so a script sees one shape whichever way it asks.
//!
//! Stable: fields may be added, never renamed or removed. `node/schemas` holds the JSON Schema of each.

mod networks;

use serde::{Deserialize, Serialize};

pub use self::networks::*;

/// Version of every object.
pub const VERSION: u32 = 1;

/// `{"v":1, ...}` around every reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Versioned<T> {
    pub v: u32,
    #[serde(flatten)]
    pub body: T,
}

impl<T> Versioned<T> {
    pub fn new(body: T) -> Versioned<T> {
        Versioned { v: VERSION, body }
    }
}

/// What went wrong, by what a caller can do about it. One table to HTTP statuses, one to exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    Failure,
    Usage,
    NotFound,
    Refused,
    TimedOut,
    NoNode,
    InUse,
    Damaged,
    NotDurable,
    TryAgain,
}

impl ErrorCode {
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorCode::Failure => 1,
            ErrorCode::Usage => 2,
            ErrorCode::NotFound => 3,
            ErrorCode::Refused => 4,
            ErrorCode::TimedOut => 5,
            ErrorCode::NoNode => 6,
            ErrorCode::InUse => 7,
            ErrorCode::Damaged => 8,
            ErrorCode::NotDurable => 9,
            ErrorCode::TryAgain => 75,
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            ErrorCode::Failure => 500,
            ErrorCode::Usage => 400,
            ErrorCode::NotFound => 404,
            ErrorCode::Refused => 403,
            ErrorCode::TimedOut => 504,
            ErrorCode::NoNode | ErrorCode::TryAgain | ErrorCode::Damaged => 503,
            ErrorCode::InUse => 409,
            ErrorCode::NotDurable => 507,
        }
    }
}

/// An error for a person or a script: what happened, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> ApiError {
        self.hint = Some(hint.into());
        self
    }
}

/// `{"v":1,"error":{..}}`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorReply {
    pub error: ApiError,
}

/// `POST /v1/trust`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRequest {
    /// Whole id, alias, hex, did or unambiguous prefix.
    pub peer: String,
    /// `HOST:PORT`, where to find the peer.
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub alias: Option<String>,
    #[serde(default)]
    pub note: Option<String>,
    /// How long the grant lasts, in milliseconds.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// Names of services; empty: all.
    #[serde(default)]
    pub scope: Vec<String>,
    /// How long to wait until trusted, in milliseconds; absent: only until durable.
    #[serde(default)]
    pub wait_ms: Option<u64>,
    /// A repeat with the same id is applied once.
    #[serde(default)]
    pub operation_id: Option<String>,
}

/// `POST /v1/reject`, `/v1/revoke`, `/v1/block`, `/v1/unblock`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerRequest {
    pub peer: String,
    /// Only for reject and revoke.
    #[serde(default)]
    pub note: Option<String>,
    /// The same: how long to wait for the peer's word that it knows, in milliseconds; absent: only until durable.
    #[serde(default)]
    pub wait_ms: Option<u64>,
    #[serde(default)]
    pub operation_id: Option<String>,
}

/// Reply to `trust`, `block` and `unblock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustReply {
    pub peer_id: String,
    pub state: String,
    pub revision: u64,
    pub durable: bool,
}

/// Reply to `reject` and `revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeReply {
    pub peer_id: String,
    pub state: String,
    pub revision: u64,
    pub durable: bool,
    pub sessions_closed: u32,
    pub delivered: bool,
}

/// `GET /v1/pending`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingReply {
    pub pending: Vec<PendingRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRow {
    pub peer_id: String,
    pub short: String,
    pub note: String,
    pub received_at: String,
    /// Address that the request came from.
    pub source: Option<String>,
    pub network: Option<String>,
    /// How many different requests this peer has made since we last decided.
    pub count: u32,
}

/// `GET /v1/peers?state=S`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersReply {
    pub peers: Vec<PeerRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    pub peer_id: String,
    pub short: String,
    pub alias: Option<String>,
    pub state: String,
    pub ours: Option<EdgeRow>,
    pub theirs: Option<EdgeRow>,
    pub addresses: Vec<String>,
    /// Whether the peer has our edge on its disk; null while we have none.
    pub delivered: Option<bool>,
    pub rule: Option<String>,
    pub last_seen: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeRow {
    /// `grant` or `revoke`.
    pub kind: String,
    pub epoch: u64,
    pub issued_at: String,
    pub expires_at: Option<String>,
    pub expired: bool,
    pub scope: Option<Vec<String>>,
    pub note: String,
    pub network: Option<String>,
}

/// `GET /v1/sessions`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsReply {
    pub sessions: Vec<SessionRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    pub session_id: String,
    pub peer_id: String,
    /// `dialer` or `listener`.
    pub role: String,
    pub remote: String,
    /// `active` or `closed`.
    pub state: String,
    pub reason: Option<String>,
    pub opened_at: String,
    pub closed_at: Option<String>,
}

/// `GET /v1/explain?peer=P`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainReply {
    pub peer_id: String,
    pub state: String,
    pub why: String,
    pub history: Vec<HistoryRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    pub at: String,
    pub cause: String,
    /// `operator`, `peer`, `rule:NAME` or `clock`.
    pub actor: String,
    pub revision: u64,
    pub from: String,
    pub to: String,
}

/// `GET /v1/status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    pub peer_id: String,
    /// `ok`, `degraded` or `closed`.
    pub health: String,
    pub reasons: Vec<String>,
    pub revision: u64,
    pub durable_revision: u64,
    pub counts: Counts,
    pub storage: Storage,
    pub data_dir: String,
    /// Empty when no node is running.
    pub listen: Vec<String>,
    /// How far this node is with the members of each network.
    pub networks: Vec<NetworkRow>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub trusted: u64,
    pub pending: u64,
    pub requested: u64,
    pub revoked: u64,
    pub refused: u64,
    pub blocked: u64,
    pub sessions: u64,
    /// Incoming connections that have not proven a key.
    pub half_open: u64,
    /// Those and the ones that are neither sessions nor at their end.
    pub under_way: u64,
    /// Statements of ours that their subjects do not hold yet.
    pub undelivered: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    pub failures_in_a_row: u32,
    pub last_error: Option<String>,
    pub fsyncs: u64,
    pub bytes_written: u64,
    pub checkpoints: u64,
}

/// `GET /v1/heartbeat?ticks=N`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// How late each tick was.
    pub late_us: Vec<u64>,
}

/// `POST /v1/ping`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingReply {
    pub peer_id: String,
    pub rtt_us: u64,
}

/// One line of `GET /v1/events?since=N&follow=true` (NDJSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    pub seq: u64,
    pub at: String,
    pub kind: String,
    pub peer_id: Option<String>,
    pub cause: String,
}

/// `store check`, for one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRow {
    pub file: String,
    pub kind: String,
    pub revision: u64,
    pub records: u64,
    pub bytes: u64,
    /// Those that are the last state of a record.
    pub live_bytes: u64,
    pub torn_bytes: u64,
    /// Digest of the last frame, which covers all frames before.
    pub chain: Option<String>,
    pub ok: bool,
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesReply {
    pub files: Vec<FileRow>,
}

/// `id`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdReply {
    pub peer_id: String,
    pub short: String,
    pub hex: String,
    pub did: String,
}

/// `init`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitReply {
    pub peer_id: String,
    pub data_dir: String,
    pub created: bool,
}

/// The line that `run` prints when it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyReply {
    pub event: String,
    pub peer_id: String,
    pub listen: Vec<String>,
    pub control: String,
}
